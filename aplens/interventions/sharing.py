"""In which order to run many choices of heads so that they share what comes before they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from aplens.heads import Head

Name = TypeVar("Name")


class Step(NamedTuple, Generic[Name]):
    """One run of the model, with the heads of the choice `name`.

    It differs from every run before from the layer `start` on, as many as the model has layers when
    it does not differ; one of them kept the residual stream entering it. Later runs begin with that
    entering the layers `keep`.
    """

    name: Name
    heads: tuple[Head, ...]
    start: int
    keep: tuple[int, ...]


def plan_runs(
    choices: Mapping[Name, Sequence[Head]], n_layers: int, *, midway: bool = True
) -> list[Step[Name]]:
    """Order runs so that each begins where it first differs from the one before.

    Choices that agree on all heads of the layers before L compute the same up to there. Sorted by
    their heads, layer by layer, a choice shares at least as many layers with its predecessor as
    with any other before it (as words in a dictionary do letters). Without `midway` every run
    begins at the first layer.
    """
    by_layer = {name: _heads_by_layer(heads, n_layers) for name, heads in choices.items()}
    order = sorted(by_layer, key=lambda name: by_layer[name])
    starts = [0] * len(order)
    for place in range(1, len(order)):
        before, now = by_layer[order[place - 1]], by_layer[order[place]]
        alike = (a == b for a, b in zip(before, now, strict=True))
        first = next((layer for layer, same in enumerate(alike) if not same), n_layers)
        starts[place] = first if midway or first == n_layers else 0
    return [
        Step(name, tuple(choices[name]), starts[place], _layers_to_keep(starts, place, n_layers))
        for place, name in enumerate(order)
    ]


def _heads_by_layer(heads: Sequence[Head], n_layers: int) -> list[tuple[int, ...]]:
    members: list[list[int]] = [[] for _ in range(n_layers)]
    for layer, head in sorted(set(heads)):
        members[layer].append(head)
    return [tuple(layer) for layer in members]


def _layers_to_keep(starts: Sequence[int], place: int, n_layers: int) -> tuple[int, ...]:
    """Where later runs branch off this one; earlier branches were kept by the runs before it."""
    layers, nearest = [], n_layers
    for start in starts[place + 1 :]:
        if start <= starts[place]:
            break
        if start < nearest:
            layers.append(start)
            nearest = start
    return tuple(sorted(layers))
