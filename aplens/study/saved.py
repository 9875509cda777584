"""A study's own files, read with all that its later stages and its report take from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplens._documents import check, take
from aplens._io import read_json
from aplens.heads import HeadRanking

if TYPE_CHECKING:
    import pandas as pd

    from aplens.interventions import AblationSweep

#: What the report takes from a study's tables.
PREDICTOR_COLUMNS = ("task", "features", "auc", "auc_low", "accuracy", "accuracy_low")

#: What ends the names of the columns that hold an estimate's interval.
_ENDS = ("_low", "_high")


def read_ranking(path: Path) -> HeadRanking:
    """A ranking by a predictor of correctness, whose metadata says how good that predictor is.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When it holds something else, such as another ranking; the message names it.
    """
    ranking = HeadRanking.load(path)
    with _naming(path, "no ranking of a study's predictor"):
        for key in ("n_train", "n_test"):
            take(ranking.metadata, key, int, "metadata.")
        for key in ("auc", "confidence_auc"):
            interval = take(ranking.metadata, key, list, "metadata.")
            if len(interval) != 3:
                raise ValueError(
                    f"metadata.{key} must be an estimate and the two ends of its interval, got "
                    f"{len(interval)} numbers"
                )
            for i, value in enumerate(interval):
                check(value, float, f"metadata.{key}[{i}]")
    return ranking


def read_sweep(path: Path) -> AblationSweep:
    """A sweep that says by which method it ablated.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When it holds something else, or does not say; the message names it.
    """
    from aplens.interventions import AblationSweep

    sweep = AblationSweep.load(path)
    with _naming(path, "no sweep of a study"):
        take(sweep.setup, "method", str, "setup.")
    return sweep


def read_corpora(path: Path) -> list[dict[str, Any]]:
    """What was mined: each corpus's `name` and `note`.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When it is no list of corpora; the message names it.
    """
    corpora = read_json(path)
    with _naming(path, "no list of a study's corpora"):
        for i, corpus in enumerate(check(corpora, list, "it")):
            table = check(corpus, dict, f"[{i}]")
            for key in ("name", "note"):
                take(table, key, str, f"[{i}].")
    return corpora


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table that has these columns, and of each interval the estimate and both ends.

    Raises:
        OSError: When the file cannot be read.
        ValueError: When it is no such table; the message names it.
    """
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
def _naming(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} is {kind}: {error}") from error
