"""`rank_heads`: from a hooked model and prompts to ranked heads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from aplens._documents import require_choice
from aplens._progress import Progress, show_progress
from aplens.correctness import (
    DEFAULT_FEATURES,
    CorrectnessPredictor,
    keep_for,
    observe,
    rank_by_predictor,
    split_by_file,
)
from aplens.correctness.splits import check_split
from aplens.heads import Head, HeadRanking
from aplens.interventions import AnswerMetric, estimate_effects, measure_effects
from aplens.models import describe_model
from aplens.prompts import PromptsLike
from aplens.scenarios import Scenarios, predicted_scenarios

if TYPE_CHECKING:
    from aplens.mae import APMAE

RankMethod: TypeAlias = Literal["effects", "ablation", "predictor"]

#: Heads that "effects" measures after estimating all, and on how many prompts at most.
VERIFY, VERIFY_PROMPTS = 40, 64

#: Layers whose heads are measured in any case: there a head can matter most and its estimate be
#: near 0 (SmolLM2-135M, induction: L0H8 ranks second by its effect, 99th by its estimate).
ALWAYS_MEASURED_LAYERS = 2

#: Fewer scenarios than this cannot be split and predicted in any meaningful way.
MIN_SCENARIOS = 40

#: Share of the source files on which the predictor's SHAP values are taken.
_TEST_SHARE = 0.4

#: Which options each method uses; the others are refused.
_USES = {
    "effects": ("metric", "reference", "verify"),
    "ablation": ("metric", "reference"),
    "predictor": ("mae", "features", "folder"),
}


def rank_heads(
    model: Any,
    prompts: Scenarios | PromptsLike,
    *,
    method: RankMethod = "effects",
    metric: AnswerMetric | None = None,
    verify: int | None = None,
    reference: PromptsLike | None = None,
    mae: APMAE | None = None,
    features: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> HeadRanking:
    """Rank a model's heads by how much they matter for its answers on these prompts.

    The methods, with their cost in passes over the prompts and the options that they use:

    - "effects" (`metric`, `reference`, `verify`): what ablating each head would do to the answer,
      estimated for all heads from one gradient; then the first heads, and those of the first two
      layers, are ablated one by one. Three passes, and one for each head measured. The ranking's
      `measured` says which heads are.
    - "ablation" (`metric`, `reference`): every head is ablated. One pass a head.
    - "predictor" (`mae`, `features`, `folder`): SHAP values of a predictor of the model's errors,
      from AP-MAE's view of the patterns (docs/method.md, steps 7 to 10). It says which heads tell
      of errors, not which cause them. One pass, but over hundreds of scenarios.

    Which of them finds the heads that matter is measured in docs/results/handoff.md.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: Scenarios: mined ones, or your own prompts and answers (`make_scenarios`). For
            "effects" and "ablation" also prompts without answers, in any form that `read_prompts`
            takes: the answer is then the model's own prediction, against its second choice.
        method: How to rank.
        metric: What an effect is measured by. "logit_diff": the answer's logit less that of the
            wrong answer (the default where every scenario has one). "log_prob": the answer's
            log-probability, in nats (the default elsewhere).
        verify: How many of the first heads are measured after estimating (default: 40), on at most
            64 of the prompts, beside all heads of the first two layers, where estimates can be far
            off. 0 measures none.
        reference: Ordinary prompts. With them, each head is replaced by its mean output over them,
            not by zeros.
        mae: The AP-MAE that encodes patterns.
        features: What the predictor looks at, as `CorrectnessPredictor` takes it (default:
            "surprise+unexpected+confidence"; "clusters" is the paper's).
        folder: Where the predictor keeps its observations, so that an interrupted run goes on.
        progress: A bar (the default), nothing (False), or a function called with (units done, units
            in all): passes over single prompts.

    Warns:
        UserWarning: Prompts without answers were given; or the predictor is no better than chance
            on held-out files, so that its ranking is noise.

    Raises:
        ValueError: When an option is given that the method does not use, or one is missing that it
            needs; or "predictor" has fewer than 40 scenarios or two source files, or only one
            outcome.
    """
    require_choice("method", method, get_args(RankMethod))
    options = {
        "metric": metric,
        "verify": verify,
        "reference": reference,
        "mae": mae,
        "features": features,
        "folder": folder,
    }
    _check_options(method, options)
    describe_model(model)  # refuses what is no model before a word about the prompts
    tell = show_progress(progress, "Ranking heads")
    if method == "predictor":
        assert mae is not None
        scenarios = _require_answers(prompts)
        return _rank_by_predictor(model, scenarios, mae, features or DEFAULT_FEATURES, folder, tell)
    scenarios = prompts if isinstance(prompts, Scenarios) else _predict(model, prompts)
    metric = metric or _default_metric(scenarios)
    ablation = "zero" if reference is None else "mean"
    replacing: dict[str, Any] = {"method": ablation, "reference": reference}
    if method == "ablation":
        effects = measure_effects(model, scenarios, metric=metric, progress=tell, **replacing)
        return effects.to_ranking()
    n_heads = VERIFY if verify is None else verify
    return _rank_by_effects(model, scenarios, metric, replacing, n_heads, tell)


def _check_options(method: RankMethod, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None and name not in _USES[method]:
            users = [one for one, used in _USES.items() if name in used]
            raise ValueError(f"method {method!r} does not use {name}=; these do: {users}")
    if method == "predictor" and options["mae"] is None:
        raise ValueError(
            "method 'predictor' needs mae=, such as APMAE.from_pretrained('aplens-base')"
        )
    verify = options["verify"]
    if verify is not None and verify < 0:
        raise ValueError(f"verify must be 0 or more heads, got {verify}")


def _require_answers(prompts: Scenarios | PromptsLike) -> Scenarios:
    if not isinstance(prompts, Scenarios):
        raise ValueError(
            "method 'predictor' needs scenarios, prompts with their answers: "
            f"make_scenarios(model, prompts, answers); got {type(prompts).__name__}"
        )
    return prompts


def _predict(model: Any, prompts: PromptsLike) -> Scenarios:
    """The model's own predictions in place of answers."""
    warnings.warn(
        "these prompts have no answers: heads are ranked by what they do for the model's own "
        "prediction against its second choice. With answers: "
        "make_scenarios(model, prompts, answers, wrong_answers)",
        stacklevel=3,
    )
    return predicted_scenarios(model, prompts)


def _default_metric(scenarios: Scenarios) -> AnswerMetric:
    has_wrong = all(scenario.wrong is not None for scenario in scenarios)
    return "logit_diff" if has_wrong else "log_prob"


def _rank_by_effects(
    model: Any,
    scenarios: Scenarios,
    metric: AnswerMetric,
    replacing: dict[str, Any],
    verify: int,
    tell: Progress,
) -> HeadRanking:
    """Estimate the effects of all heads, then measure those of the first."""
    some = scenarios.select(_spread(len(scenarios), VERIFY_PROMPTS))
    early, others = _split_early(describe_model(model).heads)
    n_heads = len(early) + min(verify, len(others)) if verify else 0
    n_estimating = 3 * len(scenarios)
    total = n_estimating + n_heads * len(some)

    def part(start: int, weight: int) -> Progress:
        return lambda done, _: tell(start + weight * done, total)

    estimates = estimate_effects(model, scenarios, metric=metric, progress=part(0, 3), **replacing)
    ranking = estimates.to_ranking()
    if verify:
        best = [head for head in ranking if head in others][:verify]
        measured = measure_effects(
            model,
            some,
            [*early, *best],
            metric=metric,
            progress=part(n_estimating, 1),
            **replacing,
        )
        ranking = measured.to_ranking(estimates)
        ranking.metadata["n_estimated_on"] = len(scenarios)
    ranking.metadata["method"] = "effects"
    return ranking


def _split_early(heads: Sequence[Head]) -> tuple[list[Head], set[Head]]:
    """The heads that are measured in any case, and all others."""
    layers = sorted({head.layer for head in heads})[:ALWAYS_MEASURED_LAYERS]
    early = [head for head in heads if head.layer in layers]
    return early, set(heads).difference(early)


def _spread(n: int, most: int) -> np.ndarray:
    """The places of at most so many, evenly over all: mined scenarios stand task by task."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _rank_by_predictor(
    model: Any,
    scenarios: Scenarios,
    mae: APMAE,
    features: str,
    folder: str | os.PathLike[str] | None,
    tell: Progress,
) -> HeadRanking:
    if len(scenarios) < MIN_SCENARIOS:
        raise ValueError(
            f"a predictor needs {MIN_SCENARIOS} scenarios or more (a few hundred are better), got "
            f"{len(scenarios)}: use method='effects'"
        )
    check_split(scenarios.files, _TEST_SHARE)
    CorrectnessPredictor(features)  # refuses unknown ones before the model runs
    keep = sorted({"statistics", *keep_for(features)})
    observations = observe(model, scenarios, mae, folder, keep=keep, progress=tell)
    train, test = split_by_file(observations, _TEST_SHARE, seed=0)
    ranking = rank_by_predictor(train, test, features=features)
    ranking.metadata["method"] = "predictor"
    if ranking.is_at_chance:
        auc, low, high = ranking.metadata["auc"]
        warnings.warn(
            f"on held-out files the predictor tells errors no better than chance (AUC {auc:.3f} "
            f"[{low:.3f}, {high:.3f}]): do not use the order of its heads",
            stacklevel=3,
        )
    return ranking
