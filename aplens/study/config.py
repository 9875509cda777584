"""A study's settings: one TOML file, every key checked before anything runs."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from aplens._io import require_file_name
from aplens._words import shorten
from aplens.study.reading import Count, Seed, check_fields, read_settings

if TYPE_CHECKING:
    from aplens.mae import APMAEConfig, TrainingSettings

#: The language of a corpus that goes by a name; of a folder or a zip the study says it.
_LANGUAGES = {"jdk": "java", "python": "python", "prose": "prose"}

#: Corpora that every machine has, and of which no prefix chooses a part.
READ_WHOLE = ("python", "prose")


@dataclass(frozen=True)
class ModelSettings:
    """`[model]`: which model, as which class, on what; see `aplens.load_model`.

    Attributes:
        name: A name, folder or file.
        kind: "hooked", "bridge" or "auto".
        dtype: Of the parameters: "float32", "bfloat16" or "float16".
        device_map: How a bridge is spread over several GPUs, "auto" or "balanced"; not when left
            out. The one setting that may be another when a study goes on.
    """

    name: str = "smollm2-135m"
    kind: Literal["auto", "hooked", "bridge"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device_map: Literal["auto", "balanced"] | None = None


@dataclass(frozen=True)
class ScenarioSettings:
    """`[scenarios]`: where completion scenarios come from; see `aplens.mine_scenarios`.

    A study of several corpora has several such tables, each `[[scenarios]]`.

    Attributes:
        corpus: "jdk" (the Java sources of an installed JDK), "python" (the standard library of the
            running Python), "prose" (English, see `aplens.scenarios.english_prose`), a folder or a
            zip; of several, the first that is there.
        language: Of a folder or zip: "java", "python" or "prose".
        prefix: Only files below this path inside the JDK's sources, the folder or the zip, such as
            "java.base/". "python" and "prose" are read whole.
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
    per_task: Count = 500
    per_file: Count = 4
    context_length: Count = 256
    style: Literal["auto", "left_to_right", "fim"] = "auto"


@dataclass(frozen=True)
class SplitSettings:
    """`[split]`: shares of the source files; nothing from one file is in two of them.

    Attributes:
        autoencoder: To train AP-MAE (needless, and best 0, with pretrained weights).
        fit: To fit clusters and the correctness predictor.
        rank: To estimate and measure effects, and to compute SHAP values.
        ablate: To measure ablations, seen by neither the predictor nor the rankings.
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
        preset: Of the one to train: "small" or "paper".
        config: Changes to the preset; see `aplens.mae.APMAEConfig`.
        training: Changes to the training settings; see `aplens.mae.TrainingSettings`.
        languages: Train on prompts of these languages only; on all when empty.
    """

    pretrained: str | None = None
    preset: Literal["small", "paper"] = "small"
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    languages: tuple[str, ...] = ()

    def make_config(self) -> APMAEConfig:
        """The AP-MAE to train: the preset with its changes.

        Raises:
            TypeError: When a change is of a field that there is not.
            ValueError: When no AP-MAE can be so.
        """
        from aplens.mae import APMAEConfig

        return dataclasses.replace(getattr(APMAEConfig, self.preset)(), **self.config)

    def make_recipe(self, seed: int) -> TrainingSettings:
        """How it is trained: as fits the preset, with the changes; `seed` where they name none.

        Raises:
            TypeError: When a change is of a setting that there is not.
            ValueError: When nothing can be trained so.
        """
        from aplens.mae import TrainingSettings

        make = TrainingSettings.small if self.preset == "small" else TrainingSettings
        return make(**{"seed": seed, **self.training})


@dataclass(frozen=True)
class ObserveSettings:
    """`[observe]`: how the model is run and what is kept; see `aplens.observe`.

    Attributes:
        batch_size: Prompts a forward pass.
        shard_size: Scenarios a shard on disk.
        surprise: Whether to compute how the last query departs from what AP-MAE expects, which the
            default predictor of errors takes.
        held_out: Whether to observe the part `ablate` as well. Predictors are then compared on all
            parts, each file predicted by one that has not seen it. The ranking still sees `fit` and
            `rank` alone.
        precision: "bfloat16", or the model's own when left out.
    """

    batch_size: Count = 8
    shard_size: Count = 64
    surprise: bool = True
    held_out: bool = False
    precision: Literal["bfloat16"] | None = None


@dataclass(frozen=True)
class RankSettings:
    """`[rank]`: the heads by effect, and what predicts correctness.

    Attributes:
        prompts: Scenarios of the part `rank`, as many of each task, on which effects are estimated.
        verify: How many of the first heads are then ablated one by one, beside those of the first
            two layers; see `aplens.rank_heads`.
        features: What the predictor sees whose SHAP values are the other ranking: "clusters" as in
            the paper, see `aplens.correctness.CorrectnessPredictor`.
        reducer: Before clustering: "pca", or "umap" as in the paper, which takes about a second a
            head and fold and needs `pip install aplens[umap]`.
        folds: Of the comparison of predictors.
        compare: The feature sets that are compared; the usual ones when empty.
    """

    prompts: Count = 64
    verify: Annotated[int, 0, 2**31 - 1] = 40
    features: str = "clusters"
    reducer: Literal["umap", "pca"] = "pca"
    folds: Annotated[int, 2, 2**31 - 1] = 5
    compare: tuple[str, ...] = ()


