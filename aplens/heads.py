"""The vocabulary every part shares: one head, a selection of heads, a ranking of heads."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from aplens._documents import check, read_document, read_seed, require_choice, take
from aplens._io import write_json
from aplens._words import is_whole, shorten
from aplens.tables import Shown, Table
from aplens.verdicts import describe_ranking, has_no_effect, is_at_chance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Head(NamedTuple):
    """One attention head, counted from 0. Prints as `L5H3`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


HeadsLike: TypeAlias = (
    "Head | tuple[int, int] | str | Mapping[int, Sequence[int]] | HeadRanking | Iterable[Any]"
)
RankBy: TypeAlias = Literal["importance", "toward_incorrect", "toward_correct"]

_NAMED_HEAD = re.compile(
    r"\s*(?:[lL]\s*(\d{1,9})\s*[hH]\s*(\d{1,9})|(\d{1,9})\s*\.\s*(\d{1,9}))\s*"
)

_MOST = 10**9


@dataclass(frozen=True)
class ModelShape:
    """The facts about a model that its heads' scores are of no use without.

    Attributes:
        name: The model's name, for labels and fingerprints.
        n_layers: All layers, also those without attention.
        n_heads: Query heads a layer.
    """

    name: str
    n_layers: int
    n_heads: int


def all_heads(n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """Every head of a model, layer by layer."""
    return tuple(Head(layer, head) for layer in range(n_layers) for head in range(n_heads))


def draw_heads(heads: Iterable[Head], k: int, seed: int) -> tuple[Head, ...]:
    """`k` of these heads, drawn without replacement; for one seed smaller draws begin larger ones.

    Raises:
        ValueError: When the seed is no whole number from 0 to 2**63 - 1.
    """
    ordered = sorted(heads)
    order = np.random.default_rng(read_seed(seed)).permutation(len(ordered))
    return tuple(ordered[index] for index in order[:k])


def parse_heads(heads: HeadsLike, model: ModelShape | None = None) -> tuple[Head, ...]:
    """Read any way of naming heads: order is kept, repeats are dropped.

    Accepts `Head(5, 3)`, `(5, 3)`, `"L5H3"`, `"5.3"`, `"L5H3, L9H6"`, `{5: [3, 4]}`, a
    `HeadRanking` (all of its heads, best first) and any iterable of these. A float such as `5.3` is
    refused: it cannot tell head 1 from head 10.

    Args:
        heads: The heads.
        model: The model, as `describe_model` describes it; when given, a head that it does not
            have is refused.

    Raises:
        ValueError: When a name cannot be read, or a head is out of range.
        TypeError: When something is no head at all.
    """
    unique = dict.fromkeys(_read_heads(heads))
    for head in unique:
        _check_range(head, model)
    return tuple(unique)


def _read_heads(heads: Any) -> Iterator[Head]:
    if isinstance(heads, HeadRanking):
        yield from heads
    elif isinstance(heads, str):
        yield from (_read_name(part) for part in heads.split(","))
    elif isinstance(heads, Mapping):
        for layer, members in heads.items():
            indices = [members] if is_whole(members) else _iterate(members)
            yield from (_make_head(layer, index) for index in indices)
    elif _is_pair(heads):
        yield _make_head(*heads)
    elif isinstance(heads, float):
        raise TypeError(
            f"{heads!r} is ambiguous as a head (5.1 equals 5.10): write 'L5H1', '5.1' or (5, 1)"
        )
    else:
        for item in _iterate(heads):
            yield from _read_heads(item)


def _iterate(heads: Any) -> Iterator[Any]:
    """What stands in a list of any kind."""
    if not isinstance(heads, (str, bytes, bytearray)):
        with suppress(TypeError):  # also of an array or tensor that is a single number
            return iter(heads)
    raise TypeError(
        f"expected heads such as (5, 3), 'L5H3' or {{5: [3]}}, got {shorten(heads)} "
        f"of type {type(heads).__name__}"
    )


def _is_pair(value: Any) -> bool:
    """Whether this is one (layer, head): a *tuple* of two integers; a list is a list of heads."""
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_whole, value))


def _make_head(layer: Any, head: Any) -> Head:
    if not (is_whole(layer) and is_whole(head)):
        raise TypeError(
            f"expected whole numbers for layer and head, got {shorten(layer)} and {shorten(head)}"
        )
    return Head(int(layer), int(head))


def _read_name(name: str) -> Head:
    match = _NAMED_HEAD.fullmatch(name)
    if match is None:
        raise ValueError(f"cannot read {shorten(name)} as a head: expected 'L5H3' or '5.3'")
    layer, head = (int(group) for group in match.groups() if group is not None)
    return Head(layer, head)


def _check_range(head: Head, model: ModelShape | None) -> None:
    if not (0 <= head.layer < _MOST and 0 <= head.head < _MOST):
        raise ValueError(
            f"head {shorten(tuple(head))} is out of range: layers and heads count from 0"
        )
    if model is not None and head.layer >= model.n_layers:
        raise ValueError(f"{head}: layer {head.layer} is out of range for {model.n_layers} layers")
    if model is not None and head.head >= model.n_heads:
        raise ValueError(
            f"{head}: head {head.head} is out of range for {model.n_heads} heads a layer"
        )


