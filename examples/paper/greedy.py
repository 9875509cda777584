"""Greedy choice of heads: one after another, each the one that helps most beside those chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aplens.heads import Head


class GreedyChoice(NamedTuple):
    """What a greedy search chose.

    Attributes:
        heads: The heads in the order in which they were chosen.
        scores: The score without any, then after each of them.
    """

    heads: tuple[Head, ...]
    scores: tuple[float, ...]


def choose_greedily(
    score: Callable[[Sequence[Head]], float],
    candidates: Sequence[Head],
    n_heads: int,
    *,
    n_tried: int = 8,
) -> GreedyChoice:
    """Add the head that raises the score most, until none does or there are `n_heads`.

    Candidates stand most promising first; of those left the first `n_tried` are tried at each step.
    Costs at most 1 + n_heads × n_tried scores. Score on held-out prompts: the search takes the best
    of many tries, so that its own score is too good to be true.
    """
    if not candidates or len(set(candidates)) < len(candidates):
        raise ValueError(f"expected candidates, each once, got {list(map(str, candidates))}")
    for name, value in (("n_heads", n_heads), ("n_tried", n_tried)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    chosen: tuple[Head, ...] = ()
    scores = [score(())]
    while len(chosen) < n_heads:
        left = [head for head in candidates if head not in chosen][:n_tried]
        found = {head: score((*chosen, head)) for head in left}
        best = max(found, key=lambda head: found[head], default=None)
        if best is None or found[best] <= scores[-1]:
            break
        chosen = (*chosen, best)
        scores.append(found[best])
    return GreedyChoice(chosen, tuple(scores))
