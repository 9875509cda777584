"""Released checkpoints compute here what the paper's code computes (make_released_golden.py)."""

from __future__ import annotations

import json

import pytest
import torch
from released_helpers import make_patterns, read_golden, write_checkpoint
from safetensors.torch import load_file, save_file

from aplens.mae import APMAE, CheckpointError, random_masks
from aplens.patterns import log_normalize

CHECKPOINTS, RESULTS = read_golden()
EXACT = {"precision": torch.float32}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=sorted(CHECKPOINTS))
def name(request):
    return request.param


@pytest.fixture
def folder(name, tmp_path):
    return write_checkpoint(tmp_path / name, CHECKPOINTS[name])


@pytest.fixture
def same_width(tmp_path):
    return write_checkpoint(tmp_path / "released", CHECKPOINTS["same_width"])


def golden(name, key):
    return RESULTS[f"{name}.{key}"]


def patterns_for(mae):
    return make_patterns(2, mae.config.n_ctx)


def scaled_for(mae):
    return log_normalize(mae.grid.patchify(patterns_for(mae)))


def edit_config(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def test_encoding_is_the_released_one(folder, name):
    mae = APMAE.from_pretrained(folder)
    tokens = golden(name, "tokens")
    lower = 1 + mae.grid.rows * mae.grid.n_rows + mae.grid.columns
    last_row = 1 + torch.arange(mae.grid.n_rows) + mae.grid.n_rows * (mae.grid.n_rows - 1)
    expected = {
        "cls": tokens[:, 0],
        "mean": torch.cat([tokens[:, :1], tokens[:, lower]], dim=1).mean(1),
        "last_query": tokens[:, last_row].mean(1),
    }
    for pool, embedding in expected.items():
        ours = mae.encode(patterns_for(mae), patches="all", pool=pool, **EXACT)
        torch.testing.assert_close(ours, embedding, **CLOSE)


def test_by_default_patches_above_the_diagonal_are_left_out(folder, name):
    mae = APMAE.from_pretrained(folder)
    ours = mae.encode(patterns_for(mae), pool="cls", **EXACT)
    assert (ours - golden(name, "tokens")[:, 0]).abs().mean() > 0.01


def test_the_masked_pass_and_its_loss_are_the_released_ones(folder, name):
    mae = APMAE.from_pretrained(folder)
    result = mae(scaled_for(mae), mask=golden(name, "mask").bool(), **EXACT)
    torch.testing.assert_close(result.predicted, golden(name, "predicted"), **CLOSE)
    torch.testing.assert_close(result.loss, golden(name, "loss"), **CLOSE)


def test_as_many_patches_are_hidden_as_there(name):
    mask = golden(name, "mask")
    ratio = CHECKPOINTS[name]["config"]["mask_ratio"]
    drawn = random_masks(*mask.shape, ratio, torch.Generator().manual_seed(0))
    assert drawn.sum(1).tolist() == mask.sum(1).tolist()


def test_loaded_models_are_ready_to_use(folder):
    mae = APMAE.from_pretrained(folder)
    assert not mae.training
    assert mae.config.decoder_context == "cls"
    assert {parameter.dtype for parameter in mae.parameters()} == {torch.float32}


def test_saving_writes_our_own_format_which_loads_back_equal(folder, tmp_path):
    mae = APMAE.from_pretrained(folder)
    mae.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] != "ap_mae"
    again = APMAE.from_pretrained(tmp_path / "ours")
    assert again.config == mae.config
    assert again.state_dict().keys() == mae.state_dict().keys()
    for key, value in mae.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_the_papers_hub_id_is_found_in_the_cache_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--LaughingLogits--AP-MAE-SC2-3B"
    write_checkpoint(repository / "snapshots" / revision, CHECKPOINTS["same_width"])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    mae = APMAE.from_pretrained("LaughingLogits/AP-MAE-SC2-3B")
    ours = mae.encode(patterns_for(mae), patches="all", pool="cls", **EXACT)
    torch.testing.assert_close(ours, golden("same_width", "tokens")[:, 0], **CLOSE)