class HeadRanking(Shown):
    """Heads with the scores of a ranking, most important first.

    Args:
        frame: One row a head, columns `layer`, `head`, `importance` (mean size of what the head
            does), `mean` (its mean; positive pushes toward *incorrect*), `toward_incorrect` (mean
            positive part), `toward_correct` (mean negative part, as a positive number). In the
            units of the ranking's method: SHAP values in the predictor's log-odds, or effects on
            a metric. It may have the columns of `EFFECT_COLUMNS` as well: `low` and `high`, the
            95 % interval of `mean`, and `measured`, whether the head was ablated; the effects of
            the others are estimates.
        model: The model whose heads these are, as `describe_model` describes it.
        metadata: JSON-able facts about how the ranking was made.

    Raises:
        ValueError: When a column is missing, a score is not finite, `measured` is not true or
            false, or a head is no whole number, out of range or listed twice.

    Attributes:
        model: The model's name, layers and heads a layer.
        metadata: The facts.
    """

    COLUMNS = ("layer", "head", "importance", "mean", "toward_incorrect", "toward_correct")
    EFFECT_COLUMNS = ("low", "high", "measured")
    _FORMAT = "aplens.head_ranking"

    def __init__(
        self,
        frame: pd.DataFrame,
        model: ModelShape,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        missing = [column for column in self.COLUMNS if column not in frame.columns]
        if missing:
            raise ValueError(f"a ranking needs the columns {list(self.COLUMNS)}; missing {missing}")
        columns = [*self.COLUMNS, *(name for name in self.EFFECT_COLUMNS if name in frame)]
        rows = frame[columns].to_dict(orient="records")
        heads = parse_heads([_read_row(row, index) for index, row in enumerate(rows)], model)
        if len(heads) != len(frame):
            raise ValueError(f"a ranking lists a head once; {len(frame) - len(heads)} are repeated")
        self._frame = (
            frame[columns]
            .astype({"layer": int, "head": int})
            .sort_values(
                ["importance", "layer", "head"], ascending=[False, True, True], kind="stable"
            )
            .reset_index(drop=True)
        )
        self.model = ModelShape(model.name, model.n_layers, model.n_heads)
        self.metadata = dict(metadata or {})

    @classmethod
    def from_values(
        cls,
        heads: Sequence[Head],
        values: Float[np.ndarray, "head prompt"],
        model: ModelShape,
        metadata: Mapping[str, Any] | None = None,
    ) -> HeadRanking:
        """Rank heads by what each does on each prompt, positive being toward incorrect.

        Raises:
            ValueError: When a value is not finite, or a head is out of range.
        """
        import pandas as pd

        frame = pd.DataFrame(heads, columns=["layer", "head"])
        frame["importance"] = np.abs(values).mean(axis=1)
        frame["mean"] = values.mean(axis=1)
        frame["toward_incorrect"] = values.clip(min=0).mean(axis=1)
        frame["toward_correct"] = (-values).clip(min=0).mean(axis=1)
        return cls(frame, model, metadata)

    @property
    def measured(self) -> tuple[Head, ...]:
        """The heads whose effect was measured by ablating them, in the ranking's order."""
        return _heads_of(self._frame[self._frame["measured"]]) if "measured" in self._frame else ()

    def __len__(self) -> int:
        return len(self._frame)

    def __iter__(self) -> Iterator[Head]:
        return iter(_heads_of(self._frame))

    def __repr__(self) -> str:
        best = ", ".join(str(head) for head in self.top(min(3, len(self))))
        known = f", {len(self.measured)} measured" if self.measured else ""
        return f"HeadRanking({len(self)} heads of {self.model.name}{known}, best: {best})"

    def _shown_rows(self) -> pd.DataFrame:
        frame = self.to_frame().drop(columns=["layer", "head"]).reset_index()
        return frame.rename(columns={"low": "mean_low", "high": "mean_high"})

    def _repr_html_(self) -> str:
        """The verdict, the first ten heads, and the map, which a ranking of noise goes without."""
        verdict = f"<p><strong>{html.escape(self.verdict)}</strong></p>"
        if self.is_noise:
            return verdict + super()._repr_html_()
        from aplens.style import to_svg

        picture = base64.b64encode(to_svg(self.plot())).decode()
        name = html.escape(f"Map of the heads of {self.model.name} by importance")
        return (
            f"{verdict}{super()._repr_html_()}"
            f'<img alt="{name}" src="data:image/svg+xml;base64,{picture}">'
        )

    @property
    def verdict(self) -> str:
        """Whether this order can be used, and what it found, in a sentence."""
        return describe_ranking(self.to_frame(), self.metadata)

    @property
    def is_noise(self) -> bool:
        """Whether nothing was found: the predictor is at chance, or no effect is clearly not 0."""
        return self.is_at_chance or has_no_effect(self.to_frame(), self.metadata)

    @property
    def is_at_chance(self) -> bool:
        """Whether this is by a predictor that tells errors no better than chance: noise."""
        return is_at_chance(self.metadata)

    def top(self, k: int, by: RankBy = "importance") -> tuple[Head, ...]:
        """The `k` heads that rank highest.

        Args:
            k: How many. Fewer come back when fewer qualify: `toward_*` lists only heads that push
                that way at all.
            by: The score.

        Raises:
            ValueError: When `k` is negative or `by` is unknown.
        """
        if k < 0:
            raise ValueError(f"k must be 0 or more, got {k}")
        require_choice("by", by, get_args(RankBy))
        chosen = self._frame.sort_values(by, ascending=False, kind="stable")
        if by != "importance":
            chosen = chosen[chosen[by] > 0]
        return _heads_of(chosen.head(k))

    def random(self, k: int, seed: int = 0) -> tuple[Head, ...]:
        """`k` heads drawn without replacement: the baseline every choice of heads needs.

        For one seed the draws are nested: `random(5)` begins with `random(2)`.

        Raises:
            ValueError: When `k` is negative or larger than the ranking, or the seed is no whole
                number from 0 to 2**63 - 1.
        """
        if not 0 <= k <= len(self):
            raise ValueError(f"k must be between 0 and the ranking's {len(self)} heads, got {k}")
        return draw_heads(self, k, seed)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table, most important head first, with the head's name as index."""
        frame = self._frame.copy()
        frame.index = [str(head) for head in self]
        frame.index.name = "name"
        return frame

    def to_text(self, k: int = 10) -> str:
        """The verdict and the first `k` heads, as text for a terminal."""
        table = Table.from_frame(self._shown_rows().head(k), caption=repr(self))
        return f"{self.verdict}\n\n{table.to_text()}"

    def to_json(self) -> str:
        """What `save` writes, with the verdict before it; `load` reads it as well."""
        verdict = {"verdict": self.verdict, "at_chance": self.is_at_chance}
        return json.dumps(verdict | self._document(), indent=2)

    def _document(self) -> dict[str, Any]:
        return {
            "format": self._FORMAT,
            "version": 1,
            "model_name": self.model.name,
            "n_layers": self.model.n_layers,
            "n_heads": self.model.n_heads,
            "metadata": self.metadata,
            "heads": list(self._records()),
        }

    def _records(self) -> Iterator[dict[str, Any]]:
        """Each head's scores as JSON takes them: None for what is not known."""
        for head, row in zip(self, self._frame.to_dict(orient="records"), strict=True):
            known = {str(key): None if value != value else value for key, value in row.items()}
            yield {"name": str(head)} | known

    def plot(self, column: str = "importance") -> Figure:
        """The layer × head map of one score."""
        from aplens.plots import plot_head_map

        return plot_head_map(self, column)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ranking as JSON."""
        write_json(path, self._document())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeadRanking:
        """Read what `save` wrote, or `aplens rank --json` printed.

        Raises:
            OSError: When the file cannot be read.
            ValueError: When the file is not a head ranking, or a damaged one; the message names the
                file and what is wrong.
        """
        import pandas as pd

        data = read_document(path, "a head ranking", cls._FORMAT, 1)
        try:
            rows = [
                {
                    key: math.nan if value is None else value  # as `_records` writes it
                    for key, value in check(row, dict, f"heads[{index}]").items()
                }
                for index, row in enumerate(take(data, "heads", list))
            ]
            if not rows:
                raise ValueError("heads must list at least one head")
            effects = cls.EFFECT_COLUMNS if any("measured" in row for row in rows) else ()
            return cls(
                pd.DataFrame(rows, columns=[*cls.COLUMNS, *effects]),
                ModelShape(
                    take(data, "model_name", str),
                    take(data, "n_layers", int),
                    take(data, "n_heads", int),
                ),
                take(data, "metadata", dict),
            )
        except ValueError as error:
            raise ValueError(f"{path} is a damaged head ranking: {error}") from error


def _read_row(row: Mapping[Any, Any], index: int) -> Head:
    """The head of a ranking's row, whose scores are checked."""
    where = f"heads[{index}]."
    for column in HeadRanking.COLUMNS[2:]:
        check(row[column], float, f"{where}{column}")
    if "measured" in row:
        check(row["measured"], bool, f"{where}measured")
    for end in ("low", "high"):  # unknown where a single group leaves no interval
        value = row.get(end, math.nan)
        if not (isinstance(value, float) and math.isnan(value)):
            check(value, float, f"{where}{end}")
    return Head(_whole(row["layer"], f"{where}layer"), _whole(row["head"], f"{where}head"))


def _whole(number: Any, name: str) -> int:
    """A column of whole numbers may have become one of floats; 1.5 was never one."""
    is_whole_float = isinstance(number, float) and number.is_integer()
    return check(int(number) if is_whole_float else number, int, name)


def _heads_of(frame: pd.DataFrame) -> tuple[Head, ...]:
    return tuple(Head(*row) for row in frame[["layer", "head"]].to_numpy().tolist())
