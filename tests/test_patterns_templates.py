"""Template scores are TransformerLens's where it has them; ideal patterns get their own names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mae_helpers import softmax_patterns

from aplens import collect_patterns
from aplens.patterns import templates
from aplens.patterns.templates import (
    DETECTED,
    LOCAL_WINDOW,
    MIXED,
    TEMPLATES,
    name_templates,
    template_scores,
    template_strengths,
)


def repeating(n_different=8, times=3):
    return torch.arange(n_different).repeat(times)


def ideal_pattern(name, tokens):
    """Every query attends to the template's keys alike; where there are none, to itself."""
    n = len(tokens)
    query, key = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    before = torch.cat([torch.tensor([-1]), tokens[:-1]])  # the token before each key
    keys = {
        "previous_token": query == key + 1,
        "duplicate_token": (tokens[:, None] == tokens) & (key < query),
        "induction": (tokens[:, None] == before) & (key <= query),
        "first_token": key == 0,
        "self": query == key,
        "local": (key <= query) & (key > query - LOCAL_WINDOW),
        "uniform": key <= query,
    }[name].float()
    return torch.where(keys.any(-1, keepdim=True), keys, torch.eye(n)).div(
        keys.sum(-1, keepdim=True).clamp_min(1)
    )


def strength(found, name):
    return found[..., TEMPLATES.index(name)]


@settings(deadline=None)
@given(n_different=st.integers(6, 12), times=st.integers(3, 5), name=st.sampled_from(TEMPLATES))
def test_an_ideal_pattern_gets_its_own_name(n_different, times, name):
    tokens = repeating(n_different, times)
    scores = template_scores(ideal_pattern(name, tokens), tokens)
    assert name_templates(scores, tokens) == name
    strengths = template_strengths(scores, tokens)
    assert strength(strengths, name).item() == pytest.approx(1, abs=1e-5)


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    temperature=st.floats(0, 20),
)
def test_scores_are_shares_and_strengths_at_most_one(tokens, seed, temperature):
    tokens = torch.tensor(tokens)
    attention = softmax_patterns(2, 3, n_tokens=len(tokens), seed=seed).log() * temperature
    attention = attention.nan_to_num(-torch.inf).softmax(-1)
    attention = torch.where(attention.isnan(), 0, attention)
    scores = template_scores(attention, tokens)
    assert scores.shape == (2, 3, len(TEMPLATES))
    assert ((scores >= 0) & (scores <= 1)).all()
    strengths = template_strengths(scores, tokens)
    assert (strengths.nan_to_num(0) <= 1 + 1e-4).all()
    names = name_templates(scores, tokens)
    assert names.shape == (2, 3)
    assert set(names.flatten()) <= {*TEMPLATES, MIXED}


@settings(deadline=None, max_examples=30)
@given(tokens=st.lists(st.integers(0, 4), min_size=2, max_size=40))
def test_uniform_attention_is_chance_for_every_template_but_its_own(tokens):
    tokens = torch.tensor(tokens)
    scores = template_scores(ideal_pattern("uniform", tokens), tokens)
    strengths = template_strengths(scores, tokens)
    assert scores[-1] == pytest.approx(1)
    assert strengths[-1] == pytest.approx(1)
    assert strengths[:-1].nan_to_num(0).abs().max() < 1e-4
    one_key = template_scores(ideal_pattern("self", tokens), tokens)
    assert template_strengths(one_key, tokens)[-1].abs() < 1e-4


def test_a_template_that_the_prompt_has_no_place_for_is_never_named(monkeypatch):
    monkeypatch.setattr(templates, "MIXED_BELOW", -10)
    tokens = torch.arange(20)
    scores = template_scores(softmax_patterns(50, n_tokens=20), tokens)
    for name in ("duplicate_token", "induction"):
        assert (strength(scores, name) == 0).all()
        assert strength(template_strengths(scores, tokens), name).isnan().all()
    named = name_templates(scores, tokens)
    assert not {MIXED, "duplicate_token", "induction"} & set(named)


