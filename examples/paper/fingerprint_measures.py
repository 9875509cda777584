"""Measures of descriptions of heads: are heads told apart, are kin found, do clusters stay?"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens.intervals import Estimate, FileBootstrap, estimate_from
from aplens.patterns import DETECTED
from paper.fingerprint_samples import unit

#: Resamples of prompts for the figures on kin.
_RESAMPLES = 200

#: Heads of the asked model that are strongest in a template, those of the other model that count
#: as a hit, and how many of the nearest are looked at.
_ASKED, _STRONGEST, _NEAREST = 4, 12, 3


def found_again(
    first: Float[Tensor, "prompt head d"], second: Float[Tensor, "prompt head d"], n: int
) -> Estimate:
    """How often a head's nearest among all heads is itself: top 1 from `n` prompts a side.

    Prompts are taken in groups of `n`, each used once. The interval resamples groups; one group
    alone has none.
    """
    own = torch.arange(first.shape[1])
    hits = []
    for start in range(0, len(first) - n + 1, n):
        rows = slice(start, start + n)
        nearest = (unit(first[rows].mean(0)) @ unit(second[rows].mean(0)).T).argmax(1)
        hits.append(float((nearest == own).float().mean()))
    estimate = FileBootstrap([str(i) for i in range(len(hits))]).mean(np.array(hits))
    return estimate if len(hits) > 1 else Estimate(estimate.value, np.nan, np.nan)


def kin(
    known: Float[Tensor, "prompt other_head d"],
    asked: Float[Tensor, "some head d"],
    known_scores: Float[Tensor, "other_head kind"],
    asked_scores: Float[Tensor, "head kind"],
    centred: bool = False,
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Whether heads that are near each other in two models do the same.

    Vectors are of length 1; `centred`, the mean over the heads of both is taken off first.

    Returns:
        By kind: the correlation, over the heads asked, of their score and their nearest head's;
        and the share of the heads strongest in that kind that have one of the other model's
        strongest among their three nearest. Intervals resample prompts.
    """
    draws = [_resamples(len(vectors)) for vectors in (known, asked)]
    correlations = np.zeros((len(DETECTED), _RESAMPLES + 1))
    hits = np.zeros_like(correlations)
    for place, (first, second) in enumerate(zip(*draws, strict=True)):
        order = _nearest(known, asked, first, second, centred)
        for kind in range(len(DETECTED)):
            theirs, ours = known_scores[:, kind], asked_scores[:, kind]
            pairs = torch.stack([ours, theirs[order[:, 0]]])
            correlations[kind, place] = torch.corrcoef(pairs)[0, 1].nan_to_num()
            found = torch.isin(order, theirs.topk(min(_STRONGEST, len(theirs))).indices).any(1)
            hits[kind, place] = found[ours.topk(min(_ASKED, len(ours))).indices].float().mean()
    return tuple(
        {name: estimate_from(values[kind]) for kind, name in enumerate(DETECTED)}
        for values in (correlations, hits)
    )  # type: ignore[return-value]


def _resamples(n: int) -> Float[np.ndarray, "resample prompt"]:
    """How often each prompt was drawn; the first row is the sample itself."""
    drawn = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), _RESAMPLES)
    return np.vstack([np.ones(n), drawn])


def chance_of_kin(n_heads: int) -> float:
    """The share that heads drawn at random would have among the hits of `kin`."""
    return 1 - (1 - _STRONGEST / n_heads) ** _NEAREST


def _nearest(
    known: Tensor, asked: Tensor, first: np.ndarray, second: np.ndarray, centred: bool
) -> Int[Tensor, "head 3"]:
    means = [
        torch.einsum("p,phd->hd", torch.tensor(weights / weights.sum(), dtype=x.dtype), x)
        for weights, x in ((first, known), (second, asked))
    ]
    centre = torch.cat(means).mean(0) if centred else torch.zeros(())
    theirs, ours = (unit(mean - centre) for mean in means)
    return (ours @ theirs.T).topk(min(_NEAREST, len(theirs)), dim=1).indices


def stability(values: Float[Tensor, "prompt head d"], n_clusters: int = 100) -> dict[str, float]:
    """Whether clusters of all patterns come again: adjusted Rand index of k-means with a refit.

    Returns:
        "seed": against a refit that starts elsewhere; "half": against fits on either half of the
        prompts, which then place all patterns. Means of two.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    rows = values.flatten(0, 1).numpy()
    parts = [values[::2].flatten(0, 1).numpy(), values[1::2].flatten(0, 1).numpy()]
    n = max(2, min(n_clusters, len(rows) // 10))

    def label(fitted: np.ndarray, seed: int) -> np.ndarray:
        return KMeans(n, n_init=1, random_state=seed).fit(fitted).predict(rows)

    whole = label(rows, 0)
    seeds = [adjusted_rand_score(whole, label(rows, seed)) for seed in (1, 2)]
    halves = [adjusted_rand_score(whole, label(part, 0)) for part in parts]
    return {"seed": float(np.mean(seeds)), "half": float(np.mean(halves))}
