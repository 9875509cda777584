"""What lies in a study's folder, read when it is asked for and checked as it is read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplens._documents import check, take
from aplens._io import read_json
from aplens._words import shorten
from aplens.heads import HeadRanking
from aplens.study.stages import StageRecord

if TYPE_CHECKING:
    import pandas as pd

    from aplens.correctness import Observations
    from aplens.interventions import AblationSweep
    from aplens.mae import APMAE
    from aplens.scenarios import Scenarios
    from aplens.study.config import StudySettings

#: What the report takes from a study's tables.
PREDICTOR_COLUMNS = ("task", "features", "auc", "auc_low", "accuracy", "accuracy_low")

#: What ends the names of the columns that hold an estimate's interval.
_ENDS = ("_low", "_high")


class StudyFolder:
    """The results of a study, each read once, when it is first asked for.

    What is not there yet raises `FileNotFoundError`, what is damaged or something else a
    `ValueError` that names the file.

    Args:
        path: The folder.
        settings: The study's; only the parts of its scenarios need them.
    """

    def __init__(self, path: str | os.PathLike[str], settings: StudySettings | None = None) -> None:
        self.path = Path(path)
        self._settings = settings

    @property
    def settings(self) -> StudySettings:
        """The study's settings.

        Raises:
            ValueError: When the folder was opened without them.
        """
        if self._settings is None:
            raise ValueError(f"{self.path} was opened without the study's settings: give them too")
        return self._settings

    @cached_property
    def scenarios(self) -> Scenarios:
        """All scenarios mined."""
        from aplens.scenarios import Scenarios

        return Scenarios.load(self.path / "scenarios.parquet")

    @cached_property
    def corpora(self) -> list[dict[str, Any]]:
        """What was mined: each corpus's `name`, `language` and `note`."""
        return read_corpora(self.path / "corpus.json")

    @cached_property
    def parts(self) -> dict[str, Scenarios]:
        """The scenarios by purpose; no source file is in two parts."""
        shares = dataclasses.asdict(self.settings.split)
        used = {name: share for name, share in shares.items() if share > 0}
        return self.scenarios.split(used, self.settings.seed)

    @cached_property
    def swept(self) -> Scenarios:
        """What heads are ablated on: the part `ablate`, cut to the study's `ablate.per_task`."""
        held_out, most = self.parts["ablate"], self.settings.ablate.per_task
        turns = _turns(held_out.tasks)
        return held_out.select([i for i, turn in enumerate(turns) if most is None or turn < most])

    @cached_property
    def ranked(self) -> Scenarios:
        """What effects are estimated on: `rank.prompts` of the part `rank`, of all tasks alike."""
        part = self.parts["rank"]
        turns = _turns(part.tasks)
        first = sorted(range(len(part)), key=turns.__getitem__)[: self.settings.rank.prompts]
        return part.select(sorted(first))

    @cached_property
    def mae(self) -> APMAE:
        """The AP-MAE that encodes."""
        from aplens.mae import APMAE

        return APMAE.from_pretrained(self.path / "mae")

    @cached_property
    def observations(self) -> Observations:
        """What was observed on `observed_parts`, one part after the other."""
        from aplens.correctness import Observations

        return Observations.open(self.path / "observations")

    @property
    def observed_parts(self) -> tuple[str, ...]:
        """The parts that are observed, in the order of `observations`."""
        return ("fit", "rank", "ablate") if self.settings.observe.held_out else ("fit", "rank")

    def observed_part(self, name: str) -> Observations:
        """What was observed on one part.

        Raises:
            ValueError: When that part was not observed.
        """
        start = 0
        for part in self.observed_parts:
            stop = start + len(self.parts[part])
            if part == name:
                return self.observations.select(range(start, stop))
            start = stop
        raise ValueError(f"part {name!r} is not observed: set observe.held_out = true")

    @cached_property
    def ranking(self) -> HeadRanking:
        """The heads, ranked by their effects."""
        return read_ranking(self.path / "ranking.json")

    @cached_property
    def shap(self) -> HeadRanking:
        """The heads, ranked by the SHAP values of a predictor of correctness."""
        return read_shap(self.path / "shap.json")

    @cached_property
    def predictors(self) -> pd.DataFrame:
        """How well each set of features predicts correctness; see `evaluate_predictors`."""
        return read_table(self.path / "predictors.parquet", PREDICTOR_COLUMNS)

    @cached_property
    def sweep(self) -> AblationSweep:
        """The ablations."""
        return read_sweep(self.path / "ablations" / "sweep.json")

    @property
    def seconds(self) -> dict[str, float]:
        """How long each stage took, interrupted runs included."""
        return StageRecord(self.path).seconds


