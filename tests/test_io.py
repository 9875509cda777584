from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from inspect import ismodule

import pytest

from aplens._io import (
    atomic_write,
    clear_abandoned,
    describe_differences,
    fingerprint,
    own_folder,
    read_json,
    require_file_name,
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


#: Every library that writes files here, in a process that may write files of 20 kB only.
FULL_DISK = """
import resource, sys
import numpy, pandas, torch
from aplens._io import atomic_write, write_json
from aplens.scenarios import Scenario, Scenarios

def safetensors_of_torch(path):
    from safetensors.torch import save_file
    with atomic_write(path) as temporary:
        save_file({"a": torch.zeros(50_000)}, temporary, {"facts": "x"})

def safetensors_of_numpy(path):
    from safetensors.numpy import save_file
    with atomic_write(path) as temporary:
        save_file({"a": numpy.zeros(50_000)}, temporary)

def parquet(path):
    with atomic_write(path) as temporary:
        pandas.DataFrame({"a": numpy.random.rand(50_000)}).to_parquet(temporary)

def scenarios(path):
    numbers = numpy.random.default_rng(0).integers(0, 2**31, (2000, 20)).tolist()
    Scenarios(
        Scenario("eol", "java", "a", 1, "x", tuple(ids), 1, "own") for ids in numbers
    ).save(path)

def json(path):
    write_json(path, "x" * 50_000)

def html(path):
    with atomic_write(path) as temporary:
        temporary.write_text("x" * 50_000)

def png(path):
    from matplotlib.figure import Figure
    figure = Figure()
    figure.subplots().imshow(numpy.random.rand(200, 200))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=200)

png(sys.argv[1] + "/warmed.up")  # matplotlib writes a cache of fonts on a new machine
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for write in (safetensors_of_torch, safetensors_of_numpy, parquet, scenarios, json, html, png):
    path = f"{sys.argv[1]}/new/{write.__name__}.file"
    try:
        write(path)
    except OSError as error:
        print(write.__name__, error.errno, error.filename == path, path in str(error))
"""


def test_a_full_disk_is_an_oserror_with_the_path_whatever_library_was_writing(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True
    )
    writers = ["safetensors_of_torch", "safetensors_of_numpy", "parquet", "scenarios"]
    expected = [f"{name} {errno.EFBIG} True True" for name in [*writers, "json", "html", "png"]]
    assert result.stdout.splitlines() == expected, result.stderr
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such number"),
        FileNotFoundError(errno.ENOENT, "No such file", "what-was-to-be-read"),
        ConnectionResetError(errno.ECONNRESET, "the registry hung up"),
        OSError("not of the system"),
    ],
)
def test_an_error_that_is_not_the_disks_comes_through_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, atomic_write(tmp_path / "x"):
        raise error
    assert caught.value is error


def test_a_folder_in_the_place_of_the_file_is_an_oserror_with_the_path(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_json(tmp_path / "x.json", 1)
    assert caught.value.filename == str(tmp_path / "x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path):
    write_json(tmp_path / ("x" * 255), 1)
    assert read_json(tmp_path / ("x" * 255)) == 1


#: Saves 64 MB in a folder again and again, having said so.
SAVE = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from aplens._io import atomic_write, own_folder
weights = {"a": torch.zeros(1 << 24)}
with own_folder(sys.argv[1]) as folder:
    print("saving", flush=True)
    while True:
        with atomic_write(folder / "weights.safetensors") as temporary:
            save_file(weights, temporary)
"""


def sizes_below(folder):
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def kill_while_saving(folder):
    """End a process with SIGKILL while it is writing, as the files that it leaves show."""
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", SAVE, folder], stdout=subprocess.PIPE) as one:
            one.stdout.readline()
            ends = time.monotonic() + 60
            while time.monotonic() < ends and not any(
                path.is_file() and path.stat().st_size for path in folder.glob(".partial-*/*")
            ):
                pass
            one.send_signal(signal.SIGKILL)
        if any(path.name != ".lock" for path in folder.glob(".*")):
            return
    pytest.fail("no kill hit a save")


def test_what_a_kill_while_saving_leaves_is_cleared_when_the_folder_is_next_used(tmp_path):
    kill_while_saving(tmp_path)
    (tmp_path / ".tmpfiles").write_text("of the user")
    with own_folder(tmp_path):
        left = {path.name for path in tmp_path.iterdir()}
    assert left <= {".lock", ".tmpfiles", "weights.safetensors"}


def test_what_was_left_in_folders_below_is_cleared_and_nothing_else(tmp_path):
    for name in ("gates/.partial-abc/eol.json", "rankings/deep/.partial-x", "rankings/eol.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    clear_abandoned(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["eol.json"]


@pytest.mark.parametrize("name", ["eol", "my task (v2)", "py: names", "日本", "...", ".a", "a b\n"])
def test_a_plain_name_is_a_file_name(tmp_path, name):
    require_file_name(name, "the task")
    write_json(tmp_path / f"{name}.json", 1)
    assert len(list(tmp_path.iterdir())) == 1


ELSEWHERE = ["", ".", "..", "../../x", "/x", "a/b", "a/", "a\n/b", "a\0"]
ELSEWHERE_ON_WINDOWS = ["..\\x", "C:x", "c:\\x", "\\\\host\\x"]


@pytest.mark.parametrize("name", [*ELSEWHERE, *ELSEWHERE_ON_WINDOWS, None, 3])
def test_a_name_that_is_a_path_is_refused(name):
    with pytest.raises(ValueError, match="the task must be a plain file name") as caught:
        require_file_name(name, "the task")
    assert repr(name) in str(caught.value)


def test_a_name_too_long_for_a_file_is_refused():
    require_file_name("x" * 240, "the task")
    with pytest.raises(ValueError, match="the task must be at most 240 bytes"):
        require_file_name("é" * 121, "the task")


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


def test_importing_aplens_is_cheap_and_its_rooms_are_there():
    script = (
        "import sys, aplens; dir(aplens);"
        "heavy = {'torch', 'transformer_lens', 'transformers', 'sklearn', 'pandas', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)));"
        "rooms = ['circuits', 'mae', 'patterns', 'scenarios', 'study'];"  # as completion promises
        "print(*[getattr(aplens, room).__name__ for room in rooms])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    rooms = "aplens.circuits aplens.mae aplens.patterns aplens.scenarios aplens.study"
    assert result.stdout.splitlines() == ["[]", rooms], result.stdout + result.stderr


def test_every_public_name_can_be_imported():
    import aplens

    for name in aplens.__all__:
        found = getattr(aplens, name)
        home = found.__name__ if ismodule(found) else found.__module__
        assert home.startswith("aplens"), name
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = aplens.no_such_thing


def test_differences_name_every_leaf_and_nothing_else():
    tables = [{"x": 1}, {"y": 2}], [{"x": 1}, {"y": 3}, {}]
    assert list(describe_differences({"a": tables[0]}, {"a": tables[1]})) == [
        "a[1].y was 2, is 3",
        "a[2] was None, is {}",
    ]
    before = {"a": 1, "b": {"c": 2, "d": 3}, "gone": None}
    now = {"a": 1, "b": {"c": 4, "d": 3}, "new": 5}
    assert list(describe_differences(before, now)) == ["b.c was 2, is 4", "new was None, is 5"]
    assert list(describe_differences(before, before)) == []
