from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import KINDS, make_any_tiny, make_broken, train_on, z_of

from aplens import HeadRanking, Scenarios, parse_heads
from aplens._io import FolderInUseError, own_folder
from aplens.heads import ModelShape
from aplens.interventions import (
    AblationSweep,
    Setting,
    SettingResult,
    SweepPlan,
    ablate_heads,
    sweep_ablations,
)
from aplens.models import attach_hooks, z_hook_name
from aplens.scenarios import Scenario

N_SCENARIOS = 24


def run_sweep(model, scenarios, orders, **options):
    """With the plan's options among the others."""
    names = [field.name for field in fields(SweepPlan)]
    plan = SweepPlan(**{name: options.pop(name) for name in names if name in options})
    return sweep_ablations(model, scenarios, orders, plan, **options)


def make_ranking(n_layers=3, n_heads=4, seed=0):
    rng = np.random.default_rng(seed)
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    mean = rng.normal(size=len(heads))
    mean[[2, 7]] = 0  # two neutral heads
    return HeadRanking(
        pd.DataFrame(
            {
                "layer": [layer for layer, _ in heads],
                "head": [head for _, head in heads],
                "importance": np.abs(mean) + 0.1,
                "mean": mean,
                "toward_incorrect": np.clip(mean, 0, None),
                "toward_correct": np.clip(-mean, 0, None),
            }
        ),
        model=ModelShape("tiny", n_layers, n_heads),
    )


def make_orders(ranking=None):
    """Both directions of a ranking."""
    ranking = ranking or make_ranking()
    ways = ("toward_incorrect", "toward_correct")
    return {f"made up, {by}": ranking.top(99, by=by) for by in ways}


@torch.no_grad()
def make_scenarios(model, n_correct=14, seed=0):
    """The model is right on the first `n_correct`; elsewhere its runner-up would be right."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 101, (N_SCENARIOS, 16), generator=generator)
    best_two = model(tokens)[:, -1].topk(2).indices
    return Scenarios(
        Scenario(
            task="identifiers",
            language="java",
            file=f"F{index % 9}.java",
            line=1 + index,
            span="x",
            prompt=tuple(tokens[index].tolist()),
            target=int(best_two[index, 0 if index < n_correct else 1]),
            style="left_to_right",
        )
        for index in range(N_SCENARIOS)
    )


@torch.no_grad()
def by_hand(model, scenarios, index, heads):
    """One prompt at a time, with the model's full forward pass."""
    outcomes = []
    for i in index:
        with ablate_heads(model, heads):
            predicted = model(torch.tensor([scenarios[i].prompt]))[0, -1].argmax().item()
        outcomes.append(predicted == scenarios[i].target)
    return np.array(outcomes)


def test_counts_equal_running_every_prompt_alone(tiny_model):
    scenarios = make_scenarios(tiny_model)
    sweep = run_sweep(tiny_model, scenarios, make_orders(), sizes=(1, 3), batch_size=7)
    assert sweep.clean_accuracy == 0.5
    assert len(sweep.clean) == 20  # ten of either kind
    assert [result.setting for result in sweep.results if result.setting.choice == "random"] == [
        Setting("random", size, seed) for size in (1, 3) for seed in (0, 1, 2)
    ]
    rows = {
        (row["choice"], row["size"], None if pd.isna(row["seed"]) else row["seed"]): row
        for row in sweep.to_frame().to_dict(orient="records")
    }
    assert len(rows) == len(sweep.results)
    gains = losses = 0
    for result in sweep.results:
        correct = by_hand(tiny_model, scenarios, sweep.index, result.heads)
        np.testing.assert_array_equal(result.correct, correct)
        row = rows[result.setting]
        assert row["n"] == 20
        assert row["accuracy"] == pytest.approx(correct.mean())
        assert row["incorrect_to_correct"] == (correct & ~sweep.clean).sum()
        assert row["correct_to_incorrect"] == (~correct & sweep.clean).sum()
        assert row["change"] == pytest.approx(correct.mean() - 0.5)
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["change_low"] <= row["change"] <= row["change_high"]
        gains += row["incorrect_to_correct"]
        losses += row["correct_to_incorrect"]
    assert gains > 0
    assert losses > 0


