from __future__ import annotations

import dataclasses
import json

import pytest
from mae_helpers import tiny_config

from aplens.mae import APMAEConfig


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_presets_survive_json(preset):
    config = getattr(APMAEConfig, preset)()
    assert APMAEConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_paper_preset_has_the_papers_sizes():
    config = APMAEConfig.paper()
    assert (config.n_ctx, config.patch_size, config.n_rows, config.n_pixels) == (256, 32, 8, 1024)
    assert (config.encoder_dim, config.encoder_depth, config.encoder_d_mlp) == (512, 24, 2048)
    assert config.encoder_heads * config.encoder_d_head == 1024  # wider inside than the model
    assert (config.decoder_dim, config.decoder_depth, config.decoder_heads) == (512, 8, 8)
    assert (config.mask_ratio, config.layer_norm_eps, config.qkv_bias) == (0.5, 1e-12, False)


def test_unknown_and_missing_keys_are_named():
    values = dataclasses.asdict(tiny_config()) | {"dropout": 0.1}
    del values["patch_size"]
    with pytest.raises(ValueError, match=r"missing keys \['patch_size'\], unknown \['dropout'\]"):
        APMAEConfig.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, "n_ctx=16, patch_size=5"),
        ({"patch_size": 16}, "at least twice"),
        ({"mask_ratio": 0.0}, "mask_ratio .* got 0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio .* got 1.0"),
        ({"encoder_depth": 0}, "encoder_depth must be 1 or more, got 0"),
        ({"decoder_dim": 10}, "decoder_dim must be a multiple of 4"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be positive"),
        ({"decoder_context": "all"}, r"decoder_context must be one of \['tokens', 'cls'\]"),
        ({"patch_input": "raw"}, "patch_input must be one of"),
        ({"base": "mean"}, r"base must be one of \['none', 'additive', 'low_rank'\]"),
        ({"base": "additive", "decoder_context": "cls"}, "needs decoder_context='tokens'"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    "changes", [{"n_ctx": "16"}, {"encoder_depth": True}, {"qkv_bias": 1}, {"mask_ratio": None}]
)
def test_wrong_types_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        tiny_config(**changes)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().n_ctx = 32
