"""The commands on a study (gates, tries, truth, by-task), on a small model that knows some Java."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from correctness_helpers import are_answered
from sklearn.metrics import roc_auc_score
from study_fixtures import STUDY
from typer.testing import CliRunner

from aplens.heads import Head, HeadRanking, ModelShape
from aplens.interventions import AblationSweep, HeadEffects, ablate_heads
from aplens.study import Reporter, Store, Study, StudySettings, read_settings
from aplens.study.config import ObserveSettings
from paper.__main__ import app
from paper.settings import PaperSettings
from paper.task_gates import TaskGates, answer_bias, gate_tasks, recall_task
from paper.trials import scaled_logits
from paper.truth import compare_rankings

STUDIES = Path(__file__).parents[2] / "examples" / "paper" / "studies"

PAPER = """
study = "small.toml"
[tries]
features = ["confidence", "surprise+confidence"]
shares = [0.5]
single_tasks = ["statistics", "confidence"]
shuffled = ["surprise"]
[gates]
steps = [1.0, 4.0]
zeroed = [1, 2]
combine = true
patterns = true
beside_bias = true
greedy = 2
greedy_tried = 3
epochs = 2
predictor = "surprise+confidence"
[truth]
per_task = 3
attribution_per_task = 3
[by_task]
own_rankings = true
"""
SPLIT = """
[split]
autoencoder = 0.1
fit = 0.4
rank = 0.2
ablate = 0.3
[observe]
surprise = true
held_out = true
"""


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


class Notes(Reporter):
    def __init__(self, stop_at=None):
        self.notes = []
        self.stop_at = stop_at

    def update(self, done, total, note=""):
        self.notes.append(note)
        if note == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def file(tmp_path_factory, tiny_saved, java_zip):
    """What the commands are given, beside the study that it names."""
    folder = tmp_path_factory.mktemp("paper")
    text = STUDY.format(model=tiny_saved, corpus=java_zip, kind="bridge") + SPLIT
    text = text.replace("random_seeds = [0]", "random_seeds = [0, 1]")
    text = text.replace("[rank]\n", '[rank]\ncompare = ["task", "confidence", "surprise"]\n')
    (folder / "small.toml").write_text(text)
    (folder / "small.paper.toml").write_text(PAPER)
    return folder / "small.paper.toml"


@pytest.fixture(scope="module")
def said(file):
    """What each command printed, all of them run once."""
    printed = {}
    for command in ("gates", "tries", "truth", "by-task"):
        result = run(command, file, "-o", file.parent / "out")
        assert result.exit_code == 0, result.output
        printed[command] = result.output
    return printed


@pytest.fixture(scope="module")
def study(file, said):
    settings = StudySettings.from_toml(file.with_name("small.toml"))
    return Study(settings, file.parent / "out", Notes())


def held_out(study, task):
    scenarios = study.folder.parts["ablate"]
    return scenarios.select([i for i, each in enumerate(scenarios.tasks) if each == task])


def test_each_task_has_gates_and_outcomes_that_they_really_have(study):
    tasks = sorted(set(study.folder.parts["ablate"].tasks))
    names = [path.stem for path in (study.folder.path / "gates").iterdir()]
    kept = Store.open(study.folder.path / "gates", "results")
    assert sorted(names) == sorted([*tasks, "manifest"])
    for task in tasks:
        found = TaskGates.from_dict(kept.read(task))
        assert found.chosen["step"] in (1.0, 4.0)
        scenarios = held_out(study, task)
        np.testing.assert_array_equal(found.clean, are_answered(study.model, scenarios))
        fit = study.folder.parts["fit"]
        answers = fit.targets()[[each == task for each in fit.tasks]]
        bias = found.chosen["bias_weight"] * answer_bias(answers, study.model.cfg.d_vocab)
        for name, gates in found.gates.items():
            logits = scaled_logits(study.model, scenarios, gates)
            if name.endswith("beside the bias"):
                logits = logits + bias
            outcome = logits.argmax(-1) == scenarios.targets()
            np.testing.assert_array_equal(found.outcomes[name], outcome.numpy())
        for name, size in (
            ("zeroed", "n_zeroed"),
            ("zeroed by gradient and SHAP", "n_combined"),
            ("zeroed greedily", "n_greedy"),
        ):
            zeroed = found.gates[name].values
            assert (zeroed == 0).sum() == found.chosen[size]
            assert set(np.unique(zeroed)) <= {0.0, 1.0}
        assert found.chosen["n_zeroed"] in (1, 2)
        sharpened = found.gates["patterns sharpened"]
        assert sharpened.acts_on == "pattern"
        assert len(sharpened.metadata["validation"]) == 1 + 3  # one epoch more than gates
        learned, shuffled = found.gates["learned"].values, found.gates["shuffled"].values
        assert sorted(learned.ravel()) == sorted(shuffled.ravel())


def test_the_table_compares_with_baselines_everywhere_and_where_errors_are_expected(study):
    frame = pd.read_parquet(study.folder.path / "gates.parquet")
    names = ["gradient", "learned", "zeroed", "shuffled", "answer bias", "learned + answer bias"]
    names += ["zeroed by gradient and SHAP", "zeroed greedily", "patterns sharpened"]
    names += ["patterns sharpened + answer bias"]
    names += ["learned beside the bias", "patterns sharpened beside the bias"]
    wanted = [*names, *(f"{name} where an error is expected" for name in names)]
    assert set(frame["intervention"]) == set(wanted)
    tasks = {*study.folder.parts["ablate"].tasks, "mean of tasks"}
    assert (frame.groupby("intervention")["task"].agg(set) == tasks).all()
    rows = frame.set_index(["intervention", "task"])
    for baseline in ("answer bias", "answer bias where an error is expected"):
        assert (rows.loc[baseline, "over_baseline"].dropna() == 0).all()
    assert rows.loc["learned", "over_baseline"].to_numpy() == pytest.approx(
        (rows.loc["learned", "gain"] - rows.loc["answer bias", "gain"]).to_numpy(), nan_ok=True
    )
    for name in names:  # what is applied to fewer scenarios changes fewer
        gated = rows.loc[f"{name} where an error is expected"]
        for column in ("incorrect_to_correct", "correct_to_incorrect"):
            assert (gated[column] <= rows.loc[name][column]).all()


def test_rankings_are_compared_with_every_heads_own_ablation(study):
    frame = pd.read_parquet(study.folder.path / "truth.parquet").set_index("ranking")
    assert list(frame.index)[-2:] == ["random", "the other half of the prompts"]
    assert {"SHAP of statistics", "attribution"} <= set(frame.index)
    assert frame["correlation"].abs().max() <= 1
    assert "recall_10" not in frame  # there are four heads


def make_effects(values, files):
    heads = [Head(0, head) for head in range(len(values))]
    return HeadEffects(
        tuple(heads),
        values,
        np.zeros(values.shape[1]),
        "log_prob",
        "zero",
        False,
        files,
        ModelShape("tiny", 1, len(heads)),
        1,
        0,
    )


def test_a_ranking_that_is_the_truth_and_one_that_is_its_opposite():
    rng = np.random.default_rng(0)
    sizes = np.arange(60) / 10.0
    values = sizes[:, None] * np.where(rng.random(60) < 0.5, -1, 1)[:, None]
    values = values + 0.01 * rng.normal(size=(60, 12))
    truth = make_effects(values, [f"F{i // 2}" for i in range(12)])
    table = compare_rankings(truth, {"same": sizes, "opposite": -sizes}).set_index("ranking")
    assert table.loc["same", "correlation"] > 0.99
    assert table.loc["same", ["recall_10", "recall_20", "recall_40"]].tolist() == [0.5, 1, 1]
    assert table.loc["opposite", ["recall_10", "recall_40"]].tolist() == [0, 0]
    assert table.loc["the other half of the prompts", "recall_20"] > 0.95
    assert abs(table.loc["random", "correlation"]) < 0.4
    with pytest.raises(ValueError, match="short: expected a finite score for each of 60"):
        compare_rankings(truth, {"short": sizes[1:]})


def test_gates_of_other_scenarios_are_not_taken_for_these(study):
    task = sorted(set(study.folder.parts["ablate"].tasks))[0]
    gates, scenarios = Store.open(study.folder.path / "gates", "results"), held_out(study, task)
    assert recall_task(gates, task, scenarios, pytest.fail)
    backwards = scenarios.select(range(len(scenarios))[::-1])  # as many, in another order
    for others in (backwards, scenarios.select([0])):
        with pytest.raises(ValueError, match=r"json holds outcomes of \d+ other scenarios"):
            recall_task(gates, task, others, pytest.fail)


def test_the_sweep_is_shown_task_by_task(study, said):
    frame = pd.read_parquet(study.folder.path / "by_task" / "trials.parquet").set_index(
        "intervention"
    )
    summary = study.folder.sweep.summary().set_index(["choice", "size"])
    for name, rows in frame.groupby(level=0):
        each = rows[rows["task"] != "mean of tasks"]
        assert set(each["task"]) <= set(
            study.folder.parts["ablate"].tasks
        )  # balancing drops scenarios
        assert each["n"].sum() == len(study.folder.sweep.clean)
        if name == "toward incorrect, 1 head":
            changed = each["incorrect_to_correct"] - each["correct_to_incorrect"]
            expected = summary.loc[("SHAP toward incorrect", 1), "change"]
            assert changed.sum() / each["n"].sum() == pytest.approx(expected)
    assert "toward incorrect, 1 head" in frame.index
    text = (study.folder.path / "by_task.md").read_text("utf-8")
    assert "| toward incorrect, 1 head |" in text
    assert text.count("\n## ") == 4


def test_predictors_are_judged_task_by_task_on_the_predictions_that_were_kept(study):
    frame = pd.read_parquet(study.folder.path / "by_task" / "predictors.parquet")
    assert set(frame["features"]) == {"task", "confidence", "surprise"}
    counts = study.folder.observations.table["task"].value_counts()
    one = frame[frame["features"] == "confidence"].set_index("task")
    assert one["n_scenarios"].to_dict() == counts[counts >= 10].to_dict()


def test_each_task_is_swept_by_a_ranking_of_its_own(study, said):
    folder, fit, rank = (
        study.folder.path / "by_task",
        study.folder.parts["fit"],
        study.folder.parts["rank"],
    )
    rankings = {path.stem: HeadRanking.load(path) for path in (folder / "rankings").iterdir()}
    assert rankings
    for task in set(study.folder.parts["ablate"].tasks) - set(rankings):
        assert f"{task}: not ranked by itself: " in said["by-task"]
    frame = pd.read_parquet(folder / "own_rankings.parquet").set_index(["intervention", "task"])
    for task, ranking in rankings.items():
        assert ranking.metadata["n_train"] == fit.tasks.count(task)
        assert ranking.metadata["n_test"] == rank.tasks.count(task)
        sweep = AblationSweep.load(folder / "sweeps" / task / "sweep.json")
        scenarios = held_out(study, task)
        assert len(sweep.clean) == len(scenarios)  # none is thrown away
        for choice, size, _ in (result.setting for result in sweep.results):
            found = next(r for r in sweep.results if r.setting[:2] == (choice, size))
            if choice != "random":
                assert found.heads == ranking.top(size, by=choice)
            with ablate_heads(study.model, found.heads):
                np.testing.assert_array_equal(found.correct, are_answered(study.model, scenarios))
        first = sweep.results[0]
        row = frame.loc[(f"{first.setting.choice.replace('_', ' ')}, 1 head", task)]
        assert row["incorrect_to_correct"] == (first.correct & ~sweep.clean).sum()
        assert row["correct_to_incorrect"] == (~first.correct & sweep.clean).sum()
        assert row["over_baseline"] == row["gain"] - frame.loc[("random, 1 head", task), "gain"]
    assert rankings["numeric_literals"].top(4) != study.folder.shap.top(4)


def test_a_damaged_ranking_of_a_task_stops_the_command(file, study, tmp_path):
    shutil.copytree(study.folder.path, tmp_path / "out")
    ranking = tmp_path / "out" / "by_task" / "rankings" / "numeric_literals.json"
    ranking.write_text(ranking.read_text()[:-20])
    result = run("by-task", file, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "numeric_literals.json" in result.output


def test_other_predictors_are_tried_on_the_same_scenarios(study):
    tries = pd.read_parquet(study.folder.path / "tries.parquet")
    assert list(dict.fromkeys(tries["tried"])) == [
        "nothing fitted",
        "boosting",
        "0.5 of the files",
        "one predictor a task, balanced",
        "outcomes shuffled",
    ]
    read = tries.groupby("tried")["features"].agg(set)
    assert read["boosting"] == {"confidence", "surprise+confidence"}
    assert read["one predictor a task, balanced"] == {"statistics", "confidence"}
    rows = tries.set_index("tried")
    table = study.folder.observations.table
    expected = roc_auc_score(table["correct"], table["top_probability"])
    assert rows.loc["nothing fitted", "auc"] == pytest.approx(expected)
    assert rows.loc["outcomes shuffled", "auc_low"] < 0.5
    n = sum(len(study.folder.parts[name]) for name in ("fit", "rank", "ablate"))
    assert rows.loc["boosting", "n_scenarios"].eq(n).all()
    assert rows.loc["0.5 of the files", "train_share"].eq(0.5).all()
    assert rows.loc["boosting", "train_share"].eq(1).all()


def test_the_tables_are_there_in_markdown(study, said):
    for name, titles in (("gates", 2), ("tries", 1), ("truth", 1)):
        text = (study.folder.path / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith("Command: `python -m paper")
        assert text.count("\n## ") == titles
        assert text.splitlines()[-2] in said[name]
    found = re.search(r"\| learned \| mean of tasks \| -?\d\.\d{3} \[-?\d\.\d{3}, ", said["gates"])
    assert found


def test_gates_of_some_tasks_only(file, study, tmp_path):
    task = sorted(set(study.folder.parts["ablate"].tasks))[-1]
    shutil.copytree(study.folder.path, tmp_path / "out")
    shutil.copy(file.with_name("small.toml"), tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(PAPER.replace("[gates]\n", f'[gates]\ntasks = ["{task}"]\n'))
    result = run("gates", other, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    frame = pd.read_parquet(tmp_path / "out" / "gates.parquet")
    assert set(frame["task"]) == {task, "mean of tasks"}
    whole = pd.read_parquet(study.folder.path / "gates.parquet")
    before = whole[whole["task"] == task].reset_index(drop=True)
    after = frame[frame["task"] == task].reset_index(drop=True)
    counts = ["intervention", "n", "incorrect_to_correct", "correct_to_incorrect"]
    pd.testing.assert_frame_equal(before[counts], after[counts])


def test_results_with_other_settings_are_refused_by_name(file, study, tmp_path):
    shutil.copytree(study.folder.path, tmp_path / "out")
    shutil.copy(file.with_name("small.toml"), tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(PAPER.replace("greedy = 2", "greedy = 1"))
    result = run("gates", other, "-o", tmp_path / "out")
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "gates holds results of something else (greedy was 2, is 1): choose another" in said


def test_an_interrupted_run_keeps_its_tasks_and_goes_on_to_the_same(file, study, tmp_path):
    settings = read_settings(PaperSettings, file).gates
    tasks = sorted(set(study.folder.parts["ablate"].tasks))
    again = Study(study.settings, study.folder.path, Notes(stop_at=f"{tasks[2]}: learning"))
    store = Store(tmp_path / "gates", "results", {})
    with pytest.raises(KeyboardInterrupt):
        gate_tasks(again, settings, store)
    assert list(store) == tasks[:2]
    again.reporter = Notes()
    table = gate_tasks(again, settings, store)
    assert not any(note.startswith(f"{tasks[0]}:") for note in again.reporter.notes)
    pd.testing.assert_frame_equal(table, pd.read_parquet(study.folder.path / "gates.parquet"))


def test_the_answers_bias_counts_answers():
    bias = answer_bias(torch.tensor([3, 1, 3]), 5)
    np.testing.assert_allclose(bias, np.log1p([0, 1, 0, 2, 0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gates]\nsteps = []", "gates.steps must be numbers above 0"),
        ("[gates]\nzeroed = [0]", "gates.zeroed must be numbers above 0"),
        ("[gates]\nepochs = 0", "gates.epochs must be 1"),
        ("[gates]\nlearning_rate = 0.0", "learning_rate must be above 0"),
        ('[gates]\nprecision = "float8"', "gates.precision must be one of"),
        ('[gates]\ntasks = ["sonnets"]', r"gates.tasks\[0\] must be one of"),
        ('[gates]\npredictor = "confidence"', "gates.predictor needs observe.held_out"),
        ("[gates]\nstep = 3", "unknown key gates.'step'"),
        ("gates = 3", "gates must be a table"),
        ("[truth]\nper_task = 0", "truth.per_task must be 1 to .*, got 0"),
        ('[tries]\nclassifiers = ["forest"]', r"tries.classifiers\[0\] must be one of"),
        ("[tries]\nshares = [0.0]", r"tries.shares\[0\] must be above 0 and at most 1, got 0.0"),
        ("[tries]\nfeatures = []\nclassifiers = []", "tries.features must not be empty"),
        ('[tries]\nfeatures = ["luck"]', "features must be one of"),
    ],
)
def test_settings_that_no_command_could_use_are_refused(tmp_path, text, message):
    path = tmp_path / "paper.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(PaperSettings, path).check_against(StudySettings())


def test_gates_by_surprise_need_it_observed(tmp_path):
    path = tmp_path / "paper.toml"
    path.write_text('[gates]\npredictor = "surprise"')
    study = StudySettings(observe=ObserveSettings(surprise=False, held_out=True))
    with pytest.raises(ValueError, match=r"need observe\.surprise = true"):
        read_settings(PaperSettings, path).check_against(study)


def test_a_command_without_its_table_or_study_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / "paper.toml"
    path.write_text("[gates]")
    assert "paper.toml names no study" in run("gates", path, "-o", tmp_path / "out").output
    (tmp_path / "small.toml").write_text("")
    path.write_text('study = "small.toml"')
    assert "has no table [gates]" in run("gates", path, "-o", tmp_path / "out").output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_are_valid(path):
    if not path.stem.endswith(".paper"):
        assert StudySettings.from_toml(path).title
        return
    settings = read_settings(PaperSettings, path)
    settings.check_against(StudySettings.from_toml(path.with_name(settings.study)))
