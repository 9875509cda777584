"""Fingerprints: what tells heads apart, whatever the prompt."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mae_helpers import softmax_patterns, tiny_mae

import aplens
from aplens.mae import APMAE, FINGERPRINT_POOL, fit_fingerprint, linear_metric
from aplens.patterns import AttentionPatterns


@pytest.fixture
def tokens():
    return torch.randint(0, 101, (80, 16), generator=torch.Generator().manual_seed(0))


def found_again(vectors):
    """The share of heads that find themselves on the other half of the prompts."""
    first, second = (half.mean(0) for half in vectors.chunk(2))
    hits = (first @ second.T).argmax(1) == torch.arange(len(first))
    return hits.float().mean().item()


def test_it_finds_a_head_again_on_other_prompts(tiny_model, tokens):
    mae = tiny_mae()
    fit_fingerprint(mae, tiny_model, tokens[:40], dim=11)
    patterns = aplens.collect_patterns(tiny_model, tokens[40:])
    prints = mae.fingerprint(patterns)
    assert prints.shape == (40, 12, 11)
    assert torch.allclose(prints.norm(dim=-1), torch.ones(40, 12), atol=1e-5)
    embeddings = mae.encode(patterns, pool=FINGERPRINT_POOL)
    usual = found_again(torch.nn.functional.normalize(embeddings, dim=-1))
    assert found_again(prints) > 1.5 * usual > 1.5 / 12


def test_it_takes_prompts_of_several_lengths(any_model, tokens):
    mae = tiny_mae()
    fit_fingerprint(mae, any_model, tokens[:4])
    patterns = aplens.collect_patterns(any_model, tokens[:2])
    both = AttentionPatterns(patterns.values, patterns.heads, torch.tensor([16, 9]))
    assert torch.allclose(
        mae.fingerprint(both)[1], mae.fingerprint(patterns.values[1, :, :9, :9]), atol=1e-5
    )


def test_it_is_saved_with_the_apmae_and_changes_nothing_else(any_model, tokens, tmp_path):
    mae = tiny_mae()
    before = mae.encode(softmax_patterns(3))
    fit_fingerprint(mae, any_model, tokens[:8], dim=7)
    mae.save_pretrained(tmp_path)
    loaded = APMAE.from_pretrained(tmp_path)
    assert loaded.config.fingerprint_dim == 7
    assert torch.equal(loaded.encode(softmax_patterns(3)), before)
    assert torch.equal(
        loaded.fingerprint(softmax_patterns(3)), mae.fingerprint(softmax_patterns(3))
    )


def test_without_one_the_error_says_how_to_get_one():
    for mae in (tiny_mae(), APMAE(dataclasses.replace(tiny_mae().config, fingerprint_dim=4))):
        with pytest.raises(ValueError, match=r"no fingerprint .*fit_fingerprint\(mae, model"):
            mae.fingerprint(softmax_patterns(1))


def test_impossible_requests_are_refused(any_model, tokens):
    with pytest.raises(ValueError, match="dim must be 1 or more, got 0"):
        fit_fingerprint(tiny_mae(), any_model, tokens, dim=0)
    with pytest.raises(ValueError, match="patterns of 17 tokens do not fit"):
        fit_fingerprint(tiny_mae(), any_model, tokens[:, [0, *range(16)]])


def test_the_metric_looks_past_what_varies_within_a_head():
    """Heads differ along the first axis, prompts ten times as much along the second."""
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(30, 1, generator=generator)
    noise = 10 * torch.randn(20, 30, 1, generator=generator)
    embeddings = torch.cat([heads.expand(20, 30, 1), noise], dim=-1)
    weight, bias = linear_metric(embeddings, dim=1)
    assert weight[0, 0].abs() > 50 * weight[0, 1].abs()
    assert (embeddings.mean(0) @ weight.T + bias).mean().abs() < 1e-4
