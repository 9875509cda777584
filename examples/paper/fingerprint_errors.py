"""Does the distance from a head's usual fingerprint tell errors, beside what tells them already?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor

import aplens
from aplens.correctness import describe_outcomes, pattern_statistics
from aplens.heads import Head
from aplens.intervals import Estimate, FileBootstrap, estimate_from
from aplens.models import describe_model
from aplens.patterns import stream_patterns
from aplens.scenarios import Scenarios
from aplens.study import atomic_write

#: What predictors read, each alone and in these company.
SETS = (
    ("confidence",),
    ("statistics",),
    ("surprise",),
    ("distance",),
    ("distance", "confidence"),
    ("surprise", "confidence"),
    ("surprise", "statistics", "confidence"),
    ("distance", "surprise", "statistics", "confidence"),
)

#: Every so many of the heads are looked at.
_EVERY = 3
_FOLDS = 5
_BATCH = 8


@torch.no_grad()
def observe_errors(
    path: Path,
    model: Any,
    mae: aplens.APMAE,
    scenarios: Scenarios,
    progress: Callable[[int, int], object],
) -> dict[str, Tensor]:
    """Each scenario's outcome, its heads' fingerprints, statistics and surprise, kept in a file.

    Surprise is read off `APMAE.expect` at the last query: half the sum of the differences, the
    largest, and their mean weighted by attention.
    """
    if path.exists():
        return load_file(path)
    heads: tuple[Head, ...] = describe_model(model).heads[::_EVERY]
    targets = torch.tensor([scenario.target for scenario in scenarios])
    parts: dict[str, list[Tensor]] = {}
    for rows, patterns, logits in stream_patterns(model, scenarios, heads, _BATCH):
        attention = patterns.values  # scenarios are of one length
        last = attention[..., -1, :]
        difference = last - mae.expect(attention)[..., 0, :]
        surprise = (difference.abs().sum(-1) / 2, difference.amax(-1), (last * difference).sum(-1))
        outcomes = describe_outcomes(logits, targets[rows])
        numbers = {
            "fingerprint": mae.fingerprint(attention),
            "statistics": pattern_statistics(attention),
            "surprise": torch.stack(surprise, dim=-1),
            "confidence": torch.tensor(outcomes[["top_probability", "entropy"]].to_numpy()),
            "correct": torch.tensor(outcomes["correct"].to_numpy()),
        }
        for name, values in numbers.items():
            parts.setdefault(name, []).append(values)
        progress(rows.stop, len(scenarios))
    found = {name: torch.cat(values).contiguous() for name, values in parts.items()}
    with atomic_write(path) as temporary:
        save_file(found, temporary)
    return found


def predict_errors(
    found: dict[str, Tensor], files: Sequence[str], seed: int = 0
) -> dict[str, tuple[Estimate, Estimate]]:
    """AUC for the model's errors of each of `SETS`, and what each adds to confidence.

    Logistic regression, five folds by source file; a head's usual fingerprint is the mean over the
    training folds. Intervals resample files.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    wrong = ~found["correct"].numpy()
    splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    scores = {names: np.zeros(len(wrong)) for names in SETS}
    folds = np.zeros(len(wrong), dtype=int)
    for fold, (train, test) in enumerate(splitter.split(wrong, wrong, files)):
        folds[test] = fold
        blocks = _blocks(found, train)
        for names in SETS:
            columns = np.concatenate([_scaled(blocks[name], train) for name in names], axis=1)
            scores[names][test] = _fit(columns, wrong, train, test)
    bootstrap = FileBootstrap(files, seed=seed)
    confidence = bootstrap.auc_values(scores[("confidence",)], wrong, folds)
    values = {names: bootstrap.auc_values(scores[names], wrong, folds) for names in SETS}
    return {
        " + ".join(names): (estimate_from(auc), estimate_from(auc - confidence))
        for names, auc in values.items()
    }


def _blocks(
    found: dict[str, Tensor], train: np.ndarray
) -> dict[str, Float[np.ndarray, "scenario column"]]:
    usual = torch.nn.functional.normalize(found["fingerprint"][train].mean(0), dim=-1)
    numbers = {**found, "distance": 1 - (found["fingerprint"] * usual).sum(-1)}
    names = ("confidence", "statistics", "surprise", "distance")
    return {name: numbers[name].flatten(1).double().numpy() for name in names}


def _scaled(
    columns: Float[np.ndarray, "scenario column"], train: np.ndarray
) -> Float[np.ndarray, "scenario column"]:
    """Each kind of number with the same total variance, however many columns it has."""
    mean, spread = columns[train].mean(0), columns[train].std(0)
    return (columns - mean) / np.where(spread > 0, spread, 1) / columns.shape[1] ** 0.5


def _fit(
    columns: Float[np.ndarray, "scenario column"],
    wrong: Bool[np.ndarray, " scenario"],
    train: np.ndarray,
    test: np.ndarray,
) -> Float[np.ndarray, " tested"]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000).fit(columns[train], wrong[train])
    return model.decision_function(columns[test])
