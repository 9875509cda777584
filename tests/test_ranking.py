"""`rank_heads`: every method, on mined scenarios and on one's own prompts."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scoring_helpers import make_mae, make_scenarios

import aplens
from aplens.heads import Head, HeadRanking, ModelShape
from aplens.interventions import ablate_heads
from aplens.models import last_token_logits
from aplens.ranking import rank_heads
from aplens.scenarios import Scenarios
from aplens.scenarios import make_scenarios as make_own

OWN = [[5, 9, 2, 7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [42] * 7, [11, 12]]
NEVER_RAN = "the model ran"


def half_correct(model, n=60):
    """Scenarios on which the model is right every other time."""
    scenarios = make_scenarios(n)
    with torch.no_grad():
        predicted = model(scenarios.tokens())[:, -1].argmax(-1).tolist()
    return Scenarios(
        replace(scenario, target=token + i % 2)
        for i, (scenario, token) in enumerate(zip(scenarios, predicted, strict=True))
    )


def test_rank_heads_of_a_model(tiny_model):
    seen = []
    scenarios = half_correct(tiny_model)
    ranking = rank_heads(
        tiny_model,
        scenarios,
        mae=make_mae(),
        method="predictor",
        features="embeddings",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(ranking) == 12
    assert set(ranking) == {Head(layer, head) for layer in range(3) for head in range(4)}
    assert seen[-1] == (60, 60)
    facts = ranking.metadata
    assert facts["n_train"] + facts["n_test"] == 60
    assert facts["positive_class"] == "incorrect"
    for name in ("auc", "confidence_auc"):
        value, low, high = facts[name]
        assert low <= value <= high


def test_a_folder_keeps_the_observations_and_gives_the_same_ranking(any_model, tmp_path):
    scenarios = half_correct(any_model)
    settings = {"mae": make_mae(), "method": "predictor", "features": "embeddings", "seed": 3}
    kept = rank_heads(any_model, scenarios, folder=tmp_path / "kept", **settings)
    assert (tmp_path / "kept" / "manifest.json").is_file()
    assert kept.to_frame().equals(rank_heads(any_model, scenarios, **settings).to_frame())
    kept.save(tmp_path / "ranking.json")
    assert HeadRanking.load(tmp_path / "ranking.json").metadata == kept.metadata


def test_bad_input_is_refused_before_the_model_runs(any_model):
    def never(*args):
        raise AssertionError("the model ran")

    mae = make_mae()
    calls = [
        (make_scenarios(39), {}, "needs 40 scenarios or more .* got 39"),
        (make_scenarios(50, per_file=50), {}, "2 files or more, got 1"),
        (make_scenarios(50), {"test_fraction": 0}, "test_fraction must be between 0 and 1, got 0"),
        (make_scenarios(50), {"features": "cluster"}, "features must be one of"),
    ]
    for scenarios, settings, message in calls:
        with pytest.raises(ValueError, match=message):
            rank_heads(
                any_model, scenarios, mae=mae, method="predictor", progress=never, **settings
            )


def test_a_model_that_is_always_wrong_is_a_clear_error(any_model):
    with torch.no_grad():
        predicted = any_model(make_scenarios(50).tokens())[:, -1].argmax(-1).tolist()
    wrong = Scenarios(
        replace(scenario, target=(token + 1) % 101)
        for scenario, token in zip(make_scenarios(50), predicted, strict=True)
    )
    with pytest.raises(ValueError, match="got 0 correct and"):
        rank_heads(any_model, wrong, mae=make_mae(), method="predictor", features="embeddings")


@pytest.mark.real
def test_rank_heads_of_smollm2(smollm2):
    ranking = rank_heads(
        smollm2,
        half_correct(smollm2, n=40),
        mae=make_mae(),
        method="predictor",
        features="embeddings",
    )
    assert len(ranking) == 270
    assert ranking.model.name == "smollm2-135m"
    assert ranking.to_frame()["importance"].gt(0).all()


# --- few prompts of one's own ------------------------------------------------------------------


def own(model):
    return make_own(model, OWN, [1, 2, 3, 4], [5, 6, 7, 8])


def logit_differences(model, scenarios):
    differences = []
    for scenario in scenarios:
        logits = last_token_logits(model, torch.tensor([scenario.prompt]))[0]
        differences.append((logits[scenario.target] - logits[scenario.wrong]).item())
    return np.array(differences)


@torch.no_grad()
def test_few_prompts_are_ranked_by_ablation_and_a_warning_says_so(tiny_model):
    scenarios = own(tiny_model)
    with pytest.warns(UserWarning, match=r"4 scenarios are too few.*13 passes.*attribution"):
        ranking = rank_heads(tiny_model, scenarios, mae=make_mae(), outcome="logit_diff")
    clean = logit_differences(tiny_model, scenarios)
    for name, row in ranking.to_frame().iterrows():
        with ablate_heads(tiny_model, str(name)):
            effect = logit_differences(tiny_model, scenarios) - clean
        assert row["mean"] == pytest.approx(effect.mean(), abs=1e-4)
        assert row["importance"] == pytest.approx(np.abs(effect).mean(), abs=1e-4)
    assert ranking.metadata["method"] == "ablation"
    assert ranking.metadata["metric"] == "logit_diff"


def test_without_an_ap_mae_auto_says_what_it_does(tiny_model):
    with pytest.warns(UserWarning, match="without mae= no predictor"):
        rank_heads(tiny_model, own(tiny_model))


def test_a_method_asked_for_does_not_warn(tiny_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        measured = rank_heads(tiny_model, own(tiny_model), method="ablation")
        estimated = rank_heads(tiny_model, own(tiny_model), method="attribution")
    assert estimated.metadata["method"] == "attribution"
    assert len(measured) == len(estimated) == 12
    assert measured.metadata["metric"] == "log_prob"


def test_distance_needs_no_answers_but_a_reference(tiny_model):
    reference = [[7, 3, 5, 1, 2, 8, 9, 4, 6, 1, 0, 3, 5][i:] + [9] * i for i in range(1, 8)]
    settings = {"mae": make_mae(), "method": "distance"}
    ranking = rank_heads(tiny_model, own(tiny_model), reference=reference, **settings)
    assert len(ranking) == 12
    assert ranking.to_frame()["importance"].gt(0).all()
    with pytest.raises(ValueError, match="does not say which way"):
        ranking.top(3, by="toward_incorrect")
    with pytest.raises(ValueError, match="needs reference="):
        rank_heads(tiny_model, own(tiny_model), **settings)


def test_a_logit_difference_can_be_predicted_too(any_model):
    scenarios = Scenarios(
        replace(scenario, wrong=(scenario.target + 1) % 101) for scenario in make_scenarios(60)
    )
    ranking = rank_heads(
        any_model,
        scenarios,
        mae=make_mae(),
        method="predictor",
        outcome="logit_diff",
        features="embeddings",
    )
    assert ranking.metadata["outcome"] == "logit_diff"
    assert len(ranking) == 12


def test_what_a_method_lacks_is_said_before_the_model_runs(any_model, monkeypatch):
    scenarios = make_scenarios(50)

    def never(*args, **kwargs):
        raise AssertionError(NEVER_RAN)

    monkeypatch.setattr(any_model, "forward", never)
    for settings, words in (
        ({"method": "predictor"}, "'predictor' needs mae="),
        ({"method": "distance", "reference": [[1, 2]]}, "'distance' needs mae="),
        ({"method": "shap"}, "method must be one of .* got 'shap'"),
        ({"outcome": "right"}, "outcome must be one of .* got 'right'"),
        ({"outcome": "logit_diff"}, "50 of 50 scenarios have no wrong answer"),
    ):
        with pytest.raises(ValueError, match=words):
            rank_heads(any_model, scenarios, **settings)


def test_a_ranking_of_scores_is_saved_with_its_lack_of_direction(tmp_path):
    scores = {Head(0, 1): 2.5, Head(1, 0): 7.0}
    ranking = HeadRanking.from_scores(scores, model=ModelShape("m", 2, 2))
    assert ranking.top(2) == (Head(1, 0), Head(0, 1))
    ranking.save(tmp_path / "ranking.json")
    loaded = HeadRanking.load(tmp_path / "ranking.json")
    assert not loaded.is_signed
    assert loaded.to_frame().equals(ranking.to_frame())


@pytest.mark.real
def test_indirect_objects_are_ranked_by_what_moves_the_name(smollm2):
    names = [("Mary", "John"), ("Anna", "Peter"), ("James", "Susan")]
    text = "When {0} and {1} went to the store, {1} gave a drink to"
    scenarios = make_own(
        smollm2,
        [text.format(*pair) for pair in names],
        [f" {first}" for first, _ in names],
        [f" {second}" for _, second in names],
    )
    estimated = rank_heads(smollm2, scenarios, method="attribution", outcome="logit_diff")
    top = estimated.top(3, by="toward_correct")
    before = logit_differences(smollm2, scenarios).mean()
    with aplens.ablate_heads(smollm2, top):
        after = logit_differences(smollm2, scenarios).mean()
    with aplens.ablate_heads(smollm2, estimated.random(3, seed=0)):
        random = logit_differences(smollm2, scenarios).mean()
    assert before > 1
    assert before - after > 2 * abs(before - random)
