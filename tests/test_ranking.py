"""`rank_heads`: every method, on mined scenarios and on one's own prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from correctness_helpers import make_mae, make_scenarios

import aplens
from aplens.heads import Head, HeadRanking, all_heads
from aplens.interventions import ablate_heads, estimate_effects, measure_effects
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
    settings = {"mae": make_mae(), "method": "predictor", "features": "embeddings"}
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


def effects_by_hand(model, scenarios, heads):
    clean = logit_differences(model, scenarios)
    effects = {}
    for head in heads:
        with torch.no_grad(), ablate_heads(model, head):
            effects[head] = (logit_differences(model, scenarios) - clean).mean()
    return effects


def test_the_first_heads_are_measured_and_the_others_estimated(tiny_model):
    scenarios, seen = own(tiny_model), []
    ranking = rank_heads(
        tiny_model, scenarios, verify=2, progress=lambda done, total: seen.append((done, total))
    )
    estimates = estimate_effects(tiny_model, scenarios, metric="logit_diff").to_ranking()
    # The heads of the first two layers in any case, and the best two of the last.
    last = [head for head in estimates if head.layer == 2]
    assert set(ranking.measured) == {*all_heads(2, 4), *last[:2]}
    frame = ranking.to_frame()
    for head, effect in effects_by_hand(tiny_model, scenarios, ranking.measured).items():
        assert frame.loc[str(head), "mean"] == pytest.approx(effect, abs=1e-4)
        assert frame.loc[str(head), "importance"] == pytest.approx(abs(effect), abs=1e-4)
    others = frame.index[~frame["measured"]]
    assert len(others) == 2
    pd.testing.assert_frame_equal(frame.loc[others], estimates.to_frame().loc[others])
    assert frame["mean"].between(frame["low"], frame["high"]).all()
    assert (ranking.metadata["method"], ranking.metadata["metric"]) == ("effects", "logit_diff")
    assert seen[-1] == (3 * 4 + 10 * 4, 3 * 4 + 10 * 4)
    assert "10 measured" in repr(ranking)


def test_measuring_all_heads_is_the_method_ablation(tiny_model):
    scenarios = own(tiny_model)
    verified = rank_heads(tiny_model, scenarios, verify=100)
    ablated = rank_heads(tiny_model, scenarios, method="ablation")
    assert len(verified.measured) == len(ablated.measured) == 12
    pd.testing.assert_frame_equal(verified.to_frame(), ablated.to_frame(), atol=1e-5)
    assert not rank_heads(tiny_model, scenarios, verify=0).measured


def test_heads_are_measured_on_at_most_64_prompts_of_all_tasks(tiny_model):
    prompts = [[5, 9, 2, 7, number] for number in range(80)]
    scenarios = make_own(tiny_model, prompts, [1] * 80)
    ranking = rank_heads(tiny_model, scenarios, verify=2)
    assert ranking.metadata["n_prompts"] == 64
    assert ranking.metadata["n_estimated_on"] == 80
    assert ranking.metadata["metric"] == "log_prob"  # there are no wrong answers


def test_without_answers_the_models_own_prediction_counts_and_that_is_said(any_model):
    with torch.no_grad():
        top = [any_model(torch.tensor([ids]))[0, -1].topk(2).indices.tolist() for ids in OWN]
    answers, wrong = zip(*top, strict=True)
    expected = rank_heads(any_model, make_own(any_model, OWN, answers, wrong), verify=3)
    with pytest.warns(UserWarning, match="no answers.*own prediction against its second choice"):
        found = rank_heads(any_model, OWN, verify=3)
    pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame())


def test_ordinary_prompts_replace_heads_by_their_mean(tiny_model):
    scenarios, reference = own(tiny_model), [[7, 3, 5, 1], [2, 8, 9]]
    ranking = rank_heads(tiny_model, scenarios, method="ablation", reference=reference)
    assert ranking.metadata["ablation"] == "mean"
    effects = measure_effects(
        tiny_model, scenarios, metric="logit_diff", method="mean", reference=reference
    )
    assert list(ranking) == list(effects.to_ranking())


def test_a_ranking_remembers_which_heads_were_measured(tiny_model, tmp_path):
    ranking = rank_heads(tiny_model, own(tiny_model), verify=4)
    ranking.save(tmp_path / "ranking.json")
    loaded = HeadRanking.load(tmp_path / "ranking.json")
    assert loaded.measured == ranking.measured
    pd.testing.assert_frame_equal(loaded.to_frame(), ranking.to_frame())
    one = make_own(tiny_model, OWN[:1], [1])  # a single prompt has no interval
    alone = rank_heads(tiny_model, one, verify=4)
    alone.save(tmp_path / "alone.json")
    assert HeadRanking.load(tmp_path / "alone.json").to_frame()["low"].isna().all()


def test_a_predictor_at_chance_is_said_to_be(tiny_model):
    with pytest.warns(UserWarning, match="no better than chance.*do not use the order"):
        rank_heads(
            tiny_model,
            half_correct(tiny_model),
            mae=make_mae(),
            method="predictor",
            features="majority",
        )


def test_what_a_method_lacks_is_said_before_the_model_runs(any_model, monkeypatch):
    scenarios = make_scenarios(50)

    def never(*args, **kwargs):
        raise AssertionError(NEVER_RAN)

    monkeypatch.setattr(any_model, "forward", never)
    for settings, words in (
        ({"method": "predictor"}, "'predictor' needs mae="),
        ({"method": "shap"}, "method must be one of .* got 'shap'"),
        ({"metric": "right"}, "metric must be one of .* got 'right'"),
        ({"metric": "logit_diff"}, "50 of 50 scenarios have no wrong answer"),
        ({"verify": -1}, "verify must be 0 or more heads, got -1"),
        ({"mae": make_mae()}, r"'effects' does not use mae=; these do: \['predictor'\]"),
        ({"features": "clusters"}, "'effects' does not use features="),
        ({"method": "ablation", "verify": 3}, "'ablation' does not use verify="),
        ({"method": "predictor", "mae": make_mae(), "metric": "log_prob"}, "not use metric="),
    ):
        with pytest.raises(ValueError, match=words):
            rank_heads(any_model, scenarios, **settings)
    with pytest.raises(ValueError, match=r"'predictor' needs scenarios.* got list"):
        rank_heads(any_model, OWN, method="predictor", mae=make_mae())


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
    ranking = rank_heads(smollm2, scenarios, verify=10)
    top = ranking.top(3, by="toward_correct")
    before = logit_differences(smollm2, scenarios).mean()
    with aplens.ablate_heads(smollm2, top):
        after = logit_differences(smollm2, scenarios).mean()
    with aplens.ablate_heads(smollm2, ranking.random(3, seed=0)):
        random = logit_differences(smollm2, scenarios).mean()
    assert before > 1
    assert before - after > 2 * abs(before - random)
