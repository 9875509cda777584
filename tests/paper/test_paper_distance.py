from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mae_helpers import tiny_mae

from aplens.heads import Head
from aplens.interventions import ablate_heads
from aplens.models import attach_hooks, describe_model, pattern_hook_name
from aplens.patterns import collect_patterns
from aplens.prompts import Prompts
from paper.distance import output_norms, pattern_distances


@pytest.fixture(scope="module")
def mae():
    return tiny_mae()


def random_prompts(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    return Prompts.from_ids(
        [torch.randint(0, 101, (length,), generator=generator).tolist() for length in lengths]
    )


def test_the_distance_is_that_to_the_nearest_over_the_usual_one(tiny_model, mae):
    prompts, reference = random_prompts([9, 9], seed=1), random_prompts([9] * 7, seed=0)
    found = pattern_distances(tiny_model, prompts, reference, mae=mae, batch_size=3)
    assert list(found) == list(describe_model(tiny_model).heads)

    def embeddings(some, head):
        encoded = mae.encode(collect_patterns(tiny_model, some, head))[:, 0].numpy().astype(float)
        return encoded / np.linalg.norm(encoded, axis=1, keepdims=True)

    for head, distance in found.items():
        ours, theirs = embeddings(prompts, head), embeddings(reference, head)
        far = np.sort(1 - ours @ theirs.T, axis=1)[:, :5].mean(axis=1)
        usual = np.sort(1 - theirs @ theirs.T, axis=1)[:, 1:6].mean()  # the first is itself
        assert distance == pytest.approx((far / usual).mean(), rel=1e-3)


def test_prompts_of_the_same_kind_are_about_as_far_as_usual(tiny_model, mae):
    prompts, reference = random_prompts([14] * 40, seed=1), random_prompts([14] * 40, seed=0)
    distances = list(pattern_distances(tiny_model, prompts, reference, mae=mae).values())
    assert len(distances) == 12
    assert np.median(distances) == pytest.approx(1, abs=0.1)
    assert 0.5 < min(distances) <= max(distances) < 2


def test_a_head_that_attends_otherwise_stands_out(tiny_model, mae):
    prompts, reference = random_prompts([14] * 3, seed=1), random_prompts([14] * 20, seed=0)
    n_seen = []

    def attend_to_the_first_token(patterns, hook):
        n_seen.append(len(patterns))
        if len(patterns) != len(prompts):  # the reference stays as it is
            return None
        changed = patterns.clone()
        changed[:, 1] = torch.ones(14, 14).tril() * 1e-3
        changed[:, 1, :, 0] = 0.98
        return changed

    usual = pattern_distances(tiny_model, prompts, reference, mae=mae)
    with attach_hooks(tiny_model, [(pattern_hook_name(1), attend_to_the_first_token)]):
        changed = pattern_distances(tiny_model, prompts, reference, mae=mae, batch_size=20)
    assert n_seen == [3, 20]
    assert max(changed, key=changed.get) == Head(1, 1)
    assert changed[Head(1, 1)] > 3 * usual[Head(1, 1)]


def test_every_prompt_is_compared_at_its_own_length(any_model, mae):
    reference = random_prompts([16] * 8, seed=0)
    short, long = random_prompts([5], seed=1), random_prompts([11, 11], seed=2)
    both = Prompts.from_ids([long.ids(0), short.ids(0), long.ids(1)])

    def distances(prompts, reference):
        found = pattern_distances(any_model, prompts, reference, mae=mae)
        return np.array(list(found.values()))

    alone = [distances(prompts, reference) for prompts in (short, long)]
    np.testing.assert_allclose(distances(both, reference), (alone[0] + 2 * alone[1]) / 3, rtol=1e-3)
    # Only the reference's first tokens count, and only of prompts that are long enough.
    beginnings = Prompts(reference.tokens[:, :5], torch.full((8,), 5))
    np.testing.assert_allclose(distances(short, beginnings), alone[0], rtol=1e-3)
    with_shorter = Prompts.from_ids([[1, 2, 3]] + [reference.ids(i) for i in range(8)])
    np.testing.assert_allclose(distances(short, with_shorter), alone[0], rtol=1e-3)


def test_patterns_that_never_vary_are_as_usual(any_model, mae):
    """A single token attends to itself, whatever it is."""
    found = pattern_distances(
        any_model, random_prompts([1], seed=1), random_prompts([1] * 6, seed=0), mae=mae
    )
    assert set(found.values()) == {1.0}


@pytest.mark.parametrize(
    ("lengths", "reference_lengths", "message"),
    [
        ([8], [7] * 20, "as long as the longest prompt, 8 tokens: 0 of 20"),
        ([8], [9] * 5 + [7], "at least 6 reference prompts .*: 5 of 6"),
        ([17], [20] * 9, "patterns of 17 tokens do not fit"),
    ],
)
def test_what_cannot_be_compared_is_refused(any_model, mae, lengths, reference_lengths, message):
    with pytest.raises(ValueError, match=message):
        pattern_distances(
            any_model,
            random_prompts(lengths, seed=1),
            random_prompts(reference_lengths, seed=0),
            mae=mae,
        )


@pytest.mark.real
def test_induction_heads_are_unusual_on_repeated_random_tokens(smollm2, smollm2_tokenizer):
    """Ordinary text seldom repeats itself, so there these heads look elsewhere."""
    from aplens.mae import APMAE

    half = 16
    text = smollm2_tokenizer((Path(__file__).parents[2] / "LICENSE").read_text()).input_ids
    starts = range(0, 12 * 2 * half, 2 * half)
    reference = [[0, *text[start : start + 2 * half]] for start in starts]
    drawn = torch.randint(1000, 40_000, (2, half), generator=torch.Generator().manual_seed(0))
    prompts = [[0, *row, *row] for row in drawn.tolist()]

    patterns = collect_patterns(smollm2, prompts)
    # The token after the last time the present one stood: half - 1 back.
    induction = patterns.values.diagonal(-(half - 1), dim1=-2, dim2=-1)[..., 2:].mean(dim=(0, 2))
    found = pattern_distances(
        smollm2, prompts, reference, mae=APMAE.from_pretrained("aplens-short")
    )
    best = [patterns.heads[i] for i in induction.topk(5).indices]
    assert induction.topk(5).values.min() > 0.5
    assert np.median([found[head] for head in best]) > np.median(list(found.values()))


def test_the_norm_is_of_what_a_head_adds_at_the_last_position(tiny_model):
    prompts = random_prompts([9, 5, 14], seed=1)
    found = output_norms(tiny_model, prompts, batch_size=2)
    for head in (Head(2, 3), Head(0, 1)):
        by_hand = []
        for number in range(3):
            # What the head adds to the residual stream: its layer's output with and without it.
            tokens = prompts[[number]].tokens
            outputs = []
            for heads in ((), (head,)):
                with torch.no_grad(), ablate_heads(tiny_model, heads):
                    cache = tiny_model.run_with_cache(tokens)[1]
                outputs.append(cache[f"blocks.{head.layer}.hook_attn_out"][0, -1])
            by_hand.append((outputs[0] - outputs[1]).norm().item())
        assert found[head] == pytest.approx(np.mean(by_hand), rel=1e-4)
