from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import KINDS, make_tiny_bridge, make_tiny_hooked, requires_hooked

from aplens.heads import HeadRanking, ModelShape
from aplens.interventions import ablate_heads
from aplens.models import attach_hooks, z_hook_name

SOME_HEADS = [(0, 1), (1, 3), (1, 0), (2, 2)]


@torch.no_grad()
def logits_of(model, tokens):
    return model(tokens)


@torch.no_grad()
def activations(model, tokens, names):
    seen = {}
    hooks = [
        (name, lambda tensor, hook, name=name: seen.update({name: tensor.detach().clone()}))
        for name in names
    ]
    with attach_hooks(model, hooks):
        model(tokens)
    return seen


@torch.no_grad()
def logits_with_z(model, tokens, change):
    """The oracle: run with z changed by hand, `change(layer, z)` editing a copy in place."""

    def hook_for(layer):
        def hook(z, hook):
            z = z.clone()
            change(layer, z)
            return z

        return hook

    with attach_hooks(model, [(z_hook_name(layer), hook_for(layer)) for layer in range(3)]):
        return model(tokens)


def number_of_hooks(model):
    points = {id(point): point for point in model.hook_dict.values()}  # the bridge has aliases
    return sum(len(point.fwd_hooks) for point in points.values())


# Zero


@pytest.mark.parametrize("head", [(0, 0), (1, 2), (2, 3)])
def test_zero_equals_leaving_the_head_out_of_the_output_projection(tiny_model, tiny_tokens, head):
    layer, index = head
    z_name, out_name = z_hook_name(layer), f"blocks.{layer}.hook_attn_out"
    clean = activations(tiny_model, tiny_tokens, [z_name, out_name])
    with ablate_heads(tiny_model, head):
        ablated = activations(tiny_model, tiny_tokens, [out_name])
    without = clean[out_name] - clean[z_name][:, :, index] @ tiny_model.W_O[layer, index]
    torch.testing.assert_close(ablated[out_name], without, atol=1e-5, rtol=0)
    assert not torch.allclose(ablated[out_name], clean[out_name], atol=1e-3)


def test_zero_equals_a_model_whose_output_projection_has_no_such_rows(tiny_model, tiny_tokens):
    def rows(layer, head):
        attention = tiny_model.blocks[layer].attn
        if hasattr(attention, "o"):  # the bridge keeps GPT-2's own (heads × d_head, d_model)
            return attention.o.original_component.weight.data[head * 8 : (head + 1) * 8]
        return attention.W_O.data[head]

    with ablate_heads(tiny_model, SOME_HEADS):
        ablated = logits_of(tiny_model, tiny_tokens)
    saved = [rows(*head).clone() for head in SOME_HEADS]
    try:
        for head in SOME_HEADS:
            rows(*head).zero_()
        by_hand = logits_of(tiny_model, tiny_tokens)
    finally:
        for head, value in zip(SOME_HEADS, saved, strict=True):
            rows(*head).copy_(value)
    torch.testing.assert_close(ablated, by_hand, atol=1e-5, rtol=0)
    assert not torch.allclose(ablated, logits_of(tiny_model, tiny_tokens), atol=1e-3)


def test_every_way_of_naming_heads_does_the_same(any_model, tiny_tokens):
    import pandas as pd

    ranking = HeadRanking(
        pd.DataFrame(
            {
                "layer": [0, 1],
                "head": [1, 3],
                "importance": [2.0, 1.0],
                "mean": [1.0, -1.0],
                "toward_incorrect": [1.0, 0.0],
                "toward_correct": [0.0, 1.0],
            }
        ),
        model=ModelShape("tiny", 3, 4),
    )
    outcomes = []
    for heads in ([(0, 1), (1, 3)], {0: [1], 1: [3]}, "L0H1, L1H3", ["0.1", "1.3"], ranking):
        with ablate_heads(any_model, heads):
            outcomes.append(logits_of(any_model, tiny_tokens))
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes)
    with ablate_heads(any_model, []):
        untouched = logits_of(any_model, tiny_tokens)
    assert torch.equal(untouched, logits_of(any_model, tiny_tokens))


# Mean


def test_mean_is_the_heads_average_over_prompts_and_positions(tiny_model, tiny_tokens):
    reference = torch.randint(0, 101, (19, 11), generator=torch.Generator().manual_seed(3))
    clean = activations(tiny_model, reference, [z_hook_name(layer) for layer in range(3)])

    def change(layer, z):
        for head in [h for at, h in SOME_HEADS if at == layer]:
            z[:, :, head] = clean[z_hook_name(layer)][:, :, head].mean(dim=(0, 1))

    by_hand = logits_with_z(tiny_model, tiny_tokens, change)
    with ablate_heads(tiny_model, SOME_HEADS, method="mean", reference=reference):
        ablated = logits_of(tiny_model, tiny_tokens)
    torch.testing.assert_close(ablated, by_hand, atol=1e-5, rtol=0)
    with ablate_heads(tiny_model, SOME_HEADS):
        assert not torch.allclose(ablated, logits_of(tiny_model, tiny_tokens), atol=1e-3)