def test_heads_come_from_the_orders_and_random_ones_from_the_model(any_model):
    scenarios, ranking = make_scenarios(any_model), make_ranking()
    orders = {"effects": ranking, "by hand": "L2H3, L0H0"}
    sweep = run_sweep(any_model, scenarios, orders, sizes=(2, 3))
    heads = {result.setting: result.heads for result in sweep.results}
    assert heads[Setting("effects", 2, None)] == ranking.top(2)
    assert heads[Setting("by hand", 2, None)] == parse_heads("L2H3, L0H0")
    assert heads[Setting("random", 3, 1)] == ranking.random(3, seed=1)
    assert list(dict.fromkeys(sweep.to_frame()["choice"])) == ["effects", "by hand", "random"]
    alone = run_sweep(any_model, scenarios, ranking, sizes=(2,), random_seeds=())
    assert [result.setting for result in alone.results] == [Setting("importance", 2, None)]
    assert alone.results[0].heads == ranking.top(2)


def test_sizes_without_enough_heads_are_skipped_and_said(any_model):
    sweep = run_sweep(
        any_model,
        make_scenarios(any_model),
        {"two": "L0H0, L1H1"},
        sizes=(3, 12, 50),
        random_seeds=(0,),
    )
    assert [result.setting for result in sweep.results] == [
        Setting("random", 3, 0),
        Setting("random", 12, 0),
    ]
    assert sweep.skipped == [
        "two, 3 heads: it has 2",
        "two, 12 heads: it has 2",
        "two, 50 heads: it has 2",
        "random, 50 heads: the model has 12",
    ]


def test_without_balancing_every_scenario_counts(any_model):
    scenarios = make_scenarios(any_model)
    sweep = run_sweep(
        any_model,
        scenarios,
        make_ranking(),
        sizes=(1,),
        balance=False,
    )
    assert sweep.index.tolist() == list(range(N_SCENARIOS))
    assert sweep.files == scenarios.files
    assert sweep.clean_accuracy == pytest.approx(14 / 24)


@pytest.mark.parametrize("method", ["mean", "resample"])
def test_other_methods_equal_ablate_heads(tiny_model, method):
    scenarios = make_scenarios(tiny_model)
    reference = make_scenarios(tiny_model, seed=9).tokens()
    sweep = run_sweep(
        tiny_model,
        scenarios,
        make_ranking(),
        sizes=(4,),
        random_seeds=(),
        method=method,
        reference=reference,
        seed=3,
        batch_size=50,
    )
    (result,) = sweep.results
    with (
        torch.no_grad(),
        ablate_heads(tiny_model, result.heads, method=method, reference=reference, seed=3),
    ):
        predicted = tiny_model(scenarios.tokens()[sweep.index])[:, -1].argmax(dim=-1)
    expected = (predicted == scenarios.targets()[sweep.index]).numpy()
    np.testing.assert_array_equal(result.correct, expected)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@torch.no_grad()
def test_resampling_takes_the_donors_that_one_batch_of_all_prompts_takes(tiny_model, precision):
    """Against each prompt run alone, whatever the lengths and the batches."""
    from aplens.scenarios import make_scenarios as make_own

    lengths = (4, 11, 7, 2, 9, 11, 5)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(1, 101, (n,), generator=generator).tolist() for n in lengths]
    reference = torch.randint(1, 101, (9, 14), generator=generator)
    heads = parse_heads("L0H1, L1H0, L2H3")
    donors = torch.randperm(9, generator=torch.Generator().manual_seed(3))[: len(prompts)]
    outputs = z_of(tiny_model, reference)

    def predict(prompt, donor):
        def replacing(head):
            def replace(z, hook):
                z = z.clone()
                z[:, :, head.head] = outputs[head.layer][donor, : z.shape[1], head.head]
                return z

            return replace

        with attach_hooks(tiny_model, [(z_hook_name(h.layer), replacing(h)) for h in heads]):
            return int(tiny_model(torch.tensor([prompt]))[0, -1].argmax())

    targets = [predict(*pair) for pair in zip(prompts, donors, strict=True)]
    options = {"sizes": (3,), "random_seeds": (), "balance": False, "seed": 3}
    options |= {"method": "resample", "reference": reference, "precision": precision}
    for batch_size in (1, 3, 50):
        sweep = run_sweep(
            tiny_model,
            make_own(tiny_model, prompts, targets),
            {"all": heads},
            batch_size=batch_size,
            **options,
        )
        assert sweep.results[0].correct.all()
    assert not sweep.clean.all()


