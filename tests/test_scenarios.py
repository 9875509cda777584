"""The Scenarios container: tensors, selections, splits and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from aplens.scenarios import Scenario, ScenarioError, Scenarios


def scenario(number: int, task: str = "stop", file: str = "a/B.java", length: int = 4) -> Scenario:
    prompt = tuple(range(number, number + length))
    return Scenario(task, "java", file, number + 1, "é.\n", prompt, number + length, "fim")


@pytest.fixture
def scenarios():
    return Scenarios(
        scenario(i, task=("stop", "eol", "random")[i % 3], file=f"F{i % 4}.java") for i in range(12)
    )


def test_tensors_hold_prompts_and_targets(scenarios):
    assert scenarios.tokens().tolist() == [list(s.prompt) for s in scenarios]
    assert scenarios.targets().tolist() == [s.target for s in scenarios]
    assert scenarios.tokens().dtype == scenarios.targets().dtype == torch.long


def test_prompts_of_several_lengths_are_no_tensor():
    ragged = Scenarios([scenario(0), scenario(1, length=6)])
    with pytest.raises(ScenarioError, match=r"one length.*\[4, 6\]"):
        ragged.tokens()
    with pytest.raises(ScenarioError, match="no scenarios"):
        Scenarios([]).tokens()


def test_behaves_as_a_sequence(scenarios):
    assert len(scenarios) == 12
    assert scenarios[-1].line == 12
    assert scenarios[2:4] == Scenarios([scenarios[2], scenarios[3]])
    assert scenarios != scenarios[:11]
    assert "stop 4" in repr(scenarios)


def test_tasks_and_files_are_one_per_scenario(scenarios):
    assert scenarios.tasks[:4] == ["stop", "eol", "random", "stop"]
    assert scenarios.languages == ["java"] * 12
    assert scenarios.files[3:6] == ["F3.java", "F0.java", "F1.java"]
    assert scenarios.counts() == {"eol": 4, "random": 4, "stop": 4}


def test_select_takes_positions_or_a_mask(scenarios):
    expected = [scenarios[5], scenarios[-1], scenarios[0]]
    assert list(scenarios.select([5, -1, 0])) == expected
    assert list(scenarios.select(torch.tensor([5, -1, 0]))) == expected
    mask = np.array(scenarios.tasks) == "eol"
    assert list(scenarios.select(mask)) == [s for s in scenarios if s.task == "eol"]
    assert len(scenarios.select([])) == 0
    with pytest.raises(IndexError):
        scenarios.select([12])


def test_to_frame_has_a_row_per_scenario(scenarios):
    frame = scenarios.to_frame()
    assert frame["task"].tolist() == scenarios.tasks
    assert frame["prompt"][3] == scenarios[3].prompt
    assert list(Scenarios([]).to_frame().columns) == list(frame.columns)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=8, max_size=40),
    train=st.floats(0.2, 0.8),
    seed=st.integers(0, 10),
)
@example(sizes=[1, 5, 1, 1, 1, 1, 1, 1], train=0.203125, seed=4)  # the large file comes first
def test_split_never_shares_a_file_and_loses_nothing(sizes, train, seed):
    whole = Scenarios(
        scenario(10 * f + i, file=f"F{f}") for f, size in enumerate(sizes) for i in range(size)
    )
    parts = whole.split({"train": train, "test": 1 - train}, seed=seed)
    assert not set(parts["train"].files) & set(parts["test"].files)
    assert sorted(s.line for part in parts.values() for s in part) == [s.line for s in whole]
    # Off by half a file at most, but where a part would have none.
    if min(len(set(part.files)) for part in parts.values()) > 1:
        assert abs(len(parts["train"]) - train * len(whole)) <= max(sizes) / 2 + 1e-6
    assert parts == whole.split({"train": train, "test": 1 - train}, seed=seed)


def test_split_depends_on_the_seed_and_not_on_the_order():
    whole = Scenarios(scenario(i, file=f"F{i}") for i in range(30))
    fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
    one, other = whole.split(fractions, seed=1), whole.split(fractions, seed=2)
    assert one != other
    assert len(one["train"]) == 15
    assert {len(one["validation"]), len(one["test"])} == {7, 8}
    backwards = Scenarios(reversed(whole)).split(fractions, seed=1)
    assert set(backwards["test"].files) == set(one["test"].files)


def in_language(language: str, count: int) -> list[Scenario]:
    """Scenarios of a language, two a file."""
    return [
        replace(scenario(i, file=f"{language}/F{i // 2}"), language=language) for i in range(count)
    ]


@given(counts=st.lists(st.integers(20, 60), min_size=3, max_size=3), seed=st.integers(0, 10))
def test_every_part_of_a_split_has_its_share_of_every_language(counts, seed):
    languages = dict(zip(("java", "python", "prose"), counts, strict=True))
    whole = Scenarios(s for name, count in languages.items() for s in in_language(name, count))
    parts = whole.split({"train": 0.8, "test": 0.2}, seed=seed)
    assert not set(parts["train"].files) & set(parts["test"].files)
    assert sum(map(len, parts.values())) == len(whole)
    for name, count in languages.items():
        assert abs(parts["test"].languages.count(name) - 0.2 * count) <= 1 + 1e-6


def test_a_language_is_split_alike_whatever_stands_beside_it():
    java, prose = in_language("java", 40), in_language("prose", 30)
    fractions = {"train": 0.7, "test": 0.3}
    alone, both = Scenarios(java).split(fractions), Scenarios([*prose, *java]).split(fractions)
    for name, part in alone.items():
        assert [s for s in both[name] if s.language == "java"] == list(part)
    # A file mined as two languages is one file all the same.
    odd = Scenarios([*java, replace(java[0], language="prose"), *prose]).split(fractions)
    assert not set(odd["train"].files) & set(odd["test"].files)


def test_a_split_of_one_language_is_the_same_in_every_version():
    whole = Scenarios(scenario(i, file=f"F{i % 13}") for i in range(40))
    parts = whole.split({"train": 0.6, "test": 0.4}, seed=3)
    assert sorted(set(parts["test"].files)) == ["F11", "F2", "F3", "F5", "F7"]


def test_impossible_splits_are_refused(scenarios):
    with pytest.raises(ScenarioError, match=r"sum to 1.*0\.7"):
        scenarios.split({"train": 0.7, "test": 0.7})
    with pytest.raises(ScenarioError, match="positive"):
        scenarios.split({"train": 1.5, "test": -0.5})
    one_file = Scenarios([scenario(0), scenario(1)])
    with pytest.raises(ScenarioError, match=r"1 source files are too few.*nothing is left for"):
        one_file.split({"train": 0.5, "test": 0.5})
    with pytest.raises(ScenarioError, match=r"1 source files .*nothing is left for .* in prose"):
        Scenarios([*in_language("java", 9), *in_language("prose", 2)]).split({"a": 0.5, "b": 0.5})
    with pytest.raises(ScenarioError, match="no scenarios to split"):
        Scenarios([]).split({"a": 0.5, "b": 0.5})


def test_save_and_load_give_the_same_back(scenarios, tmp_path):
    path = tmp_path / "made" / "scenarios.parquet"
    scenarios.save(path)
    assert Scenarios.load(path) == scenarios
    Scenarios([]).save(path)
    assert len(Scenarios.load(str(path))) == 0
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_failed_save_leaves_the_file_alone(scenarios, tmp_path):
    path = tmp_path / "scenarios.parquet"
    scenarios.save(path)
    too_large = Scenarios([replace(scenarios[0], target=2**40)])
    with pytest.raises(pa.ArrowInvalid):
        too_large.save(path)
    assert Scenarios.load(path) == scenarios


def test_load_says_what_is_wrong_with_a_file(scenarios, tmp_path):
    path = tmp_path / "scenarios.parquet"
    with pytest.raises(FileNotFoundError, match=r"scenarios\.parquet"):
        Scenarios.load(path)
    scenarios.save(path)

    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ScenarioError, match="not a readable Parquet file"):
        Scenarios.load(damaged)

    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"prompt": [1]}), foreign)
    with pytest.raises(ScenarioError, match=r"no aplens scenarios.*'prompt'"):
        Scenarios.load(foreign)

    table = pq.read_table(path)
    later = tmp_path / "later.parquet"
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"version": b"3"}), later)
    with pytest.raises(ScenarioError, match=r"version 3.*reads version 2"):
        Scenarios.load(later)

    partial = tmp_path / "partial.parquet"
    pq.write_table(table.drop_columns(["target"]), partial)
    with pytest.raises(ScenarioError, match=r"columns[\s\S]*expected[\s\S]*target"):
        Scenarios.load(partial)
