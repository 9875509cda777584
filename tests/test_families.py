"""The families people use, small and random, in every class that TransformerLens has for them."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import requires_hooked, requires_offloading
from families import D_VOCAB, FAMILIES, N_HEADS, N_LAYERS, make_hf, make_model

import aplens
from aplens.models import (
    UnsupportedModelError,
    attach_hooks,
    describe_model,
    keep_residuals,
    pattern_hook_name,
    require_acting,
    start_at,
    z_hook_name,
)
from aplens.patterns import log_normalize

TOKENS = torch.randint(1, D_VOCAB, (3, 24), generator=torch.Generator().manual_seed(0))
IN_HOOKED = [name for name, family in FAMILIES.items() if family.in_hooked]


def pairs(families, variant, marks=()):
    return [pytest.param((f, variant), id=f"{f}-{variant}", marks=marks) for f in families]


#: "compatible" is a TransformerBridge in compatibility mode.
CASES = (
    pairs(IN_HOOKED, "hooked", requires_hooked)
    + pairs(FAMILIES, "bridge")
    + pairs(FAMILIES, "compatible")
)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A hooked model, and what transformers' own says about the same prompts."""
    family, variant = request.param
    model = make_model(family, "hooked" if variant == "hooked" else "bridge")
    if variant == "compatible":
        model.enable_compatibility_mode(disable_warnings=True)
    reference = make_hf(family)
    with torch.no_grad():
        output = reference(TOKENS, output_attentions=True)
    return SimpleNamespace(
        family=FAMILIES[family],
        variant=variant,
        model=model,
        reference=reference,
        logits=output.logits,
        attention=torch.cat(output.attentions, dim=1),
    )


def predictions(logits):
    """Compatibility mode centres the logits; the probabilities stay."""
    return logits.detach().log_softmax(dim=-1)


def without_head(reference, family, layer, head):
    """Logits of transformers' model when that head's part of the output projection is zero."""
    projection = reference.get_submodule(family.projection.format(layer))
    weight = projection.weight
    columns = weight.T if isinstance(projection, torch.nn.Linear) else weight  # GPT-2's Conv1D
    width = len(columns) // N_HEADS
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            columns[head * width : (head + 1) * width] = 0
            return reference(TOKENS).logits
    finally:
        weight.data.copy_(kept)


def test_patterns_are_those_of_transformers(case):
    patterns = aplens.collect_patterns(case.model, TOKENS)
    assert len(patterns.heads) == N_LAYERS * N_HEADS
    tolerance = 1e-4 if case.variant == "compatible" else 1e-5
    torch.testing.assert_close(patterns.values, case.attention, atol=tolerance, rtol=0)
    with torch.no_grad():
        logits = case.model(TOKENS)
    torch.testing.assert_close(predictions(logits), predictions(case.logits), atol=1e-4, rtol=0)


def test_patterns_are_probabilities_inside_the_causal_window(case):
    patterns = aplens.collect_patterns(case.model, TOKENS)
    values = patterns.values.unflatten(1, (N_LAYERS, N_HEADS))
    torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:-1]), atol=1e-5, rtol=0)
    distance = torch.arange(24)[:, None] - torch.arange(24)
    for layer, window in enumerate(case.family.windows):
        seen = (distance >= 0) & (distance < (window or 24))
        assert (values[:, layer, :, ~seen] == 0).all()
        assert (values[:, layer, :, seen] > 0).all()


def test_one_head_and_one_layer_are_read_as_in_the_whole(case):
    some = aplens.collect_patterns(case.model, TOKENS, heads=["L1H3", "L0H2"])
    torch.testing.assert_close(some.values, case.attention[:, [7, 2]], atol=1e-4, rtol=0)


def test_zeroing_a_head_is_zeroing_its_part_of_the_output_projection(case):
    with torch.no_grad(), aplens.ablate_heads(case.model, "L1H2", method="zero"):
        ablated = predictions(case.model(TOKENS))
    assert (ablated - predictions(case.logits)).abs().max() > 0.05
    if case.variant == "compatible" and case.family.value_biases:
        return  # the head's value bias has moved into the layer's output bias, which stays
    by_hand = without_head(case.reference, case.family, layer=1, head=2)
    torch.testing.assert_close(ablated, predictions(by_hand), atol=1e-4, rtol=0)