def test_the_reference_is_not_run_past_the_last_layer_needed(tiny_model, tiny_tokens):
    reached = []
    with (
        attach_hooks(tiny_model, [(z_hook_name(2), lambda z, hook: reached.append(len(z)))]),
        ablate_heads(tiny_model, "L1H0", method="mean", reference=tiny_tokens),
    ):
        assert reached == []
        logits_of(tiny_model, tiny_tokens[:2])
    assert reached == [2]


# Resample


def test_resample_with_a_reference_takes_the_same_position_of_its_prompts(tiny_model, tiny_tokens):
    generator = torch.Generator().manual_seed(11)
    reference = torch.randint(0, 101, (7, 20), generator=generator)
    clean = activations(tiny_model, reference, [z_hook_name(1)])[z_hook_name(1)]
    seen = {}
    # A reader attached after the ablation sees what the output projection will get.
    with (
        ablate_heads(tiny_model, "L1H2", method="resample", reference=reference, seed=4),
        attach_hooks(tiny_model, [(z_hook_name(1), lambda z, hook: seen.update(z=z.clone()))]),
    ):
        logits_of(tiny_model, tiny_tokens)
    matches = [
        [torch.allclose(output, candidate, atol=1e-6) for candidate in clean[:, :, 2]]
        for output in seen["z"][:, :, 2]
    ]
    assert [sum(row) for row in matches] == [1] * 5  # each from exactly one reference prompt
    assert len({row.index(True) for row in matches}) == 5  # and no two from the same


def test_resample_refuses_what_it_cannot_pair(tiny_model, tiny_tokens):
    with (
        ablate_heads(tiny_model, "L0H0", method="resample", reference=tiny_tokens[:, :12]),
        pytest.raises(ValueError, match=r"12 positions, this batch has 20"),
    ):
        logits_of(tiny_model, tiny_tokens)


# Living with others


def test_blocks_nest_and_the_inner_one_acts_last(tiny_model, tiny_tokens):
    with ablate_heads(tiny_model, "L0H0, L1H1"):
        both_at_once = logits_of(tiny_model, tiny_tokens)
    with ablate_heads(tiny_model, "L0H0"):
        only_outer = logits_of(tiny_model, tiny_tokens)
        with ablate_heads(tiny_model, "L1H1"):
            nested = logits_of(tiny_model, tiny_tokens)
        assert torch.equal(logits_of(tiny_model, tiny_tokens), only_outer)
    assert torch.equal(nested, both_at_once)

    with ablate_heads(tiny_model, "L0H0", method="mean", reference=tiny_tokens):
        mean = logits_of(tiny_model, tiny_tokens)
        with ablate_heads(tiny_model, "L0H0"):
            assert torch.equal(logits_of(tiny_model, tiny_tokens), only_outer)
    assert not torch.allclose(mean, only_outer, atol=1e-3)


def test_hooks_come_off_on_an_exception_and_others_stay(tiny_model, tiny_tokens):
    calls: list[str] = []
    before = number_of_hooks(tiny_model)
    clean = logits_of(tiny_model, tiny_tokens)
    with attach_hooks(tiny_model, [(z_hook_name(1), lambda z, hook: calls.append("theirs"))]):
        with pytest.raises(IndexError), ablate_heads(tiny_model, SOME_HEADS):
            tiny_model(torch.tensor([[1000]]))  # no such token
        assert number_of_hooks(tiny_model) == before + 1
        assert torch.equal(logits_of(tiny_model, tiny_tokens), clean)
        assert calls == ["theirs"]
    assert number_of_hooks(tiny_model) == before


def test_other_hook_interfaces_of_the_model_still_work(tiny_model, tiny_tokens):
    name = "blocks.1.hook_resid_post"
    with ablate_heads(tiny_model, "L0H0"):
        ablated = activations(tiny_model, tiny_tokens, [name])[name]
        with torch.no_grad():
            _, cache = tiny_model.run_with_cache(tiny_tokens)
        seen = []
        with torch.no_grad():
            tiny_model.run_with_hooks(
                tiny_tokens, fwd_hooks=[(name, lambda tensor, hook: seen.append(tensor))]
            )
        torch.testing.assert_close(cache[name], ablated)
        torch.testing.assert_close(seen[0], ablated)
        assert torch.equal(activations(tiny_model, tiny_tokens, [name])[name], ablated)


