"""Mining: balanced, seeded, without repetition, and true to the files."""

from __future__ import annotations

from collections import Counter

import pytest
from scenario_helpers import byte_level_tokenizer, java_file, python_file

from aplens.scenarios import (
    ScenarioError,
    Scenarios,
    SourceFile,
    find_jdk_source,
    list_tasks,
    mine_scenarios,
    open_corpus,
    python_standard_library,
)
from aplens.scenarios.tasks import SourceTree

MARKERS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
tokenizer = byte_level_tokenizer()
fim_tokenizer = byte_level_tokenizer(MARKERS)


class Files:
    """A corpus in memory that knows how many of its files were read."""

    def __init__(self, texts, suffix=".java"):
        self.texts = {f"p/F{i}{suffix}": text for i, text in enumerate(texts)}
        self.skipped = Counter()
        self.n_read = 0

    def files(self, seed=0):
        for path, text in self.texts.items():
            self.n_read += 1
            yield SourceFile(path, text)


@pytest.fixture
def java():
    return Files([java_file(i) for i in range(60)])


def mine(corpus, **options) -> Scenarios:
    options = {"per_task": 5, "context_length": 24, **options}
    return mine_scenarios(options.pop("tokenizer", tokenizer), corpus, **options)


@pytest.mark.parametrize(
    ("language", "make"), [("java", java_file), ("python", python_file)], ids=["java", "python"]
)
@pytest.mark.parametrize("style", ["left_to_right", "fim"])
def test_scenarios_are_cut_out_of_their_files(language, make, style):
    corpus = Files([make(i) for i in range(60)])
    mined = mine(corpus, language=language, tokenizer=fim_tokenizer, style=style)
    assert mined.counts() == dict.fromkeys(sorted(list_tasks(language)), 5)
    assert mined.tokens().shape == (len(mined), 24)
    to_prefix, to_suffix, to_middle = fim_tokenizer.convert_tokens_to_ids(list(MARKERS))
    for scenario in mined:
        text = corpus.texts[scenario.file]
        ids = fim_tokenizer(text)["input_ids"]
        assert (scenario.style, scenario.language) == (style, language)
        assert scenario.span in "\n".join(text.split("\n")[scenario.line - 1 :])
        prompt = list(scenario.prompt)
        if style == "fim":
            assert (prompt[0], prompt[-1]) == (to_prefix, to_middle)
            hole = prompt.index(to_suffix)
            before, after = prompt[1:hole], prompt[hole + 1 : -1]
        else:
            before, after = prompt, []
        # Somewhere in the file the prompt's tokens stand, the target after those before the span.
        places = [
            i
            for i in range(len(before), len(ids))
            if ids[i - len(before) : i] == before and ids[i] == scenario.target
        ]
        assert places
        assert any(scenario.span.strip() in fim_tokenizer.decode(ids[i:]) for i in places)
        assert not after or any(
            ids[stop : stop + len(after)] == after
            for i in places
            for stop in range(i + 1, len(ids))
        )
        if scenario.task == "random":
            assert 3 <= len(fim_tokenizer(scenario.span)["input_ids"]) <= 12
        else:
            spans = SourceTree(text, language).spans(scenario.task)
            assert scenario.span in {text[start:end] for start, end in spans}


def test_line_is_where_the_span_is(java):
    for scenario in mine(java, tasks=["function_name", "string_literals"], per_task=20):
        line = java.texts[scenario.file].split("\n")[scenario.line - 1]
        assert scenario.span in line


def test_no_file_gives_more_than_its_share_and_no_place_serves_twice(java):
    mined = mine(java, per_task=15, per_file=4)
    assert max(Counter(mined.files).values()) <= 4
    assert len({scenario.prompt for scenario in mined}) == len(mined)
    one_each = mine(java, per_task=3, per_file=1)
    assert len(set(one_each.files)) == len(one_each) == 3 * len(list_tasks())


def test_tasks_fill_evenly(java):
    seen = []
    mined = mine(java, per_task=12, progress=lambda done, total: seen.append((done, total)))
    for done, total in seen:
        counts = [mined[:done].counts().get(task, 0) for task in list_tasks()]
        assert total == 12 * len(counts)
        assert max(counts) - min(counts) <= 2
    assert seen[-1][0] == len(mined)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_seed_decides_everything(tmp_path):
    for i in range(40):
        (tmp_path / f"F{i}.java").write_text(java_file(i))
    corpus = open_corpus(tmp_path)
    one, again, other = (mine(corpus, seed=seed) for seed in (3, 3, 4))
    assert one == again == mine(str(tmp_path), seed=3)
    assert one != other
    assert one.counts() == other.counts()


def test_reading_stops_when_every_task_is_full(java):
    mined = mine(java, tasks=["identifiers"], per_task=8, per_file=4)
    assert len(mined) == 8
    assert java.n_read == 2


def test_copies_and_broken_files_are_left_out_and_counted():
    files = Files(
        [
            java_file(1),
            java_file(1),
            java_file(1) + " ",
            "def f(: " + java_file(2).replace("{", "<").replace("}", ">"),
            "class A {}",
            "class B { String s = \ud800; }",
        ]
    )
    with pytest.warns(UserWarning, match="fewer than 100") as caught:
        mined = mine(files, tasks=["identifiers", "stop"], per_task=100, per_file=200)
    message = str(caught[0].message)
    for reason in ("1 seen before", "1 not parsed", "1 too short", "1 not UTF-8", "6 files"):
        assert reason in message
    assert f"identifiers {mined.counts()['identifiers']}" in message
    assert set(mined.files) == {"p/F0.java"}  # the prompts of the third were all seen before


