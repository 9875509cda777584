"""`load_model` on some sixty configurations: the same model as Hugging Face's, or refused."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import pytest
import torch
from conftest import HAS_HOOKED, requires_hooked
from zoo import D_VOCAB, ZOO, Variant, make, save

import aplens
from aplens.models import UnsupportedModelError, describe_model, require_acting

TRANSFORMER_LENS = int(version("transformer-lens").partition(".")[0])
LOADED = [name for name, variant in ZOO.items() if TRANSFORMER_LENS not in variant.refused_on]
#: Longer than every window and every length that a rope was trained on.
TOKENS = torch.randint(1, D_VOCAB, (2, 100), generator=torch.Generator().manual_seed(1))


def load(name, folder, **options):
    """The variant through `load_model`, Hugging Face's own, and what was said."""
    hf_model = save(ZOO[name], folder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        model = aplens.load_model(folder, **options)
    return model, hf_model, [str(each.message) for each in said if "is loaded as" in str(each)]


@pytest.mark.parametrize("name", LOADED)
def test_what_is_loaded_is_hugging_faces_model(name, tmp_path):
    model, hf_model, said = load(name, tmp_path)
    kind = "hooked" if ZOO[name].hooked and HAS_HOOKED else "bridge"
    assert describe_model(model).kind == kind
    # "auto" says when and why it passed over a HookedTransformer.
    passed_over = HAS_HOOKED and kind == "bridge"
    assert len(said) == passed_over
    assert not passed_over or "is loaded as a TransformerBridge: " in said[0]
    with torch.no_grad():
        expected = hf_model(TOKENS, output_attentions=True)
        torch.testing.assert_close(model(TOKENS), expected.logits, atol=1e-3, rtol=1e-3)
    patterns = aplens.collect_patterns(model, TOKENS).values
    torch.testing.assert_close(patterns, torch.cat(expected.attentions, 1), atol=1e-4, rtol=0)
    assert describe_model(model).n_ctx == 128


@pytest.mark.parametrize("name", sorted(set(ZOO) - set(LOADED)))
def test_what_cannot_be_loaded_is_refused_and_the_family_named(name, tmp_path):
    save(ZOO[name], tmp_path)
    with pytest.raises(UnsupportedModelError, match=rf"{ZOO[name].family}\w*|attention patterns"):
        aplens.load_model(tmp_path)


@requires_hooked
@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("llama, linear rope", r"rope_parameters=\{'factor': 4\.0"),
        ("llama, mlp bias", "mlp_bias=True"),
        ("llama, attention bias", "attention_bias=True"),
        ("qwen2, window", "use_sliding_window=True, sliding_window=8"),
        ("phi3, longrope", "rope_parameters="),
    ],
)
def test_a_class_that_would_be_another_model_is_refused_with_what_it_ignores(
    name, ignored, tmp_path
):
    save(ZOO[name], tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=rf"patterns differ by up to 0\.\d+.*it ignores .*{ignored}"
    ):
        aplens.load_model(tmp_path, kind="hooked")
    other = aplens.load_model(tmp_path, kind="hooked", verify=False)
    assert describe_model(other).kind == "hooked"


def test_a_window_is_found_that_begins_far_beyond_the_first_tokens(tmp_path):
    options = {**ZOO["mistral"].options, "sliding_window": 90}
    make(Variant("Mistral", options)).save_pretrained(tmp_path)
    # The same weights, told to forget their window after Hugging Face's model was run.
    from aplens.models import agreement

    original = agreement.run_original(make(Variant("Mistral", options)))
    assert original.tokens.shape[1] > 90
    blind = aplens.load_model(tmp_path, kind="bridge", verify=False)
    blind.original_model.config.sliding_window = None
    blind.cfg.window_size = None
    found = agreement.difference(blind, original)
    assert not found.is_rounding


def test_a_window_too_far_to_be_tried_is_said(tmp_path, monkeypatch):
    from aplens.models import agreement

    monkeypatch.setattr(agreement, "_MANY_TOKENS", 16)
    monkeypatch.setattr(agreement, "_COSTLY", 1.0)
    save(Variant("Mistral", {**ZOO["mistral"].options, "sliding_window": 60}), tmp_path)
    with pytest.warns(UserWarning, match="on 32 tokens: what it does beyond 60 was not tried"):
        aplens.load_model(tmp_path, kind="bridge")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "bloom"])
def test_rounding_of_half_precision_is_not_taken_for_another_model(name, dtype, tmp_path):
    model, _, _ = load(name, tmp_path, dtype=dtype)
    assert describe_model(model).dtype == dtype


@pytest.mark.parametrize("name", ["opt", "gpt-neo", "gpt-j", "xglm"])
def test_patterns_that_a_bridge_only_shows_are_not_edited_without_a_word(name, tmp_path):
    model, _, _ = load(name, tmp_path, kind="bridge")
    clean, corrupted = TOKENS[:1], TOKENS[1:]
    options = {"metric": lambda logits: logits[0, -1, 7]}
    with pytest.raises(UnsupportedModelError, match=r"hook_pattern .* changes nothing.*hook_z"):
        aplens.activation_patch(model, clean, corrupted, "L1H2", activation="pattern", **options)
    for activation in ("q", "k", "v", "z"):
        table = aplens.activation_patch(
            model, clean, corrupted, "L0H1, L1H2", activation=activation, **options
        )
        assert (table.frame["metric"] - table.corrupted).abs().min() > 0


def test_whether_writing_acts_is_asked_of_the_model_and_not_of_hooks_in_force(tmp_path):
    model, _, _ = load("llama", tmp_path, kind="bridge")
    with aplens.ablate_heads(model, "L0H0, L0H1, L0H2, L0H3, L1H0, L1H1, L1H2, L1H3"):
        require_acting(model, "pattern", range(2))
