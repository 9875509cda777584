"""Corpora of anything: mining goes on with the files that are files of the language."""

from __future__ import annotations

import io
import os
import random
import struct
import tracemalloc
import warnings
import zipfile
from collections import Counter
from functools import cache

import pytest
from fuzz_helpers import damaged, dump, fuzz, is_clear, refusal_of
from hypothesis import example, given
from hypothesis import strategies as st
from scenario_helpers import byte_level_tokenizer, java_file, python_file

from aplens.scenarios import (
    DatasetCorpus,
    ScenarioError,
    Scenarios,
    SourceFile,
    mine_scenarios,
    open_corpus,
    prose,
)
from aplens.scenarios.corpus import MAX_BYTES
from aplens.scenarios.tasks import RANDOM_TASK, SourceTree, parse

tokenizer = byte_level_tokenizer()
CONTEXT = 16


def prose_file(number: int) -> str:
    return f"It was the {number}th day, and nobody had seen a whale; the sea was calm.\n" * 3


MAKE = {"java": java_file, "python": python_file, "prose": prose_file}
SUFFIX = {"java": ".java", "python": ".py", "prose": ".txt"}


def require_exact(mined: Scenarios, read) -> None:
    """Prompt and target stand in the tokenized file, and the span where it is said to be."""
    for scenario in mined:
        text = read(scenario.file)
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        wanted = [*scenario.prompt, scenario.target]
        assert len(scenario.prompt) == CONTEXT
        assert any(ids[i : i + len(wanted)] == wanted for i in range(len(ids) - len(wanted) + 1))
        assert scenario.span in "\n".join(text.split("\n")[scenario.line - 1 :])
        if scenario.task != RANDOM_TASK:
            spans = parse(text, scenario.language).spans(scenario.task)
            assert scenario.span in {text[start:end] for start, end in spans}


def mine(corpus, language: str) -> Scenarios:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tasks that are not full
        return mine_scenarios(
            tokenizer, corpus, language=language, per_task=30, per_file=10, context_length=CONTEXT
        )


def mine_beside_good_files(folder, language: str, data: bytes) -> None:
    """Mine a file of these bytes among good ones, which have to give what they give alone."""
    for i in range(2):
        (folder / f"good{i}{SUFFIX[language]}").write_text(MAKE[language](i))
    odd = folder / f"odd{SUFFIX[language]}"
    odd.unlink(missing_ok=True)
    alone = {scenario.file for scenario in mine(folder, language)}
    odd.write_bytes(data)
    mined = mine(folder, language)
    assert alone <= set(mined.files)
    require_exact(mined, lambda name: (folder / name).read_bytes().decode("utf-8-sig"))
    mined.save(folder / "mined.parquet")
    assert Scenarios.load(folder / "mined.parquet") == mined


@pytest.fixture(scope="module", params=MAKE)
def place(request, tmp_path_factory):
    return tmp_path_factory.mktemp(request.param), request.param


encodings = st.sampled_from(
    ["utf-8", "latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp1252"]
)
pieces = st.sampled_from(
    [
        "\r\n",
        "\r",
        "\f",
        "\v",
        "\0",
        "\x85",
        "\u2028",
        "é",
        "\U0001f40b",
        "e\u0301",
        "\u202e",
        "\ufeff",
        '"""',
        "'",
        '"',
        "/*",
        "//",
        "#",
        "((((",
        "}",
        "\\",
        "<fim_prefix>",
        "<|endoftext|>",
        " ",
        "\t",
    ]
)


@fuzz(12)
@given(data=st.data())
def test_a_file_with_odd_characters(place, data):
    folder, language = place
    text = MAKE[language](7)
    for piece in data.draw(st.lists(pieces, max_size=3)):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + piece + text[at:]
    ends = data.draw(st.sampled_from(["\n", "\r\n", "\r", "\f\n", "\n\n"]))
    encoded = text.replace("\n", ends).encode(data.draw(encodings), errors="replace")
    mine_beside_good_files(folder, language, encoded)


@fuzz(12)
@given(data=st.data())
def test_a_damaged_file(place, data):
    folder, language = place
    changed = data.draw(damaged(MAKE[language](7).encode()) | st.binary(max_size=300))
    mine_beside_good_files(folder, language, changed)


BIG = {
    "one long line": b"x" * 60_000,
    "one long line of words": b"ab c, " * 10_000,
    "newlines": b"\n" * 200_000,
    "quotes": b'"' * 100_000,
    "unterminated string": b'x = """' + b"a\n" * 10_000,
    "comment": b"/* # " + b"*\n" * 10_000,
    "binary": random.Random(0).randbytes(100_000),
    "ascii": bytes(random.Random(0).choices(range(32, 127), k=50_000)),
    "nul": b"\0" * 100_000,
}

