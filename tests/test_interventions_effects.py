from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import KINDS, make_broken, make_tiny_bridge, make_tiny_hooked, requires_hooked

from aplens.heads import Head, ModelShape, all_heads
from aplens.interventions import HeadEffects, ablate_heads, estimate_effects, measure_effects
from aplens.models import attach_hooks, last_token_logits, z_hook_name
from aplens.prompts import Prompts
from aplens.scenarios import Scenario, Scenarios

LENGTHS = (5, 9, 3, 9, 14)
SOME_HEADS = [(2, 1), (0, 1), (1, 3), (0, 2)]


def make_scenarios(lengths=LENGTHS, with_wrong=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, 101, (n + 2,), generator=generator).tolist() for n in lengths]
    return Scenarios(
        Scenario(
            task="own",
            language="text",
            file=f"group{number // 2}",
            line=1,
            span="",
            prompt=tuple(prompt),
            target=target,
            style="own",
            wrong=wrong if with_wrong else None,
        )
        for number, (*prompt, target, wrong) in enumerate(drawn)
    )


@pytest.fixture
def reference():
    return torch.randint(0, 101, (4, 14), generator=torch.Generator().manual_seed(9))


def metric_by_hand(logits, scenarios, metric):
    log_probs = logits.log_softmax(dim=-1)
    values = [
        row[scenario.target] - (row[scenario.wrong] if metric == "logit_diff" else 0)
        for row, scenario in zip(log_probs, scenarios, strict=True)
    ]
    return torch.stack(values).detach().double().numpy()


@torch.no_grad()
def metric_alone(model, scenarios, metric):
    """Every prompt run by itself, with no padding."""
    logits = [model(torch.tensor([scenario.prompt]))[0, -1] for scenario in scenarios]
    return metric_by_hand(torch.stack(logits), scenarios, metric)


# Measured


@pytest.mark.parametrize(("method", "metric"), [("zero", "log_prob"), ("mean", "logit_diff")])
def test_effects_equal_ablating_head_by_head_and_prompt_by_prompt(
    tiny_model, reference, method, metric
):
    scenarios = make_scenarios()
    effects = measure_effects(
        tiny_model, scenarios, metric=metric, method=method, reference=reference, batch_size=7
    )
    assert effects.heads == all_heads(3, 4)
    clean = metric_alone(tiny_model, scenarios, metric)
    np.testing.assert_allclose(effects.clean, clean, atol=1e-4)
    for head, values in zip(effects.heads, effects.values, strict=True):
        with ablate_heads(tiny_model, head, method=method, reference=reference):
            by_hand = metric_alone(tiny_model, scenarios, metric) - clean
        np.testing.assert_allclose(values, by_hand, atol=1e-4)
    assert np.abs(effects.values).max() > 0.1
    assert (effects.n_forward_passes, effects.n_backward_passes) == (13, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_resampling_takes_the_donors_that_one_batch_of_all_prompts_takes(
    tiny_model, reference, batch_size
):
    scenarios = make_scenarios()
    longer = torch.cat([reference, reference], dim=1)  # only its first 14 tokens count
    effects = measure_effects(
        tiny_model,
        scenarios,
        SOME_HEADS,
        method="resample",
        reference=longer,
        seed=3,
        batch_size=batch_size,
    )
    prompts = scenarios.prompts()
    for head, values in zip(SOME_HEADS, effects.values, strict=True):
        with (
            torch.no_grad(),
            ablate_heads(tiny_model, head, method="resample", reference=reference, seed=3),
        ):
            logits = last_token_logits(tiny_model, prompts.tokens, prompts.lengths)
        by_hand = metric_by_hand(logits, scenarios, "log_prob") - effects.clean
        np.testing.assert_allclose(values, by_hand, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 11, 100])
