"""Runs that begin at a layer: what they leave behind, and models that cannot begin there."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from conftest import make_tiny_bridge
from correctness_helpers import make_scenarios

import aplens
from aplens import Head, HeadRanking
from aplens.circuits import activation_patch, logit_difference
from aplens.heads import ModelShape
from aplens.interventions import SweepPlan, ablate_heads, measure_effects, sweep_ablations
from aplens.models import (
    attach_hooks,
    can_start_midway,
    describe_model,
    keep_residuals,
    start_at,
    z_hook_name,
)

TOKENS = torch.randint(1, 101, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return make_tiny_bridge()


def add_to_the_last_layer(model):
    """Let the last layer read what the first one computed, past the residual stream."""
    seen = []
    model.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output))

    def add(block, inputs, options):
        first = seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]
        return (inputs[0] + first, *inputs[1:]), options

    model.blocks[2].register_forward_pre_hook(add, with_kwargs=True)


@torch.no_grad()
def test_a_forward_that_someone_had_set_on_a_block_is_back_after(model):
    block, calls = model.blocks[0], []
    original = type(block).forward

    def own(*inputs, **options):
        calls.append(1)
        return original(block, *inputs, **options)

    block.__dict__["forward"] = own
    describe_model(model)  # runs a model that it has not met
    with keep_residuals(model, [1]) as residuals:
        whole = model(TOKENS)
    calls.clear()
    with start_at(model, 1, residuals):
        torch.testing.assert_close(model(TOKENS), whole)
    assert not calls
    assert block.__dict__["forward"] is own
    torch.testing.assert_close(model(TOKENS), whole)
    assert calls == [1]


def test_a_model_whose_layers_share_more_than_the_stream_is_found_out(any_model, model):
    assert can_start_midway(any_model)
    assert can_start_midway(model)
    other = make_tiny_bridge()
    add_to_the_last_layer(other)
    with pytest.warns(UserWarning, match="need more of earlier ones than the residual stream"):
        assert not can_start_midway(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert not can_start_midway(other)


def test_effects_on_such_a_model_are_those_of_running_all_of_it(model):
    scenarios = make_scenarios(6)
    targets = scenarios.targets()[:, None]

    @torch.no_grad()
    def log_probabilities():
        return model(scenarios.tokens())[:, -1].log_softmax(-1).gather(1, targets)[:, 0]

    add_to_the_last_layer(model)
    with pytest.warns(UserWarning, match="residual stream"):
        effects = measure_effects(model, scenarios, "L1H2, L2H0")
    for head, values in zip(effects.heads, effects.values, strict=True):
        with ablate_heads(model, [head]):
            ablated = log_probabilities()
        np.testing.assert_allclose(values, ablated - log_probabilities(), atol=1e-5)


@torch.no_grad()
def test_patches_of_such_a_model_are_those_of_running_all_of_it(model):
    add_to_the_last_layer(model)
    clean, corrupted = TOKENS, TOKENS.flip(0)
    metric = logit_difference(aplens.make_scenarios(model, clean, [5, 6], [8, 9]))
    with pytest.warns(UserWarning, match="residual stream"):
        table = activation_patch(model, clean, corrupted, "L1H2, L2H0", metric=metric)
    for head, value in zip([Head(1, 2), Head(2, 0)], table.frame["metric"], strict=True):
        name, seen = z_hook_name(head.layer), []
        with attach_hooks(model, [(name, lambda z, hook, seen=seen: seen.append(z.clone()))]):
            model(clean)

        def put(z, hook, seen=seen, head=head):
            z[:, :, head.head] = seen[0][:, :, head.head]
            return z

        with attach_hooks(model, [(name, put)]):
            assert value == pytest.approx(metric(model(corrupted)).item(), abs=1e-5)


@torch.no_grad()
def test_a_sweep_of_such_a_model_is_that_of_running_all_of_it(model):
    add_to_the_last_layer(model)
    scenarios = make_scenarios(12)
    values = np.random.default_rng(0).normal(size=(12, 5))
    heads = [Head(layer, head) for layer in range(3) for head in range(4)]
    ranking = HeadRanking.from_values(heads, values, model=ModelShape("tiny", 3, 4))
    with pytest.warns(UserWarning, match="residual stream"):
        sweep = sweep_ablations(model, scenarios, ranking, SweepPlan(sizes=(1, 4), balance=False))
    for result in sweep.results:
        with ablate_heads(model, result.heads):
            predicted = model(scenarios.tokens())[:, -1].argmax(-1)
        np.testing.assert_array_equal(result.correct, predicted == scenarios.targets())
