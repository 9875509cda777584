"""Stores and observations with a damaged file: read as written, or refused, and then repaired."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from correctness_helpers import make_mae, make_scenarios
from fuzz_helpers import damaged, dump, fuzz, is_clear, json_values, mutations, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from aplens._store import Store
from aplens.correctness import Observations, observe

HOLDS = "things"
VALUES = {"one": {"n": 1, "names": ["a", "é"]}, "two": None}
SETUP = {"model": "tiny", "sizes": [1, 2]}


def content_of(key):
    return f"the file of {key}".encode()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two results, each with a file."""
    folder = tmp_path_factory.mktemp("store")
    made = Store(folder, HOLDS, SETUP)
    for key, value in VALUES.items():
        made.write(key, value, {"bin": lambda path, key=key: path.write_bytes(content_of(key))})
    return folder


def read(folder):
    """All that is in a store, its files included."""
    found = Store.open(folder, HOLDS)
    return found.setup, {
        key: (found.read(key), found.file(key, "bin").read_bytes()) for key in found
    }


WHOLE = SETUP, {key: (value, content_of(key)) for key, value in VALUES.items()}


def read_or_named(folder, *words):
    """What is read is what was written; what is refused is named."""
    found = []
    refusal = refusal_of(ValueError, lambda: found.append(read(folder)))
    assert is_clear(refusal, *words) if refusal else found == [WHOLE]


@pytest.fixture
def copy(store, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_store_gives_what_was_kept_in_it(store):
    assert read(store) == WHOLE
    assert "one" in Store.open(store, HOLDS)
    assert "three" not in Store.open(store, HOLDS)


@fuzz(150)
@given(data=st.data())
def test_a_damaged_file_is_named_or_makes_no_difference(store, copy, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in store.iterdir())))
    (copy / name).write_bytes(data.draw(damaged((store / name).read_bytes())))
    read_or_named(copy, copy, name)
    shutil.copy(store / name, copy / name)


@fuzz(150)
@given(data=st.data())
def test_a_manifest_with_one_wrong_value(store, copy, data):
    manifest = json.loads((store / "manifest.json").read_text())
    (copy / "manifest.json").write_bytes(dump(data.draw(mutations(manifest))))
    read_or_named(copy, copy / "manifest.json")


@fuzz(100)
@given(data=json_values.map(dump) | st.binary(max_size=60))
def test_what_is_no_manifest_or_note(store, copy, data):
    for name in ("two.json", "manifest.json"):
        (copy / name).write_bytes(data)
        assert is_clear(refusal_of(ValueError, read, copy), copy)
        shutil.copy(store / name, copy / name)


def test_a_damaged_result_is_made_again_and_no_other(copy):
    (copy / "two.bin").unlink()
    found = Store.open(copy, HOLDS)
    assert found.recall("one", lambda: pytest.fail("it is sound")) == VALUES["one"]
    with pytest.warns(UserWarning, match=r"two\.bin is missing: two is done again"):
        assert found.recall("two", lambda: 3) == 3
    assert found.read("two") == 3


def test_a_shard_with_the_note_of_another_format_is_observed_again_alone(any_model, tmp_path):
    scenarios = make_scenarios(7)
    observe(any_model, scenarios, make_mae(), tmp_path, shard_size=3)
    written = Observations.open(tmp_path).load()
    (tmp_path / "shard-00001.json").write_text(json.dumps({"parquet": "0" * 64}))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    with pytest.warns(UserWarning, match="shard-00001"):
        again = observe(any_model, scenarios, make_mae(), tmp_path, shard_size=3).load()
    assert again.heads == written.heads
    assert again.table.equals(written.table)
    assert np.array_equal(again.embeddings, written.embeddings)
    assert np.array_equal(again.numbers("statistics"), written.numbers("statistics"))
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"shard-00001.{end}" for end in ("safetensors", "parquet", "json")}
