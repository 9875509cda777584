"""What the commands on a study are told: a TOML file that names the study and has their tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from aplens.correctness import CorrectnessPredictor, HeadClusters, keep_for
from aplens.scenarios import LANGUAGES, list_tasks
from aplens.study import Count, StudySettings


@dataclass(frozen=True)
class GateSettings:
    """`[gates]`: gates for each task, see `paper.task_gates`.

    Attributes:
        tasks: The tasks to make gates for; all that the study has when empty.
        steps: Steps along the gradient; the best on the part `rank` is taken.
        zeroed: Numbers of heads to zero instead; likewise.
        combine: Whether to zero the heads as well that stand first when the gradient's ranking and
            the study's SHAP ranking (toward incorrect) are averaged.
        patterns: Whether to learn exponents of the patterns as well (`paper.exponents`).
        beside_bias: Whether to learn gates, and exponents where there are any, a second time with
            the answer bias added to the logits: what heads give that the bias does not.
        per_task: At most this many of a task's held-out scenarios; all when left out.
        greedy: At most this many heads are zeroed one after another, each the one that helps the
            answers of the part `rank` most; no such search when left out.
        greedy_tried: How many heads the search tries at each step, those first by the gradient.
        epochs: Passes over the part `fit` to learn gates.
        learning_rate: Of learning.
        penalty: Nats for a gate at 0 or 2.
        predictor: The features of the predictor of errors, which decides where gates are applied;
            needs the study's `observe.held_out`. None when left out.
        batch_size: Prompts a pass.
        precision: "bfloat16", or the model's own when left out.
    """

    tasks: tuple[str, ...] = ()
    steps: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    zeroed: tuple[int, ...] = (1, 2, 5, 10)
    combine: bool = False
    patterns: bool = False
    beside_bias: bool = False
    per_task: Count | None = None
    greedy: Count | None = None
    greedy_tried: Count = 8
    epochs: Count = 2
    learning_rate: float = 0.03
    penalty: float = 0.01
    predictor: str | None = None
    batch_size: Count = 8
    precision: Literal["bfloat16"] | None = None

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for key in ("steps", "zeroed"):
            values = getattr(self, key)
            if not values or not all(0 < value < math.inf for value in values):
                raise ValueError(f"gates.{key} must be numbers above 0, got {list(values)}")
        if not (self.learning_rate > 0 and self.penalty >= 0):
            raise ValueError(
                "gates.learning_rate must be above 0 and gates.penalty 0 or more, got "
                f"{self.learning_rate} and {self.penalty}"
            )


@dataclass(frozen=True)
class TrySettings:
    """`[tries]`: other predictors of correctness, see `paper.tries`.

    Attributes:
        features: The feature sets that are tried with other classifiers and fewer files.
        classifiers: Classifiers, see `aplens.correctness.CorrectnessPredictor`.
        shares: Shares of each fold's training files to fit on; judged on the same scenarios.
        single_tasks: The feature sets that are tried as in the paper: one predictor a task, on as
            many correct as incorrect scenarios.
        shuffled: Feature sets that are tried on shuffled outcomes: what then is above chance would
            be leaking.
    """

    features: tuple[str, ...] = ("confidence", "surprise+confidence")
    classifiers: tuple[Literal["boosting", "logistic"], ...] = ("boosting",)
    shares: tuple[float, ...] = (0.25, 0.5)
    single_tasks: tuple[str, ...] = ("clusters", "confidence", "surprise+confidence")
    shuffled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for i, share in enumerate(self.shares):
            if not 0 < share <= 1:
                raise ValueError(f"tries.shares[{i}] must be above 0 and at most 1, got {share}")
        if not (self.classifiers or self.shares or self.single_tasks or self.shuffled):
            raise ValueError("tries must name classifiers, shares, single_tasks or shuffled")
        if (self.classifiers or self.shares) and not self.features:
            raise ValueError("tries.features must not be empty where classifiers or shares are")


@dataclass(frozen=True)
class TruthSettings:
    """`[truth]`: rankings against ablating every head by itself, see `paper.truth`.

    Attributes:
        per_task: Held-out scenarios of each task on which every head is ablated.
        attribution_per_task: Scenarios of the part `rank` from which ablations are estimated.
        batch_size: Prompts a pass.
        precision: "bfloat16", or the model's own when left out.
    """

    per_task: Count = 4
    attribution_per_task: Count = 4
    batch_size: Count = 16
    precision: Literal["bfloat16"] | None = None


@dataclass(frozen=True)
class ByTaskSettings:
    """`[by_task]`: predictors and ablations task by task, see `paper.by_task`.

    Attributes:
        own_rankings: Whether to rank the heads for each task by itself as well, by a predictor of
            that task alone, and ablate them on its scenarios, as the paper does.
    """

    own_rankings: bool = False


@dataclass(frozen=True)
class PaperSettings:
    """A study and what is done on it; a command needs its table."""

    study: str = ""
    gates: GateSettings | None = None
    tries: TrySettings | None = None
    truth: TruthSettings | None = None
    by_task: ByTaskSettings | None = None

    def check_against(self, study: StudySettings) -> None:
        """Refuse what this study could not give."""
        named: tuple[str, ...] = ()
        if self.tries:
            named += (*self.tries.features, *self.tries.single_tasks, *self.tries.shuffled)
        if self.gates:
            named += (self.gates.predictor,) if self.gates.predictor else ()
        for features in named:
            CorrectnessPredictor(features, clusters=HeadClusters("pca"))  # refuses unknown ones
            if "surprise" in keep_for(features) and not study.observe.surprise:
                raise ValueError(f"features {features!r} need observe.surprise = true")
        if self.gates is None:
            return
        if self.gates.predictor and not study.observe.held_out:
            raise ValueError("gates.predictor needs observe.held_out = true")
        # Which language a corpus is of shows only when it is found: any's tasks may be meant.
        every = {task for language in LANGUAGES for task in list_tasks(language)}
        known = {task for table in study.scenarios for task in table.tasks or every}
        for i, task in enumerate(self.gates.tasks):
            if task not in known:
                raise ValueError(f"gates.tasks[{i}] must be one of {sorted(known)}, got {task!r}")
