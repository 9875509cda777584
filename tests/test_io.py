from __future__ import annotations

import subprocess
import sys

import pytest

from aplens._io import (
    atomic_write,
    describe_differences,
    fingerprint,
    read_json,
    sha256_of_file,
    write_json,
)


def test_an_interrupted_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a" / "result.json"
    write_json(path, {"x": 1})

    def interrupted_write():
        with atomic_write(path) as temporary:
            temporary.write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert read_json(path) == {"x": 1}
    assert list(path.parent.iterdir()) == [path]


def test_nan_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_fingerprints_ignore_key_order_and_see_values():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(tmp_path / "f") == expected


def test_importing_aplens_is_cheap_and_pulls_in_no_model_library():
    script = (
        "import sys, aplens; dir(aplens);"
        "heavy = {'torch', 'transformer_lens', 'transformers', 'sklearn', 'pandas', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_every_public_name_can_be_imported():
    import aplens

    for name in aplens.__all__:
        assert getattr(aplens, name).__module__.startswith("aplens"), name
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = aplens.no_such_thing


def test_differences_name_every_leaf_and_nothing_else():
    before = {"a": 1, "b": {"c": 2, "d": 3}, "gone": None}
    now = {"a": 1, "b": {"c": 4, "d": 3}, "new": 5}
    assert list(describe_differences(before, now)) == ["b.c was 2, is 4", "new was None, is 5"]
    assert list(describe_differences(before, before)) == []
