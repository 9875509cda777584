from __future__ import annotations

import math

import families
import pytest
import torch
from conftest import KINDS, make_broken, make_tiny_bridge
from hypothesis import given, settings
from hypothesis import strategies as st

import aplens
from aplens.models import attach_hooks, describe_model, pattern_hook_name
from aplens.patterns import (
    AttentionPatterns,
    PatchGrid,
    crop_patches,
    depth_scales,
    log_normalize,
    read_layers,
    stream_patterns,
)
from aplens.prompts import read_prompts


def causal_patterns(n, batch=(3,), seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(*batch, n, n, generator=generator) * sharpness
    above = torch.ones(n, n, dtype=torch.bool).triu(1)
    return scores.masked_fill(above, -math.inf).softmax(-1)


# --- log-normalizing ---------------------------------------------------------------------------


def test_log_normalize_is_the_formula_of_the_paper():
    attention = causal_patterns(12)
    for pattern, scaled in zip(attention, log_normalize(attention), strict=True):
        x = [[math.log(a) if a > 0 else -math.inf for a in row] for row in pattern.tolist()]
        m = min(v for row in x for v in row if v > -math.inf)
        for i in range(12):
            for j in range(12):
                expected = 0.0 if x[i][j] == -math.inf else (x[i][j] - m) / -m
                assert scaled[i, j].item() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(0, 1000), st.floats(0.1, 30))
def test_scaled_patterns_lie_in_the_unit_interval_and_keep_the_order(n, seed, sharpness):
    attention = causal_patterns(n, (2,), seed, sharpness)
    scaled = log_normalize(attention)
    assert scaled.min() >= 0
    assert scaled.max() == 1  # the first query can only attend to itself
    assert (scaled.triu(1) == 0).all()
    for a, s in zip(attention, scaled, strict=True):
        order = a[a > 0].argsort(stable=True)
        assert (s[a > 0][order].diff() >= 0).all()


def test_all_attention_on_one_key_stays_one():
    assert torch.equal(log_normalize(torch.eye(6)[None]), torch.eye(6)[None])


def test_zeros_of_a_sliding_window_become_zero_and_do_not_count_as_smallest():
    attention = causal_patterns(10)
    window = torch.ones(10, 10).tril().triu(-3)
    attention = attention * window
    attention = attention / attention.sum(-1, keepdim=True)
    scaled = log_normalize(attention)
    assert (scaled[:, window == 0] == 0).all()
    smallest = torch.where(attention > 0, attention, 2).flatten(1).argmin(1)
    assert torch.equal(scaled.flatten(1).gather(1, smallest[:, None]), torch.zeros(3, 1))


def test_padding_becomes_zero_and_changes_nothing_else():
    attention = causal_patterns(6)
    padded = torch.nn.functional.pad(attention, (0, 4, 0, 4))
    assert torch.equal(log_normalize(padded)[:, :6, :6], log_normalize(attention))
    assert (log_normalize(padded)[:, 6:] == 0).all()
    assert (log_normalize(torch.zeros(2, 4, 4)) == 0).all()


def test_each_pattern_is_scaled_on_its_own():
    attention = causal_patterns(8, (2, 3))
    together = log_normalize(attention)
    for i in range(2):
        for j in range(3):
            assert torch.equal(together[i, j], log_normalize(attention[i, j]))


def test_half_precision_and_overshoot_are_tolerated_and_input_is_left_alone():
    attention = causal_patterns(8).to(torch.bfloat16)
    before = attention.clone()
    scaled = log_normalize(attention)
    assert scaled.dtype == torch.float32
    assert scaled.max() == 1
    assert torch.equal(attention, before)
    assert log_normalize(torch.tensor([[1.0000002, 0.0], [0.5, 0.5]])).max() == 1


