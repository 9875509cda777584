"""Splits of scenarios by source file: a file's scenarios are alike, so no file is on two sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from aplens.correctness.observations import Observations, incorrect_labels


def assign_folds(
    observations: Observations, n_folds: int, seed: int
) -> Int[np.ndarray, " scenario"]:
    """Number each scenario's fold: whole files, outcomes as even as files allow.

    Raises:
        ValueError: When there is only one outcome, or fewer files than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    incorrect = incorrect_labels(observations)
    n_files = len(set(observations.files))
    if not 2 <= n_folds <= n_files:
        raise ValueError(
            f"n_folds must be between 2 and the number of source files, {n_files}; got {n_folds}"
        )
    if min(incorrect.sum(), (~incorrect).sum()) < n_folds:
        raise ValueError(
            f"{n_folds} folds need {n_folds} scenarios of either outcome, got "
            f"{incorrect.sum()} incorrect and {(~incorrect).sum()} correct"
        )
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = np.empty(len(observations), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(incorrect, incorrect, observations.files)):
        folds[held_out] = fold
    return folds


def split_by_file(
    observations: Observations, test_fraction: float, seed: int
) -> tuple[Observations, Observations]:
    """Divide into training and test observations, whole source files on one side.

    Raises:
        ValueError: When the fraction is not between 0 and 1, or there are fewer than two files.
    """
    from sklearn.model_selection import GroupShuffleSplit

    files = observations.files
    check_split(files, test_fraction)
    splitter = GroupShuffleSplit(1, test_size=test_fraction, random_state=seed)
    train, test = next(splitter.split(files, groups=files))
    return observations.select(train), observations.select(test)


def check_split(files: Sequence[str], test_fraction: float) -> None:
    """Refuse what `split_by_file` cannot divide, before work is done."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    if len(set(files)) < 2:
        raise ValueError(f"a split by source file needs 2 files or more, got {len(set(files))}")


def require_disjoint_files(train: Sequence[str], test: Sequence[str]) -> None:
    """Refuse a test that shares source files with the training side."""
    shared = sorted(set(train) & set(test))
    if shared:
        raise ValueError(
            f"{len(shared)} source files are in both training and test, such as {shared[0]!r}: "
            "split by file"
        )