#: Of these the syntax tree is deep, which prose has none of.
DEEP = {
    "open parentheses": b"(" * 50_000,
    "deep parentheses": b"(" * 20_000 + b"1" + b")" * 20_000 + b"\n",
    "deep brackets": b"x = " + b"[" * 20_000 + b"]" * 20_000 + b"\n",
    "dots": b"a" + b".b" * 10_000 + b"\n",
    "additions": b"x = 1" + b" + 1" * 10_000 + b"\n",
    "negations": b"x = " + b"-" * 50_000 + b"1\n",
    "indents": b"".join(b" " * i + b"if x:\n" for i in range(700)) + b" " * 700 + b"y\n",
    "java": b"class A { int f = " + b"(" * 30_000 + b"1" + b")" * 30_000 + b"; }",
}


@pytest.mark.parametrize("kind", BIG)
def test_large_files_do_not_stop_mining(place, kind):
    mine_beside_good_files(*place, BIG[kind])


@pytest.mark.parametrize("place", ["java", "python"], indirect=True)
@pytest.mark.parametrize("kind", DEEP)
def test_deep_files_do_not_stop_mining(place, kind):
    mine_beside_good_files(*place, DEEP[kind])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("class A {}\n".encode("utf-16"), "not UTF-8"),
        ("It was late, and cold.\n".encode("utf-16-le") * 9, "no text"),
        (b"caf\xe9", "not UTF-8"),
        (b"", "empty"),
        (b"\xef\xbb\xbf \r\n\f", "empty"),
        (b"x" * (MAX_BYTES + 1), "too large"),
    ],
)
def test_the_reason_for_leaving_a_file_out_is_counted(tmp_path, data, reason):
    (tmp_path / "good.txt").write_text(prose_file(1))
    (tmp_path / "odd.txt").write_bytes(data)
    with pytest.warns(UserWarning, match=f"skipped: 1 {reason}"):
        mine_scenarios(tokenizer, tmp_path, language="prose", context_length=CONTEXT)


def test_code_nested_too_deeply_to_search_is_counted(tmp_path):
    (tmp_path / "good.py").write_text(python_file(1))
    (tmp_path / "odd.py").write_bytes(DEEP["additions"])
    with pytest.warns(UserWarning, match="skipped: 1 nested too deeply"):
        mine_scenarios(
            tokenizer, tmp_path, language="python", tasks=["identifiers"], context_length=CONTEXT
        )


@pytest.mark.parametrize("levels", [100, 450])
def test_what_people_write_is_not_too_deep(levels):
    tree = SourceTree("x = 1" + " + 1" * levels + "\n", "python")
    assert not tree.is_too_deep
    assert len(tree.spans("mathematical_operators")) == levels


# --- datasets ----------------------------------------------------------------------------------

#: Rows of JSON lines: what stands in them may be anything, and so may the lines.
cells = st.sampled_from(
    [None, "", " ", "text", "\u00e9", "\0", 0, 1.5, True, "nan", "None", [], ["a"], {}, {"a": 1}]
)
rows = st.lists(st.fixed_dictionaries({}, optional={"content": cells, "path": cells}), max_size=4)


@pytest.fixture(scope="module")
def json_lines(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets") / "rows.jsonl"


@fuzz(40)
@given(data=st.data())
def test_a_dataset_of_anything(json_lines, data):
    written = b"".join(dump(row) + b"\n" for row in data.draw(rows))
    if written and data.draw(st.booleans()):
        written = data.draw(damaged(written))
    json_lines.write_bytes(written)
    read: list[SourceFile] = []

    def mine_rows():
        corpus = DatasetCorpus(
            "json", column="content", path_column="path", data_files=str(json_lines)
        )
        read.extend(corpus.files())

    refusal = refusal_of(ScenarioError, mine_rows)
    assert refusal is None or is_clear(refusal, json_lines)
    for file in read:
        assert file.text.strip()
        assert file.path.strip()


# --- folders -----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_folders_hold_more_than_files(tmp_path):
    (tmp_path / "good.txt").write_text(prose_file(1))
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.txt").mkdir()
    corpus = open_corpus(tmp_path, "prose")
    assert [file.path for file in corpus.files()] == ["good.txt"]
    assert corpus.skipped == {"no regular file": 1, "unreadable": 2}


@pytest.mark.skipif(os.name != "posix", reason="names are text here")
def test_a_file_whose_name_is_no_text_is_left_out(tmp_path):
    (tmp_path / "good.txt").write_text(prose_file(1))
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text(prose_file(2))
    except OSError:
        pytest.skip("this file system has no such names")
    corpus = open_corpus(tmp_path, "prose")
    assert [file.path for file in corpus.files()] == ["good.txt"]
    assert corpus.skipped == {"not UTF-8": 1}


class Named:
    """A corpus whose one odd file has a name that cannot be saved."""

    def __init__(self):
        self.skipped = Counter()

    def files(self, seed=0):
        yield SourceFile("\ud800", prose_file(1))
        yield SourceFile("good", prose_file(2))


def test_no_corpus_brings_in_a_name_that_cannot_be_saved(tmp_path):
    mined = mine(Named(), "prose")
    assert set(mined.files) == {"good"}
    mined.save(tmp_path / "mined.parquet")


# --- archives ----------------------------------------------------------------------------------

MEMBERS = {f"p/{i}.txt": prose_file(i) for i in range(4)}
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def archive_of(members=MEMBERS, method=zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as target:
        for name, text in members.items():
            target.writestr(zipfile.ZipInfo(name), text, compress_type=method)
    return sink.getvalue()


def read_archive(data: bytes, folder) -> dict[str, str] | None:
    path = folder / "changed.zip"
    path.write_bytes(data)

    def read():
        return dict(open_corpus(path, "prose").files())

    refusal = refusal_of(ScenarioError, read)
    if refusal is not None:
        assert is_clear(refusal, path)
        return None
    return read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("archives")


@pytest.mark.parametrize("method", METHODS)
@fuzz(120)
@given(data=st.data())
def test_a_damaged_archive(folder, method, data):
    read = read_archive(data.draw(damaged(archive_of(method=METHODS[method]))), folder)
    # A name may be damaged unseen; what stands in a file may not.
    assert set((read or {}).values()) <= set(MEMBERS.values())


@fuzz(60)
@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda data: b"PK\5\6" + data))
@example(b"")
@example(b"PK\5\6" + b"\0" * 18)
@example(b"PK\5\6" + b"\0" * 4 + b"\xff" * 12 + b"\0\0")
def test_what_is_no_archive(folder, data):
    assert not read_archive(data, folder)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [0.5, 0.9])
