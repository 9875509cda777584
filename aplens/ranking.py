"""`rank_heads`: from a hooked model and prompts to ranked heads."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from aplens.heads import HeadRanking
from aplens.models import describe_model
from aplens.prompts import PromptsLike
from aplens.scoring.observations import Observations
from aplens.scoring.observing import Progress
from aplens.scoring.scorer import HeadScorer
from aplens.scoring.splits import check_split, split_by_file

if TYPE_CHECKING:
    from aplens.mae import APMAE
    from aplens.scenarios import Scenarios

RankMethod: TypeAlias = Literal["auto", "predictor", "ablation", "attribution", "distance"]
Outcome: TypeAlias = Literal["correct", "logit_diff"]

#: From this many scenarios on, "auto" trains a predictor.
ENOUGH_SCENARIOS = 200

#: Fewer scenarios than this cannot be split, clustered and ranked in any meaningful way.
MIN_SCENARIOS = 40


def rank_heads(
    model: Any,
    scenarios: Scenarios,
    *,
    mae: APMAE | None = None,
    method: RankMethod = "auto",
    outcome: Outcome = "correct",
    features: str = "clusters",
    reference: PromptsLike | None = None,
    folder: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.4,
    seed: int = 0,
    progress: Progress | None = None,
) -> HeadRanking:
    """Rank a model's heads by what they do, or look like, on these prompts.

    The methods, and what they cost beside one forward pass over the scenarios:

    - "predictor", the paper's: a predictor of the outcome from AP-MAE's view of the patterns, and
      SHAP (docs/method.md, steps 7 to 10). One pass, but hundreds of scenarios.
    - "ablation": every head switched off by itself; the effect on the answer. One pass a head. As
      many scenarios as the effect needs to be steady, often a few dozen.
    - "attribution": a first-order estimate of the same. One pass forward, one back.
    - "distance": how far a head's patterns are from its usual ones, those on `reference`, as AP-MAE
      sees them. One pass over each; no answers are looked at. It points in no direction.

    Which of them finds the heads that matter is measured in docs/results/handoff.md.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: Mined ones, or your own prompts and answers (`make_scenarios`), of any lengths.
        mae: The AP-MAE that encodes patterns; "predictor" and "distance" need one.
        method: "auto" is "predictor" from 200 scenarios on; with fewer it warns and takes
            "ablation".
        outcome: "correct": whether the answer is the most probable token ("predictor"), or its
            log-probability. "logit_diff": the answer's logit less that of the wrong answer, which
            every scenario must have; "predictor" tells the lower half of them from the upper.
        features: What the predictor looks at, as `CorrectnessPredictor` takes it.
        reference: Ordinary prompts, no shorter than the scenarios', for "distance".
        folder: Where "predictor" keeps its observations, so that an interrupted run goes on.
        test_fraction: Share of the source files that SHAP values are taken on.
        seed: Of everything random.
        progress: Called with (units done, units in all): scenarios observed, or heads ablated.

    Warns:
        UserWarning: "auto" found fewer than 200 scenarios.

    Raises:
        ValueError: When what the method needs is missing (an AP-MAE, a reference, wrong answers),
            or "predictor" has fewer than 40 scenarios or two source files, or only one outcome.
    """
    for name, value, known in (("method", method, RankMethod), ("outcome", outcome, Outcome)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {list(get_args(known))}, got {value!r}")
    if outcome == "logit_diff":
        scenarios.wrong_targets()  # refuses scenarios without
    if method == "auto":
        method = _choose_method(model, scenarios, mae)
    if method == "predictor":
        return _rank_by_predictor(
            model,
            scenarios,
            _require_mae(mae, method),
            outcome=outcome,
            features=features,
            folder=folder,
            test_fraction=test_fraction,
            seed=seed,
            progress=progress,
        )
    if method == "distance":
        if reference is None:
            raise ValueError(
                "method 'distance' needs reference=, ordinary prompts to compare these with"
            )
        return _rank_by_distance(model, scenarios, reference, _require_mae(mae, method))
    return _rank_by_effect(model, scenarios, method, outcome, progress)


def _choose_method(model: Any, scenarios: Scenarios, mae: APMAE | None) -> RankMethod:
    if len(scenarios) >= ENOUGH_SCENARIOS and mae is not None:
        return "predictor"
    if mae is None:
        reason = "without mae= no predictor can be trained"
    else:
        reason = (
            f"{len(scenarios)} scenarios are too few to train a predictor that means anything "
            f"({ENOUGH_SCENARIOS} or more)"
        )
    n_heads = len(describe_model(model).heads)
    warnings.warn(
        f"{reason}: ranking by measured ablation, {n_heads + 1} passes over the scenarios. "
        "method='attribution' estimates that in 2; method='distance' needs no answers but "
        "reference= and mae=; method='predictor' insists",
        stacklevel=3,
    )
    return "ablation"


def _require_mae(mae: APMAE | None, method: str) -> APMAE:
    if mae is None:
        raise ValueError(
            f"method {method!r} needs mae=, such as APMAE.from_pretrained('aplens-base')"
        )
    return mae


def _rank_by_predictor(
    model: Any,
    scenarios: Scenarios,
    mae: APMAE,
    *,
    outcome: Outcome,
    features: str,
    folder: str | os.PathLike[str] | None,
    test_fraction: float,
    seed: int,
    progress: Progress | None,
) -> HeadRanking:
    if len(scenarios) < MIN_SCENARIOS:
        raise ValueError(
            f"a predictor needs {MIN_SCENARIOS} scenarios or more (a few hundred are better), got "
            f"{len(scenarios)}: use method='ablation' or 'attribution'"
        )
    check_split(scenarios.files, test_fraction)
    scorer = HeadScorer(mae, features=features, seed=seed)
    observations = scorer.observe(model, scenarios, folder, progress=progress)
    if outcome == "logit_diff":
        observations = _upper_half(observations)
    train, test = split_by_file(observations, test_fraction, seed)
    ranking = scorer.fit(train).rank(test)
    ranking.metadata |= {"method": "predictor", "outcome": outcome}
    return ranking


def _upper_half(observations: Observations) -> Observations:
    """The same, "correct" where the logit difference is above the median."""
    differences = observations.table["logit_difference"].to_numpy()
    return observations.with_outcomes(differences > np.median(differences))


def _rank_by_effect(
    model: Any,
    scenarios: Scenarios,
    method: RankMethod,
    outcome: Outcome,
    progress: Progress | None,
) -> HeadRanking:
    from aplens.interventions.effects import Metric, estimate_effects, measure_effects

    metric: Metric = "logit_diff" if outcome == "logit_diff" else "log_prob"
    if method == "attribution":
        effects = estimate_effects(model, scenarios, metric=metric)
    else:
        effects = measure_effects(model, scenarios, metric=metric, progress=progress)
    return effects.to_ranking()


def _rank_by_distance(
    model: Any, scenarios: Scenarios, reference: PromptsLike, mae: APMAE
) -> HeadRanking:
    from aplens.scoring.distance import pattern_distances

    return HeadRanking.from_scores(
        pattern_distances(model, scenarios, reference, mae=mae),
        describe_model(model),
        {"method": "distance", "n_prompts": len(scenarios)},
    )
