"""What lies in a study's folder, read when it is asked for and checked as it is read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplens._documents import check, take
from aplens._io import read_json
from aplens.heads import HeadRanking
from aplens.intervals import Estimate
from aplens.study.stages import StageRecord

if TYPE_CHECKING:
    import pandas as pd

    from aplens.correctness import Observations
    from aplens.interventions import AblationSweep
    from aplens.mae import APMAE
    from aplens.scenarios import Scenarios
    from aplens.study.config import StudySettings

#: What a report takes of the table of predictors.
_PREDICTOR_COLUMNS = ["task", "features"]
_PREDICTOR_COLUMNS += [name + end for name in ("auc", "accuracy") for end in ("", "_low", "_high")]


class StudyFolder:
    """The results of a study, each read once, when it is first asked for.

    What is not there yet raises `FileNotFoundError`; what is not, to the bit, what its stage wrote,
    a `ValueError` that names the file. Of results that lie alone, without a study's record of them,
    only those that are something else are noticed.

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

        return Scenarios.load(self._checked("scenarios.parquet"))

    @cached_property
    def corpora(self) -> list[dict[str, Any]]:
        """What was mined: each corpus's `name`, `language` and `note`."""
        return read_corpora(self._checked("corpus.json"))

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

        return APMAE.from_pretrained(self._checked("mae"))

    @cached_property
    def observations(self) -> Observations:
        """What was observed on `observed_parts`, one part after the other.

        Its shards carry checksums of their own, looked at when each is read.
        """
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
        path = self._checked("ranking.json")
        ranking = HeadRanking.load(path)
        with _naming(path):
            take(ranking.metadata, "metric", str, "metadata.")
            take(ranking.metadata, "n_prompts", int, "metadata.")
            _require_columns(ranking.to_frame(), ["measured"])
        return ranking

    @cached_property
    def shap(self) -> HeadRanking:
        """The heads, ranked by the SHAP values of a predictor of correctness."""
        path = self._checked("shap.json")
        ranking = HeadRanking.load(path)
        with _naming(path):
            take(ranking.metadata, "features", str, "metadata.")
            for key in ("auc", "confidence_auc"):
                numbers = take(ranking.metadata, key, list, "metadata.")
                interval = dict(zip(Estimate._fields, numbers, strict=False))
                for end in Estimate._fields:
                    take(interval, end, float, f"metadata.{key}: ")
        return ranking

    @cached_property
    def predictors(self) -> pd.DataFrame:
        """How well each set of features predicts correctness; see `evaluate_predictors`."""
        path = self._checked("predictors.parquet")
        table = read_table(path)
        with _naming(path):
            _require_columns(table, _PREDICTOR_COLUMNS)
        return table

    @cached_property
    def sweep(self) -> AblationSweep:
        """The ablations."""
        from aplens.interventions import AblationSweep

        path = self._checked("ablations/sweep.json")
        sweep = AblationSweep.load(path)
        with _naming(path):
            take(sweep.setup, "method", str, "setup.")
        return sweep

    @property
    def seconds(self) -> dict[str, float]:
        """How long each stage took, interrupted runs included; empty without a record."""
        record = StageRecord.find(self.path)
        return record.seconds if record else {}

    def _checked(self, name: str) -> Path:
        """A path of the study's, once its files are seen to be what their stage wrote."""
        if record := StageRecord.find(self.path):
            record.require_unchanged(name)
        return self.path / name


def _turns(tasks: Sequence[str]) -> list[int]:
    """For each scenario how many of its task stand before it."""
    import pandas as pd

    names = pd.Series(tasks)
    return names.groupby(names).cumcount().tolist()


def read_corpora(path: Path) -> list[dict[str, Any]]:
    """What was mined: each corpus's `name` and `note`."""
    corpora = read_json(path)
    with _naming(path):
        for i, corpus in enumerate(check(corpora, list, "it")):
            table = check(corpus, dict, f"[{i}]")
            for key in ("name", "note"):
                take(table, key, str, f"[{i}].")
    return corpora


def read_table(path: Path) -> pd.DataFrame:
    """A table in Parquet; a ValueError names the file of one that is damaged."""
    import pandas as pd
    from pyarrow import ArrowException

    data = path.read_bytes()
    try:
        return pd.read_parquet(BytesIO(data))
    # Arrow and pandas raise these of damaged files, and Arrow's own errors; from bytes in memory.
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def _require_columns(table: pd.DataFrame, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in table]:
        raise ValueError(f"column {missing[0]} is missing")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """For results that lie alone, where no stage's record tells that they are something else."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} is not what a study writes there: {error}") from error