def test_a_reference_comes_in_any_form_of_prompts(any_model, tmp_path):
    scenarios, tokens = make_scenarios(any_model), make_scenarios(any_model, seed=9).tokens()
    given = any_model, scenarios, make_ranking()
    options = {"sizes": (3,), "method": "mean", "folder": tmp_path}
    as_tensor = run_sweep(*given, reference=tokens, **options)
    as_lists = run_sweep(*given, reference=tokens.tolist(), **options)  # the same sweep goes on
    pd.testing.assert_frame_equal(as_lists.to_frame(), as_tensor.to_frame())


def count_passes(model, action):
    """How many prompts reach the first layer while `action` runs."""
    seen = []
    handle = model.hook_dict[z_hook_name(0)].register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    try:
        outcome = action()
    finally:
        handle.remove()
    return sum(seen), outcome


def test_an_interrupted_sweep_goes_on_where_it_stopped(tiny_model, tmp_path):
    scenarios, ranking = make_scenarios(tiny_model), make_orders()
    arguments = {"sizes": (1, 2), "random_seeds": (0, 1), "batch_size": 8}
    whole = run_sweep(tiny_model, scenarios, ranking, **arguments)

    def stop_after_two_batches(done, total):
        assert total == 8 * 20
        if done == 8 * 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(
            tiny_model,
            scenarios,
            ranking,
            **arguments,
            folder=tmp_path,
            progress=stop_after_two_batches,
        )
    assert not (tmp_path / "sweep.json").exists()

    def go_on():
        return run_sweep(tiny_model, scenarios, ranking, **arguments, folder=tmp_path)

    prompts, resumed = count_passes(tiny_model, go_on)
    assert 0 < prompts <= 8 * 4  # no clean pass again, and only the last batch of four
    pd.testing.assert_frame_equal(resumed.to_frame(), whole.to_frame())
    loaded = AblationSweep.load(tmp_path / "sweep.json")
    pd.testing.assert_frame_equal(loaded.to_frame(), whole.to_frame())

    prompts, again = count_passes(tiny_model, go_on)
    assert prompts == 0
    pd.testing.assert_frame_equal(again.to_frame(), whole.to_frame())


def test_damaged_outcomes_are_named_and_run_again(tiny_model, tmp_path):
    given = tiny_model, make_scenarios(tiny_model), make_ranking()
    options = {"sizes": (1,), "batch_size": 8}

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(*given, **options, folder=tmp_path, progress=stop)
    kept = tmp_path / "ablated.json"
    kept.write_text(kept.read_text().replace("0", "1", 1))
    with pytest.warns(UserWarning, match=r"ablated\.json is damaged.*done again"):
        again = run_sweep(*given, **options, folder=tmp_path)
    pd.testing.assert_frame_equal(again.to_frame(), run_sweep(*given, **options).to_frame())


def test_two_sweeps_in_one_folder_are_refused(any_model, tmp_path):
    scenarios = make_scenarios(any_model)
    with own_folder(tmp_path), pytest.raises(FolderInUseError, match="another run"):
        run_sweep(any_model, scenarios, make_ranking(), sizes=(1,), folder=tmp_path)


def test_layers_that_settings_have_in_common_are_run_once(tiny_model):
    """Where all heads are in the last layer, only that layer is run for each setting."""
    scenarios = make_scenarios(tiny_model)
    options = {"sizes": (1, 2, 3, 4), "random_seeds": ()}
    prompts, sweep = count_passes(
        tiny_model, lambda: run_sweep(tiny_model, scenarios, {"last": {2: range(4)}}, **options)
    )
    assert prompts == len(scenarios) + len(sweep.clean)  # to balance, and for all settings once
    for result in sweep.results:
        correct = by_hand(tiny_model, scenarios, sweep.index, result.heads)
        np.testing.assert_array_equal(result.correct, correct)


def test_bfloat16_gives_the_outcomes_of_the_model_as_it_is(tiny_model):
    scenarios, ranking = make_scenarios(tiny_model), make_ranking()
    exact = run_sweep(tiny_model, scenarios, ranking, sizes=(1, 5))
    rounded = run_sweep(tiny_model, scenarios, ranking, sizes=(1, 5), precision=torch.bfloat16)
    pd.testing.assert_frame_equal(rounded.to_frame(), exact.to_frame())


