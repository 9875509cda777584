"""Predictions on held-out folds, kept as they are made: an interrupt costs one predictor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from aplens._documents import read_document
from aplens._io import describe_differences, fingerprint, write_json
from aplens.scoring.observations import Observations

_FORMAT = "aplens.predictions"


class FoldPredictions:
    """Probabilities of *incorrect*, by feature set and fold.

    Args:
        path: The file to keep them in, JSON; None keeps nothing.
        setup: What the predictions depend on, JSON-able.

    Raises:
        ValueError: When the file is damaged, or holds predictions of something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None, setup: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._setup = setup
        self._made: dict[str, list[float]] = {}
        if self._path is not None and self._path.is_file():
            self._made = _read(self._path, setup)

    def get(self, features: str, fold: int, n: int) -> Float[np.ndarray, " scenario"] | None:
        """What was predicted before for the fold's `n` scenarios; None when nothing was."""
        values = self._made.get(f"{features}, fold {fold}")
        return np.array(values, dtype=float) if values is not None and len(values) == n else None

    def put(self, features: str, fold: int, values: Float[np.ndarray, " scenario"]) -> None:
        """Keep what was predicted."""
        self._made[f"{features}, fold {fold}"] = values.tolist()
        if self._path is not None:
            content = {"format": _FORMAT, "version": 1, "setup": self._setup}
            content |= {"predictions": self._made}
            write_json(self._path, content)


def describe_data(observations: Observations) -> str:
    """A fingerprint of what predictors see: all outcomes, and the first and last head's pattern."""
    columns = ["file", "task", "correct", "top_probability", "entropy"]
    table = observations.table[columns].to_dict(orient="list")
    n_heads = observations.embeddings.shape[1]
    ends = [
        np.asarray(observations.embeddings[:, head]).tobytes().hex() for head in {0, n_heads - 1}
    ]
    return fingerprint([table, ends])


def _read(path: Path, setup: dict[str, Any]) -> dict[str, list[float]]:
    content = read_document(path, "predictions", _FORMAT, 1)
    if differences := list(describe_differences(content.get("setup"), setup)):
        raise ValueError(
            f"{path} holds predictions of something else ({'; '.join(differences)}): delete it, or "
            "choose another file"
        )
    made = content.get("predictions")
    if not isinstance(made, dict) or not all(_are_probabilities(v) for v in made.values()):
        raise ValueError(f"{path} is damaged: its predictions are no lists of probabilities")
    return made


def _are_probabilities(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and 0 <= value <= 1 for value in values
    )
