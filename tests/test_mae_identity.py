"""Training that tells a head by its patterns on other prompts."""

from __future__ import annotations

import dataclasses
import math
from itertools import groupby

import pytest
import torch
from mae_helpers import scaled_patches, softmax_patterns, tiny_config, tiny_mae
from test_mae_training import SETTINGS, prompts, same_weights

from aplens.mae import APMAE, CheckpointError, TrainingSettings, train_apmae, training
from aplens.mae.identity import identity_loss, retrieval
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


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with an AP-MAE that has a fingerprint, if not a good one."""
    folder = tmp_path_factory.mktemp("start")
    mae = APMAE(dataclasses.replace(CONFIG, identity_weight=0.0))
    torch.nn.init.normal_(mae.to_fingerprint.weight, generator=seeded(0))
    mae.save_pretrained(folder)
    return folder


def train(
    model, folder, start, *, config=CONFIG, tokens=None, held_out=4, progress=False, **changes
):
    return train_apmae(
        model,
        prompts(6, seed=1) if tokens is None else tokens,
        config,
        folder,
        validation=prompts(held_out, seed=2),
        start=start,
        settings=dataclasses.replace(SETTINGS, **changes),
        progress=progress,
    )


def test_heads_are_told_apart_better(tiny_bridge, tmp_path, start):
    budget = {"patterns": 4800, "prompts_per_round": 20, "batch_size": 24, "validations": 2}
    result = train(tiny_bridge, tmp_path, start, tokens=prompts(40, seed=1), **budget)
    before, *_, after = (entry["retrieval"] for entry in result.history)
    assert after > before + 0.1
    assert result.validation_ratio < result.history[0]["validation_ratio"]
    assert APMAE.from_pretrained(tmp_path).has_fingerprint


def test_an_interrupted_run_ends_with_the_same_weights(tiny_bridge, tmp_path, start):
    class Interrupt(Exception):
        pass

    def interrupt(done, total):
        if done >= 40:
            raise Interrupt

    recipe = {"crop_share": 0.5, "virtual_heads": 1, "checkpoint_seconds": 0}
    with pytest.raises(Interrupt):
        train(tiny_bridge, tmp_path / "a", start, progress=interrupt, **recipe)
    again = train(tiny_bridge, tmp_path / "a", start, **recipe)
    whole = train(tiny_bridge, tmp_path / "b", start, **recipe)
    assert same_weights(again.mae, whole.mae)


def test_models_are_mixed_and_an_interrupted_run_of_them_ends_the_same(
    tiny_bridge, other_model, tmp_path, start, monkeypatch
):
    """After a stretch on one model alone, the others' patterns are filled in worse than before."""
    models, both = [tiny_bridge, other_model], [prompts(6, seed=1), prompts(6, seed=3)]
    recipe = {"tokens": both, "patterns": 144, "batch_size": 8, "prompts_per_round": 6}
    parts = []
    learn = training._Run._step
    monkeypatch.setattr(
        training._Run,
        "_step",
        lambda run, part, *rest: (parts.append(part), learn(run, part, *rest)),
    )
    whole = train(models, tmp_path / "whole", start, **recipe)
    assert sorted(parts) == [0] * 9 + [1] * 9  # all of both, once
    assert len(list(groupby(parts))) > 4

    def interrupt(done, total):
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(models, tmp_path / "a", start, progress=interrupt, checkpoint_seconds=0, **recipe)
    again = train(models, tmp_path / "a", start, **recipe)
    assert same_weights(again.mae, whole.mae)


def test_the_mean_patch_is_that_of_the_first_model(tiny_bridge, tiny_hooked, tmp_path, start):
    both = [prompts(6, seed=1), prompts(6, seed=3)]
    result = train([tiny_bridge, tiny_hooked], tmp_path / "both", start, tokens=both)
    alone = train(tiny_bridge, tmp_path / "alone", start, tokens=both[0])
    assert torch.equal(result.mae.mean_patches, alone.mae.mean_patches)  # that of the first
    assert not same_weights(result.mae, alone.mae)
    with pytest.raises(ValueError, match="expected prompts for each of 2 models, got 1"):
        train([tiny_bridge, tiny_hooked], tmp_path / "few", start, tokens=both[:1])


def test_a_start_from_given_weights(tiny_bridge, tmp_path, start):
    tuned = train(tiny_bridge, tmp_path / "tuned", start, learning_rate=1e-9, patterns=8)
    for name, weight in APMAE.from_pretrained(start).state_dict().items():
        if "scales" not in name and "mean" not in name:
            assert torch.allclose(weight, tuned.mae.state_dict()[name], atol=1e-6), name
    other = dataclasses.replace(CONFIG, encoder_dim=32)
    misfit = r"start .* does not fit the configuration to be trained: size mismatch"
    with pytest.raises(CheckpointError, match=misfit):
        train(tiny_bridge, tmp_path / "other", start, config=other)
    with pytest.raises(ValueError, match="give a start that has one"):
        train(tiny_bridge, tmp_path / "none", None)
    with pytest.raises(ValueError, match="expected 2 validation prompts or more, got 1"):
        train(tiny_bridge, tmp_path / "single", start, held_out=1)
    plain = dataclasses.replace(CONFIG, identity_weight=0.0)
    fitted = train(tiny_bridge, tmp_path / "plain", start, config=plain)
    fresh = APMAE.from_pretrained(start).to_fingerprint.weight
    assert not torch.allclose(fitted.mae.to_fingerprint.weight, fresh)  # fitted anew, at the end


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


def test_the_loss_falls_as_heads_come_apart():
    heads, each = torch.eye(4), torch.arange(4)
    assert identity_loss(heads, heads, each) < 0.01
    assert identity_loss(torch.full((4, 4), 0.5), heads, each) == pytest.approx(math.log(4))
    assert identity_loss(heads, heads, each[[1, 0, 2, 3]]) > 1
    with pytest.raises(ValueError, match="needs a fingerprint"):
        dataclasses.replace(CONFIG, fingerprint_dim=0)


def test_retrieval_counts_heads_that_are_found():
    heads = torch.eye(4)
    assert retrieval(torch.stack([heads, heads])) == 1
    assert retrieval(torch.stack([heads, heads[[1, 0, 2, 3]], heads])) == 0.5  # not the third


def test_virtual_heads_are_attention_and_the_same_on_every_prompt(any_model, tmp_path):
    def rounds(virtual):
        settings = TrainingSettings(prompts_per_round=3, model_batch_size=1, virtual_heads=virtual)
        return PatternRounds([(any_model, prompts(3, seed=1))], PatchGrid(32, 8), settings)

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
