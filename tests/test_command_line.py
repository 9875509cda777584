"""The commands that need no study's results: rank, run --plan, init."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import sys
import tomllib
from importlib.resources import files

import pandas as pd
import pytest
import torch
from study_fixtures import aplens_command

import aplens
from aplens import HeadRanking
from aplens.scenarios import ScenarioError, read_prompt_file
from aplens.study import StudySettings
from aplens.study.plan import _time

ROWS = [
    ("class Adder1 {\n    private int", " total", " boolean"),
    ("        if (value > 3 &&", " !", " total"),
    ("        System.out.println(", "name", "value"),
    ("    boolean add(int value,", " boolean", " int"),
]
FIELDS = ("prompt", "answer", "wrong_answer")


def run(*arguments):
    result = aplens_command(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def model(tiny_saved):
    return aplens.load_model(tiny_saved, "bridge")


@pytest.fixture
def prompts(tmp_path):
    with (tmp_path / "own.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([FIELDS, *ROWS])
    lines = (json.dumps(dict(zip(FIELDS, row, strict=True))) for row in ROWS)
    (tmp_path / "own.jsonl").write_text("\n\n".join(lines))
    return tmp_path / "own.csv"


def test_a_prompt_file_is_the_scenarios_it_lists(model, prompts):
    texts, answers, wrong = (list(column) for column in zip(*ROWS, strict=True))
    expected = aplens.make_scenarios(model, texts, answers, wrong, task="own")
    assert read_prompt_file(model, prompts) == expected
    assert read_prompt_file(model, prompts.with_suffix(".jsonl")) == expected


def test_every_kind_of_file_holds_prompts_without_answers(model, tmp_path):
    texts = ["class Adder1", "if (value\u2028"]  # that is no end of a line
    rows = [json.dumps(text, ensure_ascii=False) for text in texts]
    keyed = [f'{{"prompt": {row}}}' for row in rows]
    files = {
        "a.csv": 'prompt\n"class Adder1"\n"if (value\u2028"\n',
        "a.txt": "\n".join([texts[0], " ", texts[1], ""]),
        "texts.json": f"[{', '.join(rows)}]",
        "objects.json": f"[{', '.join(keyed)}]",
        "lines.json": "\n".join(keyed),
        "a.jsonl": "\n\n".join([rows[0], keyed[1]]),
    }
    expected = aplens.read_prompts(model, texts).tokens.tolist()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_prompt_file(model, tmp_path / name).tokens.tolist() == expected, name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,answer\nx,\n", "line 2: expected a text as answer, got ''"),
        ("a.csv", "prompt,answer\nx, y, z\n", "line 2: unknown column 'more values"),
        ("a.csv", "text,answer\nx, y\n", "line 2: unknown column 'text'"),
        ("a.csv", "prompt,wrong_answer\nx, y\n", "no column 'answer', but 'wrong_answer'"),
        ("a.csv", "prompt\n", "has no prompts"),
        ("a.jsonl", '{"prompt": "x"}\n[1]\n', r"line 2: expected an object or a text, got \[1\]"),
        ("a.jsonl", "[1]\n[2]\n", "as a JSON list: no JSON: Extra data"),
        ("a.json", '["x", 5]', "line 2: expected an object or a text, got 5"),
        ("a.json", "[" * 5000, "no JSON: it is nested too deeply"),
        ("a.txt", " \n\n", "has no prompts"),
        ("a.txt", "caf\u00e9", r"a\.txt cannot be read as prompts: 'utf-8' codec"),
        ("a.csv", f"prompt\n{'x' * 200_000}\n", "cannot be read as prompts: field larger"),
        ("a.tsv", "prompt\n", r"expected a file of prompts \(\.csv, \.jsonl, .*got .*a\.tsv"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"\n', "line 2: no JSON"),
        ("a.jsonl", '{"prompt": "x", "answer": " y"}\n{"prompt": "x"}', "line 2: .*answer.*None"),
    ],
)
def test_a_wrong_prompt_file_is_refused_by_line(model, tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ScenarioError, match=message):
        read_prompt_file(model, tmp_path / name)


def test_rank_prints_a_table_or_json_of_what_rank_heads_finds(model, tiny_saved, prompts, tmp_path):
    command = ["rank", "--model", tiny_saved, "--kind", "bridge", "--prompts", prompts]
    expected = aplens.rank_heads(model, read_prompt_file(model, prompts))
    printed = run(*command, "--json")
    found = json.loads(printed)
    assert [head["name"] for head in found["heads"]] == [str(head) for head in expected]
    assert found["verdict"] == expected.verdict
    assert found["heads"][0]["measured"] is True
    (tmp_path / "ranking.json").write_text(printed)
    loaded = HeadRanking.load(tmp_path / "ranking.json")
    pd.testing.assert_frame_equal(loaded.to_frame(), expected.to_frame())
    table = run(*command, "--top", "2")
    assert table.index(expected.verdict) < table.index(f"\n{expected.top(1)[0]} ")
    assert len(re.findall(r"^L\dH\d ", table, re.MULTILINE)) == 2


def test_help_is_short_to_ask_for_and_completion_is_there():
    assert "--plan" in run("run", "-h")
    assert "--install-completion" in run("-h")


def small(tiny_saved, java_zip):
    """Changes that make a study one of a minute."""
    return [
        f"model.name={tiny_saved}",
        "model.kind=bridge",
        f"scenarios.corpus={java_zip}",
        'scenarios.prefix=""',
        'scenarios.tasks=["identifiers", "numeric_literals"]',
        "scenarios.per_task=40",
        "scenarios.context_length=32",
        "mae.pretrained=aplens-short",
        "observe.held_out=false",
        "rank.folds=2",
        "rank.features=statistics",
        'rank.compare=["confidence", "statistics"]',
        "rank.prompts=10",
        "rank.verify=2",
        "ablate.sizes=[1]",
        "ablate.random_seeds=[0]",
    ]


def explained(text, key, table):
    """Whether a table of a study file has this key, set or as a comment, below what it means."""
    after = text[text.index(f"\n[{table}]\n") + 1 :] if table else text
    within = re.split(r"^\[(?!%s\.)" % (table or "^"), after[1:], flags=re.MULTILINE)[0]
    line = rf"(?:# )?{key} = .+|\[{table}\.{key}\]"
    return re.search(rf"^# .+\n(?:{line})$|^{key} = .+  # \w|^title = ", within, re.MULTILINE)


def test_the_study_file_that_ships_explains_every_setting():
    text = (files("aplens") / "studies" / "demo.toml").read_text(encoding="utf-8")
    for field in dataclasses.fields(StudySettings):
        value = getattr(StudySettings(), field.name)
        table = value[0] if isinstance(value, tuple) else value
        if not dataclasses.is_dataclass(table):
            assert explained(text, field.name, "")
            continue
        assert re.search(rf"^# .+\n\[{field.name}\]$", text, re.MULTILINE)
        for inner in dataclasses.fields(table):
            assert explained(text, inner.name, field.name), f"{field.name}.{inner.name}"
    # A key that is left out stands as a comment, and can be set as it stands there.
    left_out = re.findall(r"^# (\w+ = .+)$", text, re.MULTILINE)
    assert left_out == ['device_map = "auto"', "per_task = 100"]
    tomllib.loads("\n".join(left_out))


def test_a_new_study_file_is_the_demos_and_runs(tmp_path, tiny_saved, java_zip, monkeypatch):
    path = tmp_path / "mine.toml"
    assert str(path) in run("init", path)
    assert StudySettings.from_toml(path).mae.pretrained == "aplens-base"
    again = aplens_command("init", path)
    assert again.exit_code == 1
    assert "is there already" in again.output

    changes = [part for one in small(tiny_saved, java_zip) for part in ("--set", one)]
    plan = run("run", "--plan", path, *changes)
    assert not list(tmp_path.glob("runs"))
    assert re.search(r"^observe +64 +64 ", plan, re.MULTILINE)  # 80 scenarios × (0.5 + 0.3)
    assert re.search(r"^rank +10 +60 ", plan, re.MULTILINE)  # 4 heads and none, and a gradient
    assert re.search(r"^ablate +16 +80 ", plan, re.MULTILINE)  # none, 3 orders, 1 random
    assert "GB, the most that loading the model" in plan
    assert "Timed just now" in plan
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert "Memory: not measured on this system." in run("run", "--plan", path, *changes)

    folder = tmp_path / "out"
    run("run", path, "--folder", folder, *changes)
    assert (folder / "report.html").is_file()


def test_what_runs_on_an_apple_gpu_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    _time(torch.device("mps"), lambda: waited.append("run"))
    assert waited == ["run", "mps"] * 4