def test_neither_batches_nor_the_order_of_heads_and_prompts_matter(any_model, batch_size):
    scenarios = make_scenarios()
    expected = measure_effects(any_model, scenarios)
    chosen = measure_effects(any_model, scenarios[::-1], SOME_HEADS, batch_size=batch_size)
    assert chosen.heads == tuple(Head(*head) for head in SOME_HEADS)
    places = [expected.heads.index(head) for head in chosen.heads]
    np.testing.assert_allclose(chosen.values[:, ::-1], expected.values[places], atol=1e-5)
    np.testing.assert_allclose(chosen.clean[::-1], expected.clean, atol=1e-5)


def test_a_reference_may_have_prompts_of_several_lengths(any_model):
    """Padding takes no part in the mean."""
    scenarios = make_scenarios()
    ragged = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8], [9]]
    seen = []
    with (
        torch.no_grad(),
        attach_hooks(any_model, [(z_hook_name(1), lambda z, hook: seen.append(z))]),
    ):
        for prompt in ragged:
            any_model(torch.tensor([prompt]))
    mean = torch.cat([z[0, :, 2] for z in seen]).mean(dim=0)

    def replace(z, hook):
        z = z.clone()
        z[:, :, 2] = mean
        return z

    effects = measure_effects(any_model, scenarios, "L1H2", method="mean", reference=ragged)
    with attach_hooks(any_model, [(z_hook_name(1), replace)]):
        by_hand = metric_alone(any_model, scenarios, "log_prob") - effects.clean
    np.testing.assert_allclose(effects.values[0], by_hand, atol=1e-4)
    with ablate_heads(
        any_model, "L1H2", method="mean", reference=Prompts.from_ids(ragged)
    ):  # the same on its own
        alone = metric_alone(any_model, scenarios, "log_prob") - effects.clean
    np.testing.assert_allclose(alone, by_hand, atol=1e-4)


def test_hooks_of_others_act_once_in_every_pass(tiny_model):
    """Also one on a layer's input, where a pass begins again."""
    scenarios = make_scenarios()

    def strengthen(residual, hook):
        return residual * 1.5

    with attach_hooks(
        tiny_model, [(f"blocks.{layer}.hook_resid_pre", strengthen) for layer in (0, 1)]
    ):
        effects = measure_effects(tiny_model, scenarios)
        clean = metric_alone(tiny_model, scenarios, "log_prob")
        np.testing.assert_allclose(effects.clean, clean, atol=1e-4)
        for head, values in zip(effects.heads, effects.values, strict=True):
            with ablate_heads(tiny_model, head):
                by_hand = metric_alone(tiny_model, scenarios, "log_prob") - clean
            np.testing.assert_allclose(values, by_hand, atol=1e-4)


def test_layers_before_the_ablated_one_are_not_run_again(tiny_model):
    rows = {0: 0, 1: 0, 2: 0}

    def counting(layer):
        def count(z, hook):
            rows[layer] += len(z)

        return count

    with attach_hooks(tiny_model, [(z_hook_name(layer), counting(layer)) for layer in rows]):
        measure_effects(tiny_model, make_scenarios(), batch_size=4)
    n_prompts, n_heads = len(LENGTHS), 4
    expected = [n_prompts * (1 + n_heads * (layer + 1)) for layer in rows]
    assert list(rows.values()) == expected


@requires_hooked
def test_a_tokenizer_that_pads_on_the_left_changes_nothing():
    """Going on from a layer takes no attention mask, and needs none."""
    model = make_tiny_hooked()
    expected = measure_effects(model, make_scenarios()).values
    model.tokenizer = SimpleNamespace(padding_side="left", pad_token_id=0, bos_token_id=0)
    np.testing.assert_allclose(measure_effects(model, make_scenarios()).values, expected, atol=1e-5)


