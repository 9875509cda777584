"""Folders of observations with a damaged file: read as written, or refused, and then repaired."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from correctness_helpers import make_mae, make_scenarios
from fuzz_helpers import damaged, dump, fuzz, is_clear, json_values, mutations, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from aplens.correctness import Observations, observe

N = 7


@pytest.fixture(scope="module")
def scenarios():
    return make_scenarios(N)


@pytest.fixture(scope="module")
def whole(any_model, scenarios, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    observe(any_model, scenarios, make_mae(), folder, shard_size=3)
    return folder


@pytest.fixture(scope="module")
def written(whole):
    """What was observed, in memory."""
    return Observations.open(whole).load()


def same(one, other):
    return (
        one.heads == other.heads
        and one.table.equals(other.table)
        and np.array_equal(one.embeddings, other.embeddings)
        and np.array_equal(one.numbers("statistics"), other.numbers("statistics"))
    )


def read(folder):
    Observations.open(folder).load()


@fuzz(60)
@given(data=st.data())
def test_a_damaged_file_is_named_or_makes_no_difference(whole, written, tmp_path, data):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy, dirs_exist_ok=True)
    names = sorted(path.name for path in whole.iterdir() if path.name != ".lock")
    file = copy / data.draw(st.sampled_from(names))
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    refusal = refusal_of(ValueError, read, copy)
    if refusal is None:
        assert same(Observations.open(copy).load(), written)
    else:
        assert is_clear(refusal, copy)


@fuzz(150)
@given(data=st.data())
def test_a_manifest_with_one_wrong_value(whole, written, tmp_path, data):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy, dirs_exist_ok=True)
    manifest = json.loads((whole / "manifest.json").read_text())
    (copy / "manifest.json").write_bytes(dump(data.draw(mutations(manifest))))
    refusal = refusal_of(ValueError, read, copy)
    if refusal is None:
        assert same(Observations.open(copy).load(), written)
    else:
        assert is_clear(refusal, copy / "manifest.json")


@fuzz(100)
@given(data=json_values.map(dump) | st.binary(max_size=60))
def test_what_is_no_manifest_or_note(whole, tmp_path, data):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy, dirs_exist_ok=True)
    for name in ("shard-00001.json", "manifest.json"):
        (copy / name).write_bytes(data)
        assert is_clear(refusal_of(ValueError, read, copy), copy)


@pytest.mark.parametrize("kind", ["flip", "truncate", "remove", "note"])
@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_a_damaged_shard_is_observed_again(
    any_model, scenarios, whole, written, tmp_path, kind, suffix
):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    file = copy / f"shard-00001.{suffix}"
    content = bytearray(file.read_bytes())
    if kind == "remove":
        file.unlink()
    elif kind == "note":
        (copy / "shard-00001.json").write_text(json.dumps({suffix: "0" * 64}))
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content[: None if kind == "flip" else len(content) // 2])
    before = {path.name: path.stat().st_mtime_ns for path in copy.glob("shard-*")}
    with pytest.warns(UserWarning, match="shard-00001"):
        again = observe(any_model, scenarios, make_mae(), copy, shard_size=3)
    assert same(again.load(), written)
    after = {path.name: path.stat().st_mtime_ns for path in copy.glob("shard-*")}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"shard-00001.{end}" for end in ("safetensors", "parquet", "json")}
