"""The typical patterns of a head's clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from aplens._progress import Progress, show_progress
from aplens.correctness.clusters import FEWEST_SCENARIOS, HeadClusters, Reducer, unit_rows
from aplens.heads import Head
from aplens.patterns import collect_patterns, log_normalize, stream_patterns
from aplens.patterns.templates import TEMPLATES, template_scores
from aplens.prompts import read_prompts
from aplens.views.apart import count_tasks, tell_apart

if TYPE_CHECKING:
    from aplens.mae import APMAE
    from aplens.scenarios import Scenarios

_BATCH_SIZE = 8

#: Patterns shown of a cluster.
N_TYPICAL = 3


@dataclass(frozen=True)
class ClusterPatterns:
    """One cluster of a head's patterns, which are log-normalized; -1 labels what is in none.

    A cell of `mean` is averaged over the prompts long enough to have it. `difference` is `mean`
    minus that of all other scenarios, NaN in a cell that none of them has. `typical` has the places
    of the scenarios nearest to the centre, nearest first, with their patterns; `apart` what tells
    its scenarios from all others, in words.
    """

    label: int
    members: Int[np.ndarray, " member"]
    accuracy: float
    mean: Float[np.ndarray, "query key"]
    typical: list[tuple[int, Float[np.ndarray, "query key"]]]
    difference: Float[np.ndarray, "query key"]
    apart: list[str]


def find_typical_patterns(
    model: Any,
    scenarios: Scenarios,
    head: Head,
    *,
    mae: APMAE,
    reducer: Reducer,
    progress: bool | Progress = True,
) -> list[ClusterPatterns]:
    """Cluster a head's patterns, the largest cluster first and what is in none last."""
    clusters = HeadClusters(reducer)  # refuses a wrong reducer before the model runs
    if len(scenarios) < FEWEST_SCENARIOS:
        raise ValueError(
            f"clustering needs at least {FEWEST_SCENARIOS} scenarios, got {len(scenarios)}"
        )
    tell, n = show_progress(progress, "Finding clusters"), len(scenarios)
    embeddings, correct = _observe_head(model, scenarios, head, mae, lambda done: tell(done, 2 * n))
    labels = clusters.fit(embeddings[:, None]).labels_[:, 0]
    nearest = {
        label: _nearest_to_centre(embeddings, np.flatnonzero(labels == label))
        for label in np.unique(labels).tolist()
    }
    read = _read_patterns(
        _patterns(model, scenarios, head, lambda done: tell(n + done, 2 * n)),
        scenarios,
        labels,
        {i for places in nearest.values() for i in places},
    )
    facts = {
        f"attention to {name.replace('_', ' ')} {{:.2f}}": read.templates[:, place]
        for place, name in enumerate(TEMPLATES)
        if name != "uniform"
    }
    facts |= count_tasks([scenario.task for scenario in scenarios])
    facts["{:.0f} tokens"] = np.array([len(scenario.prompt) for scenario in scenarios], float)
    found = [
        ClusterPatterns(
            label,
            members := np.flatnonzero(labels == label),
            float(correct[members].mean()),
            read.mean(label),
            [(place, read.wanted[place]) for place in places],
            read.difference(label),
            tell_apart(facts, labels == label),
        )
        for label, places in nearest.items()
    ]
    return sorted(found, key=lambda cluster: (cluster.label < 0, -len(cluster.members)))


def _observe_head(
    model: Any, scenarios: Scenarios, head: Head, mae: APMAE, tell: Callable[[int], object]
) -> tuple[Float[np.ndarray, "scenario d_embed"], Bool[np.ndarray, " scenario"]]:
    """A head's embedding of every scenario, and whether the model is right."""
    prompts = read_prompts(model, scenarios)
    mae.grid.n_rows_for(prompts.n_tokens)  # refuses prompts that are too long for it
    targets = scenarios.targets()
    embeddings, correct = [], []
    for rows, patterns, logits in stream_patterns(model, prompts, [head], _BATCH_SIZE):
        embeddings.append(mae.encode(patterns)[:, 0].cpu())
        correct.append(logits.argmax(-1).cpu() == targets[rows])
        tell(rows.stop)
    return torch.cat(embeddings).numpy(), torch.cat(correct).numpy()


def _nearest_to_centre(
    embeddings: Float[np.ndarray, "scenario d_embed"], members: Int[np.ndarray, " member"]
) -> list[int]:
    """Places of the members whose direction is nearest to that of the members' mean."""
    rows = unit_rows(embeddings[members])
    order = np.argsort(-(rows @ rows.mean(axis=0)), kind="stable")
    return members[order[:N_TYPICAL]].tolist()


class _Read(NamedTuple):
    """By cluster its summed patterns, and how many each of their cells has."""

    sums: dict[int, np.ndarray]
    counts: dict[int, np.ndarray]
    wanted: dict[int, np.ndarray]
    templates: Float[np.ndarray, "scenario template"]

    def mean(self, label: int) -> Float[np.ndarray, "query key"]:
        return self.sums[label] / np.maximum(self.counts[label], 1)

    def difference(self, label: int) -> Float[np.ndarray, "query key"]:
        """The mean of a cluster minus that of all others; NaN where these have no cell."""
        size = len(self.sums[label])
        sums, counts = np.zeros((size, size)), np.zeros((size, size))
        for other in self.sums.keys() - {label}:
            n = min(size, len(self.sums[other]))
            sums[:n, :n] += self.sums[other][:n, :n]
            counts[:n, :n] += self.counts[other][:n, :n]
        return self.mean(label) - np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _read_patterns(
    patterns: Iterable[Float[torch.Tensor, "query key"]],
    scenarios: Scenarios,
    labels: Int[np.ndarray, " scenario"],
    wanted: set[int],
) -> _Read:
    longest: dict[int, int] = {}
    for place, label in enumerate(labels.tolist()):
        longest[label] = max(longest.get(label, 0), len(scenarios[place].prompt))
    sums = {label: np.zeros((n, n)) for label, n in longest.items()}
    counts = {label: np.zeros((n, n)) for label, n in longest.items()}
    shown: dict[int, np.ndarray] = {}
    templates = []
    for place, pattern in enumerate(patterns):
        n, label = len(pattern), int(labels[place])
        scaled = log_normalize(pattern).numpy()
        sums[label][:n, :n] += scaled
        counts[label][:n, :n] += 1
        templates.append(template_scores(pattern, torch.tensor(scenarios[place].prompt)).numpy())
        if place in wanted:
            shown[place] = scaled
    return _Read(sums, counts, shown, np.stack(templates))


def _patterns(
    model: Any, scenarios: Scenarios, head: Head, tell: Callable[[int], object]
) -> Iterator[Float[torch.Tensor, "query key"]]:
    """A head's pattern of every scenario; the model stops after its layer."""
    n_done = 0
    for batch in read_prompts(model, scenarios).split(_BATCH_SIZE):
        patterns = collect_patterns(model, batch, [head])
        for index in range(len(batch)):
            yield patterns.prompt(index)[0].float().cpu()
        n_done += len(batch)
        tell(n_done)
