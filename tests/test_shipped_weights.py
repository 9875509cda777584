"""The AP-MAEs that come with aplens."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch
from safetensors import safe_open

import aplens
from aplens.mae import APMAE, additive_fit, list_pretrained, random_masks
from aplens.patterns import log_normalize
from aplens.scenarios import mine_scenarios, python_standard_library

SHIPPED = {"aplens-base": 256, "aplens-short": 64}
WEIGHTS = files("aplens") / "mae" / "weights"


def test_these_are_shipped():
    assert list_pretrained() == sorted(SHIPPED)


@pytest.mark.parametrize(("name", "n_ctx"), SHIPPED.items())
def test_loading_and_encoding_need_no_network(name, n_ctx, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mae = APMAE.from_pretrained(name)
    assert mae.config.n_ctx == n_ctx
    attention = torch.ones(2, n_ctx, n_ctx).tril()
    embeddings = mae.encode(attention / attention.sum(-1, keepdim=True))
    assert embeddings.shape == (2, mae.embedding_size())
    assert torch.isfinite(embeddings).all()
    assert mae.has_fingerprint


@pytest.mark.parametrize("name", SHIPPED)
def test_files_are_small_half_precision_and_described(name):
    path = WEIGHTS / name / "model.safetensors"
    assert path.stat().st_size < 30e6
    with safe_open(path, framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    assert "aplens train" in card
    assert "Apache-2.0" in card


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "n_tokens"), [("aplens-short", 64), ("aplens-short", 40), ("aplens-base", 256)]
)
def test_a_shipped_apmae_beats_the_additive_fit(smollm2_bridge, name, n_tokens):
    """On the standard library; how it does on files never trained on is in docs/results."""
    prompts = mine_scenarios(
        smollm2_bridge,
        python_standard_library(),
        language="python",
        tasks=["random"],
        per_task=4,
        per_file=1,
        context_length=n_tokens,
        seed=7,
    )
    mae = APMAE.from_pretrained(name)
    patterns = aplens.collect_patterns(smollm2_bridge, prompts.tokens()).values.flatten(0, 1)[::3]
    scaled = log_normalize(mae.grid.patchify(patterns))
    mask = random_masks(*scaled.shape[:2], 0.5, torch.Generator().manual_seed(0))
    errors = {
        "AP-MAE": mae.fill_in(scaled, mask),
        "additive fit": additive_fit(scaled, mask, mae.mean_patches, mae.grid),
    }
    errors = {who: (it - scaled)[mask].square().mean().item() for who, it in errors.items()}
    assert errors["AP-MAE"] < 0.9 * errors["additive fit"]


@pytest.mark.real
def test_a_shipped_fingerprint_finds_heads_again(smollm2_bridge):
    """On two halves of a few prompts, beside the patterns themselves, made smaller."""
    prompts = mine_scenarios(
        smollm2_bridge,
        python_standard_library(),
        language="python",
        tasks=["random"],
        per_task=6,
        per_file=1,
        context_length=64,
        seed=7,
    )
    heads = [f"L{layer}H{head}" for layer in range(0, 30, 3) for head in range(9)]
    patterns = aplens.collect_patterns(smollm2_bridge, prompts, heads)
    mae = APMAE.from_pretrained("aplens-short")

    def found_again(vectors):
        first, second = torch.nn.functional.normalize(vectors, dim=-1).chunk(2)
        nearest = (first.mean(0) @ second.mean(0).T).argmax(1)
        return (nearest == torch.arange(len(heads))).float().mean().item()

    small = torch.nn.functional.adaptive_avg_pool2d(log_normalize(patterns.values), 16).flatten(2)
    assert found_again(mae.fingerprint(patterns)) > 3 * found_again(small)
    # Training taught the embedding to tell heads as well; the fingerprint loses none of it.
    assert found_again(mae.fingerprint(patterns)) > found_again(mae.encode(patterns))