def test_a_folder_takes_more_sizes_but_no_other_sweep(any_model, tmp_path):
    scenarios, ranking = make_scenarios(any_model), make_ranking()
    arguments = {"random_seeds": (), "folder": tmp_path}
    run_sweep(any_model, scenarios, ranking, sizes=(3,), **arguments)
    wider = run_sweep(any_model, scenarios, ranking, sizes=(1, 3), **arguments)
    assert wider.to_frame()["size"].tolist() == [1, 3]

    for other in (
        {"method": "mean", "reference": scenarios.tokens()},
        {"seed": 1},
        {"balance": False},
    ):
        (key,) = other.keys() - {"reference"}
        with pytest.raises(ValueError, match=f"something else .*{key} was"):
            run_sweep(any_model, scenarios, ranking, sizes=(1,), **arguments, **other)
    with pytest.raises(ValueError, match="scenarios was"):
        run_sweep(any_model, scenarios[:20], ranking, sizes=(1,), **arguments)
    with pytest.raises(ValueError, match=r"orders\.importance was"):
        run_sweep(any_model, scenarios, make_ranking(seed=1), sizes=(1,), **arguments)


def test_a_model_that_was_trained_on_is_another_sweep(tmp_path):
    model, ranking = make_any_tiny(), make_ranking()
    scenarios = make_scenarios(model)
    run_sweep(model, scenarios, ranking, sizes=(1,), random_seeds=(), folder=tmp_path)
    train_on(model)
    with pytest.raises(ValueError, match=r"something else \(weights was [^;]*\):"):
        run_sweep(model, scenarios, ranking, sizes=(1,), random_seeds=(), folder=tmp_path)


def made_up_sweep():
    clean = np.array([True, True, False, False, True, False])
    gain = np.array([True, True, True, True, True, False])
    return AblationSweep(
        index=np.arange(6),
        files=["a", "a", "b", "b", "c", "c"],
        clean=clean,
        results=[
            SettingResult(Setting("random", 2, 1), parse_heads("L0H3, L1H1"), ~clean),
            SettingResult(Setting("random", 2, 0), parse_heads("L0H0, L1H0"), clean),
            SettingResult(Setting("toward_incorrect", 2, None), parse_heads("L1H2, L0H1"), gain),
        ],
        skipped=["neutral, 2 heads: only 0 qualify"],
        setup={"model": "made up"},
    )


def test_the_summary_averages_random_draws_and_compares_with_them():
    summary = made_up_sweep().summary().set_index("choice")
    random, chosen = summary.loc["random"], summary.loc["toward_incorrect"]
    assert random["n_seeds"] == 2
    assert random["accuracy"] == pytest.approx(0.5)
    assert random["incorrect_to_correct"] == pytest.approx(1.5)
    assert random["correct_to_incorrect"] == pytest.approx(1.5)
    assert np.isnan(random["over_random"])
    assert chosen["n_seeds"] == 1
    assert chosen["accuracy"] == pytest.approx(5 / 6)
    assert chosen["over_random"] == pytest.approx(5 / 6 - 0.5)
    # By file, the chosen heads' accuracy less that of random ones is 0.5, 0.5 and 0.
    assert chosen["over_random_low"] == pytest.approx(0)
    assert chosen["over_random_high"] == pytest.approx(0.5)


