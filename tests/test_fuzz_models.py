"""Folders and GGUF files that are damaged: named, and never filled up with random weights."""

from __future__ import annotations

import json
import struct

import pytest
from conftest import make_tiny_hf
from fuzz_helpers import damaged, dump, fuzz, is_clear, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from aplens import load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_hf().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def good(saved):
    return {name: (saved / name).read_bytes() for name in ("config.json", "model.safetensors")}


def load(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    load_model(folder, kind="bridge", device="cpu")


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", b"null", b'"a"', b"[" * 100_000, b"{}", b'{"model_type": "gpt2", "n_head": 0}'],
)
def test_what_is_no_configuration_of_a_model(saved, good, config):
    with pytest.raises((ValueError, OSError), match="tiny"):
        load(saved, good | {"config.json": config})


@pytest.mark.parametrize("changes", [{"n_layer": 5}, {"n_head": 0}, {"architectures": [5]}])
def test_weights_that_are_not_there_are_not_made_up(saved, good, changes):
    config = dump(json.loads(good["config.json"]) | changes)
    with pytest.raises(ValueError, match="tiny cannot be read as a language model"):
        load(saved, good | {"config.json": config})


@fuzz(15)
@given(data=st.data())
def test_damaged_weights_of_a_model(saved, good, data):
    weights = good["model.safetensors"]
    changed = data.draw(damaged(weights[:2000]).map(lambda start: start + weights[2000:]))
    refusal = refusal_of((ValueError, OSError), load, saved, good | {"model.safetensors": changed})
    assert refusal is None or is_clear(refusal, saved.name)


ARRAY = struct.pack("<QsIIQ", 1, b"a", 9, 4, 2**60)  # of 2**60 numbers


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk" * 100,
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0) + bytes(64),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60) + bytes(64),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + ARRAY + bytes(64),
    ],
)
def test_what_is_no_gguf_file(tmp_path, data):
    pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    path.write_bytes(data)
    with pytest.raises((ValueError, OSError), match=r"tiny\.gguf"):
        load_model(path, kind="bridge", device="cpu")


def write_gguf(path, without=()):
    """A tiny Llama of one layer; its tensors but for those left out."""
    import numpy as np
    from gguf import GGUFWriter

    width, words = 16, [*map(chr, range(97, 123)), "ab"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    square, wide = (width, width), (2 * width, width)
    shapes = {"token_embd": (len(words), width), "output": (len(words), width)}
    shapes |= {f"blk.0.attn_{name}": square for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": wide for name in ("gate", "up")}
    shapes |= {"blk.0.ffn_down": wide[::-1], "output_norm": (width,)}
    shapes |= {f"blk.0.{name}_norm": (width,) for name in ("attn", "ffn")}
    for name, shape in shapes.items():
        if name not in without:
            writer.add_tensor(f"{name}.weight", np.full(shape, 0.1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_that_lacks_a_tensor_is_refused(tmp_path):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "whole.gguf")
    assert load_model(tmp_path / "whole.gguf", kind="bridge", device="cpu").cfg.n_heads == 2
    write_gguf(tmp_path / "lacking.gguf", without=["blk.0.attn_q"])
    with pytest.raises(ValueError, match=r"lacking\.gguf.*1 weights are missing.*q_proj"):
        load_model(tmp_path / "lacking.gguf", kind="bridge", device="cpu")


def test_pickled_weights_are_not_read(tmp_path):
    import torch

    model = make_tiny_hf()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_model(tmp_path, kind="bridge", device="cpu")