def test_what_is_no_attention_is_refused():
    broken = causal_patterns(5)
    broken[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        log_normalize(broken)
    with pytest.raises(ValueError, match="-3"):
        log_normalize(torch.tensor([[0.5, -3.0]]))
    with pytest.raises(ValueError, match="scores"):
        log_normalize(torch.tensor([[7.0, 0.1]]))


# --- patches -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 4), st.data())
def test_patches_put_back_give_the_pattern_exactly(patch_size, rows, data):
    n_ctx = patch_size * rows
    n = data.draw(st.integers(1, n_ctx))
    grid = PatchGrid(n_ctx, patch_size)
    patterns = causal_patterns(n, (2, 2))
    patches = grid.patchify(patterns)
    assert patches.shape == (2, 2, grid.n_patches_for(n), patch_size**2)
    assert torch.equal(grid.unpatchify(patches, n), patterns)


def test_the_paper_has_36_patches_numbered_row_by_row():
    grid = PatchGrid(256, 32)
    assert (grid.n_rows, grid.n_patches, grid.n_pixels) == (8, 36, 1024)
    places = list(zip(grid.rows.tolist(), grid.columns.tolist(), strict=True))
    assert places == [(r, c) for r in range(8) for c in range(r + 1)]
    pattern = torch.arange(256 * 256.0).reshape(256, 256)
    patches = grid.patchify(pattern)
    for index, (r, c) in enumerate(places):
        block = pattern[32 * r : 32 * r + 32, 32 * c : 32 * c + 32]
        assert torch.equal(patches[index].reshape(32, 32), block)


def test_a_shorter_prompt_has_the_first_patches_of_a_longer_one():
    grid = PatchGrid(32, 8)
    long = causal_patterns(32)
    short = long[:, :16, :16]
    assert torch.equal(grid.patchify(short), grid.patchify(long)[:, :3])
    assert grid.last_row(16) == slice(1, 3)
    assert grid.last_row(17) == slice(3, 6)
    assert grid.last_row(32) == slice(6, 10)


def test_normalizing_patches_equals_normalizing_patterns():
    grid = PatchGrid(32, 8)
    patterns = causal_patterns(29)
    assert torch.equal(
        log_normalize(grid.patchify(patterns)), grid.patchify(log_normalize(patterns))
    )


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="n_ctx=30"):
        PatchGrid(30, 8)
    grid = PatchGrid(32, 8)
    with pytest.raises(ValueError, match="33 tokens"):
        grid.patchify(torch.rand(2, 33, 33))
    with pytest.raises(ValueError, match=r"\(2, 1, 9\)"):
        grid.patchify(torch.rand(2, 1, 9))
    with pytest.raises(ValueError, match=r"\(10, 64\)"):
        grid.unpatchify(torch.rand(2, 9, 64))


# --- collecting --------------------------------------------------------------------------------


def test_collected_patterns_are_those_of_the_cache_in_the_order_asked_for(tiny_model, tiny_tokens):
    _, cache = tiny_model.run_with_cache(tiny_tokens)
    patterns = aplens.collect_patterns(tiny_model, tiny_tokens, ["L2H1", (0, 3), {2: [0]}])
    assert [str(head) for head in patterns.heads] == ["L2H1", "L0H3", "L2H0"]
    for index, (layer, head) in enumerate(patterns.heads):
        expected = cache[pattern_hook_name(layer)][:, head]
        assert torch.equal(patterns.values[:, index], expected)
        assert torch.equal(patterns[(layer, head)], expected)


def test_all_heads_by_default_and_batches_change_nothing(tiny_model, tiny_tokens):
    whole = aplens.collect_patterns(tiny_model, tiny_tokens)
    assert whole.values.shape == (5, 12, 20, 20)
    in_twos = aplens.collect_patterns(tiny_model, tiny_tokens, batch_size=2)
    assert in_twos.heads == whole.heads
    torch.testing.assert_close(in_twos.values, whole.values, atol=1e-6, rtol=0)


def test_the_forward_pass_stops_after_the_last_layer_needed(tiny_model, tiny_tokens):
    ran = []
    watch = [
        (pattern_hook_name(layer), lambda p, hook, i=layer: ran.append(i)) for layer in (0, 1, 2)
    ]
    with attach_hooks(tiny_model, watch):
        aplens.collect_patterns(tiny_model, tiny_tokens, "L1H0")
    assert ran == [0, 1]


def test_a_collector_in_someones_loop_adds_up_and_leaves_their_hooks(tiny_model, tiny_tokens):
    theirs = []
    point = tiny_model.hook_dict[pattern_hook_name(1)]
    point.add_hook(lambda tensor, hook: theirs.append(tensor.shape))
    before = list(point.fwd_hooks)
    try:
        with aplens.PatternCollector(tiny_model, ["L1H0"]) as collector:
            tiny_model(tiny_tokens[:2])
            tiny_model.run_with_cache(tiny_tokens[2:])
        assert point.fwd_hooks == before
        tiny_model(tiny_tokens)
        assert len(theirs) == 3
    finally:
        tiny_model.reset_hooks()
    assert len(collector.patterns) == 5
    expected = aplens.collect_patterns(tiny_model, tiny_tokens, ["L1H0"]).values
    torch.testing.assert_close(collector.patterns.values, expected, atol=1e-6, rtol=0)


def test_hooks_come_off_on_an_exception(tiny_model, tiny_tokens):
    collector = aplens.PatternCollector(tiny_model)

    def failing_loop():
        with collector:
            tiny_model(tiny_tokens)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_loop()
    tiny_model(tiny_tokens)
    assert len(collector.patterns) == 5
    assert not any(point.fwd_hooks for point in tiny_model.hook_dict.values())