def test_progress_counts_heads_times_prompts(any_model):
    told = []
    measure_effects(
        any_model,
        make_scenarios(),
        SOME_HEADS,
        batch_size=3,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (20, 20)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


# Estimated


@pytest.mark.parametrize(("method", "metric"), [("zero", "log_prob"), ("mean", "logit_diff")])
def test_estimates_are_the_slope_of_ablating_a_little(tiny_model, reference, method, metric):
    scenarios = make_scenarios()
    estimates = estimate_effects(
        tiny_model, scenarios, metric=metric, method=method, reference=reference, batch_size=2
    )
    assert (estimates.n_forward_passes, estimates.n_backward_passes) == (1, 1)
    np.testing.assert_allclose(
        estimates.clean, metric_alone(tiny_model, scenarios, metric), atol=1e-4
    )

    def ablated_by(head, share):
        """The metric where the head's output is moved this share of the way to its substitute."""
        outputs = []

        def keep(z, hook):
            outputs.append(z.clone())

        def blend(z, hook):
            return torch.lerp(outputs.pop(), z, share)

        name = z_hook_name(head.layer)
        with (
            attach_hooks(tiny_model, [(name, keep)]),
            ablate_heads(tiny_model, head, method=method, reference=reference),
            attach_hooks(tiny_model, [(name, blend)]),
        ):
            return metric_alone(tiny_model, scenarios, metric)

    step = 0.01
    slopes = [
        (ablated_by(head, step) - ablated_by(head, -step)) / (2 * step) for head in estimates.heads
    ]
    np.testing.assert_allclose(estimates.values, slopes, atol=2e-3, rtol=1e-3)
    assert np.abs(estimates.values).max() > 0.1


@requires_hooked
def test_estimates_are_exact_where_the_metric_is_linear_in_the_output():
    linear = make_tiny_hooked(attn_only=True, normalization_type=None)
    last_layer = [(2, head) for head in range(4)]
    settings = {"heads": last_layer, "metric": "logit_diff"}
    measured = measure_effects(linear, make_scenarios(), **settings)
    estimated = estimate_effects(linear, make_scenarios(), **settings)
    np.testing.assert_allclose(estimated.values, measured.values, atol=1e-5)
    assert np.abs(measured.values).max() > 1e-3


@pytest.mark.parametrize("make", [make_tiny_hooked, make_tiny_bridge])
def test_a_head_that_writes_nothing_has_no_effect(make):
    model = make()
    attention = model.blocks[1].attn
    with torch.no_grad():
        if hasattr(attention, "o"):  # the bridge keeps GPT-2's own (heads × d_head, d_model)
            attention.o.original_component.weight[8:16] = 0
        else:
            attention.W_O[1] = 0
    for effects in (
        measure_effects(model, make_scenarios()),
        estimate_effects(model, make_scenarios()),
    ):
        magnitude = np.abs(effects.values).max(axis=1)
        silent = effects.heads.index(Head(1, 1))
        assert magnitude[silent] < 1e-5
        assert np.delete(magnitude, silent).min() > 1e-4


@pytest.mark.parametrize("make", [make_tiny_hooked, make_tiny_bridge])
def test_estimating_leaves_the_model_as_it_was(make):
    model = make()
    expected = estimate_effects(model, make_scenarios(), batch_size=3).values
    assert not any(hook.fwd_hooks for hook in model.hook_dict.values())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any(parameter.requires_grad for parameter in model.parameters())
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            np.testing.assert_allclose(
                estimate_effects(model, make_scenarios()).values, expected, atol=1e-5
            )
    model.requires_grad_(False)
    frozen = estimate_effects(model, make_scenarios())
    np.testing.assert_allclose(frozen.values, expected, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_half_precision(tiny_tokens):
    model = make_tiny_bridge().to(torch.bfloat16)
    for find in (measure_effects, estimate_effects):
        values = find(model, make_scenarios(), method="mean", reference=tiny_tokens).values
        assert np.isfinite(values).all()
        assert np.abs(values).max() > 0.1


# What comes of them


def made_up_effects(groups=("a", "a", "b", "b")):
    return HeadEffects(
        heads=(Head(0, 1), Head(2, 0)),
        values=np.array([[0.5, -0.1, 0.3, 0.1], [-1.0, -1.0, -2.0, -2.0]]),
        clean=np.array([-1.0, -2.0, -3.0, -4.0]),
        metric="log_prob",
        method="zero",
        estimated=False,
        groups=list(groups),
        model=ModelShape("tiny", 3, 4),
        n_forward_passes=3,
        n_backward_passes=0,
    )


def test_the_table_has_means_with_intervals_over_groups():
    frame = made_up_effects().to_frame()
    assert frame.index.tolist() == ["L0H1", "L2H0"]
    assert frame[["layer", "head"]].to_numpy().tolist() == [[0, 1], [2, 0]]
    assert frame["mean"].tolist() == pytest.approx([0.2, -1.5])
    assert frame["magnitude"].tolist() == pytest.approx([0.25, 1.5])
    # Two groups: a resample has the one twice, the other twice, or both.
    assert frame.loc["L2H0", ["low", "high"]].tolist() == pytest.approx([-2.0, -1.0])
    one_group = made_up_effects(groups="aaaa").to_frame()
    assert one_group[["low", "high", "p", "q"]].isna().all(axis=None)
    assert one_group["mean"].tolist() == pytest.approx([0.2, -1.5])


def test_heads_that_do_something_are_told_from_those_that_do_not():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(100, 40))
    values[:10] += 1
    effects = replace(
        made_up_effects(),
        heads=all_heads(10, 10),
        values=values,
        clean=np.zeros(40),
        groups=[str(i) for i in range(40)],
    )
    frame = effects.to_frame()
    assert (frame["q"][:10] < 0.05).all()
    assert (frame["q"][10:] < 0.05).sum() <= 1
    assert (frame["p"][10:] < 0.05).sum() >= 2  # uncorrected, some pass by chance


def test_the_ranking_says_which_way_heads_push_and_what_it_cost():
    ranking = made_up_effects().to_ranking()
    frame = ranking.to_frame()
    assert list(ranking) == [Head(2, 0), Head(0, 1)]
    assert frame.loc["L0H1", list(ranking.COLUMNS[2:])].tolist() == pytest.approx(
        [0.2, 0.2, 0.225, 0.025]
    )
    assert ranking.top(5, by="toward_incorrect") == (Head(0, 1),)  # works against the answers
    assert ranking.metadata == {
        "method": "ablation",
        "ablation": "zero",
        "metric": "log_prob",
        "clean": -2.5,
        "n_prompts": 4,
        "n_forward_passes": 3,
        "n_backward_passes": 0,
    }


# Refusals


@pytest.mark.parametrize("find", [measure_effects, estimate_effects])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "accuracy"}, "metric must be one of .* got 'accuracy'"),
        ({"metric": "logit_diff"}, "5 of 5 scenarios have no wrong answer"),
        ({"method": "mean"}, "'mean' needs reference="),
        ({"method": "resample"}, "'resample'"),
        ({"method": "noise"}, "got 'noise'"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"heads": "L3H0"}, "layer 3 is out of range"),
        ({"heads": []}, "selection is empty"),
    ],
)
def test_bad_arguments_are_refused(any_model, find, settings, message):
    with pytest.raises(ValueError, match=message):
        find(any_model, make_scenarios(with_wrong=False), **settings)


