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
from typing import Any, get_args, get_origin, get_type_hints

from aplens._documents import check
from aplens._words import shorten
from aplens.study.checks import check_values

#: What stands after a feature set's name where outcomes were shuffled.
SHUFFLED = ", outcomes shuffled"


@dataclass(frozen=True)
class ModelSettings:
    """`[model]`: which model, as which class, on what; see `aplens.load_model`.

    Attributes:
        name: A name, folder or file.
        kind: "hooked", "bridge" or "auto".
        dtype: Of the parameters: "float32", "bfloat16" or "float16".
        n_devices: GPUs to spread it over.
        device_map: Of a bridge, "auto" or "balanced"; none when empty.
    """

    name: str = "smollm2-135m"
    kind: str = "auto"
    dtype: str = "float32"
    n_devices: int = 1
    device_map: str = ""


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
        pretrained: A name, folder or hub id; when empty one is trained on this study's model.
        preset: Of the one to train: "small", "paper" or "paper_tiny".
        config: Changes to the preset; see `aplens.APMAEConfig`.
        training: Changes to the training settings; see `aplens.mae.TrainingSettings`.
        languages: Train on prompts of these languages only; on all when empty.
    """

    pretrained: str = ""
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
        storage: "float16" or "packed".
        surprise: Whether to compute how the last query departs from what AP-MAE expects.
        patterns: Whether to keep the patterns themselves.
        held_out: Whether to observe the part `ablate` as well. Predictors are then compared on all
            parts (each file predicted by one that has not seen it), and gates can be applied where
            a predictor expects an error. The ranking still sees `fit` and `rank` alone.
        precision: "bfloat16", or the model's own when empty.
    """

    batch_size: int = 8
    shard_size: int = 64
    storage: str = "float16"
    surprise: bool = False
    patterns: bool = False
    held_out: bool = False
    precision: str = ""


@dataclass(frozen=True)
class RankSettings:
    """`[rank]`: what predicts correctness; see `aplens.HeadScorer`.

    Attributes:
        features: What the ranking's predictor sees.
        reducer: Before clustering: "umap", "pca", or "auto" (UMAP where it is installed). UMAP
            takes about a second a head and fold, PCA hardly any time.
        folds: Of the comparison of predictors.
        compare: The feature sets that are compared; the usual ones when empty.
        by_task: Whether they are compared task by task as well.
        shuffled: Feature sets that are tried on shuffled outcomes too: what then is above chance
            would be leaking.
    """

    features: str = "clusters"
    reducer: str = "auto"
    folds: int = 5
    compare: tuple[str, ...] = ()
    by_task: bool = False
    shuffled: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrySettings:
    """`[tries]`: other predictors of correctness; only where the table is there.

    Attributes:
        features: The feature sets that are tried with other classifiers and fewer files.
        classifiers: Classifiers, see `aplens.scoring.CorrectnessPredictor`.
        shares: Shares of each fold's training files to fit on; judged on the same scenarios.
        single_tasks: The feature sets that are tried as in the paper: one predictor a task, on as
            many correct as incorrect scenarios.
    """

    features: tuple[str, ...] = ("confidence", "surprise+confidence")
    classifiers: tuple[str, ...] = ("boosting", "pooling")
    shares: tuple[float, ...] = (0.25, 0.5)
    single_tasks: tuple[str, ...] = ("clusters", "confidence", "surprise+confidence")


@dataclass(frozen=True)
class AblateSettings:
    """`[ablate]`: the settings of the sweep; see `aplens.sweep_ablations`.

    `precision` is "bfloat16", or the model's own when empty. `per_task`: at most this many of a
    task's held-out scenarios; all when 0. `by_task`: whether to rank the heads for each task by
    itself as well, by a predictor of that task alone, and ablate them on its scenarios, as the
    paper does.
    """

    method: str = "zero"
    sizes: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    choices: tuple[str, ...] = ("toward_incorrect", "toward_correct", "neutral", "random")
    random_seeds: tuple[int, ...] = (0, 1, 2)
    balance: bool = True
    per_task: int = 0
    by_task: bool = False
    batch_size: int = 16
    precision: str = ""


@dataclass(frozen=True)
class GateSettings:
    """`[gates]`: gates for each task, see `aplens.scale_heads`; made only where the table is there.

    Attributes:
        tasks: The tasks to make gates for; all that the study has when empty.
        steps: Steps along the gradient; the best on the part `rank` is taken.
        zeroed: Numbers of heads to zero instead; likewise.
        combine: Whether to zero the heads as well that stand first when the gradient's ranking and
            the study's SHAP ranking (toward incorrect) are averaged.
        greedy: At most this many heads are zeroed one after another, each the one that helps the
            answers of the part `rank` most; no such search when 0.
        patterns: Whether to learn exponents of the patterns as well (`aplens.sharpen_heads`).
        beside_bias: Whether to learn gates, and exponents where there are any, a second time with
            the answer bias added to the logits: what heads give that the bias does not.
        per_task: At most this many of a task's held-out scenarios; all when 0.
        greedy_tried: How many heads the search tries at each step, those first by the gradient.
        epochs: Passes over the part `fit` to learn gates.
        learning_rate: Of learning.
        penalty: Nats for a gate at 0 or 2.
        predictor: The features of the predictor of errors, which decides where gates are applied;
            needs `observe.held_out`. None when empty.
        batch_size: Prompts a pass.
        precision: "bfloat16", or the model's own when empty.
    """

    tasks: tuple[str, ...] = ()
    steps: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    zeroed: tuple[int, ...] = (1, 2, 5, 10)
    combine: bool = False
    patterns: bool = False
    beside_bias: bool = False
    per_task: int = 0
    greedy: int = 0
    greedy_tried: int = 8
    epochs: int = 2
    learning_rate: float = 0.03
    penalty: float = 0.01
    predictor: str = ""
    batch_size: int = 8
    precision: str = ""


@dataclass(frozen=True)
class TruthSettings:
    """`[truth]`: rankings against ablating every head by itself; only where the table is there.

    Attributes:
        per_task: Held-out scenarios of each task on which every head is ablated.
        attribution_per_task: Scenarios of the part `rank` from which ablations are estimated.
        batch_size: Prompts a pass.
        precision: "bfloat16", or the model's own when empty.
    """

    per_task: int = 4
    attribution_per_task: int = 4
    batch_size: int = 16
    precision: str = ""


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
    tries: TrySettings | None = None
    ablate: AblateSettings = field(default_factory=AblateSettings)
    gates: GateSettings | None = None
    truth: TruthSettings | None = None

    def __post_init__(self) -> None:
        """Refuse corpora whose prompts could not stand in one tensor.

        Raises:
            ValueError: When there is no corpus, or they differ in context_length or style.
        """
        if not self.scenarios:
            raise ValueError("scenarios must have at least one corpus, got none")
        for key in ("context_length", "style"):
            values = [getattr(corpus, key) for corpus in self.scenarios]
            if len(set(values)) > 1:
                raise ValueError(f"scenarios must have one {key} for every corpus, got {values}")

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
                'mae.config.base = "none"'. A word that is no TOML value stands for itself.

        Raises:
            FileNotFoundError: When there is no such file.
            OSError: When it cannot be read.
            ValueError: When it is not TOML, or a key is unknown, of the wrong type or out of range;
                the message names the file and the key.
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
            settings = _read(cls, table, "")
            check_values(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return settings

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able tables."""
        return dataclasses.asdict(self)


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
    if isinstance(hint, UnionType):  # a table that may be missing
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