def test_gradients_flow_around_the_ablated_head(tiny_model, tiny_tokens):
    kept = {}

    def keep(z, hook):
        z.retain_grad()
        kept["z"] = z
        return z  # the bridge shows hooks a view that it does not compute with itself

    with (
        attach_hooks(tiny_model, [(z_hook_name(0), keep)]),
        ablate_heads(tiny_model, "L0H1"),
    ):
        tiny_model(tiny_tokens)[:, -1].logsumexp(dim=-1).sum().backward()
    tiny_model.zero_grad()
    by_head = kept["z"].grad.reshape(5, 20, 4, 8).abs().sum(dim=(0, 1, 3))
    assert by_head[1] == 0
    assert (by_head[[0, 2, 3]] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_half_precision(tiny_tokens, method, kind):
    make = {"hooked": make_tiny_hooked, "bridge": make_tiny_bridge}[kind]
    model = make().to(torch.bfloat16)
    with ablate_heads(model, SOME_HEADS, method=method, reference=tiny_tokens.flip(0)):
        logits = logits_of(model, tiny_tokens)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert not torch.equal(logits, logits_of(model, tiny_tokens))


# Generation


@pytest.fixture(scope="module")
def tiny_rotary():
    """HookedTransformer's own cache misplaces generated tokens under learned positions."""
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 8}
    return make_tiny_hooked(model_name="tiny-rotary", **rotary)


@pytest.fixture(params=[pytest.param("rotary", marks=requires_hooked), "bridge"])
def generating_model(request):
    return request.getfixturevalue(f"tiny_{request.param}")


@torch.no_grad()
def greedy(model, tokens, n_new):
    """Without a cache: the whole sequence again for every token."""
    for _ in range(n_new):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_generate_with_a_cache_equals_greedy_decoding_without(
    generating_model, tiny_tokens, method
):
    reference = tiny_tokens.flip(1) if method == "mean" else None
    with ablate_heads(generating_model, SOME_HEADS, method=method, reference=reference):
        expected = greedy(generating_model, tiny_tokens, 8)
        generated = generating_model.generate(
            tiny_tokens,
            max_new_tokens=8,
            do_sample=False,
            use_past_kv_cache=True,
            stop_at_eos=False,
            return_type="tokens",
            verbose=False,
        )
    assert torch.equal(generated, expected)
    assert not torch.equal(greedy(generating_model, tiny_tokens, 8), expected)


def test_generate_refuses_resampling_from_a_reference(generating_model, tiny_tokens):
    with (
        ablate_heads(
            generating_model, SOME_HEADS, method="resample", reference=tiny_tokens.flip(0)
        ),
        pytest.raises(ValueError, match="20 positions, this batch has"),
    ):
        generating_model.generate(
            tiny_tokens, max_new_tokens=2, do_sample=False, stop_at_eos=False, verbose=False
        )


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": (3, 0)}, "layer 3 is out of range for 3 layers"),
        ({"heads": "L0H4"}, "head 4 is out of range for 4 heads"),
        ({"heads": "L0H0", "method": "mean"}, "'mean' needs reference="),
        ({"heads": "L0H0", "method": "resample"}, "'resample' needs reference="),
        ({"heads": "L0H0", "method": "noise"}, "method must be one of .* got 'noise'"),
    ],
)
def test_bad_arguments_are_refused_on_entry(tiny_model, arguments, message):
    before = number_of_hooks(tiny_model)
    with (
        pytest.raises((ValueError, TypeError), match=message),
        ablate_heads(tiny_model, **arguments),
    ):
        pytest.fail("the block must not run")
    assert number_of_hooks(tiny_model) == before


# The real model


@pytest.mark.real
def test_both_classes_agree_on_smollm2(smollm2_hooked, smollm2_bridge, smollm2_tokenizer):
    tokens = smollm2_tokenizer(
        "public boolean isEmpty() { return size == 0; }", return_tensors="pt"
    ).input_ids
    heads = [(0, 0), (9, 4), (29, 8)]
    outcomes = []
    for model in (smollm2_hooked, smollm2_bridge):
        clean = logits_of(model, tokens)
        with ablate_heads(model, heads):
            outcomes.append(logits_of(model, tokens))
        assert (outcomes[-1] - clean).abs().max() > 0.1
    torch.testing.assert_close(*outcomes, atol=1e-2, rtol=1e-3)
    for model in (smollm2_hooked, smollm2_bridge):
        names = [z_hook_name(9), "blocks.9.hook_attn_out"]
        clean = activations(model, tokens, names)
        with ablate_heads(model, "L9H4"):
            ablated = activations(model, tokens, names)
        without = clean[names[1]] - clean[names[0]][:, :, 4] @ model.W_O[9, 4]
        torch.testing.assert_close(ablated[names[1]], without, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "0", None])
@pytest.mark.parametrize("method", ["zero", "resample"])
def test_a_seed_that_is_none_is_refused_on_entry(any_model, seed, method):
    expected = rf"seed must be a whole number from 0 to 2\*\*63 - 1, got {seed!r}"
    with (
        pytest.raises(ValueError, match=expected),
        ablate_heads(any_model, SOME_HEADS, method=method, seed=seed),
    ):
        pass


def test_numpys_numbers_and_the_largest_are_seeds(any_model, tiny_tokens):
    def run(seed):
        reference = tiny_tokens.flip(0)
        with ablate_heads(any_model, SOME_HEADS, method="resample", reference=reference, seed=seed):
            return logits_of(any_model, tiny_tokens)

    assert torch.equal(run(np.int64(3)), run(3))
    assert run(2**63 - 1).isfinite().all()
