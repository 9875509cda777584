"""Observations: what each head's pattern looked like on each scenario, and how the model did."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from aplens.correctness.head_array import HeadArray, HeadValues
from aplens.correctness.shards import ShardFolder
from aplens.heads import Head, ModelShape
from aplens.tables import Shown

if TYPE_CHECKING:
    import pandas as pd

#: What `observe` can keep beside embeddings and outcomes.
Keep: TypeAlias = Literal["statistics", "surprise"]

_ArraySource: TypeAlias = "HeadValues | Callable[[], HeadValues]"

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

#: Numbers that may be kept of every head beside its embedding, by what `keep` has to name.
HEAD_NUMBERS: dict[str, Keep] = {
    "statistics": "statistics",  # eight hand-made ones
    "regions": "statistics",  # shares of the last query's attention by region, hand-made too
    "surprise": "surprise",  # how the last query departs from what AP-MAE expects
    "unexpected": "surprise",  # the same by region
}


class Observations(Shown):
    """Embeddings of every head on every scenario, beside the model's outcome.

    Args:
        table: One row a scenario with the columns of `COLUMNS`: the scenario's number, its `task`,
            `file` and `line`; the `target` token and the `predicted` one, whether they agree
            (`correct`); the `top_probability`, the `entropy` of the prediction in nats, the
            target's log probability, and its logit less that of the wrong answer (NaN without).
        heads: The heads observed.
        embeddings: `Float16[ndarray, "scenario head d_embed"]`, a `HeadArray`, or a function that
            gives either.
        numbers: By the names of `HEAD_NUMBERS`, those that were computed:
            `Float32[ndarray, "scenario head number"]`, or a function that loads it. Of
            "statistics" there are 8 a head (`STATISTICS` names them), of "regions" and "unexpected"
            6 (`REGIONS`), of "surprise" 4 (`SURPRISES`).
        model: The model observed, as `describe_model` describes it.
        mae: A fingerprint of the AP-MAE that encoded, None where it is not known: embeddings of
            others do not compare.

    Raises:
        ValueError: When a column is missing, numbers are unknown, or an array's shape does not fit.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        heads: Sequence[Head],
        embeddings: _ArraySource,
        numbers: Mapping[str, _ArraySource] | None = None,
        *,
        model: ModelShape,
        mae: str | None = None,
    ) -> None:
        missing = [column for column in COLUMNS if column not in table.columns]
        if missing:
            raise ValueError(f"observations need the columns {list(COLUMNS)}; missing {missing}")
        self.table = table.reset_index(drop=True)
        self.heads = tuple(heads)
        self.model = model
        self.mae = mae
        self._sources: dict[str, _ArraySource] = {"embeddings": embeddings, **(numbers or {})}
        self._loaded: dict[str, HeadValues] = {}
        if unknown := sorted(self._sources.keys() - HEAD_NUMBERS.keys() - {"embeddings"}):
            raise ValueError(f"numbers must be some of {list(HEAD_NUMBERS)}, got {unknown}")
        for name, source in self._sources.items():
            if not callable(source):  # what is not loaded yet is checked when it is
                self._load(name)

    def __len__(self) -> int:
        """Scenarios."""
        return len(self.table)

    def __repr__(self) -> str:
        return (
            f"Observations({len(self)} scenarios × {len(self.heads)} heads of {self.model.name}, "
            f"{self.table['correct'].mean():.1%} correct)"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a scenario, with the columns of `COLUMNS`; a copy of `table`."""
        return self.table.copy()

    def _shown_rows(self) -> pd.DataFrame:
        by_task = self.table.groupby("task", sort=False)
        frame = by_task.agg(scenarios=("correct", "size"), correct=("correct", "mean"))
        return frame.reset_index()

    @property
    def embeddings(self) -> HeadValues:
        """The AP-MAE's embeddings, `Float16["scenario head d_embed"]`.

        Where they are on disk, a `HeadArray`: each head is read when it is asked for, so that they
        may be larger than memory. `load` and `numpy.asarray` read them all.
        """
        return self._load("embeddings")

    @property
    def kept(self) -> set[Keep]:
        """What `observe` kept of every head beside its embedding."""
        return {HEAD_NUMBERS[name] for name in self._sources if name in HEAD_NUMBERS}

    def numbers(self, name: str) -> Float[np.ndarray, "scenario head number"]:
        """Numbers of every head, loaded when first asked for.

        Args:
            name: One of `HEAD_NUMBERS`.

        Raises:
            ValueError: When `name` is unknown, or the observations were made without them.
        """
        if name not in HEAD_NUMBERS:
            raise ValueError(f"numbers must be some of {list(HEAD_NUMBERS)}, got {name!r}")
        if name not in self._sources:
            raise ValueError(
                f"these observations have no {name}: observe with {HEAD_NUMBERS[name]!r} in keep"
            )
        return np.asarray(self._load(name))

    @property
    def files(self) -> list[str]:
        """Each scenario's source file: the groups of every split."""
        return list(self.table["file"])

    def select(self, indices: Sequence[int] | np.ndarray) -> Observations:
        """The scenarios at these positions, or where a boolean mask is true; nothing is loaded."""
        places = np.asarray(indices) if len(indices) else np.empty(0, dtype=int)
        rows = np.arange(len(self))[places]

        def select_numbers(name: str) -> np.ndarray:
            return self.numbers(name)[rows]

        return Observations(
            self.table.iloc[rows],
            self.heads,
            lambda: self.embeddings[rows],
            {name: partial(select_numbers, name) for name in HEAD_NUMBERS if name in self._sources},
            model=self.model,
            mae=self.mae,
        )

    def with_outcomes(self, correct: Bool[np.ndarray, " scenario"]) -> Observations:
        """The same observations with another meaning of correct; nothing is loaded."""
        same = copy.copy(self)
        same.table = self.table.assign(correct=correct)
        return same

    def load(self) -> Observations:
        """Read everything into memory, so that the folder is no longer needed."""
        for name in self._sources:
            self._loaded[name] = np.asarray(self._load(name))
        return self

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Observations:
        """Open what `observe` wrote: the table now, the arrays when they are asked for.

        Raises:
            FileNotFoundError: When there are no observations in the folder.
            ValueError: When they are unfinished, or a shard is damaged (it is named).
        """
        return cls.of_shards(ShardFolder.open(Path(folder)))

    @classmethod
    def of_shards(cls, shards: ShardFolder) -> Observations:
        """What is in a folder whose shards are known to be complete and sound."""
        run = shards.run
        return cls(
            shards.read_table(),
            [Head(*head) for head in run["heads"]],
            lambda: _stored_embeddings(shards),
            {name: partial(_read_numbers, shards, name) for name in run["numbers"]},
            model=ModelShape(run["model_name"], run["n_layers"], run["n_heads"]),
            mae=run["mae"],
        )

    def _load(self, name: str) -> HeadValues:
        if name not in self._loaded:
            source, expected = self._sources[name], (len(self), len(self.heads))
            values = source() if callable(source) else source
            if values.ndim != 3 or values.shape[:2] != expected:
                raise ValueError(
                    f"expected {name} (scenario, head, …) = {expected} + (…,), got {values.shape}"
                )
            self._loaded[name] = values
        return self._loaded[name]


def incorrect_labels(observations: Observations) -> Bool[np.ndarray, " scenario"]:
    """Whether the model was wrong on each scenario.

    Raises:
        ValueError: When all outcomes are the same, or there is no scenario.
    """
    incorrect = ~observations.table["correct"].to_numpy(dtype=bool)
    if len(set(incorrect)) < 2:
        raise ValueError(
            "predicting correctness needs correct and incorrect predictions, got "
            f"{(~incorrect).sum()} correct and {incorrect.sum()} incorrect"
        )
    return incorrect


def _stored_embeddings(shards: ShardFolder) -> HeadArray:
    """The embeddings of all scenarios; nothing is read yet."""
    run = shards.run
    shape = (run["n_scenarios"], len(run["heads"]), run["d_embed"])
    return HeadArray(shape, np.float16, partial(shards.read_head, "embeddings"))


def _read_numbers(shards: ShardFolder, name: str) -> Float[np.ndarray, "scenario head number"]:
    heads = range(len(shards.run["heads"]))
    return np.stack([shards.read_head(name, head) for head in heads], axis=1)
