"""Training that tells a head by its patterns on other prompts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mae_helpers import scaled_patches, softmax_patterns, tiny_config, tiny_mae
from test_mae_training import SETTINGS, prompts, same_weights

from aplens.mae import APMAE, CheckpointError, train_apmae
from aplens.mae.identity import identity_loss, pair_batches, retrieval
from aplens.mae.rounds import PatternRounds, seeded
from aplens.mae.virtual import virtual_heads
from aplens.patterns import PatchGrid

CONFIG = tiny_config(
    n_ctx=32,
    patch_size=8,
    base="additive",
    patch_input="centred",
    fingerprint_dim=8,
    identity_weight=1.0,
)


def train(model, folder, *, config=CONFIG, tokens=None, start=None, progress=None, **changes):
    return train_apmae(
        model,
        prompts(6, seed=1) if tokens is None else tokens,
        config,
        folder,
        validation=prompts(4, seed=2),
        start=start,
        settings=dataclasses.replace(SETTINGS, **changes),
        progress=progress,
    )


def test_heads_are_told_apart_better(tiny_bridge, tmp_path):
    budget = {"patterns": 4800, "prompts_per_round": 20, "batch_size": 24, "validations": 2}
    result = train(tiny_bridge, tmp_path, tokens=prompts(40, seed=1), **budget)
    before, *_, after = (entry["retrieval"] for entry in result.history)
    assert after > before + 0.1
    assert result.validation_ratio < result.history[0]["validation_ratio"]
    assert APMAE.from_pretrained(tmp_path).has_fingerprint


def test_an_interrupted_run_ends_with_the_same_weights(tiny_bridge, tmp_path):
    class Interrupt(Exception):
        pass

    def interrupt(progress):
        if progress.patterns >= 40:
            raise Interrupt

    with pytest.raises(Interrupt):
        train(tiny_bridge, tmp_path / "a", progress=interrupt, checkpoint_seconds=0, crop_share=0.5)
    again = train(tiny_bridge, tmp_path / "a", checkpoint_seconds=0, crop_share=0.5)
    whole = train(tiny_bridge, tmp_path / "b", crop_share=0.5)
    assert same_weights(again.mae, whole.mae)


def test_models_take_turns(tiny_bridge, tiny_hooked, tmp_path):
    both = [prompts(6, seed=1), prompts(6, seed=3)]
    result = train([tiny_bridge, tiny_hooked], tmp_path / "both", tokens=both)
    alone = train(tiny_bridge, tmp_path / "alone", tokens=both[0])
    assert torch.equal(result.mae.mean_patches, alone.mae.mean_patches)  # that of the first
    assert not same_weights(result.mae, alone.mae)
    with pytest.raises(ValueError, match="expected prompts for each of 2 models, got 1"):
        train([tiny_bridge, tiny_hooked], tmp_path / "few", tokens=both[:1])


def test_a_start_from_given_weights(tiny_bridge, tmp_path):
    plain = dataclasses.replace(CONFIG, identity_weight=0.0)
    first = train(tiny_bridge, tmp_path / "first", config=plain)
    tuned = train(
        tiny_bridge, tmp_path / "tuned", start=tmp_path / "first", learning_rate=1e-9, patterns=8
    )
    for name, weight in first.mae.state_dict().items():
        if "scales" not in name and "mean" not in name:
            assert torch.allclose(weight, tuned.mae.state_dict()[name], atol=1e-6), name
    other = dataclasses.replace(CONFIG, encoder_dim=32)
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        train(tiny_bridge, tmp_path / "other", config=other, start=tmp_path / "first")
    with pytest.raises(CheckpointError, match="start"):
        train(tiny_bridge, tmp_path / "tuned", learning_rate=1e-9, patterns=8)


def test_a_masked_pattern_has_the_fingerprint_of_its_visible_patches():
    mae = tiny_mae(fingerprint_dim=4)
    patches = scaled_patches(mae, 3)
    mask = torch.zeros(patches.shape[:2], dtype=torch.bool)
    mask[:, 1] = True
    changed = patches.clone()
    changed[:, 1] = 0.5
    seen = mae(patches, mask=mask).fingerprint
    assert torch.equal(seen, mae(changed, mask=mask).fingerprint)
    changed[:, 0] = 0.5
    assert not torch.allclose(seen, mae(changed, mask=mask).fingerprint)
    assert torch.allclose(seen.norm(dim=1), torch.ones(3))


def test_too_few_prompts_to_compare_are_refused(tiny_bridge, tmp_path):
    with pytest.raises(ValueError, match="needs two or more in every round"):
        train(tiny_bridge, tmp_path, prompts_per_round=1)
    with pytest.raises(ValueError, match="needs a fingerprint"):
        dataclasses.replace(CONFIG, fingerprint_dim=0)


def test_the_loss_falls_as_heads_come_apart():
    heads = torch.eye(4)
    mixed = torch.full((4, 4), 0.5)
    assert identity_loss(heads, heads) < 0.01 < identity_loss(mixed, mixed)
    assert identity_loss(mixed, mixed) == pytest.approx(torch.tensor(4.0).log().item())
    assert identity_loss(heads, heads[[1, 0, 2, 3]]) > 1


def test_retrieval_counts_heads_that_are_found():
    heads = torch.eye(4)
    assert retrieval(torch.stack([heads, heads])) == 1
    assert (
        retrieval(torch.stack([heads, heads[[1, 0, 2, 3]], heads])) == 0.5
    )  # the third is left out


def test_batches_hold_the_same_heads_on_two_prompts():
    generator = torch.Generator().manual_seed(0)
    batches = pair_batches(4, 6, 6, generator)
    assert sorted(torch.cat(batches).tolist()) == list(range(24))
    for batch in batches:
        first, second = batch.chunk(2)
        assert (first % 6).tolist() == (second % 6).tolist()
        assert len({*(first // 6).tolist()}) == len({*(second // 6).tolist()}) == 1
        assert (first // 6)[0] != (second // 6)[0]


def test_virtual_heads_are_attention_and_the_same_on_every_prompt(any_model, tmp_path):
    def rounds(virtual):
        return PatternRounds(
            any_model,
            prompts(3, seed=1),
            PatchGrid(32, 8),
            prompts_per_round=3,
            heads_fraction=1.0,
            batch_size=1,
            seed=0,
            virtual=virtual,
        )

    plain, more = rounds(0), rounds(2)
    (_, n_plain), (_, n_more) = plain.shape(0), more.shape(0)
    n_layers = any_model.cfg.n_layers
    assert n_more == n_plain + 2 * n_layers == len(more.patches(0)) // 3
    by_layer = more.patches(0).unflatten(0, (3, n_layers, -1))
    assert torch.equal(by_layer[:, :, :-2].flatten(0, 2), plain.patches(0))

    attention = softmax_patterns(3, 4)
    made = [virtual_heads(attention[i : i + 1], 5, seeded(1)) for i in range(3)]
    assert torch.equal(torch.cat(made), virtual_heads(attention, 5, seeded(1)))
    assert torch.allclose(made[0].sum(-1), torch.ones(1, 5, 16))
    assert not made[0].triu(1).any()
    assert not torch.allclose(made[0], virtual_heads(attention[:1], 5, seeded(2)))
