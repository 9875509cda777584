"""Gates: made, learned, kept and tried."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_broken
from correctness_helpers import are_answered
from test_interventions_sweep import made_up_sweep, make_scenarios

from aplens import estimate_effects, measure_effects, scale_heads
from aplens.models import describe_model
from paper.gates import HeadGates
from paper.learning import learn_gates
from paper.over_tasks import MEAN_OF_TASKS
from paper.trials import GateTrials, scaled_logits


@torch.no_grad()
def log_p(model, scenarios, gates=None):
    with scale_heads(model, np.ones((3, 4)) if gates is None else gates.values):
        logits = model(scenarios.tokens())[:, -1]
    return logits.log_softmax(-1).gather(1, scenarios.targets()[:, None]).mean().item()


def test_a_step_along_the_gradient(any_model):
    scenarios = make_scenarios(any_model)
    effects = estimate_effects(any_model, scenarios)
    info = describe_model(any_model)
    gates = HeadGates.from_effects(effects, info, step=0.5)
    scales = torch.ones(3, 4, requires_grad=True)
    with scale_heads(any_model, scales):
        logits = any_model(scenarios.tokens())[:, -1]
    found = logits.log_softmax(-1).gather(1, scenarios.targets()[:, None]).mean()
    (gradient,) = torch.autograd.grad(found, scales)
    expected = (1 + 0.5 * gradient).clamp(0, 2)
    np.testing.assert_allclose(gates.values, expected, atol=1e-4)
    assert log_p(any_model, scenarios, gates) > log_p(any_model, scenarios)
    large = HeadGates.from_effects(effects, info, step=1e4)
    assert set(np.unique(large.values)) <= {0.0, 2.0}


def test_measured_effects_are_no_gradient(any_model):
    effects = measure_effects(any_model, make_scenarios(any_model), "L0H0")
    with pytest.raises(ValueError, match="got measured effects of 'zero'"):
        HeadGates.from_effects(effects, describe_model(any_model))


def test_learned_gates_make_answers_more_probable_and_leave_the_model_alone(tiny_model):
    scenarios = make_scenarios(tiny_model)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    asked = [parameter.requires_grad for parameter in tiny_model.parameters()]
    with torch.no_grad():  # as a user may have it
        gates = learn_gates(tiny_model, scenarios, n_epochs=8, learning_rate=0.05, penalty=0.0)
    assert log_p(tiny_model, scenarios, gates) > log_p(tiny_model, scenarios) + 0.05
    assert gates.values.min() >= 0
    assert gates.values.max() <= 2
    assert [parameter.requires_grad for parameter in tiny_model.parameters()] == asked
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(value, before[name])
    again = learn_gates(tiny_model, scenarios, n_epochs=8, learning_rate=0.05, penalty=0.0)
    np.testing.assert_array_equal(again.values, gates.values)
    held = learn_gates(tiny_model, scenarios, n_epochs=8, learning_rate=0.05, penalty=10.0)
    assert np.abs(held.values - 1).max() < np.abs(gates.values - 1).max()


def test_beside_a_bias_gates_learn_what_it_does_not_give(any_model):
    scenarios = make_scenarios(any_model)
    counts = torch.bincount(scenarios.targets(), minlength=any_model.cfg.d_vocab).float()
    options = {"n_epochs": 6, "learning_rate": 0.05, "penalty": 0.0}
    plain = learn_gates(any_model, scenarios, scenarios, **options)
    beside = learn_gates(any_model, scenarios, scenarios, bias=counts, **options)
    assert not np.array_equal(beside.values, plain.values)

    def biased(gates):
        logits = scaled_logits(any_model, scenarios, gates) + counts
        chosen = logits.log_softmax(-1).gather(1, scenarios.targets()[:, None])
        return chosen.mean().item()

    assert biased(beside.values) > max(biased(plain.values), biased(None))
    assert beside.metadata["validation"][0] == pytest.approx(biased(None), abs=1e-4)
    with pytest.raises(ValueError, match=r"a bias of \d+ tokens, got shape \(3,\)"):
        learn_gates(any_model, scenarios, bias=torch.zeros(3))


def test_validation_keeps_the_best_epoch_even_the_start(any_model):
    scenarios = make_scenarios(any_model)
    other = make_scenarios(any_model, n_correct=20, seed=5)
    gates = learn_gates(any_model, scenarios, other, n_epochs=3, learning_rate=0.3, penalty=0.0)
    scores = gates.metadata["validation"]
    assert len(scores) == 4
    assert gates.metadata["epoch"] == int(np.argmax(scores))
    assert log_p(any_model, other, gates) == pytest.approx(max(scores), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_epochs": 0}, "n_epochs must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"start": HeadGates(np.ones((2, 2)), "other")}, r"\(3, 4\).*got \(2, 2\)"),
    ],
)
def test_what_cannot_be_learned_with_is_refused(any_model, change, message):
    with pytest.raises(ValueError, match=message):
        learn_gates(any_model, make_scenarios(any_model), **change)
    with pytest.raises(ValueError, match="no scenarios"):
        learn_gates(any_model, make_scenarios(any_model)[:0])


def test_gates_come_back_as_they_were():
    values = np.random.default_rng(0).uniform(0, 2, (3, 4))
    gates = HeadGates(values, "tiny", {"step": 2.0})
    loaded = HeadGates.from_dict(gates.to_dict())
    np.testing.assert_array_equal(loaded.values, values)
    assert (loaded.model_name, loaded.metadata) == ("tiny", {"step": 2.0})
    frame = loaded.to_frame()
    assert frame["gate"].sub(1).abs().is_monotonic_decreasing
    assert frame.loc["L1H2", "gate"] == values[1, 2]
    dealt = gates.shuffled(0)
    assert sorted(dealt.values.ravel()) == sorted(values.ravel())
    assert not np.array_equal(dealt.values, values)


@pytest.mark.parametrize("values", [np.ones(3), np.ones((0, 4)), np.full((3, 4), np.nan)])
def test_what_are_no_gates_is_refused(values):
    with pytest.raises(ValueError, match=r"gates must be (\[layer, head\]|finite)"):
        HeadGates(values, "tiny")


# Trials


def test_outcomes_are_those_of_running_each_prompt_alone(tiny_model):
    scenarios = make_scenarios(tiny_model)
    gates = np.random.default_rng(3).uniform(0, 2, (3, 4))
    found = are_answered(tiny_model, scenarios, gates, batch_size=5)
    for scenario, correct in zip(scenarios, found, strict=True):
        with torch.no_grad(), scale_heads(tiny_model, gates):
            predicted = tiny_model(torch.tensor([scenario.prompt]))[0, -1].argmax()
        assert correct == (predicted == scenario.target)
    assert 0 < found.sum() < len(found)
    unchanged = are_answered(tiny_model, scenarios)
    assert unchanged.sum() == 14


def make_trials():
    tasks = ["a"] * 10 + ["b"] * 10
    clean = np.array([True] * 8 + [False] * 2 + [True] * 5 + [False] * 5)
    mended = clean.copy()
    mended[[8, 15, 16]] = True  # half of a's wrong ones, two fifths of b's
    broken = mended.copy()
    broken[[0, 1]] = False  # a quarter of a's right ones
    files = [f"F{i // 2}" for i in range(20)]
    return GateTrials(tasks, files, clean, {"mends": mended, "mixed": broken})


def test_balanced_gain_gives_either_outcome_the_same_weight():
    frame = make_trials().to_frame().set_index(["intervention", "task"])
    assert frame.loc[("mends", "a"), "gain"] == pytest.approx((1 + 1 / 2) / 2 - 0.5)
    assert frame.loc[("mends", "b"), "gain"] == pytest.approx((1 + 2 / 5) / 2 - 0.5)
    assert frame.loc[("mixed", "a"), "gain"] == pytest.approx((3 / 4 + 1 / 2) / 2 - 0.5)
    assert frame.loc[("mixed", "a"), "change"] == pytest.approx(-0.1)
    mean = frame.loc[("mends", MEAN_OF_TASKS)]
    assert mean["gain"] == pytest.approx((0.25 + 0.2) / 2)
    assert (mean["n"], mean["incorrect_to_correct"], mean["correct_to_incorrect"]) == (20, 3, 0)
    for _, row in frame.iterrows():
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
        assert row["change_low"] <= row["change"] <= row["change_high"]


def test_a_gain_over_a_baseline_compares_on_the_same_resamples():
    trials = make_trials()
    frame = trials.to_frame(baseline="mixed").set_index(["intervention", "task"])
    of_itself = frame.loc["mixed"]
    columns = ["over_baseline", "over_baseline_low", "over_baseline_high"]
    assert (of_itself[columns].to_numpy() == 0).all()
    mends = frame.loc[("mends", "a")]
    assert mends["over_baseline"] == pytest.approx(1 / 8)
    # Each interval alone is as wide as the tasks' mixture makes it; their difference is not.
    assert mends["over_baseline_low"] >= 0
    mean = frame.loc[("mends", MEAN_OF_TASKS), "over_baseline"]
    assert mean == pytest.approx(frame.loc["mends"].loc[["a", "b"], "over_baseline"].mean())
    with pytest.raises(ValueError, match=r"baseline must be one of .* got 'other'"):
        trials.to_frame(baseline="other")


def test_balancing_by_weights_is_what_drawing_balanced_scenarios_gives_on_average():
    rng = np.random.default_rng(0)
    clean = rng.random(400) < 0.7
    correct = np.where(clean, rng.random(400) < 0.9, rng.random(400) < 0.3)
    trials = GateTrials(["a"] * 400, [f"F{i}" for i in range(400)], clean, {"one": correct})
    gain = trials.to_frame().iloc[0]["gain"]
    wrong, right = np.flatnonzero(~clean), np.flatnonzero(clean)
    draws = [
        correct[np.concatenate([wrong, rng.choice(right, len(wrong), replace=False)])].mean()
        for _ in range(2000)
    ]
    assert gain == pytest.approx(np.mean(draws) - 0.5, abs=0.002)


def test_a_task_without_wrong_predictions_has_no_balanced_gain():
    trials = GateTrials(["a"] * 4, list("wxyz"), np.ones(4, bool), {"one": np.ones(4, bool)})
    row = trials.to_frame().iloc[0]
    assert np.isnan(row["gain"])
    assert row["change"] == 0


def test_applying_only_where_an_error_is_expected():
    trials = make_trials()
    where = ~trials.clean  # a perfect predictor
    gated = trials.apply_where(where, " gated")
    assert list(gated.outcomes) == ["mends gated", "mixed gated"]
    frame = pd.concat([trials.to_frame(), gated.to_frame()]).set_index(["intervention", "task"])
    assert frame.loc[("mixed gated", "a"), "correct_to_incorrect"] == 0
    assert frame.loc[("mixed gated", "a"), "gain"] == frame.loc[("mends", "a"), "gain"]


def test_trials_of_several_tasks_join_in_what_all_of_them_tried():
    rng = np.random.default_rng(0)
    parts = [
        GateTrials([task] * 40, [f"{task}{i}" for i in range(40)], rng.random(40) < 0.5, outcomes)
        for task, outcomes in (
            (
                "a",
                {"one": rng.random(40) < 0.5, "two": rng.random(40), "only here": rng.random(40)},
            ),
            ("b", {"two": rng.random(40), "one": rng.random(40) < 0.5}),
        )
    ]
    joined = GateTrials.join(parts)
    assert list(joined.outcomes) == ["one", "two"]
    frame = joined.to_frame(baseline={"one": "two"}).set_index(["intervention", "task"])
    for part in parts:
        own = part.to_frame().set_index(["intervention", "task"])
        row = ("two", part.tasks[0])
        assert frame.loc[row, "gain"] == own.loc[row, "gain"]
    difference = frame.loc["one", "gain"] - frame.loc["two", "gain"]
    assert frame.loc["one", "over_baseline"].to_numpy() == pytest.approx(difference.to_numpy())
    assert frame.loc["two", "over_baseline"].isna().all()
    with pytest.raises(ValueError, match="at least one part"):
        GateTrials.join([])
    with pytest.raises(ValueError, match=r"baseline must be one of .*, got 'three'"):
        joined.to_frame(baseline={"one": "three"})


def test_a_sweep_as_trials_is_balanced_and_by_task():
    sweep = made_up_sweep()
    trials = GateTrials.of_sweep(sweep, ["a", "a", "a", "a", "b", "b"])
    frame = trials.to_frame().set_index(["intervention", "task"])
    names = ["toward incorrect, 2 heads", "random, 2 heads"]
    assert list(dict.fromkeys(frame.index.get_level_values(0))) == names
    draws = [r.correct for r in sweep.results if r.setting.choice == "random"]
    change = np.mean(draws, axis=0) - sweep.clean
    assert frame.loc[(names[1], "a"), "change"] == pytest.approx(change[:4].mean())
    assert frame.loc[(names[1], "b"), "change"] == pytest.approx(change[4:].mean())
    chosen = frame.loc["toward incorrect, 2 heads"]
    assert chosen.loc["a", ["gain", "change", "incorrect_to_correct"]].tolist() == [0.5, 0.5, 2]
    assert chosen.loc["b", ["gain", "change"]].tolist() == [0, 0]
    assert chosen.loc["mean of tasks", "gain"] == 0.25
    with pytest.raises(ValueError, match="at least 6, got 5"):
        GateTrials.of_sweep(sweep, ["a"] * 5)


def test_broken_logits_are_refused(any_model):
    broken = make_broken("bridge")
    with pytest.raises(ValueError, match="logits contain NaN or infinity"):
        are_answered(broken, make_scenarios(any_model))
