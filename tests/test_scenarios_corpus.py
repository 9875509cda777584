"""Corpora read what is there, in a seeded order, and survive what is broken."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from scenario_helpers import byte_level_tokenizer, java_file, python_file

from aplens.scenarios import (
    DatasetCorpus,
    ScenarioError,
    SourceFile,
    TextCorpus,
    corpus,
    find_jdk_source,
    mine_scenarios,
    open_corpus,
    python_standard_library,
)

FILES = {f"module{i % 2}/p/C{i}.java": java_file(i) for i in range(6)}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "source" / "README.md").write_text("not Java")
    return tmp_path / "source"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "src.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, text in FILES.items():
            target.writestr(name, text)
        target.writestr("README.md", "not Java")
    return path


@pytest.mark.parametrize("source", ["folder", "archive"])
def test_every_file_of_the_language_comes_once(request, source):
    opened = open_corpus(request.getfixturevalue(source))
    assert dict(opened.files()) == FILES
    assert len(list(opened.files())) == len(FILES)
    assert not opened.skipped


def test_order_is_that_of_the_seed_in_folder_and_archive_alike(folder, archive):
    orders = {seed: [file.path for file in open_corpus(folder).files(seed)] for seed in range(5)}
    assert len({tuple(order) for order in orders.values()}) > 1
    for seed, order in orders.items():
        assert [file.path for file in open_corpus(archive).files(seed)] == order


@pytest.mark.parametrize("source", ["folder", "archive"])
def test_prefix_chooses_a_part(request, source):
    opened = open_corpus(request.getfixturevalue(source), prefix="module1/")
    assert {file.path for file in opened.files()} == {p for p in FILES if p.startswith("module1/")}


def test_archive_is_not_unpacked(archive):
    list(open_corpus(archive).files())
    assert [path.name for path in archive.parent.iterdir()] == ["src.zip"]


def test_unusable_files_are_counted_and_left_out(folder, monkeypatch):
    (folder / "Latin.java").write_bytes("class É {}".encode("latin-1"))
    (folder / "Blank.java").write_text(" \n")
    (folder / "Gone.java").symlink_to(folder / "nowhere")
    (folder / "Mark.java").write_bytes(b"\xef\xbb\xbfclass Mark {}")
    (folder / "Huge.java").write_text("// " + "x" * 5000)
    monkeypatch.setattr(corpus, "MAX_BYTES", 4000)
    opened = open_corpus(folder)
    for _ in range(2):  # a second pass counts afresh
        files = dict(opened.files())
        assert files == FILES | {"Mark.java": "class Mark {}"}
        assert opened.skipped == {"not UTF-8": 1, "empty": 1, "unreadable": 1, "too large": 1}


def test_damaged_member_of_an_archive_is_left_out(archive):
    name = "module1/p/C3.java"
    with zipfile.ZipFile(archive) as source:
        entry = source.getinfo(name)
    data = bytearray(archive.read_bytes())
    middle = entry.header_offset + 30 + len(name) + entry.compress_size // 2
    data[middle : middle + 20] = bytes(20)
    archive.write_bytes(data)
    opened = open_corpus(archive)
    assert set(dict(opened.files())) == set(FILES) - {name}
    assert opened.skipped == {"unreadable": 1}


def test_what_is_no_corpus_is_refused(tmp_path, archive):
    with pytest.raises(ScenarioError, match=r"nothing at .*missing"):
        open_corpus(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ScenarioError, match=r"notes\.txt is not a readable zip"):
        open_corpus(tmp_path / "notes.txt")
    truncated = tmp_path / "truncated.zip"
    truncated.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ScenarioError, match=r"truncated\.zip is not a readable zip"):
        open_corpus(truncated)
    with pytest.raises(ScenarioError, match=r"no \.py files"):
        next(open_corpus(archive, "python").files())
    with pytest.raises(ScenarioError, match=r"no \.java files in .*zip below module7/"):
        open_corpus(archive, prefix="module7/")


@pytest.mark.parametrize("source", ["folder", "archive"])
def test_hidden_and_excluded_folders_are_not_entered(request, folder, source):
    for name in ("build", ".git"):
        (folder / name).mkdir()
        (folder / name / "X.java").write_text("class X {}")
    opened = open_corpus(request.getfixturevalue(source), exclude=("build", "module1"))
    assert set(dict(opened.files())) == {name for name in FILES if name.startswith("module0/")}


def test_a_corpus_is_opened_as_it_is(folder):
    opened = open_corpus(folder)
    assert open_corpus(opened) is opened
    with pytest.raises(ScenarioError, match=r"a path or a Corpus, got list, .* no files and no sk"):
        open_corpus(["class A {}"])


def test_what_a_corpus_of_ones_own_lacks_is_named():
    class Own:
        def files(self, seed=0):
            yield SourceFile("a.java", "class A {}")

    for read in (open_corpus, lambda own: mine_scenarios(byte_level_tokenizer(), own)):
        with pytest.raises(ScenarioError, match=r"got Own, which has no skipped"):
            read(Own())
    own = Own()
    own.skipped = Counter()
    assert open_corpus(own) is own
    with pytest.raises(ScenarioError, match=r"prefix and exclude choose.*with a Own"):
        open_corpus(own, prefix="java.base/")


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    # datasets waits for Arrow's threads for 5 seconds after each pass over Parquet files.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    rows = [{"content": python_file(i), "path": f"m{i}.py", "stars": i} for i in range(8)]
    rows += [{"content": None, "path": "none.py", "stars": 0}]
    rows += [{"content": "  ", "path": "blank.py", "stars": 0}]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_dataset_column_is_streamed(dataset, kind):
    opened = DatasetCorpus(
        kind, column="content", path_column="path", data_files=str(dataset / f"rows.{kind}")
    )
    assert dict(opened.files()) == {f"m{i}.py": python_file(i) for i in range(8)}
    assert opened.skipped == {"no text": 1, "empty": 1}
    orders = [[file.path for file in opened.files(seed)] for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1


def test_dataset_files_without_paths_keep_their_names_under_any_seed(dataset):
    opened = DatasetCorpus("parquet", column="content", data_files=str(dataset / "rows.parquet"))
    assert {file.path: file.text for file in opened.files(1)} == dict(opened.files(2))
    assert len(dict(opened.files())) == 8


def test_dataset_without_the_column_names_those_it_has(dataset):
    opened = DatasetCorpus("parquet", column="code", data_files=str(dataset / "rows.parquet"))
    with pytest.raises(ScenarioError, match=r"no column 'code'.*'content'"):
        next(opened.files())


def name_by_hash(text: str) -> str:
    return f"sha256-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_rows_without_a_path_are_files_of_their_own(dataset, kind):
    paths = [None, "a.py", None, "", " \n", "a.py", None]
    texts = ["one", "two", "three", "four", "five", "six", "one"]
    frame = pd.DataFrame({"content": texts, "path": paths})
    data = dataset / f"nulls.{kind}"
    frame.to_parquet(data) if kind == "parquet" else frame.to_json(
        data, orient="records", lines=True
    )
    opened = DatasetCorpus(kind, column="content", path_column="path", data_files=str(data))
    named = {"two": "a.py", "six": "a.py"}
    expected = [SourceFile(named.get(text, name_by_hash(text)), text) for text in texts]
    for seed in (0, 1):
        assert sorted(opened.files(seed)) == sorted(expected)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (None, None),
        (float("nan"), None),
        ("\t", None),
        (7, "7"),
        ("None", "None"),
    ],
)
def test_a_path_may_be_any_null_and_any_scalar(monkeypatch, path, name):
    import datasets

    rows = [{"content": "one", "path": path}, {"content": "two", "path": path}]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: stream)
    opened = DatasetCorpus("rows", column="content", path_column="path")
    assert {file.text: file.path for file in opened.files()} == {
        text: name or name_by_hash(text) for text in ("one", "two")
    }


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ("{}\n{}\n", "has no rows"),
        ('{"content": "a",\n', "cannot be read: JSON parse error"),
    ],
)
def test_a_dataset_of_nothing_is_refused_by_its_files_name(dataset, lines, problem):
    data = dataset / "odd.jsonl"
    data.write_text(lines)
    with pytest.raises(ScenarioError, match=rf"odd\.jsonl.*{problem}"):
        list(DatasetCorpus("json", column="content", data_files=str(data)).files())


def test_a_dataset_of_bytes_has_no_text(dataset):
    data = dataset / "bytes.parquet"
    pd.DataFrame({"content": [b"class A {}"]}).to_parquet(data)
    opened = DatasetCorpus("parquet", column="content", data_files=str(data))
    assert list(opened.files()) == []
    assert opened.skipped == {"no text": 1}


@pytest.mark.parametrize("text", [None, b"bytes", 5, ["text"]])
def test_a_reader_that_gives_no_text_is_named(text):
    opened = TextCorpus({"good": lambda: "a text", "odd": lambda: text})
    kind = type(text).__name__
    with pytest.raises(ScenarioError, match=f"got path 'odd' .*text of type {kind}"):
        list(opened.files())


def make_jdk(home: Path, version: str, source: str = "lib/src.zip") -> Path:
    path = home / source
    path.parent.mkdir(parents=True)
    path.touch()
    (home / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return path


def test_newest_jdk_with_sources_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(corpus, "_JDK_HOMES", (f"{tmp_path}/jvm/*", f"{tmp_path}/mac/*/Home"))
    assert find_jdk_source() is None
    old = make_jdk(tmp_path / "jvm" / "z-java-8", "1.8.0_402", "src.zip")
    assert find_jdk_source() == old
    make_jdk(tmp_path / "jvm" / "jdk-9", "9.0.4")
    newest = make_jdk(tmp_path / "mac" / "jdk-21" / "Home", "21.0.2")
    assert find_jdk_source() == newest
    without_source = tmp_path / "jvm" / "jdk-25"
    make_jdk(without_source, "25").unlink()
    (without_source / "lib" / "src.zip").symlink_to(tmp_path / "nowhere")
    assert find_jdk_source() == newest
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jvm" / "z-java-8"))
    assert find_jdk_source() == old
    monkeypatch.setenv("JAVA_HOME", str(without_source))
    assert find_jdk_source() == newest


def test_standard_library_has_its_modules_and_not_its_tests():
    library = python_standard_library()
    files = {file.path for file, _ in zip(library.files(), range(40), strict=False)}
    assert len(files) == 40
    every = set(library._texts)
    assert {"json/decoder.py", "argparse.py"} <= every
    assert not [path for path in every if "site-packages" in path or "/tests/" in f"/{path}"]