def test_one_damaged_member_does_not_take_the_others_along(folder, method, place):
    data = bytearray(archive_of(method=METHODS[method]))
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        member = source.getinfo("p/1.txt")
    at = member.header_offset + 30 + len("p/1.txt") + int(member.compress_size * place)
    data[at] ^= 0x55
    read = read_archive(bytes(data), folder)
    assert {name: text for name, text in MEMBERS.items() if name != "p/1.txt"} == read


def test_names_are_names_and_no_paths(folder):
    members = {"../up.txt": prose_file(1), "/etc/abs.txt": prose_file(2), "d.txt/": ""}
    assert read_archive(archive_of(members), folder) == dict(list(members.items())[:2])
    assert not (folder.parent / "up.txt").exists()


def edit_members(data: bytes, **fields: int) -> bytes:
    """The archive with a field of every member's headers changed."""
    changed, offsets = bytearray(data), {"flags": (6, 8), "method": (8, 10), "size": (22, 24)}
    for signature, which in ((b"PK\3\4", 0), (b"PK\1\2", 1)):
        at = data.find(signature)
        while at >= 0:
            for name, value in fields.items():
                packed = struct.pack("<I" if name == "size" else "<H", value)
                start = at + offsets[name][which]
                changed[start : start + len(packed)] = packed
            at = data.find(signature, at + 4)
    return bytes(changed)


@pytest.mark.parametrize(
    "fields", [{"flags": 1}, {"flags": 0x20}, {"flags": 0x40}, {"method": 99}, {"size": 2**32 - 2}]
)
def test_members_that_cannot_be_read_are_counted(folder, fields):
    path = folder / "edited.zip"
    path.write_bytes(edit_members(archive_of(), **fields))
    corpus = open_corpus(path, "prose")
    assert list(corpus.files()) == []
    assert corpus.skipped == {"too large" if "size" in fields else "unreadable": 4}


@cache
def bomb(method: str) -> bytes:
    """20 MB in 0.2; all of it in memory takes 59 MB from LZMA, and a piece at a time 18."""
    text = "".join(f"{number:05}" + " a" * 200 for number in range(50_000))
    return archive_of({"bomb.txt": text}, METHODS[method])


@pytest.mark.parametrize("declared", [10, None])
@pytest.mark.parametrize("method", ["deflated", "lzma"])
def test_a_bomb_is_not_unpacked(folder, method, declared):
    data = bomb(method) if declared is None else edit_members(bomb(method), size=declared)
    path = folder / "bomb.zip"
    path.write_bytes(data)
    corpus = open_corpus(path, "prose")
    tracemalloc.start()
    try:
        assert list(corpus.files()) == []
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert corpus.skipped.total() == 1


# --- prose -------------------------------------------------------------------------------------


class Rubbish:
    """A distribution whose metadata cannot be read."""

    def __init__(self, error):
        self.error = error

    @property
    def metadata(self):
        raise self.error


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), PermissionError("no"), KeyError()]
)
def test_a_broken_package_does_not_stop_prose(monkeypatch, error):
    monkeypatch.setattr(prose, "distributions", lambda: [Rubbish(error)])
    assert next(prose.english_prose().files()).path.startswith("pydoc_data/")


@pytest.mark.parametrize(
    "piece", ["<!--", "![", "[a", "```\n", "<pre ", "<a", "[](", "\n \n", "[ "]
)
def test_unclosed_markup_does_not_take_for_ever(piece):
    prose.strip_markup(piece * (prose.MAX_README // len(piece)))