def test_a_hook_that_cannot_be_attached_attaches_none(tiny_model):
    hooks = [
        (pattern_hook_name(0), lambda t, hook: None),
        ("blocks.9.nothing", lambda t, hook: None),
    ]
    with pytest.raises(ValueError, match=r"blocks\.9\.nothing"), attach_hooks(tiny_model, hooks):
        pass
    assert not any(point.fwd_hooks for point in tiny_model.hook_dict.values())


def test_streaming_gives_the_same_patterns_and_the_last_logits(tiny_model, tiny_tokens):
    whole = aplens.collect_patterns(tiny_model, tiny_tokens)
    logits = tiny_model(tiny_tokens)[:, -1]
    seen = 0
    for where, patterns, last in stream_patterns(tiny_model, tiny_tokens, batch_size=2):
        torch.testing.assert_close(patterns.values, whole.values[where], atol=1e-6, rtol=0)
        torch.testing.assert_close(last, logits[where], atol=1e-5, rtol=1e-5)
        seen += len(patterns)
    assert seen == 5


def test_bad_requests_are_refused_before_the_model_runs(tiny_model, tiny_tokens):
    for heads, words in (("L3H0", "3 layers"), ([(0, 4)], "4 heads"), ([], "no heads")):
        with pytest.raises(ValueError, match=words):
            aplens.collect_patterns(tiny_model, tiny_tokens, heads)
    for tokens, words in (
        (tiny_tokens[None], r"\(1, 5, 20\)"),
        (tiny_tokens.float(), "float32"),
        (torch.zeros(1, 65, dtype=torch.long), "65 tokens are too long"),
        (tiny_tokens[:0], "got none"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            aplens.collect_patterns(tiny_model, tokens)


def test_lengths_do_not_mix_and_nothing_is_not_a_pattern(tiny_model, tiny_tokens):
    with aplens.PatternCollector(tiny_model, "L0H0") as collector:
        with pytest.raises(ValueError, match="nothing was collected"):
            _ = collector.patterns
        tiny_model(tiny_tokens)
        tiny_model(tiny_tokens[:, :9])
        with pytest.raises(ValueError, match="lengths"):
            _ = collector.patterns
        collector.clear()
        tiny_model(tiny_tokens[:, :9])
    assert collector.patterns.n_tokens == 9
    with pytest.raises(KeyError, match="L1H1"):
        _ = collector.patterns["L1H1"]
    with pytest.raises(ValueError, match="query = key"):
        AttentionPatterns(torch.rand(1, 1, 1, 5), collector.heads)


# --- refusing what is no attention -------------------------------------------------------------


def collect_in_own_loop(model, tokens):
    with aplens.PatternCollector(model), torch.no_grad():
        model(tokens)


READERS = {
    "collect": aplens.collect_patterns,
    "stream": lambda model, tokens: list(stream_patterns(model, tokens)),
    "layers": lambda model, tokens: read_layers(model, read_prompts(model, tokens), len),
    "collector": collect_in_own_loop,
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_with_broken_weights_is_refused_by_name(kind, value, tiny_tokens):
    """TransformerLens puts zeros in the place of its attention, and runs on."""
    model = make_broken(kind, value)
    for read in READERS.values():
        with pytest.raises(ValueError, match=r"attention of L1H2 of .* is broken.* sums to"):
            read(model, tiny_tokens)
    assert not any(point._forward_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("change", "total"),
    [(1.5, "1.5"), (1.02, "1.02"), (math.nan, "nan"), (0.0, "0")],
)
def test_rows_that_are_no_attention_are_refused(tiny_model, tiny_tokens, reader, change, total):
    def spoil(point, inputs):  # as the model itself would compute it: before any hook
        spoiled = inputs[0].clone()
        spoiled[3, 1, 5] *= change
        return spoiled

    describe_model(tiny_model)  # which runs it once, on fewer tokens
    point = tiny_model.hook_dict[pattern_hook_name(2)]
    where = f"L2H1 of .* is broken: that of query 5 of prompt 3 in the batch sums to {total},"
    with point.register_forward_pre_hook(spoil), pytest.raises(ValueError, match=where):
        READERS[reader](tiny_model, tiny_tokens)


def test_a_broken_prompt_is_not_taken_for_a_padded_one(tiny_model, tiny_tokens):
    """Zeros in all heads are padding only where the prompt begins, and never all of it."""
    describe_model(tiny_model)  # which runs it once, on fewer tokens
    point = tiny_model.hook_dict[pattern_hook_name(0)]
    for queries, first in ((slice(None), 0), (slice(12, None), 12)):

        def spoil(point, inputs, queries=queries):
            spoiled = inputs[0].clone()
            spoiled[2, :, queries] = 0
            return spoiled

        where = f"query {first} of prompt 2 "
        with point.register_forward_pre_hook(spoil), pytest.raises(ValueError, match=where):
            aplens.collect_patterns(tiny_model, tiny_tokens)


def test_queries_that_a_mask_hides_are_padding(tiny_model, tiny_tokens):
    tokens, mask = tiny_tokens.clone(), torch.ones_like(tiny_tokens)
    mask[1, :7] = 0
    with aplens.PatternCollector(tiny_model) as collector, torch.no_grad():
        tiny_model(tokens, attention_mask=mask)
    alone = aplens.collect_patterns(tiny_model, tokens[1:2, 7:])
    unpadded = collector.patterns.unpad(mask).prompt(1)
    # A bridge of GPT-2 numbers positions from the padding on; only shapes and sums are alike.
    assert unpadded.shape == alone.prompt(0).shape
    torch.testing.assert_close(unpadded.sum(-1), torch.ones(12, 13))


def test_what_others_made_of_a_pattern_is_theirs(tiny_model, tiny_tokens):
    def knock_out(pattern, hook):
        pattern = pattern.clone()
        pattern[:, 2] = 0
        return pattern

    with attach_hooks(tiny_model, [(pattern_hook_name(1), knock_out)]):
        patterns = aplens.collect_patterns(tiny_model, tiny_tokens)
    assert not patterns["L1H2"].any()
    assert (patterns["L1H1"].sum(-1) > 0.99).all()


def test_dropout_is_named_where_the_model_is_in_training_mode(tiny_tokens):
    model = make_tiny_bridge().train()
    with pytest.raises(ValueError, match=r"so does dropout, which model.eval\(\) switches off"):
        aplens.collect_patterns(model, tiny_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_sinks_and_half_precision_are_attention(kind, dtype):
    """A query of GPT-OSS gives part of its attention to a sink, which is no key."""
    tokens = torch.randint(1, families.D_VOCAB, (2, 60), generator=torch.Generator().manual_seed(0))
    model = families.make_model("gpt-oss", kind, dtype)
    values = aplens.collect_patterns(model, tokens).values.float()
    assert values.sum(-1).min() < 0.5  # the sink has the rest
    with torch.no_grad():
        original = families.make_hf("gpt-oss").to(dtype)(tokens, output_attentions=True)
    expected = torch.cat(original.attentions, dim=1).float()
    atol = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(values, expected, atol=atol, rtol=0)


@settings(max_examples=30, deadline=None)
@given(n_tokens=st.integers(1, 16), kept=st.integers(1, 16), seed=st.integers(0, 99))
def test_cropped_patches_are_those_of_the_shorter_prompt(n_tokens, kept, seed):
    kept, grid = min(kept, n_tokens), PatchGrid(16, 4)
    scores = torch.randn(3, n_tokens, n_tokens, generator=torch.Generator().manual_seed(seed))
    above = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    attention = scores.masked_fill(above, -torch.inf).softmax(-1)
    whole = log_normalize(grid.patchify(attention))
    expected = log_normalize(grid.patchify(attention[:, :kept, :kept]))
    assert torch.allclose(crop_patches(whole, grid, kept), expected, atol=1e-5)


def test_a_prompt_cannot_be_cropped_to_more_than_it_has():
    with pytest.raises(ValueError, match="3 patches hold fewer than 9 tokens"):
        crop_patches(torch.zeros(2, 3, 16), PatchGrid(16, 4), 9)


def test_cropping_gives_the_patterns_of_the_first_tokens(tiny_model):
    tokens = torch.arange(12)[None]
    whole = aplens.collect_patterns(tiny_model, tokens)
    short = aplens.collect_patterns(tiny_model, tokens[:, :7])
    assert torch.allclose(whole.crop(7).values, short.values, atol=1e-5)
    assert whole.crop(7).heads == whole.heads


@pytest.mark.parametrize("n_tokens", [0, 13])
def test_cropping_to_what_is_not_there_is_refused(tiny_model, n_tokens):
    patterns = aplens.collect_patterns(tiny_model, torch.arange(12)[None])
    with pytest.raises(ValueError, match=f"12 tokens to {n_tokens}: expected 1 to 12"):
        patterns.crop(n_tokens)


def test_a_mean_pattern_is_cropped_by_the_average_depth():
    grid = PatchGrid(16, 4)
    scaled = log_normalize(grid.patchify(causal_patterns(16, (40,))))
    factor = depth_scales(scaled, grid)[6]  # seven tokens
    short = crop_patches(scaled, grid, 7)
    inside = grid.patchify(torch.ones(7, 7).tril())
    cropped_mean = (1 - (1 - scaled.mean(0)[:3]) * factor) * inside
    plain = (scaled.mean(0)[:3] * inside - short.mean(0)).square().mean()
    assert (cropped_mean - short.mean(0)).square().mean() < 0.1 * plain
    assert depth_scales(scaled, grid)[15] == pytest.approx(1)