def test_resampling_refuses_a_reference_shorter_than_a_scenario(any_model, reference):
    with pytest.raises(ValueError, match="a prompt of 13 tokens, the longest scenario has 14"):
        measure_effects(any_model, make_scenarios(), method="resample", reference=reference[:, :13])


def test_a_broken_model_is_refused(any_model):
    def spoil(z, hook):
        return z * torch.nan

    with (
        attach_hooks(any_model, [(z_hook_name(2), spoil)]),
        pytest.raises(ValueError, match="logits contain NaN"),
    ):
        measure_effects(any_model, make_scenarios())


# The real model


@pytest.mark.real
def test_both_classes_agree_on_smollm2(smollm2_hooked, smollm2_bridge, smollm2_tokenizer):
    prompt, target = "The capital of France is the city of", " Paris"
    scenarios = Scenarios(
        [
            Scenario(
                task="own",
                language="text",
                file="capital",
                line=1,
                span=target,
                prompt=tuple(smollm2_tokenizer(prompt).input_ids),
                target=smollm2_tokenizer(target).input_ids[0],
                style="own",
            )
        ]
    )
    heads = [(0, 0), (14, 3), (29, 8)]
    for find, some in ((measure_effects, heads), (estimate_effects, None)):
        one, other = (find(model, scenarios, some) for model in (smollm2_hooked, smollm2_bridge))
        np.testing.assert_allclose(one.values, other.values, atol=5e-3)
        assert np.abs(one.values).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("effects", [measure_effects, estimate_effects])
