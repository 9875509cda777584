"""Prose: its tasks, the texts that every Python has, and READMEs without their markup."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario_helpers import byte_level_tokenizer

from aplens.scenarios import (
    ScenarioError,
    TextCorpus,
    english_prose,
    list_tasks,
    mine_scenarios,
    open_corpus,
    prose,
)
from aplens.scenarios.corpus import SkipFile
from aplens.scenarios.prose import strip_markup
from aplens.scenarios.tasks import SourceText

TEXT = """Heading here

The well-known rule, which isn't new; holds for é and x1 in 1.5 cases: see a.b or c::d
everywhere. Is that "so?" (Yes!)"""


def texts(task: str, text: str = TEXT) -> list[str]:
    return [text[start:end] for start, end in SourceText(text, "prose").spans(task)]


def test_tasks_of_prose():
    assert list_tasks("prose") == ("random", "punctuation", "word")


def test_words_are_whole_and_inside_a_sentence():
    expected = "here well-known rule which isn't new holds for é and in cases or everywhere that"
    assert texts("word") == expected.split()


def test_punctuation_stands_at_the_end_of_a_word():
    assert texts("punctuation") == [",", ";", ":", ".", "?", "!"]


@given(st.text(alphabet="abZé1 .,;:?!'\"()-_\n", max_size=60))
def test_spans_are_what_the_tasks_say_in_any_text(text):
    for start, end in SourceText(text, "prose").spans("word"):
        assert re.fullmatch(r"[^\W\d_]+(['’-][^\W\d_]+)*", text[start:end])
        assert text[start - 1] in " \n"
        assert not text[end : end + 1].isalnum()
    for start, end in SourceText(text, "prose").spans("punctuation"):
        assert text[start:end] in ".,;:?!"
        assert text[start - 1].isalnum()


def sentences(number: int) -> str:
    return " ".join(
        f"On day {number * 50 + i}, the clerk of house {i} went out again; rain fell, and no one"
        f" spoke of number {number}."
        for i in range(8)
    )


TEXTS = {f"book{i}/p": sentences(i) for i in range(20)}


def corpus_of(texts: dict[str, str]) -> TextCorpus:
    return TextCorpus({name: lambda text=text: text for name, text in texts.items()})


def test_prose_is_mined_for_every_task():
    mined = mine_scenarios(
        byte_level_tokenizer(), corpus_of(TEXTS), language="prose", per_task=9, context_length=32
    )
    assert mined.counts() == {"punctuation": 9, "random": 9, "word": 9}
    assert set(mined.languages) == {"prose"}
    for scenario in mined:
        assert scenario.span in TEXTS[scenario.file]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst"])
def test_folders_of_text_are_prose(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_text(TEXT)
    (tmp_path / "b.py").write_text("pass")
    assert [file.path for file in open_corpus(tmp_path, "prose").files()] == [f"a{suffix}"]


def test_archives_of_text_are_prose(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.txt", TEXT)
    assert dict(open_corpus(tmp_path / "t.zip", "prose").files()) == {"a.txt": TEXT}


def test_texts_come_once_in_the_order_of_the_seed_and_are_read_in_turn():
    corpus = corpus_of(TEXTS)
    assert dict(corpus.files()) == TEXTS
    orders = {seed: [file.path for file in corpus.files(seed)] for seed in range(4)}
    assert len(set(map(tuple, orders.values()))) > 1
    backwards = corpus_of(dict(reversed(TEXTS.items())))
    assert [file.path for file in backwards.files(2)] == orders[2]

    read = []
    lazy = TextCorpus({name: lambda name=name: read.append(name) or name for name in "abc"})
    first = next(lazy.files())
    assert read == [first.path]


def test_repeated_and_skipped_texts_are_counted():
    def skip() -> str:
        raise SkipFile("too short")

    corpus = TextCorpus({"a": lambda: "same", "b": lambda: "same", "c": skip})
    for _ in range(2):  # a second pass counts afresh
        assert [file.text for file in corpus.files()] == ["same"]
        assert corpus.skipped == {"seen before": 1, "too short": 1}
    with pytest.raises(ScenarioError, match="nothing to read"):
        next(TextCorpus({}).files())


def test_english_prose_has_the_reference_and_long_readmes_only(monkeypatch, tmp_path):
    body = "\n\n".join(sentences(i) for i in range(9))
    for name, text in {"long": body, "brief": "Some words.", "again": body}.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        header = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\n"
        (info / "METADATA").write_text(f"{header}```\ncode = 1\n```\n\n{text}")
    (tmp_path / "nameless-1.0.dist-info").mkdir()
    monkeypatch.setattr(prose, "distributions", lambda: metadata.distributions(path=[tmp_path]))
    corpus = english_prose()
    files = dict(corpus.files())
    reference = {name for name in files if name.startswith("pydoc_data/topics/")}
    assert len(reference) > 50
    assert "expression" in files["pydoc_data/topics/assignment"]
    (readme,) = set(files) - reference
    assert readme in ("long/README", "again/README")
    assert files[readme] == body
    assert corpus.skipped["too short"] == 1
    assert corpus.skipped["seen before"] >= 1


README = """<p align="center">
  <img src="logo.png"/>
</p>

# Name of it

[![Build](https://x.org/a.svg)](https://x.org) ![badge](b.png)

A library that [counts things](https://x.org/docs)
for everyone, with <b>care</b>.

```python
import it  # run this
```

It is used so::

    it.run(all)

.. image:: picture.png
   :width: 300

| a | b |
|---|---|
| 1 | 2 |

* Small lists of words
    and what hangs from them.

[docs]: https://x.org/docs
"""


def test_what_is_left_of_a_readme_is_its_prose():
    assert strip_markup(README) == (
        "# Name of it\n\nA library that counts things\nfor everyone, with care.\n\n"
        "It is used so::\n\n* Small lists of words\n    and what hangs from them."
    )


def test_plain_paragraphs_stay_as_they_are():
    assert strip_markup(sentences(1)) == sentences(1)
    assert strip_markup("") == ""