@torch.no_grad()
def outputs_of_layer_1(model):
    seen = []
    with attach_hooks(model, [(z_hook_name(1), lambda z, hook: seen.append(z.clone()))]):
        logits = predictions(model(TOKENS))
    return seen[0], logits


def test_a_heads_edited_pattern_changes_what_it_writes_and_no_other_of_its_layer(case):
    if case.variant != "hooked" and not case.family.edits_patterns:
        with pytest.raises(UnsupportedModelError, match="changes nothing"):
            require_acting(case.model, "pattern", [1])
        return
    require_acting(case.model, "pattern", [1])

    def sharpen(pattern, hook):
        pattern[:, 2] = pattern[:, 2] ** 3 / (pattern[:, 2] ** 3).sum(-1, keepdim=True)
        return pattern

    before, clean = outputs_of_layer_1(case.model)
    with attach_hooks(case.model, [(pattern_hook_name(1), sharpen)]):
        after, sharpened = outputs_of_layer_1(case.model)
    others = [head for head in range(N_HEADS) if head != 2]
    torch.testing.assert_close(after[:, :, others], before[:, :, others])
    # The first query sees one token, however sharply.
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-5, rtol=0)
    assert (after[:, 1:, 2] - before[:, 1:, 2]).abs().max() > 1e-3
    assert not torch.equal(sharpened, clean)


def test_a_run_that_starts_at_a_layer_is_a_whole_run(case):
    model, seen = case.model, []
    describe_model(model)
    with torch.no_grad(), keep_residuals(model, [1]) as residuals:
        whole = model(TOKENS)
    hook = [(z_hook_name(0), lambda z, hook: seen.append(z))]
    with torch.no_grad(), attach_hooks(model, hook), start_at(model, 1, residuals):
        with aplens.ablate_heads(model, "L1H2"):
            ablated = model(TOKENS)
        resumed = model(TOKENS)
    assert not seen  # nothing before the layer was run
    torch.testing.assert_close(resumed, whole, atol=1e-5, rtol=0)
    with torch.no_grad(), aplens.ablate_heads(model, "L1H2"):
        torch.testing.assert_close(ablated, model(TOKENS), atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["mean", "resample"])
def test_other_ablations_of_one_head_change_the_predictions_and_come_off(case, method):
    with torch.no_grad():
        with aplens.ablate_heads(case.model, "L0H1", method=method, reference=TOKENS.flip(0)):
            ablated = predictions(case.model(TOKENS))
        after = predictions(case.model(TOKENS))
    assert (ablated - after).abs().max() > 0.01
    torch.testing.assert_close(after, predictions(case.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    "half", pairs(IN_HOOKED, "hooked", requires_hooked) + pairs(FAMILIES, "bridge")
)
def test_half_precision(half, dtype):
    family, kind = half
    model = make_model(family, kind, dtype)
    assert describe_model(model).dtype == dtype
    values = aplens.collect_patterns(model, TOKENS).values
    with torch.no_grad():
        expected = torch.cat(make_hf(family)(TOKENS, output_attentions=True).attentions, dim=1)
    torch.testing.assert_close(values.float(), expected, atol=0.1, rtol=0)
    scaled = log_normalize(values)
    assert scaled.isfinite().all()
    assert scaled.min() >= 0
    assert scaled.amax(dim=(-2, -1)).eq(1).all()
    with torch.no_grad(), aplens.ablate_heads(model, "L1H2"):
        ablated = model(TOKENS)
    assert ablated.isfinite().all()
    assert not torch.equal(ablated, model(TOKENS))


@requires_hooked
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(IN_HOOKED)))
def test_what_hooked_transformer_cannot_hold_is_refused(family):
    with pytest.raises(UnsupportedModelError, match=r"HookedTransformer cannot hold a .*CausalLM"):
        make_model(family, "hooked")