def _turns(tasks: Sequence[str]) -> list[int]:
    """For each scenario how many of its task stand before it."""
    import pandas as pd

    names = pd.Series(tasks)
    return names.groupby(names).cumcount().tolist()


# Readers: each refuses what is something else or damaged with a ValueError that names the file.


def read_ranking(path: Path) -> HeadRanking:
    """A ranking by effects, whose metadata says by which metric and on how many prompts."""
    kind = "no ranking of a study by effects (run its stage rank again)"
    facts = {"method": str, "metric": str, "n_prompts": int}
    with _reading_ranking(path, kind, facts) as ranking:
        if (method := ranking.metadata["method"]) != "effects":
            raise ValueError(f"metadata.method must be 'effects', got {shorten(method)}")
        if "measured" not in ranking.to_frame():
            raise ValueError("its heads do not say whether they were measured")
    return ranking


def read_shap(path: Path) -> HeadRanking:
    """A ranking by a predictor of correctness, whose metadata says how good that predictor is."""
    facts = {"features": str, "n_train": int, "n_test": int, "auc": list, "confidence_auc": list}
    with _reading_ranking(path, "no ranking of a study's predictor", facts) as ranking:
        for key in ("auc", "confidence_auc"):
            interval = ranking.metadata[key]
            if len(interval) != 3:
                raise ValueError(
                    f"metadata.{key} must be an estimate and the two ends of its interval, got "
                    f"{len(interval)} numbers"
                )
            for i, value in enumerate(interval):
                check(value, float, f"metadata.{key}[{i}]")
    return ranking


def read_sweep(path: Path) -> AblationSweep:
    """A sweep that says by which method it ablated."""
    from aplens.interventions import AblationSweep

    sweep = AblationSweep.load(path)
    with _naming(path, "no sweep of a study"):
        take(sweep.setup, "method", str, "setup.")
    return sweep


def read_corpora(path: Path) -> list[dict[str, Any]]:
    """What was mined: each corpus's `name` and `note`."""
    corpora = read_json(path)
    with _naming(path, "no list of a study's corpora"):
        for i, corpus in enumerate(check(corpora, list, "it")):
            table = check(corpus, dict, f"[{i}]")
            for key in ("name", "note"):
                take(table, key, str, f"[{i}].")
    return corpora


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table that has these columns, and of each interval the estimate and both ends."""
    import pandas as pd
    from pyarrow import ArrowException

    data = path.read_bytes()
    try:
        table = pd.read_parquet(BytesIO(data))
    # Arrow and pandas raise these of damaged files, and Arrow's own errors; from bytes in memory.
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    with _naming(path, "no table of a study"):
        names = [str(name) for name in table]
        measures = sorted({name.rsplit("_", 1)[0] for name in names if name.endswith(_ENDS)})
        wanted = [*columns, *(name + end for name in measures for end in ("", *_ENDS))]
        if missing := [name for name in wanted if name not in table]:
            raise ValueError(f"column {missing[0]} is missing")
    return table


@contextmanager
def _reading_ranking(path: Path, kind: str, facts: Mapping[str, Any]) -> Iterator[HeadRanking]:
    """A ranking whose metadata has these facts; what the block raises names the file."""
    ranking = HeadRanking.load(path)
    with _naming(path, kind):
        for key, of in facts.items():
            take(ranking.metadata, key, of, "metadata.")
        yield ranking


@contextmanager
def _naming(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} is {kind}: {error}") from error
