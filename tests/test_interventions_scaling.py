"""scale_heads: what it multiplies, what it leaves alone, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import z_of
from hypothesis import given, settings
from hypothesis import strategies as st

from aplens import ablate_heads, scale_heads


@torch.no_grad()
def logits_of(model, tokens):
    return model(tokens)


def number_of_hooks(model):
    points = {id(point): point for point in model.hook_dict.values()}
    return sum(len(point.fwd_hooks) for point in points.values())


def test_the_output_of_named_heads_is_multiplied_and_no_other(tiny_model, tiny_tokens):
    clean = z_of(tiny_model, tiny_tokens)
    with scale_heads(tiny_model, {"L0H1": 2.0, (0, 3): -0.5}):
        scaled = z_of(tiny_model, tiny_tokens)
    factors = torch.tensor([1, 2.0, 1, -0.5])[:, None]
    torch.testing.assert_close(scaled[0], clean[0] * factors)
    assert not torch.allclose(scaled[1], clean[1], atol=1e-4)  # it reads what layer 0 wrote
    assert torch.equal(z_of(tiny_model, tiny_tokens)[0], clean[0])


def test_zero_is_ablating_and_one_is_nothing(tiny_model, tiny_tokens):
    with ablate_heads(tiny_model, "L1H0, L2H2"):
        ablated = logits_of(tiny_model, tiny_tokens)
    with scale_heads(tiny_model, {"L1H0, L2H2": 0}):
        torch.testing.assert_close(logits_of(tiny_model, tiny_tokens), ablated)
    with scale_heads(tiny_model, torch.ones(3, 4)):
        assert torch.equal(logits_of(tiny_model, tiny_tokens), tiny_model(tiny_tokens).detach())


@settings(deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=12, max_size=12))
def test_every_form_of_scales_does_the_same(any_model, values):
    tokens = torch.arange(14).reshape(2, 7)
    array = np.array(values).reshape(3, 4)
    table = {(layer, head): array[layer, head] for layer in range(3) for head in range(4)}
    outcomes = []
    for scales in (array, torch.tensor(array), table):
        with scale_heads(any_model, scales):
            outcomes.append(logits_of(any_model, tokens))
    with scale_heads(any_model, per_prompt=torch.tensor(array).expand(2, 3, 4)):
        outcomes.append(logits_of(any_model, tokens))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], atol=1e-5, rtol=1e-5)


def test_each_prompt_may_have_its_own(tiny_model, tiny_tokens):
    choices = [{"L0H0": 0.0}, {}, {"L1H2": 2.0}, {"L2H3": 0.5, "L0H0": 1.5}, {}]
    with scale_heads(tiny_model, per_prompt=choices):
        together = logits_of(tiny_model, tiny_tokens)
    for row, scales in enumerate(choices):
        with scale_heads(tiny_model, scales):
            alone = logits_of(tiny_model, tiny_tokens[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_blocks_nest_and_come_off(any_model, tiny_tokens):
    before = number_of_hooks(any_model)
    with scale_heads(any_model, {"L1H1": 0.5}), scale_heads(any_model, {"L1H1": 3.0}):
        nested = logits_of(any_model, tiny_tokens)
    with scale_heads(any_model, {"L1H1": 1.5}):
        torch.testing.assert_close(nested, logits_of(any_model, tiny_tokens))
    with pytest.raises(RuntimeError, match="mine"), scale_heads(any_model, {"L1H1": 0.5}):
        raise RuntimeError("mine")
    assert number_of_hooks(any_model) == before


def test_gradients_reach_the_scales(any_model, tiny_tokens):
    """Against finite differences."""
    scales = torch.ones(3, 4, requires_grad=True)

    def metric(table):
        with scale_heads(any_model, table):
            return any_model(tiny_tokens)[:, -1, 5].sum()

    (gradient,) = torch.autograd.grad(metric(scales), scales)
    for head in ((0, 1), (2, 3)):
        step = torch.zeros(3, 4)
        step[head] = 1e-2
        with torch.no_grad():
            difference = (metric(1 + step) - metric(1 - step)) / 2e-2
        assert gradient[head].item() == pytest.approx(difference.item(), rel=0.05, abs=1e-3)


def test_generated_tokens_are_scaled_too(tiny_model):
    tokens = torch.arange(1, 9)[None]
    options = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
    options |= {"use_past_kv_cache": False, "return_type": "tokens"}
    scales = {"L0H0, L0H1, L1H2, L2H0": 0.0}
    with scale_heads(tiny_model, scales):
        generated = tiny_model.generate(tokens, **options)
        by_hand = tokens
        for _ in range(5):
            following = logits_of(tiny_model, by_hand)[:, -1].argmax(-1, keepdim=True)
            by_hand = torch.cat([by_hand, following], dim=1)
    assert generated.tolist() == by_hand.tolist()


@pytest.mark.parametrize(
    ("scales", "error", "message"),
    [
        ({"L3H0": 1.0}, ValueError, "layer 3 is out of range"),
        ({"L0H4": 1.0}, ValueError, "head 4 is out of range"),
        ({"L0H1": 1.0, (0, 1): 2.0}, ValueError, "name L0H1 twice"),
        ({"L0H1": float("nan")}, ValueError, "scale of L0H1 is nan"),
        ({"L0H1": "much"}, TypeError, "must be a number, got 'much'"),
        ({"L0H1": True}, TypeError, "must be a number, got True"),
        (torch.ones(4, 3), ValueError, r"\[3 layers, 4 heads\].*got shape \(4, 3\)"),
        (np.full((3, 4), np.inf), ValueError, "scale of L0H0 is inf"),
        ([1.0, 2.0], TypeError, "a table from heads to numbers"),
        ("L0H1", TypeError, "a table from heads to numbers"),
    ],
)
def test_what_are_no_scales_is_refused(any_model, scales, error, message):
    with pytest.raises(error, match=message), scale_heads(any_model, scales):
        pass


def test_neither_or_both_or_the_wrong_number_of_prompts(any_model, tiny_tokens):
    with pytest.raises(ValueError, match="either scales"), scale_heads(any_model):
        pass
    both = {"scales": torch.ones(3, 4), "per_prompt": [torch.ones(3, 4)]}
    with pytest.raises(ValueError, match="either scales"), scale_heads(any_model, **both):
        pass
    with pytest.raises(ValueError, match="at least one"), scale_heads(any_model, per_prompt=[]):
        pass
    with pytest.raises(TypeError, match="per_prompt"), scale_heads(any_model, per_prompt="L0H1"):
        pass
    for n in (1, 4):
        with (
            scale_heads(any_model, per_prompt=[{"L0H1": 0.5}] * n),
            pytest.raises(ValueError, match=f"scales for {n} prompts, the batch has 5"),
        ):
            any_model(tiny_tokens)
