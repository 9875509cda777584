"""The command `truth`: rankings of heads against what ablating every head by itself does.

The truth is the mean change of log p(answer) on held-out prompts when a head is zeroed, in either
direction. The ceiling is how well one half of the prompts' source files ranks what the other says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from aplens.correctness import STATISTICS
from aplens.intervals import FileBootstrap, estimate_from
from aplens.interventions import HeadEffects, estimate_effects, measure_effects
from aplens.models import compute_in
from paper.parts import dtype_of, first_of_each

if TYPE_CHECKING:
    from aplens.study import Study
    from paper.settings import TruthSettings

#: Rankings are judged by what stands among their first so many heads.
BUDGETS = (10, 20, 40)

#: Heads that count as those that matter.
N_MATTER = 20

CEILING = "the other half of the prompts"


def rank_against_truth(study: Study, settings: TruthSettings) -> pd.DataFrame:
    """Ablate every head on held-out scenarios, and compare a study's rankings with what that does.

    Returns:
        As `compare_rankings`.
    """
    held_out, ranked_on = (
        study.folder.parts[part].select(first_of_each(study.folder.parts[part].tasks, n))
        for part, n in (("ablate", settings.per_task), ("rank", settings.attribution_per_task))
    )
    size = settings.batch_size
    with compute_in(study.model, dtype_of(settings.precision)):
        truth = measure_effects(
            study.model, held_out, batch_size=size, progress=study.reporter.update
        )
        estimates = estimate_effects(study.model, ranked_on, batch_size=size)
    importance = study.folder.shap.to_frame().set_index(["layer", "head"])["importance"]
    entropy = study.folder.observed_part("rank").numbers("statistics")[
        :, :, STATISTICS.index("last_entropy")
    ]
    scores = {
        f"SHAP of {study.settings.rank.features}": importance.loc[list(truth.heads)].to_numpy(),
        "attribution": abs(estimates.values.mean(axis=1)),
        "low entropy of the last query": -entropy.mean(axis=0),
        "high entropy of the last query": entropy.mean(axis=0),
    }
    return compare_rankings(truth, scores, seed=study.settings.seed)


def compare_rankings(
    truth: HeadEffects,
    scores: Mapping[str, Float[np.ndarray, " head"]],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """How well scores of heads agree with measured effects.

    Returns:
        One row a ranking, with a random one and the ceiling: `ranking`, `correlation` (Spearman
        with the mean effect's size), and for each budget k `recall_k`, the share of the heads that
        matter among its first k; each with `_low` and `_high`, 95 % over resampled source files of
        the truth (of the ceiling, over halves).
    """
    n_heads = len(truth.heads)
    budgets = [budget for budget in BUDGETS if budget <= n_heads]
    for name, values in scores.items():
        if np.shape(values) != (n_heads,) or not np.isfinite(values).all():
            raise ValueError(f"{name}: expected a finite score for each of {n_heads} heads")
    weights = FileBootstrap(truth.groups, n_resamples=200, seed=seed).weights
    sizes = np.abs(weights @ truth.values.T / weights.sum(axis=1, keepdims=True))
    rng = np.random.default_rng(seed)
    rows = []
    for name, values in {**scores, "random": rng.random(n_heads)}.items():
        measured = [_agree(values, size, budgets) for size in sizes]
        rows.append(_row(name, np.array(measured), budgets))
    halves = [_halves(truth, rng) for _ in range(50)]
    measured = [_agree(one, other, budgets) for one, other in halves]
    rows.append(_row(CEILING, np.vstack([np.mean(measured, axis=0), measured]), budgets))
    return pd.DataFrame(rows)


def _agree(
    scores: Float[np.ndarray, " head"],
    sizes: Float[np.ndarray, " head"],
    budgets: Sequence[int],
) -> list[float]:
    from scipy.stats import spearmanr

    matter = set(np.argsort(-sizes, kind="stable")[:N_MATTER])
    order = np.argsort(-scores, kind="stable")
    recalls = [len(matter.intersection(order[:budget])) / len(matter) for budget in budgets]
    constant = np.ptp(scores) == 0 or np.ptp(sizes) == 0
    return [np.nan if constant else float(spearmanr(scores, sizes).statistic), *recalls]


def _halves(
    truth: HeadEffects, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, " head"]]:
    """Mean effects' sizes on two halves of the source files."""
    files = np.array(truth.groups)
    names = rng.permutation(np.unique(files))
    first = np.isin(files, names[: max(1, len(names) // 2)])
    second = ~first if (~first).any() else first
    one, other = (np.abs(truth.values[:, part].mean(axis=1)) for part in (first, second))
    return one, other


def _row(
    name: str, measured: Float[np.ndarray, "resample measure"], budgets: Sequence[int]
) -> dict[str, float | str]:
    row: dict[str, float | str] = {"ranking": name}
    measures = ["correlation", *(f"recall_{budget}" for budget in budgets)]
    for measure, values in zip(measures, measured.T, strict=True):
        row |= estimate_from(values).columns(measure)
    return row
