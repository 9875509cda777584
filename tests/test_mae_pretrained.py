from __future__ import annotations

import json
import shutil

import pytest
import torch
from mae_helpers import scaled_patches, softmax_patterns, tiny_mae
from safetensors.torch import load_file, save_file

from aplens.mae import APMAE, CheckpointError, list_pretrained, pretrained


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "mae"
    tiny_mae(base="additive", patch_input="centred").save_pretrained(folder)
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def test_what_is_saved_comes_back(saved):
    original = tiny_mae(base="additive", patch_input="centred")
    loaded = APMAE.from_pretrained(saved)
    assert loaded.config == original.config
    assert not loaded.training
    assert loaded.mean_patches.abs().sum() > 0
    attention = softmax_patterns(3)
    assert torch.equal(loaded.encode(attention), original.encode(attention))
    assert torch.equal(
        loaded.reconstruct(attention).reconstructed, original.reconstruct(attention).reconstructed
    )
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_replaces_what_was_there(saved):
    tiny_mae(seed=9).save_pretrained(saved)
    assert torch.equal(
        APMAE.from_pretrained(str(saved)).encode(softmax_patterns(1)),
        tiny_mae(seed=9).encode(softmax_patterns(1)),
    )


def test_half_precision_weights_load_as_float32(saved):
    edit_weights(saved, lambda weights: weights.update({k: v.half() for k, v in weights.items()}))
    loaded = APMAE.from_pretrained(saved)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    original = tiny_mae(base="additive", patch_input="centred")
    attention = softmax_patterns(3)
    assert torch.allclose(loaded.encode(attention), original.encode(attention), atol=0.05)


def test_a_truncated_file_is_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        APMAE.from_pretrained(saved)


def test_a_file_of_something_else_is_refused(saved):
    (saved / "model.safetensors").write_bytes(b"PK\x03\x04 a zip, as pickled weights come in" * 20)
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        APMAE.from_pretrained(saved)


def test_misfitting_tensors_are_named(saved):
    def edit(weights):
        del weights["encoder.cls_token"]
        weights["encoder.gate"] = torch.zeros(2)
        weights["decoder.mask_token"] = torch.zeros(7)

    edit_weights(saved, edit)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit") as error:
        APMAE.from_pretrained(saved)
    message = str(error.value)
    assert 'Missing key(s) in state_dict: "encoder.cls_token".' in message
    assert 'Unexpected key(s) in state_dict: "encoder.gate".' in message
    assert "size mismatch for decoder.mask_token: " in message
    assert "torch.Size([7])" in message
    assert "torch.Size([12])" in message


def test_tensors_that_are_not_finite_are_named(saved):
    def edit(weights):
        weights["decoder.to_pixels.bias"][3] = torch.nan

    edit_weights(saved, edit)
    with pytest.raises(CheckpointError, match=r"not finite: decoder\.to_pixels\.bias$"):
        APMAE.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "expected model_type 'aplens_apmae', or 'ap_mae' .* got 'bert'"),
        ({"n_ctx": None}, r"missing keys \['n_ctx'\]"),
        ({"dropout": 0.1}, r"unknown \['dropout'\]"),
        ({"patch_size": 5}, "patch_size=5"),
        ({"mask_ratio": "half"}, "mask_ratio must be a finite number"),
        ({"encoder_depth": 3}, r"Missing key.*\"encoder\.transformer\.blocks\.2"),
    ],
)
def test_foreign_configurations_are_refused(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        APMAE.from_pretrained(saved)


@pytest.mark.parametrize("text", ["{", "[1]", "\ud800".encode("utf-16", "surrogatepass")])
def test_damaged_configurations_are_refused(saved, text):
    (saved / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"config\.json"):
        APMAE.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        APMAE.from_pretrained(saved)


def test_unknown_names_say_what_exists(saved, monkeypatch):
    assert list_pretrained() == sorted(list_pretrained())
    monkeypatch.setattr(pretrained, "_BUNDLED", saved.parent)
    with pytest.raises(CheckpointError, match=r"no AP-MAE 'aplens-huge'.*\(bundled: mae\)"):
        APMAE.from_pretrained("aplens-huge")
    assert list_pretrained() == ["mae"]
    assert APMAE.from_pretrained("mae").config == APMAE.from_pretrained(saved).config


def test_a_missing_folder_is_not_taken_for_a_hub_id(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        APMAE.from_pretrained(tmp_path / "nowhere")


@pytest.fixture
def hub_cache(saved, tmp_path, monkeypatch):
    """A hub cache that holds user/small-mae, and no network."""
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--user--small-mae"
    shutil.copytree(saved, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return revision


def test_a_hub_id_is_found_in_the_cache_without_a_network(hub_cache, saved):
    expected = APMAE.from_pretrained(saved).encode(softmax_patterns(2))
    for revision in (None, hub_cache):
        loaded = APMAE.from_pretrained("user/small-mae", revision=revision)
        assert torch.equal(loaded.encode(softmax_patterns(2)), expected)


@pytest.mark.parametrize("hub_id", ["user/other-mae", "user/not valid!"])
def test_a_hub_id_that_cannot_be_had_says_so(hub_cache, hub_id):
    with pytest.raises(CheckpointError, match=f"no folder '{hub_id}', and the Hugging Face hub"):
        APMAE.from_pretrained(hub_id)


def test_weights_stored_in_half_the_size_load_as_float32(tmp_path):
    original = tiny_mae(base="low_rank", patch_input="centred", summary_weight=0.5)
    for name, dtype in (("whole", None), ("half", torch.float16)):
        original.save_pretrained(tmp_path / name, dtype)
    sizes = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("whole", "half")}
    assert sizes["half"] < 0.7 * sizes["whole"]
    loaded = APMAE.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    scaled = scaled_patches(original, 4)
    difference = loaded.encode_patches(scaled) - original.encode_patches(scaled)
    assert difference.abs().max() < 0.02
