"""Completion scenarios: what the model is asked, and what the file really says next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from aplens._io import atomic_write, require_file_name
from aplens._words import shorten
from aplens.prompts import Prompts
from aplens.tables import Shown

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

PromptStyle = Literal["left_to_right", "fim", "own"]

_FORMAT = "aplens.scenarios"
_VERSION = "2"


class ScenarioError(ValueError):
    """Scenarios cannot be mined, read or used as asked."""


@dataclass(frozen=True)
class Scenario:
    """One prompt with the token that continues it in the file it was taken from.

    Attributes:
        task: What kind of span the prompt stops at, such as "identifiers". A plain file name (no /
            or \\), so that a task's results may be kept in a file named after it.
        language: Language of the file.
        file: Path of the file inside its corpus.
        line: Line of the span's first character, counted from 1.
        span: Text of the span, of which `target` is the first token.
        prompt: Token ids.
        target: Id of the token that the tokenized file has at the span's start.
        style: How the prompt was built.
        wrong: Id of a token that would be wrong here; None where none is singled out.

    Raises:
        ScenarioError: The task is no plain file name.
    """

    task: str
    language: str
    file: str
    line: int
    span: str
    prompt: tuple[int, ...]
    target: int
    style: PromptStyle
    wrong: int | None = None

    def __post_init__(self) -> None:
        """Refuse a task after which no file can be named."""
        try:
            require_file_name(self.task, "a scenario's task")
        except ValueError as error:
            raise ScenarioError(str(error)) from error


class Scenarios(Sequence[Scenario], Shown):
    """An immutable sequence of scenarios; a slice is a `Scenarios` too."""

    def __init__(self, scenarios: Iterable[Scenario]) -> None:
        self._scenarios = tuple(scenarios)

    def __len__(self) -> int:
        return len(self._scenarios)

    @overload
    def __getitem__(self, index: int) -> Scenario: ...
    @overload
    def __getitem__(self, index: slice) -> Scenarios: ...
    def __getitem__(self, index: int | slice) -> Scenario | Scenarios:
        if isinstance(index, slice):
            return Scenarios(self._scenarios[index])
        return self._scenarios[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenarios) and self._scenarios == other._scenarios

    def __repr__(self) -> str:
        counts = ", ".join(f"{task} {count}" for task, count in self.counts().items())
        return f"Scenarios({len(self)}: {counts})"

    def _shown_rows(self) -> pd.DataFrame:
        import pandas as pd

        columns = ["task", "file", "line", "answer", "tokens"]
        rows = [(s.task, s.file, s.line, shorten(s.span), len(s.prompt)) for s in self]
        return pd.DataFrame(rows, columns=columns)

    @property
    def tasks(self) -> list[str]:
        """Each scenario's task, in order."""
        return [scenario.task for scenario in self]

    @property
    def languages(self) -> list[str]:
        """Each scenario's language, in order."""
        return [scenario.language for scenario in self]

    @property
    def files(self) -> list[str]:
        """Each scenario's source file, in order: the groups of a grouped split."""
        return [scenario.file for scenario in self]

    def counts(self) -> dict[str, int]:
        """Number of scenarios of each task, by task name."""
        return dict(sorted(Counter(self.tasks).items()))

    def tokens(self) -> Int[Tensor, "scenario pos"]:
        """The prompts as one tensor.

        Raises:
            ScenarioError: There are no scenarios, or their prompts differ in length.
        """
        lengths = sorted({len(scenario.prompt) for scenario in self})
        if len(lengths) != 1:
            found = f"prompts of {lengths} tokens" if lengths else "no scenarios"
            raise ScenarioError(f"expected prompts of one length, got {found}")
        return torch.tensor([scenario.prompt for scenario in self])

    def prompts(self) -> Prompts:
        """The prompts, of any lengths.

        Raises:
            ScenarioError: There are no scenarios.
        """
        if not self:
            raise ScenarioError("there are no scenarios, and so no prompts")
        return Prompts.from_ids([scenario.prompt for scenario in self])

    def targets(self) -> Int[Tensor, " scenario"]:
        """The token ids that continue the prompts."""
        return torch.tensor([scenario.target for scenario in self], dtype=torch.long)

    def wrong_targets(self) -> Int[Tensor, " scenario"]:
        """The token ids that would be wrong.

        Raises:
            ScenarioError: A scenario has none.
        """
        without = sum(scenario.wrong is None for scenario in self)
        if without:
            raise ScenarioError(
                f"{without} of {len(self)} scenarios have no wrong answer, which a logit "
                "difference needs: make_scenarios(model, prompts, answers, wrong_answers)"
            )
        return torch.tensor([scenario.wrong for scenario in self], dtype=torch.long)

    def select(self, indices: Sequence[int] | np.ndarray | Tensor) -> Scenarios:
        """The scenarios at these positions, or where a boolean mask is true, in that order."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            return Scenarios(())
        return Scenarios(self._scenarios[i] for i in np.arange(len(self))[chosen])

    def split(self, fractions: Mapping[str, float], seed: int = 0) -> dict[str, Scenarios]:
        """Divide by source file, so that no file has scenarios in two parts.

        The files of each language are divided on their own, so that every part has its share of
        every language.

        Args:
            fractions: Share of the scenarios each part should get, such as
                {"train": 0.6, "test": 0.4}. Files are not cut, so shares are met closely only
                where there are many files.
            seed: Decides which files go where.

        Raises:
            ScenarioError: The shares are not positive numbers that sum to 1, or there are too few
                files of a language to give every part one.
        """
        shares = np.array(list(fractions.values()), dtype=float)
        if not (shares > 0).all() or not np.isclose(shares.sum(), 1):
            raise ScenarioError(f"expected positive shares that sum to 1, got {dict(fractions)}")
        if not self:
            raise ScenarioError(f"there are no scenarios to split into {dict(fractions)}")
        part_of: dict[str, str] = {}
        for language, sizes in self._file_sizes().items():
            parts = _divide(sizes, list(fractions), shares, seed)
            if empty := [name for name in fractions if name not in parts.values()]:
                raise ScenarioError(
                    f"{len(sizes)} source files are too few to split into {dict(fractions)}: "
                    f"nothing is left for {empty} in {language}"
                )
            part_of |= parts
        return {
            name: Scenarios(scenario for scenario in self if part_of[scenario.file] == name)
            for name in fractions
        }

    def _file_sizes(self) -> dict[str, Counter[str]]:
        """By language, the number of scenarios of each of its files."""
        sizes: dict[str, Counter[str]] = {}
        # A file is one group, even if it was mined as two languages.
        language_of = dict(zip(self.files, self.languages, strict=True))
        for file in self.files:
            sizes.setdefault(language_of[file], Counter())[file] += 1
        return sizes

    def to_frame(self) -> pd.DataFrame:
        """One row a scenario, one column a field."""
        import pandas as pd

        columns = list(Scenario.__dataclass_fields__)
        return pd.DataFrame([asdict(scenario) for scenario in self], columns=columns)

    def save(self, path: str | Path) -> None:
        """Write a Parquet file that `load` reads back unchanged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([asdict(scenario) for scenario in self], schema=_schema())
        with atomic_write(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    @classmethod
    def load(cls, path: str | Path) -> Scenarios:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ScenarioError: The file is damaged, or no scenarios file, or of another version; the
                message names the file.
        """
        rows = _read_table(Path(path)).to_pylist()
        try:
            return cls(Scenario(**_restore(row)) for row in rows)
        except ScenarioError as error:
            raise ScenarioError(f"{path} is damaged: {error}") from error


def _divide(
    sizes: Mapping[str, int], names: Sequence[str], shares: np.ndarray, seed: int
) -> dict[str, str]:
    """The part of each file: where its middle scenario falls, but no part without a file."""
    files = np.random.default_rng(seed).permutation(np.array(sorted(sizes), dtype=object))
    counts = np.array([sizes[file] for file in files])
    middles = (np.cumsum(counts) - counts / 2) / counts.sum()
    ends = np.searchsorted(middles, np.cumsum(shares)[:-1])  # of every part but the last
    for part in range(len(ends)):
        after = ends[part - 1] + 1 if part else 1
        ends[part] = min(max(ends[part], after), len(files) - len(ends) + part)
    parts = np.searchsorted(ends, np.arange(len(files)), side="right")
    return {file: names[part] for file, part in zip(files, parts, strict=True)}


def _schema() -> pa.Schema:
    import pyarrow as pa

    fields = {
        "task": pa.string(),
        "language": pa.string(),
        "file": pa.string(),
        "line": pa.int32(),
        "span": pa.string(),
        "prompt": pa.list_(pa.int32()),
        "target": pa.int32(),
        "style": pa.string(),
        "wrong": pa.int32(),
    }
    return pa.schema(
        [pa.field(name, kind, nullable=name == "wrong") for name, kind in fields.items()],
        metadata={"format": _FORMAT, "version": _VERSION},
    )


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"no scenarios file at {path}")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        table.validate(full=True)
    # Arrow's own errors are among these; MemoryError is what a damaged size asks for.
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise ScenarioError(f"{path} is not a readable Parquet file: {error}") from error
    stored = table.schema.metadata or {}
    metadata = {k.decode(errors="replace"): v.decode(errors="replace") for k, v in stored.items()}
    if metadata.get("format") != _FORMAT:
        raise ScenarioError(f"{path} holds no aplens scenarios; its columns: {table.column_names}")
    if metadata.get("version") != _VERSION:
        raise ScenarioError(
            f"{path} has scenarios of format version {metadata.get('version')}; "
            f"this aplens reads version {_VERSION}"
        )
    if not table.schema.equals(_schema()):
        raise ScenarioError(f"{path} has columns\n{table.schema}\nbut expected\n{_schema()}")
    return table


def _restore(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the file as a scenario's fields, checked: an altered file may still be read."""
    if any(value is None for name, value in row.items() if name != "wrong"):
        raise ScenarioError(f"a scenario of {row['file']} lacks a value")
    if row["style"] not in get_args(PromptStyle):
        raise ScenarioError(f"style must be one of {get_args(PromptStyle)}, got {row['style']!r}")
    if row["line"] < 1:
        raise ScenarioError(f"line must be 1 or more, got {row['line']}")
    ids = [*row["prompt"], row["target"], *([] if row["wrong"] is None else [row["wrong"]])]
    if not row["prompt"] or None in ids or min(ids) < 0:
        raise ScenarioError(f"a scenario of {row['file']} has no prompt, or one of no token ids")
    return row | {"prompt": tuple(row["prompt"])}
