"""A study's settings: one TOML file, every key checked before anything runs."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from aplens._documents import check
from aplens._words import shorten
from aplens.study.checks import check_values

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class ModelSettings:
    """`[model]`: which model, as which class, on what; see `aplens.load_model`.

    Attributes:
        name: A name, folder or file.
        kind: "hooked", "bridge" or "auto".
        dtype: Of the parameters: "float32", "bfloat16" or "float16".
        n_devices: GPUs to spread it over.
        device_map: Of a bridge, "auto" or "balanced"; none when left out.
    """

    name: str = "smollm2-135m"
    kind: str = "auto"
    dtype: str = "float32"
    n_devices: int = 1
    device_map: str | None = None


@dataclass(frozen=True)
class ScenarioSettings:
    """`[scenarios]`: where completion scenarios come from; see `aplens.mine_scenarios`.

    A study of several corpora has several such tables, each `[[scenarios]]`.

    Attributes:
        corpus: "jdk" (the Java sources of an installed JDK), "python" (the standard library of the
            running Python), "prose" (English, see `aplens.scenarios.english_prose`), a folder or a
            zip; of several, the first that is there.
        language: Of a folder or zip: "java", "python" or "prose".
        prefix: Only files below this path inside the corpus, such as "java.base/".
        tasks: Which tasks; all when empty.
        per_task: Scenarios a task.
        per_file: At most this many scenarios from one file.
        context_length: Tokens in a prompt; the same for every corpus, as is the style.
        style: "auto", "left_to_right" or "fim" (fill in the middle).
    """

    corpus: tuple[str, ...] = ("jdk", "python")
    language: str = "java"
    prefix: str = ""
    tasks: tuple[str, ...] = ()
    per_task: int = 500
    per_file: int = 4
    context_length: int = 256
    style: str = "auto"


@dataclass(frozen=True)
class SplitSettings:
    """`[split]`: shares of the source files; nothing from one file is in two of them.

    Attributes:
        autoencoder: To train AP-MAE (needless, and best 0, with pretrained weights).
        fit: To fit clusters and the correctness predictor.
        rank: To compute SHAP values, and from them the ranking.
        ablate: To measure ablations, seen by neither the predictor nor the ranking.
    """

    autoencoder: float = 0.2
    fit: float = 0.4
    rank: float = 0.2
    ablate: float = 0.2


@dataclass(frozen=True)
class MAESettings:
    """`[mae]`: the AP-MAE to use.

    Attributes:
        pretrained: A name, folder or hub id; when left out one is trained on this study's model.
        preset: Of the one to train: "small", "paper" or "paper_tiny".
        config: Changes to the preset; see `aplens.APMAEConfig`.
        training: Changes to the training settings; see `aplens.mae.TrainingSettings`.
        languages: Train on prompts of these languages only; on all when empty.
    """

    pretrained: str | None = None
    preset: str = "small"
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObserveSettings:
    """`[observe]`: how the model is run and what is kept; see `aplens.observe`.

    Attributes:
        batch_size: Prompts a forward pass.
        shard_size: Scenarios a shard on disk.
        surprise: Whether to compute how the last query departs from what AP-MAE expects.
        patterns: Whether to keep the patterns themselves.
        held_out: Whether to observe the part `ablate` as well. Predictors are then compared on all
            parts, each file predicted by one that has not seen it. The ranking still sees `fit` and
            `rank` alone.
        precision: "bfloat16", or the model's own when left out.
    """

    batch_size: int = 8
    shard_size: int = 64
    surprise: bool = False
    patterns: bool = False
    held_out: bool = False
    precision: str | None = None


@dataclass(frozen=True)
class RankSettings:
    """`[rank]`: what predicts correctness; see `aplens.HeadScorer`.

    Attributes:
        features: What the ranking's predictor sees.
        reducer: Before clustering: "umap", "pca", or "auto" (UMAP where it is installed). UMAP
            takes about a second a head and fold, PCA hardly any time.
        folds: Of the comparison of predictors.
        compare: The feature sets that are compared; the usual ones when empty.
    """

    features: str = "clusters"
    reducer: str = "auto"
    folds: int = 5
    compare: tuple[str, ...] = ()


@dataclass(frozen=True)
class AblateSettings:
    """`[ablate]`: the settings of the sweep; see `aplens.sweep_ablations`.

    `precision` is "bfloat16", or the model's own when left out. `per_task`: at most this many of a
    task's held-out scenarios; all when left out.
    """

    method: str = "zero"
    sizes: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    choices: tuple[str, ...] = ("toward_incorrect", "toward_correct", "neutral", "random")
    random_seeds: tuple[int, ...] = (0, 1, 2)
    balance: bool = True
    per_task: int | None = None
    batch_size: int = 16
    precision: str | None = None


@dataclass(frozen=True)
class StudySettings:
    """Everything a study needs to know."""

    title: str = "AP-MAE study"
    seed: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    scenarios: tuple[ScenarioSettings, ...] = (ScenarioSettings(),)
    split: SplitSettings = field(default_factory=SplitSettings)
    mae: MAESettings = field(default_factory=MAESettings)
    observe: ObserveSettings = field(default_factory=ObserveSettings)
    rank: RankSettings = field(default_factory=RankSettings)
    ablate: AblateSettings = field(default_factory=AblateSettings)

    def __post_init__(self) -> None:
        """Refuse values that nothing could use, and corpora whose prompts share no tensor.

        Raises:
            ValueError: When a value is out of range or no choice that there is; there is no corpus,
                or they differ in context_length or style.
        """
        if not self.scenarios:
            raise ValueError("scenarios must have at least one corpus, got none")
        for key in ("context_length", "style"):
            values = [getattr(corpus, key) for corpus in self.scenarios]
            if len(set(values)) > 1:
                raise ValueError(f"scenarios must have one {key} for every corpus, got {values}")
        check_values(self)

    @property
    def context_length(self) -> int:
        """Tokens in a prompt, of every corpus."""
        return self.scenarios[0].context_length

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], changes: Iterable[str] = ()) -> StudySettings:
        """Read a study file.

        Args:
            path: The file.
            changes: Settings that replace the file's, each a line of TOML, such as
                'mae.config.base = "none"'. A word that is no TOML value stands for itself; "" for a
                key that may be left out leaves it out.

        Raises:
            FileNotFoundError: When there is no such file.
            OSError: When it cannot be read.
            ValueError: When it is not TOML, or a key is unknown, of the wrong type or out of range;
                the message names the file and the key.
        """
        return read_settings(cls, path, changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able tables."""
        return dataclasses.asdict(self)


