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
