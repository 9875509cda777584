"""What people who use PyTorch and TransformerLens expect of objects to just work."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from correctness_helpers import make_mae

import aplens
from aplens.patterns import AttentionPatterns


def saved(mae):
    buffer = io.BytesIO()
    torch.save(mae, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.fixture(scope="module")
def patterns(any_model):
    return aplens.collect_patterns(any_model, torch.arange(40).reshape(2, 20))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda mae: pickle.loads(pickle.dumps(mae)), saved]
)
def test_an_apmae_can_be_copied_pickled_and_saved(copied, patterns):
    mae = make_mae(encoder_d_head=4)
    assert torch.equal(copied(mae).encode(patterns), mae.encode(patterns))


@pytest.mark.parametrize("settings", [{}, {"base": "additive", "patch_input": "centred"}])
def test_an_apmae_in_bfloat16_encodes_and_reconstructs_as_in_float32(settings, patterns):
    mae = make_mae(**settings)
    exact = mae.encode(patterns, precision=torch.float32)
    half = copy.deepcopy(mae).to(torch.bfloat16)
    for precision in (None, torch.float32, torch.bfloat16):
        rough = half.encode(patterns, precision=precision)
        assert rough.dtype == torch.float32
        assert torch.cosine_similarity(rough, exact, dim=-1).min() > 0.99
    assert half.reconstruct(patterns).error.isfinite().all()
    assert half.expect(patterns).isfinite().all()


def test_patterns_move_and_keep_what_they_are(patterns):
    moved = patterns.to(torch.float16)
    assert moved.values.dtype == torch.float16
    assert moved.heads == patterns.heads
    assert patterns.to("meta").values.device.type == "meta"


def test_a_cache_of_activations_is_taken_as_it_is(tiny_model):
    tokens = torch.arange(40).reshape(2, 20)
    expected = aplens.collect_patterns(tiny_model, tokens)
    _, cache = tiny_model.run_with_cache(tokens)
    found = AttentionPatterns.from_cache(cache)
    assert found.heads == expected.heads
    torch.testing.assert_close(found.values, expected.values)
    mae = make_mae()
    torch.testing.assert_close(mae.encode(cache), mae.encode(expected))
    torch.testing.assert_close(mae.expect(cache), mae.expect(expected))
    torch.testing.assert_close(found["L0H3"], expected["L0H3"])
    with pytest.raises(ValueError, match="no attention patterns: run_with_cache"):
        AttentionPatterns.from_cache({"blocks.0.hook_resid_pre": tokens})


def test_show_heads_shows_given_patterns_without_running_the_model(any_model):
    tokens = torch.arange(20)[None]
    _, cache = any_model.run_with_cache(tokens)
    expected = aplens.show_heads(any_model, tokens, "L1H2")
    runs = []
    hook = any_model.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    try:
        for given in (cache, AttentionPatterns.from_cache(cache)):
            assert aplens.show_heads(any_model, tokens, "L1H2", patterns=given) == expected
    finally:
        hook.remove()
    assert not runs
    with pytest.raises(ValueError, match="one prompt of 10 tokens"):
        aplens.show_heads(any_model, tokens[:, :10], "L1H2", patterns=cache)