def read_settings(
    kind: type[Kind],
    path: str | os.PathLike[str],
    changes: Iterable[str] = (),
) -> Kind:
    """Read a settings dataclass from a TOML file.

    Args:
        kind: The dataclass; its fields may be dataclasses themselves, one or several.
        path: The file.
        changes: As for `StudySettings.from_toml`.

    Raises:
        FileNotFoundError: When there is no such file.
        OSError: When it cannot be read.
        ValueError: When it is not TOML, or a key is unknown, of the wrong type or refused; the
            message names the file and the key.
    """
    try:
        # Editors that put a byte order mark before UTF-8 are the TOML reader's only surprise.
        table = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # covers TOMLDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not valid TOML: it is nested too deeply") from error
    for change in changes:
        _merge(table, _read_change(change))
    try:
        settings: Kind = _read(kind, table, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return settings


def _read_change(line: str) -> dict[str, Any]:
    key, _, value = line.partition("=")
    for attempt in (line, f"{key} = '{value.strip()}'"):
        # A ValueError is more than a TOMLDecodeError: an impossible date, a number without end.
        with suppress(ValueError, RecursionError):
            if change := tomllib.loads(attempt):
                return change
    raise ValueError(f"expected a setting such as mae.config.base=none, got {shorten(line)}")


def _merge(table: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table[key] = value


def _read(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """Fill a settings dataclass from a TOML table, refusing what it does not know."""
    hints = get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise ValueError(f"unknown key {where}{shorten(unknown[0])}; known here: {sorted(hints)}")
    return kind(
        **{key: _convert(hints[key], value, f"{where}{key}") for key, value in table.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, UnionType):  # what may be left out; "" says so, since TOML has no null
        if value == "":
            return None
        hint = get_args(hint)[0]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, got {shorten(value)}")
        return _read(hint, value, f"{where}.")
    if get_origin(hint) is tuple:
        item_hint = get_args(hint)[0]
        if not isinstance(value, list):
            return (_convert(item_hint, value, where),)
        return tuple(_convert(item_hint, item, f"{where}[{i}]") for i, item in enumerate(value))
    expected = get_origin(hint) or hint
    if expected is float and type(value) in (int, float):
        return check(value, float, where)
    if type(value) is not expected:  # not isinstance: true is no whole number
        raise ValueError(f"{where} must be of type {expected.__name__}, got {shorten(value)}")
    if expected is str and "\0" in value:  # no file or model has such a name
        raise ValueError(f"{where} must not have a NUL character, got {shorten(value)}")
    return value