def test_a_sweep_reads_back_as_written(tmp_path):
    sweep = made_up_sweep()
    sweep.save(tmp_path / "s.json")
    loaded = AblationSweep.load(tmp_path / "s.json")
    pd.testing.assert_frame_equal(loaded.to_frame(), sweep.to_frame())
    pd.testing.assert_frame_equal(loaded.summary(), sweep.summary())
    assert (loaded.skipped, loaded.setup, loaded.files) == (sweep.skipped, sweep.setup, sweep.files)
    np.testing.assert_array_equal(loaded.clean, sweep.clean)
    (tmp_path / "other.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match=r"other\.json is not an ablation sweep"):
        AblationSweep.load(tmp_path / "other.json")
    path = tmp_path / "s.json"
    path.write_text(path.read_text().replace("L0H3", "L0H2"))
    with pytest.raises(ValueError, match=r"s\.json is damaged"):
        AblationSweep.load(path)


def test_outcomes_of_other_scenarios_make_no_sweep():
    with pytest.raises(ValueError, match="one entry for each scenario, got 5 and 6 entries"):
        replace(made_up_sweep(), clean=np.ones(5, dtype=bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": (0, 1)}, r"from 1 up, got \(0, 1\)"),
        ({"sizes": ()}, "from 1 up"),
        ({"orders": {}}, "at least one order of heads"),
        ({"orders": {"random": "L0H0"}}, "a name other than 'random', got 'random'"),
        ({"orders": {"": "L0H0"}}, "a name other than 'random', got ''"),
        ({"orders": {"mine": "L9H0"}}, "L9H0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"method": "mean"}, "needs reference="),
        ({"method": "resample"}, "needs reference="),
        ({"orders": make_ranking(n_layers=5)}, "5 layers × 4 heads .* the model has 3 × 4"),
        ({"scenarios": Scenarios(())}, "no scenarios"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(any_model, arguments, message):
    given = {"scenarios": make_scenarios(any_model), "orders": make_ranking()} | arguments

    def refused():
        with pytest.raises(ValueError, match=message):
            run_sweep(any_model, **given)

    prompts, _ = count_passes(any_model, refused)
    assert prompts == 0


def test_balancing_needs_both_outcomes(any_model):
    scenarios = make_scenarios(any_model, n_correct=N_SCENARIOS)
    with pytest.raises(ValueError, match="correct on 24 scenarios and incorrect on 0"):
        run_sweep(any_model, scenarios, make_ranking(), sizes=(1,))


@torch.no_grad()
def test_prompts_of_several_lengths_are_swept_as_each_is_alone(tiny_model):
    from aplens.scenarios import make_scenarios as make_own

    prompts = [[5, 9, 2, 7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [42] * 7, [11, 12]]
    ablated = parse_heads("L0H1, L2H3")

    def predict(prompt):
        return int(tiny_model(torch.tensor([prompt]))[0, -1].argmax())

    unchanged = [predict(prompt) for prompt in prompts]
    with ablate_heads(tiny_model, ablated):
        targets = [predict(prompt) for prompt in prompts]
    sweep = run_sweep(
        tiny_model,
        make_own(tiny_model, prompts, targets),
        {"both": ablated},
        sizes=(2,),
        random_seeds=(),
        balance=False,
        batch_size=3,
    )
    assert sweep.clean.tolist() == [a == b for a, b in zip(unchanged, targets, strict=True)]
    assert sweep.results[0].correct.all()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True])
@pytest.mark.parametrize("name", ["seed", "random_seeds"])
def test_a_seed_that_is_none_is_refused_before_anything_runs(any_model, tmp_path, name, seed):
    value = seed if name == "seed" else (0, seed)
    expected = rf"{name} must be a whole number from 0 to 2\*\*63 - 1, got {seed}"
    with pytest.raises(ValueError, match=expected):
        run_sweep(
            any_model,
            make_scenarios(any_model),
            make_ranking(),
            folder=tmp_path / "sweep",
            **{name: value},
        )
    assert not (tmp_path / "sweep").exists()


def test_the_largest_seeds_and_numpys_are_kept_in_a_folder(any_model, tmp_path):
    seeds = (2**63 - 1, np.int64(3))
    given = any_model, make_scenarios(any_model), make_ranking()
    options = {"seed": np.int64(2), "random_seeds": seeds, "folder": tmp_path}
    first = run_sweep(*given, sizes=[2], **options)
    again = run_sweep(*given, sizes=[2], **options)
    assert [result.setting.seed for result in again.results] == [None, 2**63 - 1, 3]
    for one, other in zip(first.results, again.results, strict=True):
        np.testing.assert_array_equal(one.correct, other.correct)


def test_a_target_beyond_the_vocabulary_is_refused(any_model):
    """No argmax could ever be that token: every outcome would be wrong."""
    scenarios = list(make_scenarios(any_model))
    scenarios[2] = replace(scenarios[2], target=101)
    with pytest.raises(ValueError, match=r"scenario 2 \(F2.java\): the target .* got 101"):
        run_sweep(any_model, Scenarios(scenarios), make_ranking(), sizes=[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_a_broken_head_is_not_swept(kind, any_model):
    with pytest.raises(ValueError, match=r"attention of L1H2 of .* is broken"):
        run_sweep(make_broken(kind), make_scenarios(any_model), make_ranking(), balance=False)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("first_broken", [0, 1])
def test_logits_that_are_nan_are_not_wrong_predictions(any_model, precision, first_broken):
    """From the first pass on, or from a later one, as where only ablated models overflow."""
    passes = []

    def spoil(module, inputs, logits):
        passes.append(1)
        return logits if len(passes) <= first_broken else logits * torch.nan

    with (
        any_model.unembed.register_forward_hook(spoil),
        pytest.raises(ValueError, match="logits contain NaN"),
    ):
        run_sweep(
            any_model,
            make_scenarios(any_model),
            make_ranking(),
            sizes=[1],
            balance=False,
            batch_size=N_SCENARIOS,
            precision=precision,
        )