def test_one_accidental_repeat_names_no_head():
    tokens = torch.arange(20)
    tokens[-1] = tokens[7]
    attention = ideal_pattern("uniform", tokens)
    attention[-1] = torch.eye(20)[8]
    scores = template_scores(attention, tokens)
    assert strength(scores, "induction") == pytest.approx(1 / 20)
    assert name_templates(scores, tokens) == "uniform"


def test_a_head_that_waits_at_the_first_token_for_a_repeat_is_an_induction_head():
    tokens = repeating(10, times=2)
    attention = ideal_pattern("induction", tokens)
    attention[:10] = ideal_pattern("first_token", tokens)[:10]
    scores = template_scores(attention, tokens)
    assert strength(scores, "first_token") == strength(scores, "induction") == 0.5
    assert name_templates(scores, tokens) == "induction"


def test_a_blend_of_templates_is_mixed_and_narrow_windows_keep_their_names():
    tokens = torch.arange(30)
    parts = {name: ideal_pattern(name, tokens) for name in TEMPLATES}
    blend = (parts["first_token"] + parts["previous_token"] + parts["uniform"]) / 3
    mostly_previous = 0.6 * parts["previous_token"] + 0.4 * parts["self"]
    near = (parts["previous_token"] + parts["self"] + 3 * parts["local"]) / 5
    scores = template_scores(torch.stack([blend, mostly_previous, near]), tokens)
    assert strength(scores, "local")[1] == 1  # all within the window, and still more precisely:
    assert name_templates(scores, tokens).tolist() == [MIXED, "previous_token", "local"]


def test_a_prompt_of_one_token_follows_nothing():
    tokens = torch.tensor([3])
    scores = template_scores(torch.ones(4, 1, 1), tokens)
    assert name_templates(scores, tokens).tolist() == [MIXED] * 4
    assert template_strengths(scores, tokens).isnan().all()


def test_half_precision_scores_are_those_of_single_precision():
    tokens = repeating()
    attention = softmax_patterns(6, n_tokens=len(tokens))
    half = template_scores(attention.bfloat16(), tokens)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, template_scores(attention, tokens), atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    ("shape", "n_tokens"), [((3, 8, 8), 7), ((3, 8, 7), 8), ((8,), 8), ((3, 8, 8), (1, 8))]
)
def test_patterns_of_another_prompt_are_refused(shape, n_tokens):
    with pytest.raises(ValueError, match=r"as long as it: got \("):
        template_scores(torch.rand(shape), torch.zeros(n_tokens, dtype=torch.long))


def detect_heads(model, tokens):
    from transformer_lens.head_detector import detect_head

    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    original = model.to_tokens
    model.to_tokens = lambda _: tokens  # detect_head takes text alone
    try:
        columns = [detect_head(model, "", f"{name}_head", cache=cache) for name in DETECTED]
    finally:
        model.to_tokens = original
    return torch.stack([column.flatten() for column in columns], dim=-1)


def test_scores_are_those_of_detect_head(tiny_model):
    tokens = repeating(7, times=2)
    patterns = collect_patterns(tiny_model, tokens)
    found = template_scores(patterns.values[0], tokens)
    expected = detect_heads(tiny_model, tokens[None])
    torch.testing.assert_close(found[:, : len(DETECTED)], expected, atol=1e-6, rtol=0)
    assert (expected > 0).all()


@pytest.mark.real
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_the_heads_named_on_repeated_tokens_are_those_that_detect_head_finds(kind, request):
    model = request.getfixturevalue(f"smollm2_{kind}")
    half = torch.randint(1000, 40_000, (31,), generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), half, half])
    patterns = collect_patterns(model, tokens)
    scores = template_scores(patterns.values[0], tokens)
    expected = detect_heads(model, tokens[None])
    torch.testing.assert_close(scores[:, : len(DETECTED)], expected, atol=1e-5, rtol=0)
    names = name_templates(scores, tokens)
    for name in ("previous_token", "induction"):
        named = set((names == name).nonzero()[0].tolist())
        highest = expected[:, DETECTED.index(name)].topk(len(named)).indices.tolist()
        assert len(named) >= 2
        assert len(named & set(highest)) >= len(named) - 1