@dataclass(frozen=True)
class AblateSettings:
    """`[ablate]`: the settings of the sweep; see `aplens.sweep_ablations`.

    Heads are ablated in the order of their effects, of their SHAP values toward incorrect and
    toward correct, and at random.

    Attributes:
        method: What replaces a head's output: "zero", "mean" (its mean over other prompts) or
            "resample" (its output on another prompt).
        sizes: How many heads are ablated at once.
        random_seeds: Of the draws of random heads, the baseline.
        balance: Whether to sweep as many scenarios that the model gets right as wrong ones.
        per_task: At most this many of a task's held-out scenarios; all when left out.
        batch_size: Prompts a forward pass.
        precision: "bfloat16", or the model's own when left out.
    """

    method: Literal["zero", "mean", "resample"] = "zero"
    sizes: tuple[Count, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    random_seeds: tuple[Seed, ...] = (0, 1, 2)
    balance: bool = True
    per_task: Count | None = None
    batch_size: Count = 16
    precision: Literal["bfloat16"] | None = None


@dataclass(frozen=True)
class StudySettings:
    """Everything a study needs to know."""

    title: str = "AP-MAE study"
    seed: Seed = 0
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
        check_fields(self)
        several = len(self.scenarios) > 1
        for i, table in enumerate(self.scenarios):
            _check_scenarios(table, f"scenarios[{i}]." if several else "scenarios.")
        _check_split(self.split)
        _check_mae(self.mae, self.seed)
        if self.mae.pretrained is None:
            require_length(self.mae.make_config().n_ctx, self.context_length)
        _check_features(self)
        if not self.ablate.sizes:
            raise ValueError("ablate.sizes must not be empty")

    @property
    def context_length(self) -> int:
        """Tokens in a prompt, of every corpus."""
        return self.scenarios[0].context_length

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], changes: Iterable[str] = ()) -> StudySettings:
        """Read a study file, with changes such as "model.name=gpt2"; all as `read_settings` does.

        Raises:
            OSError: When it cannot be read.
            ValueError: When it is no study; the message names the file and the key.
        """
        return read_settings(cls, path, changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able tables."""
        return dataclasses.asdict(self)


def _check_scenarios(table: ScenarioSettings, where: str) -> None:
    from aplens.scenarios import list_tasks

    if not table.corpus or not all(table.corpus):
        raise ValueError(f"{where}corpus must name at least one corpus, got {list(table.corpus)}")
    if table.prefix and table.corpus[0] in READ_WHOLE:
        raise ValueError(
            f"{where}prefix must be empty where the corpus is {table.corpus[0]!r}, which is read "
            f"whole, got {shorten(table.prefix)}"
        )
    languages = {_LANGUAGES.get(choice, table.language) for choice in table.corpus}
    known = sorted({task for language in languages for task in list_tasks(language)})
    list_tasks(table.language)
    for i, task in enumerate(table.tasks):
        require_file_name(task, f"{where}tasks[{i}]")
        if task not in known:
            raise ValueError(
                f"{where}tasks[{i}] must be one of {', '.join(known)}, got {shorten(task)}"
            )


def _check_split(split: SplitSettings) -> None:
    shares = dataclasses.asdict(split)
    if min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1, rel_tol=1e-5):
        raise ValueError(f"split must have shares of 0 or more that sum to 1, got {shares}")


def _check_mae(mae: MAESettings, seed: int) -> None:
    from aplens.mae import APMAEConfig, TrainingSettings

    for key, changes, kind, make in (
        ("config", mae.config, APMAEConfig, mae.make_config),
        ("training", mae.training, TrainingSettings, lambda: mae.make_recipe(seed)),
    ):
        known = [one.name for one in dataclasses.fields(kind)]
        if unknown := sorted(changes.keys() - set(known)):
            raise ValueError(f"unknown key mae.{key}.{unknown[0]!r}; known here: {sorted(known)}")
        try:
            make()
        except (TypeError, ValueError) as error:
            raise ValueError(f"mae.{key}: {error}") from error


def require_length(n_ctx: int, context_length: int) -> None:
    """Refuse prompts that are longer than an AP-MAE takes."""
    if context_length > n_ctx:
        raise ValueError(
            f"scenarios.context_length is {context_length}, but this AP-MAE takes up to {n_ctx} "
            "tokens: mine shorter prompts, or use an AP-MAE of a longer context"
        )


def _check_features(settings: StudySettings) -> None:
    from aplens.correctness.clusters import HeadClusters
    from aplens.correctness.features import keep_for, make_features

    for features in (settings.rank.features, *settings.rank.compare):
        make_features(features, HeadClusters("pca"))
        of_surprise = "surprise" in keep_for(features)
        if of_surprise and not settings.observe.surprise:
            raise ValueError(f"features {shorten(features)} need observe.surprise = true")