@pytest.mark.parametrize("family", FAMILIES)
def test_compatibility_mode_may_be_switched_on_at_any_time(family):
    model = make_model(family, "bridge")
    before, info = aplens.collect_patterns(model, TOKENS), describe_model(model)
    model.enable_compatibility_mode(disable_warnings=True)
    assert describe_model(model) == info
    after = aplens.collect_patterns(model, TOKENS)
    torch.testing.assert_close(after.values, before.values, atol=1e-4, rtol=0)
    _, cache = model.run_with_cache(TOKENS)
    for layer in range(N_LAYERS):
        torch.testing.assert_close(
            cache[pattern_hook_name(layer)], after.values[:, layer * N_HEADS :][:, :N_HEADS]
        )
        assert cache[z_hook_name(layer)].shape[:2] == TOKENS.shape


def test_a_model_without_a_tokenizer_has_none(case):
    assert case.model.tokenizer is None
    with pytest.raises((ValueError, TypeError), match="tokenizer"):
        aplens.collect_patterns(case.model, "some text")


# --- models on several devices: none but the CPU is here, so parts of one are elsewhere -----------


class TwoDevices(torch.nn.Module):
    """Hands out its second layer's patterns on another device, as a model split in two does."""

    def __init__(self):
        from transformer_lens.hook_points import HookPoint

        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.hook_dict = {pattern_hook_name(layer): HookPoint() for layer in range(2)}
        self.cfg = SimpleNamespace(
            model_name="two-devices", n_layers=2, n_heads=2, d_head=4, n_ctx=8, d_vocab=9
        )

    def forward(self, tokens, stop_at_layer=None):
        pattern = torch.eye(tokens.shape[1]).expand(len(tokens), 2, -1, -1)
        self.hook_dict[pattern_hook_name(0)](pattern)
        self.hook_dict[pattern_hook_name(1)](pattern.to("meta"))


def test_patterns_of_layers_on_several_devices_are_joined_on_one():
    model = type("TransformerBridge", (TwoDevices,), {})()
    with aplens.PatternCollector(model, heads=["L1H0", "L0H1"]) as collector:
        model(torch.tensor([[1, 2, 3]]))
    values = collector.patterns.values
    assert (values.device.type, values.shape) == ("meta", (1, 2, 3, 3))


@requires_offloading
@pytest.mark.parametrize("on_disk", ["model.layers.1", "model.embed_tokens"])
def test_a_model_partly_offloaded_to_disk(tmp_path, on_disk):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    from aplens.models.classes import _save_placeholder_tokenizer

    reference = make_hf("llama")
    reference.save_pretrained(tmp_path / "llama")
    _save_placeholder_tokenizer(tmp_path / "llama")
    parts = ("embed_tokens", "rotary_emb", "layers.0", "layers.1", "norm")
    devices = {f"model.{part}": "cpu" for part in parts} | {"lm_head": "cpu", on_disk: "disk"}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "llama",
        device_map=devices,
        offload_folder=tmp_path / "disk",
        attn_implementation="eager",
    )
    model = TransformerBridge.boot_transformers(
        str(tmp_path / "llama"), hf_model=spread, dtype=torch.float32
    )
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu", "meta"}
    with torch.no_grad():
        expected = torch.cat(reference(TOKENS, output_attentions=True).attentions, dim=1)
        torch.testing.assert_close(
            aplens.collect_patterns(model, TOKENS).values, expected, atol=1e-5, rtol=0
        )
        with aplens.ablate_heads(model, "L1H2"):
            ablated = model(TOKENS)
    by_hand = without_head(reference, FAMILIES["llama"], layer=1, head=2)
    torch.testing.assert_close(ablated, by_hand, atol=1e-4, rtol=0)


# --- importing ---------------------------------------------------------------------------------

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import transformer_lens

vars(transformer_lens).pop("HookedTransformer", None)
sys.modules["transformer_lens.HookedTransformer"] = None

import aplens

for module in pkgutil.walk_packages(aplens.__path__, "aplens."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in aplens.__all__:
    getattr(aplens, name)
print(len(aplens.__all__), "names")
"""


def test_everything_imports_where_there_is_no_hooked_transformer():
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) > 10
