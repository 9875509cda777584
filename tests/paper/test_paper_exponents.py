"""sharpen_heads: which patterns it changes, how, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from correctness_helpers import are_answered
from hypothesis import given, settings
from hypothesis import strategies as st
from test_interventions_sweep import make_scenarios
from test_zoo import load

from aplens import collect_patterns
from aplens.models import UnsupportedModelError, attach_hooks, pattern_hook_name
from paper.exponents import _sharpen, sharpen_heads
from paper.gates import HeadGates
from paper.learning import learn_gates
from paper.trials import scaled_logits


@torch.no_grad()
def logits_of(model, tokens):
    return model(tokens)


@torch.no_grad()
def first_layer(model, tokens):
    """The patterns of layer 0 as the values are weighed with them."""
    seen = []
    with attach_hooks(model, [(pattern_hook_name(0), lambda p, hook: seen.append(p.clone()))]):
        model(tokens)
    return seen[0]


def test_an_exponent_is_an_inverse_temperature_of_the_head_named(any_model, tiny_tokens):
    clean = first_layer(any_model, tiny_tokens)
    with sharpen_heads(any_model, {"L0H1": 2.0, "L0H2": 0.0}):
        sharpened = first_layer(any_model, tiny_tokens)
    squares = clean[:, 1] ** 2
    torch.testing.assert_close(sharpened[:, 1], squares / squares.sum(-1, keepdim=True))
    n = tiny_tokens.shape[1]
    even = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    torch.testing.assert_close(sharpened[:, 2], even.expand_as(sharpened[:, 2]))
    assert torch.equal(sharpened[:, [0, 3]], clean[:, [0, 3]])
    assert torch.equal(first_layer(any_model, tiny_tokens), clean)


def test_what_is_sharpened_changes_the_prediction(any_model, tiny_tokens):
    clean = logits_of(any_model, tiny_tokens)
    with sharpen_heads(any_model, torch.full((3, 4), 0.0)):
        assert not torch.allclose(logits_of(any_model, tiny_tokens), clean, atol=1e-4)
    with sharpen_heads(any_model, torch.ones(3, 4)):
        assert torch.equal(logits_of(any_model, tiny_tokens), clean)
    assert torch.equal(logits_of(any_model, tiny_tokens), clean)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 8), min_size=12, max_size=12))
def test_rows_stay_distributions_over_what_was_seen(tiny_model, values):
    tokens = torch.arange(14).reshape(2, 7)
    with sharpen_heads(tiny_model, np.array(values).reshape(3, 4)):
        patterns = collect_patterns(tiny_model, tokens).values
    assert not patterns.triu(1).any()
    torch.testing.assert_close(patterns.sum(-1), torch.ones(patterns.shape[:-1]))


def test_blocks_nest(any_model, tiny_tokens):
    with sharpen_heads(any_model, {"L1H1": 0.5}), sharpen_heads(any_model, {"L1H1": 3.0}):
        nested = logits_of(any_model, tiny_tokens)
    with sharpen_heads(any_model, {"L1H1": 1.5}):
        once = logits_of(any_model, tiny_tokens)
    torch.testing.assert_close(nested, once)


def test_gradients_reach_the_exponents(any_model, tiny_tokens):
    """Against finite differences."""
    exponents = torch.ones(3, 4, requires_grad=True)

    def metric(table):
        with sharpen_heads(any_model, table):
            return any_model(tiny_tokens)[:, -1, 5].sum()

    (gradient,) = torch.autograd.grad(metric(exponents), exponents)
    assert gradient.abs().min() > 0
    for head in ((0, 1), (2, 3)):
        step = torch.zeros(3, 4)
        step[head] = 1e-1
        with torch.no_grad():
            difference = (metric(1 + step) - metric(1 - step)) / 2e-1
        assert gradient[head].item() == pytest.approx(difference.item(), rel=0.05, abs=1e-3)


def test_a_row_that_sums_to_less_keeps_its_sum():
    """As in models whose attention has a sink; and a query that sees nothing stays at nothing."""
    pattern = torch.tensor([[0.0, 0, 0], [0.1, 0.3, 0], [0.25, 0.25, 0.25]])[None, None]
    exponents = torch.full((1,), 2.0, requires_grad=True)
    sharpened = _sharpen(pattern, None, exponents)
    expected = torch.tensor([[0.0, 0, 0], [0.04, 0.36, 0], [0.25, 0.25, 0.25]])
    torch.testing.assert_close(sharpened[0, 0], expected)
    sharpened[..., 0].sum().backward()
    assert exponents.grad.isfinite().all()


def test_learned_exponents_make_answers_more_probable(any_model):
    scenarios = make_scenarios(any_model)
    gates = learn_gates(
        any_model, scenarios, acts_on="pattern", n_epochs=8, learning_rate=0.2, penalty=0.0
    )
    assert gates.acts_on == "pattern"

    def log_p(values):
        logits = scaled_logits(any_model, scenarios, values, acts_on="pattern")
        return logits.log_softmax(-1).gather(1, scenarios.targets()[:, None]).mean().item()

    assert log_p(gates) > log_p(np.ones((3, 4))) + 1e-3
    with sharpen_heads(any_model, gates.values):
        by_hand = logits_of(any_model, scenarios.tokens())[:, -1].argmax(-1) == scenarios.targets()
    np.testing.assert_array_equal(are_answered(any_model, scenarios, gates), by_hand.numpy())


def test_gates_of_outputs_and_of_patterns_are_not_mixed_up(any_model):
    of_patterns = HeadGates(np.full((3, 4), 1.5), "tiny", acts_on="pattern")
    loaded = HeadGates.from_dict(of_patterns.to_dict())
    assert loaded.acts_on == loaded.shuffled(0).acts_on == "pattern"
    with pytest.raises(TypeError, match="a table from heads to numbers or an array"):
        sharpen_heads(any_model, loaded).__enter__()
    with pytest.raises(ValueError, match=r"on each head's output, got .* on its pattern"):
        learn_gates(any_model, make_scenarios(any_model), start=loaded)
    with pytest.raises(ValueError, match=r"acts_on must be one of .* got 'value'"):
        HeadGates(np.ones((3, 4)), "tiny", acts_on="value")
    with pytest.raises(ValueError, match=r"acts_on must be one of .* got 'value'"):
        learn_gates(any_model, make_scenarios(any_model), acts_on="value")


def test_patterns_that_a_bridge_only_shows_are_not_sharpened_without_a_word(tmp_path):
    model, _, _ = load("opt", tmp_path, kind="bridge")
    with pytest.raises(UnsupportedModelError, match=r"hook_pattern .* changes nothing.*hook_z"):
        sharpen_heads(model, {"L1H2": 3.0}).__enter__()