def test_a_head_with_broken_weights_has_no_effect_that_could_be_ranked(effects, kind):
    with pytest.raises(ValueError, match=r"attention of L1H2 of .* is broken"):
        effects(make_broken(kind), make_scenarios())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("effects", [measure_effects, estimate_effects])
def test_logits_that_are_no_numbers_are_called_so_wherever_they_are(any_model, effects, value):
    """A token's that is neither the answer nor the wrong one."""
    scenarios = make_scenarios()
    spared = {token for each in scenarios for token in (each.target, each.wrong)}
    token = min(set(range(101)) - spared)

    def spoil(module, inputs, logits):
        logits = logits.clone()
        logits[..., token] = value
        return logits

    what = "NaN" if value != value else "infinity"
    with (
        any_model.unembed.register_forward_hook(spoil),
        pytest.raises(ValueError, match=f"logits contain {what}"),
    ):
        effects(any_model, scenarios, metric="logit_diff")


@pytest.mark.parametrize("metric", ["log_prob", "logit_diff"])
def test_an_answer_that_the_model_rules_out_has_no_effect(any_model, metric):
    scenarios = make_scenarios()

    def rule_out(module, inputs, logits):
        logits = logits.clone()
        logits[..., [scenarios[2].target, scenarios[2].wrong]] = -torch.inf
        return logits

    with (
        any_model.unembed.register_forward_hook(rule_out),
        pytest.raises(ValueError, match="answer's logit is minus infinity"),
    ):
        measure_effects(any_model, scenarios, "L0H0", metric=metric)


@pytest.mark.parametrize("effects", [measure_effects, estimate_effects])
@pytest.mark.parametrize("token", [101, -1, 2**63, 1.5])
@pytest.mark.parametrize(("field", "words"), [("target", "target"), ("wrong", "wrong answer")])
def test_answers_that_are_no_tokens_of_the_model_are_refused(
    any_model, effects, field, words, token
):
    scenarios = list(make_scenarios())
    scenarios[3] = replace(scenarios[3], **{field: token})
    message = rf"scenario 3 \(group1\): the {words} must be a token id from 0 to 100 .* got {token}"
    with pytest.raises(ValueError, match=message):
        effects(any_model, Scenarios(scenarios))


@requires_hooked
def test_a_model_may_answer_with_fewer_tokens_than_it_reads():
    model = make_tiny_hooked(d_vocab_out=50)
    scenarios = list(make_scenarios(with_wrong=False))
    scenarios = [replace(each, target=each.target % 50) for each in scenarios]
    assert measure_effects(model, Scenarios(scenarios), "L0H0").clean.shape == (5,)
    scenarios[0] = replace(scenarios[0], target=50)
    with pytest.raises(ValueError, match=r"from 0 to 49 .* got 50"):
        measure_effects(model, Scenarios(scenarios), "L0H0")