def test_misfitting_tensors_are_named(same_width):
    def edit(weights):
        del weights["encoder.transformer.layers.1.0.to_qkv.weight"]
        weights["encoder.gate"] = torch.zeros(2)
        weights["encoder.pos_embedding"] = torch.zeros(1, 17, 32)

    edit_weights(same_width, edit)
    with pytest.raises(CheckpointError) as error:
        APMAE.from_pretrained(same_width)
    message = str(error.value)
    assert (
        'Missing key(s) in state_dict: "encoder.transformer.blocks.1.attn.qkv.weight".' in message
    )
    assert 'Unexpected key(s) in state_dict: "encoder.gate".' in message
    assert "size mismatch for encoder.positions: " in message
    assert "torch.Size([1, 17, 32])" in message


def test_a_projection_where_the_released_code_has_none_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "one_head", CHECKPOINTS["other_width"])
    name = "decoder.transformer.layers.0.0.to_out.0.weight"
    edit_weights(folder, lambda weights: weights.update({name: torch.eye(16)}))
    with pytest.raises(CheckpointError, match=f'Unexpected key.* "{name}"'):
        APMAE.from_pretrained(folder)


def test_weights_of_another_model_are_refused_in_a_short_message(same_width):
    foreign = {f"bert.layer.{n}.weight": torch.zeros(2) for n in range(200)}
    save_file(foreign, same_width / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        APMAE.from_pretrained(same_width)
    message = str(error.value)
    assert 'Missing key(s) in state_dict: "encoder.cls_token", "encoder.positions"' in message
    assert 'Unexpected key(s) in state_dict: "bert.layer.' in message
    assert len(message) < 2000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act must be 'gelu', got 'relu'"),
        ({"hidden_act": "gelu_new"}, "hidden_act must be 'gelu', got 'gelu_new'"),
        ({"encoder_pool": "mean"}, "encoder_pool must be 'cls', got 'mean'"),
        ({"attention_scaler": "log"}, "attention_scaler must be 'log_normalize', got 'log'"),
        ({"max_length": None, "qkv_bias": None}, r"missing keys \['max_length', 'qkv_bias'\]"),
        ({"encoder_layers": "3"}, "encoder_layers must be a whole number, got '3'"),
        ({"max_length": 60}, "got max_length=60, patch_size=8"),
        ({"encoder_layers": 4}, r"Missing key.* \"encoder.transformer.blocks.3.norm1.weight\""),
        ({"decoder_dim_head": 64}, r"size mismatch for decoder.transformer.blocks.0.attn.qkv"),
        ({"qkv_bias": True}, r"Missing key.* \"decoder.transformer.blocks.0.attn.qkv.bias\""),
        ({"decoder_dim": 16}, r"Missing key.* \"decoder.enc_to_dec.weight\""),
    ],
)
def test_configurations_that_we_would_not_compute_the_same_are_refused(
    same_width, changes, message
):
    edit_config(same_width, **changes)
    with pytest.raises(CheckpointError, match=message):
        APMAE.from_pretrained(same_width)


def test_keys_that_change_nothing_are_passed_over(same_width):
    expected = APMAE.from_pretrained(same_width).config
    edit_config(
        same_width,
        auto_map={"AutoModel": "ap_mae.APMAE"},
        encoder_dropout=0.3,
        queries=["identifiers"],
        attention_scaler=None,
        encoder_pool=None,
    )
    assert APMAE.from_pretrained(same_width).config == expected


@pytest.mark.parametrize(
    "other",
    ["pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
)
def test_pickled_and_sharded_weights_are_refused(same_width, other):
    (same_width / "model.safetensors").rename(same_width / other)
    with pytest.raises(CheckpointError, match=rf"holds config\.json, {other}\. .*merge.*convert"):
        APMAE.from_pretrained(same_width)
