"""Surprise: what AP-MAE did not expect of the last query."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tiny_bridge
from correctness_helpers import make_mae, make_observations, make_scenarios
from mae_helpers import tiny_mae

from aplens import collect_patterns, observe
from aplens.correctness import SURPRISES, CorrectnessPredictor, Observations
from aplens.correctness.regions import attention_by_region
from aplens.correctness.surprise import patch_surprise
from aplens.heads import Head
from aplens.patterns import log_normalize, smallest_log

KEEP = ["statistics", "surprise"]


def make_patterns(n_patterns, n_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(n_patterns, n_tokens, n_tokens, generator=generator)
    above = torch.ones(n_tokens, n_tokens).triu(1).bool()
    return scores.masked_fill(above, -torch.inf).softmax(-1)


def surprise_of(mae, attention):
    return describe(mae, attention)["surprise"]


def describe(mae, attention):
    scaled = log_normalize(mae.grid.patchify(attention))
    return patch_surprise(mae, scaled, attention, smallest_log(attention))


@pytest.mark.parametrize("n_tokens", [16, 13, 5])
def test_it_is_the_last_row_less_what_is_filled_in(n_tokens):
    mae, attention = tiny_mae(), make_patterns(6, n_tokens)
    found = surprise_of(mae, attention)
    scaled = log_normalize(mae.grid.patchify(attention))
    mask = torch.zeros(scaled.shape[:2], dtype=torch.bool)
    mask[:, mae.grid.last_row(n_tokens)] = True
    filled = mae.grid.unpatchify(mae.fill_in(scaled, mask, n_tokens=n_tokens), n_tokens)
    difference = log_normalize(attention)[:, -1] - filled[:, -1]
    expected = [
        difference.square().mean(-1),
        difference.mean(-1),
        difference.amax(-1),
        (attention[:, -1] * difference).sum(-1),
    ]
    assert len(SURPRISES) == len(expected)
    torch.testing.assert_close(found, torch.stack(expected, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_tokens", [16, 13, 5])
def test_the_unexpected_is_the_share_of_each_region_less_the_share_filled_in(n_tokens):
    mae, attention = tiny_mae(), make_patterns(6, n_tokens)
    found = describe(mae, attention)["unexpected"]
    scaled = log_normalize(mae.grid.patchify(attention))
    mask = torch.zeros(scaled.shape[:2], dtype=torch.bool)
    mask[:, mae.grid.last_row(n_tokens)] = True
    filled = mae.grid.unpatchify(mae.fill_in(scaled, mask, n_tokens=n_tokens), n_tokens)[:, -1]
    smallest = torch.stack([one[one > 0].min() for one in attention])
    # log-normalized x stands for the attention smallest ** (1 - x)
    expected = smallest[:, None] ** (1 - filled)
    expected = expected / expected.sum(-1, keepdim=True)
    shares = attention_by_region(attention[:, -1]) - attention_by_region(expected)
    torch.testing.assert_close(found, shares, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(-1), torch.zeros(6), atol=1e-5, rtol=0)


def test_only_the_last_query_and_not_its_neighbours_in_the_patch_counts():
    mae, attention = tiny_mae(), make_patterns(3, 16)
    attention[:, 5, 2] = 1e-7  # the smallest value, which scaling depends on
    other = attention.clone()
    other[:, 12:15] = make_patterns(3, 16, seed=1)[:, 12:15]  # in the last row of patches
    assert torch.equal(surprise_of(mae, other), surprise_of(mae, attention))
    other[:, 15] = make_patterns(3, 16, seed=1)[:, 15]
    assert not torch.allclose(surprise_of(mae, other), surprise_of(mae, attention), atol=1e-2)


def test_a_prompt_of_one_patch_leaves_nothing_to_see():
    with pytest.raises(ValueError, match=r"longer than one patch, 4 tokens.*got 4"):
        surprise_of(tiny_mae(), make_patterns(2, 4))


def test_observing_keeps_it_and_says_when_it_is_not_there(tmp_path):
    model, mae, scenarios = make_tiny_bridge(), make_mae(), make_scenarios(7)
    with pytest.raises(ValueError, match="longer than one patch, 8 tokens"):
        observe(model, make_scenarios(3, n_tokens=8), mae, tmp_path / "short", keep=KEEP)
    observe(model, scenarios, mae, tmp_path / "one", keep=KEEP, batch_size=2, shard_size=3)
    found = Observations.open(tmp_path / "one")
    patterns = collect_patterns(model, scenarios.tokens())
    expected = torch.stack([surprise_of(mae, patterns.prompt(i)) for i in range(7)])
    torch.testing.assert_close(
        torch.tensor(found.numbers("surprise")), expected, atol=1e-4, rtol=1e-3
    )
    described = [describe(mae, patterns.prompt(i))["unexpected"] for i in range(7)]
    unexpected = torch.tensor(found.numbers("unexpected"))
    torch.testing.assert_close(unexpected, torch.stack(described), atol=1e-4, rtol=1e-3)
    last = torch.stack([attention_by_region(patterns.prompt(i)[:, -1]) for i in range(7)])
    torch.testing.assert_close(torch.tensor(found.numbers("regions")), last, atol=1e-5, rtol=1e-4)
    chosen = found.select([4, 1]).numbers("surprise")
    assert (chosen == found.numbers("surprise")[[4, 1]]).all()
    without = observe(model, scenarios, mae, tmp_path / "two")
    with pytest.raises(ValueError, match="observe with 'surprise' in keep"):
        _ = without.numbers("surprise")
    with pytest.raises(ValueError, match="surprise"):
        observe(model, scenarios, mae, tmp_path / "two", keep=KEEP, batch_size=2)


def test_a_predictor_finds_the_head_that_tells():
    observations = make_observations(planted=Head(1, 2))
    incorrect = ~observations.table["correct"].to_numpy()
    values = torch.randn(
        len(observations), len(observations.heads), 4, generator=torch.Generator().manual_seed(0)
    ).numpy()
    values[:, 3, 1] += 3 * incorrect
    told = Observations(
        observations.table,
        observations.heads,
        observations.embeddings,
        {"surprise": values},
        model=observations.model,
    )
    predictor = CorrectnessPredictor("surprise").fit(told)
    predicted = predictor.predict_proba(told)[:, 1] > 0.5
    assert (predicted == incorrect).mean() > 0.9
    assert predictor.column_heads_[abs(predictor.model_.weights).argmax()] == 3
