"""Observations: what each head's pattern looked like on each scenario, and how the model did."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from aplens.heads import Head
from aplens.scoring.shards import ShardFolder

if TYPE_CHECKING:
    import pandas as pd

_ArraySource: TypeAlias = "np.ndarray | Callable[[], np.ndarray]"

#: The columns of an observations table.
COLUMNS = (
    "scenario",
    "task",
    "file",
    "line",
    "target",
    "predicted",
    "correct",
    "top_probability",
    "entropy",
    "target_log_probability",
    "logit_difference",
)


class Observations:
    """Embeddings of every head on every scenario, beside the model's outcome.

    Args:
        table: One row a scenario with the columns of `COLUMNS`: the scenario's number, its `task`,
            `file` and `line`; the `target` token and the `predicted` one, whether they agree
            (`correct`); the `top_probability`, the `entropy` of the prediction in nats, the
            target's log probability, and its logit less that of the wrong answer (NaN without).
        heads: The heads observed.
        embeddings: `Float16[ndarray, "scenario head d_embed"]`, or a function that loads it.
        statistics: `Float32[ndarray, "scenario head 8"]` (`STATISTICS` names them), or a function
            that loads it; None when they were not computed.
        model_name: The model observed.
        n_layers: Its layers.
        n_heads: Its heads a layer.

    Raises:
        ValueError: When a column is missing, or an array's shape does not fit.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        heads: Sequence[Head],
        embeddings: _ArraySource,
        statistics: _ArraySource | None = None,
        *,
        model_name: str,
        n_layers: int,
        n_heads: int,
    ) -> None:
        missing = [column for column in COLUMNS if column not in table.columns]
        if missing:
            raise ValueError(f"observations need the columns {list(COLUMNS)}; missing {missing}")
        self.table = table.reset_index(drop=True)
        self.heads = tuple(heads)
        self.model_name = model_name
        self.n_layers = n_layers
        self.n_heads = n_heads
        self._embeddings = embeddings
        self._statistics = statistics
        for name, source in (("embeddings", embeddings), ("statistics", statistics)):
            if isinstance(source, np.ndarray):  # what is not loaded yet is checked when it is
                self._check_shape(name, source)

    def __len__(self) -> int:
        """Scenarios."""
        return len(self.table)

    def __repr__(self) -> str:
        return (
            f"Observations({len(self)} scenarios × {len(self.heads)} heads of {self.model_name}, "
            f"{self.table['correct'].mean():.1%} correct)"
        )

    @cached_property
    def embeddings(self) -> Float[np.ndarray, "scenario head d_embed"]:
        """The AP-MAE's embeddings, loaded when first asked for."""
        return self._load("embeddings", self._embeddings)

    @cached_property
    def statistics(self) -> Float[np.ndarray, "scenario head statistic"]:
        """The hand-made statistics, loaded when first asked for.

        Raises:
            ValueError: When the observations were made without them.
        """
        if self._statistics is None:
            raise ValueError("these observations have no statistics: observe with statistics=True")
        return self._load("statistics", self._statistics)

    @property
    def files(self) -> list[str]:
        """Each scenario's source file: the groups of every split."""
        return list(self.table["file"])

    def select(self, indices: Sequence[int] | np.ndarray) -> Observations:
        """The scenarios at these positions, or where a boolean mask is true; nothing is loaded."""
        rows = np.arange(len(self))[np.asarray(indices)]
        return self._derive(
            self.table.iloc[rows], lambda: self.embeddings[rows], lambda: self.statistics[rows]
        )

    def with_outcomes(self, correct: Bool[np.ndarray, " scenario"]) -> Observations:
        """The same observations with another meaning of correct; nothing is loaded."""
        return self._derive(
            self.table.assign(correct=correct), lambda: self.embeddings, lambda: self.statistics
        )

    def load(self) -> Observations:
        """Read everything into memory, so that the folder is no longer needed."""
        _ = self.embeddings
        if self._statistics is not None:
            _ = self.statistics
        return self

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Observations:
        """Open what `observe` wrote: the table now, the arrays when they are asked for.

        Raises:
            FileNotFoundError: When there are no observations in the folder.
            ValueError: When they are unfinished, or a shard is damaged (it is named).
        """
        shards = ShardFolder.open(Path(folder))
        shards.require_complete()
        run = shards.run
        return cls(
            shards.read_table(),
            [Head(*head) for head in run["heads"]],
            lambda: shards.read_array("embeddings"),
            (lambda: shards.read_array("statistics")) if run["statistics"] else None,
            model_name=run["model_name"],
            n_layers=run["n_layers"],
            n_heads=run["n_heads"],
        )

    def _derive(
        self,
        table: pd.DataFrame,
        embeddings: Callable[[], np.ndarray],
        statistics: Callable[[], np.ndarray],
    ) -> Observations:
        """Observations of the same heads; no statistics where these have none."""
        return Observations(
            table,
            self.heads,
            embeddings,
            None if self._statistics is None else statistics,
            model_name=self.model_name,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
        )

    def _load(self, name: str, source: _ArraySource) -> np.ndarray:
        values = source if isinstance(source, np.ndarray) else source()
        self._check_shape(name, values)
        return values

    def _check_shape(self, name: str, values: np.ndarray) -> None:
        expected = (len(self), len(self.heads))
        if values.ndim != 3 or values.shape[:2] != expected:
            raise ValueError(
                f"expected {name} (scenario, head, …) = {expected} + (…,), got {values.shape}"
            )