UNKNOWN = """\
import module java.base;
class Unknown {
    int odd(Object first) {
        return switch (first) {
            case final Integer second -> second + 1;
            default -> {
                int third = 3;
                yield third;
            }
        };
    }
"""


def test_files_that_parse_in_part_are_mined_without_what_does_not():
    source = (
        UNKNOWN + "".join(f"    int plain{i} = first{i}(a, b) + {i};\n" for i in range(9)) + "}\n"
    )
    with pytest.warns(UserWarning, match="; 1 parsed in part") as caught:
        mined = mine(Files([source, java_file(1)]), per_task=400, per_file=400, context_length=4)
    assert "skipped: none; 1 parsed" in str(caught[0].message)
    own = [scenario for scenario in mined if scenario.file == "p/F0.java"]
    assert {"random", "identifiers", "keywords"} < {scenario.task for scenario in own}
    assert "stop" not in {scenario.task for scenario in own}  # its only one is in the import
    for word in ("import", "module", "java", "base", "case", "final", "Integer", "second"):
        assert not any(word in scenario.span for scenario in own)
    assert {"odd", "first", "third", "plain0"} <= {scenario.span for scenario in own}


def test_a_file_that_is_mostly_unparsed_is_no_file_of_the_language():
    with pytest.warns(UserWarning, match="skipped: 1 not parsed\\)"):
        mined = mine(
            Files(["It was late, and cold. " * 40, java_file(1)]), tasks="identifiers", per_task=400
        )
    assert set(mined.files) == {"p/F1.java"}


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (
            SourceFile("p/odd.java", None),
            r"got path 'p/odd\.java' \(str\) and text of type NoneType",
        ),
        (SourceFile("p/odd.java", b"class A {}"), "text of type bytes"),
        (SourceFile("p/odd.java", 5), "text of type int"),
        (SourceFile(None, "class A {}"), r"got path None \(NoneType\)"),
        (("p/odd.java", "class A {}"), "got path .*tuple"),
        (None, "got path None"),
    ],
)
def test_a_corpus_of_what_is_no_text_is_refused_by_name(file, problem):
    class Odd(Files):
        def files(self, seed=0):
            yield file

    with pytest.raises(ScenarioError, match=problem):
        mine(Odd([]))


def test_task_without_a_match_is_an_error():
    plain = "class A {\n" + "    int value = 1;\n" * 40 + "}\n"
    with pytest.raises(ScenarioError, match="no scenario of assignment_operators, stop was found"):
        mine(Files([plain]), tasks=["eol", "assignment_operators", "stop"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["eol", "semicolons"]}, r"boolean_operators.*got \['eol', 'semicolons'\]"),
        ({"tasks": []}, r"expected tasks of java"),
        ({"language": "cobol"}, "unknown language 'cobol'"),
        ({"per_task": 0}, "per_task must be at least 1, got 0"),
        ({"per_file": -1}, "per_file must be at least 1, got -1"),
        ({"context_length": 0}, "context_length 0 has no room"),
        ({"style": "fim"}, "fill-in-the-middle markers"),
    ],
)
def test_bad_arguments_are_refused_before_a_file_is_read(java, options, message):
    with pytest.raises(ScenarioError, match=message):
        mine(java, **options)
    assert java.n_read == 0


def test_one_task_may_be_given_by_name(java):
    assert set(mine(java, tasks="eol").tasks) == {"eol"}


def test_hooked_model_lends_its_tokenizer_and_its_limit(tiny_model, java, monkeypatch):
    monkeypatch.setattr(tiny_model, "tokenizer", None, raising=False)
    with pytest.raises(ScenarioError, match="model has no tokenizer"):
        mine(java, tokenizer=tiny_model)
    monkeypatch.setattr(tiny_model, "tokenizer", tokenizer)
    assert mine(java, tokenizer=tiny_model) == mine(java)
    with pytest.raises(ScenarioError, match=r"context_length 65 .*64 tokens"):
        mine(java, tokenizer=tiny_model, context_length=65)


@pytest.mark.real
@pytest.mark.skipif(find_jdk_source() is None, reason="no JDK with sources here")
def test_every_task_is_found_in_the_jdk(smollm2_tokenizer):
    corpus = open_corpus(find_jdk_source(), prefix="java.base/")
    mined = mine_scenarios(smollm2_tokenizer, corpus, per_task=6)
    assert mined.counts() == dict.fromkeys(sorted(list_tasks("java")), 6)
    assert mined.tokens().shape == (6 * 14, 256)
    assert all(file.startswith("java.base/") for file in mined.files)


@pytest.mark.real
def test_every_task_is_found_in_the_standard_library(smollm2_tokenizer):
    mined = mine_scenarios(
        smollm2_tokenizer, python_standard_library(), language="python", per_task=6
    )
    assert mined.counts() == dict.fromkeys(sorted(list_tasks("python")), 6)
    assert mined.tokens().shape == (6 * 14, 256)
