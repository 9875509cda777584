"""The stage `gates` and the command `catalogue`, on a small model that knows a little Java."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from study_fixtures import STUDY

from aplens.heads import Head
from aplens.interventions import AblationSweep, HeadEffects, ablate_heads, try_scales
from aplens.interventions.trials import scaled_logits
from aplens.scoring import Observations, TemplateCatalogue, evaluate_predictors
from aplens.study import Reporter, Study, StudySettings
from aplens.study.catalogue import catalogue_study
from aplens.study.gates import TaskGates, answer_bias, load_task
from aplens.study.truth import compare_rankings

GATES = """
[split]
autoencoder = 0.1
fit = 0.4
rank = 0.2
ablate = 0.3
[observe]
surprise = true
held_out = true
[tries]
features = ["confidence", "surprise+confidence"]
shares = [0.5]
single_tasks = ["statistics", "confidence"]
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
"""


def settings_of(tmp_path, tiny_saved, java_zip, more=GATES):
    path = tmp_path / "study.toml"
    text = STUDY.format(model=tiny_saved, corpus=java_zip, kind="bridge")
    text = text.replace("random_seeds = [0]", "random_seeds = [0, 1]\nby_task = true")
    path.write_text(
        text.replace(
            "[rank]\n",
            '[rank]\ncompare = ["task", "confidence", "surprise"]\nshuffled = ["surprise"]\n',
        )
        + more
    )
    return StudySettings.from_toml(path)


class Notes(Reporter):
    def __init__(self, stop_at=None):
        self.notes = []
        self.said = []
        self.stop_at = stop_at

    def say(self, message):
        self.said.append(message)

    def update(self, done, total, note=""):
        self.notes.append(note)
        if note == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_saved, java_zip):
    folder = tmp_path_factory.mktemp("gates")
    study = Study(settings_of(folder, tiny_saved, java_zip), folder / "out", Notes())
    study.run()
    return study


def held_out(study, task):
    scenarios = study.parts["ablate"]
    return scenarios.select([i for i, each in enumerate(scenarios.tasks) if each == task])


def test_each_task_has_gates_and_outcomes_that_they_really_have(study):
    tasks = sorted(set(study.parts["ablate"].tasks))
    assert sorted(path.stem for path in (study.folder / "gates").iterdir()) == tasks
    for task in tasks:
        found = TaskGates.load(study.folder / "gates" / f"{task}.json")
        assert found.chosen["step"] in (1.0, 4.0)
        scenarios = held_out(study, task)
        np.testing.assert_array_equal(found.clean, try_scales(study.model, scenarios))
        fit = study.parts["fit"]
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
    frame = pd.read_parquet(study.folder / "gates.parquet")
    names = ["gradient", "learned", "zeroed", "shuffled", "answer bias", "learned + answer bias"]
    names += ["zeroed by gradient and SHAP", "zeroed greedily", "patterns sharpened"]
    names += ["patterns sharpened + answer bias"]
    names += ["learned beside the bias", "patterns sharpened beside the bias"]
    wanted = [*names, *(f"{name} where an error is expected" for name in names)]
    assert set(frame["intervention"]) == set(wanted)
    tasks = {*study.parts["ablate"].tasks, "mean of tasks"}
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
    frame = pd.read_parquet(study.folder / "truth.parquet").set_index("ranking")
    assert list(frame.index)[-2:] == ["random", "the other half of the prompts"]
    assert {"SHAP of statistics", "attribution"} <= set(frame.index)
    assert frame["correlation"].abs().max() <= 1
    assert "recall_10" not in frame  # there are four heads


def make_effects(values, files):
    heads = [Head(0, head) for head in range(len(values))]
    return HeadEffects(
        tuple(heads), values, np.zeros(values.shape[1]), "log_prob", "zero", False, files, 1, 0
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


def test_the_report_shows_it(study):
    text = (study.folder / "report.html").read_text(encoding="utf-8")
    for words in ("Scaling heads", "learned where an error is expected", "Task by task"):
        assert words in text
    assert "Which heads matter when each is ablated by itself" in text
    assert "AUC over confidence" in text
    assert "over the answer bias" in text
    for words in ("What else could predict it", "0.5 of the files", "nothing fitted"):
        assert words in text


def test_the_sweep_is_shown_task_by_task(study):
    frame = study.sweep_trials.set_index("intervention")
    summary = study.sweep.summary().set_index(["choice", "size"])
    for name, rows in frame.groupby(level=0):
        each = rows[rows["task"] != "mean of tasks"]
        assert set(each["task"]) <= set(study.parts["ablate"].tasks)  # balancing drops scenarios
        assert each["n"].sum() == len(study.sweep.clean)
        if name == "toward incorrect, 1 head":
            changed = each["incorrect_to_correct"] - each["correct_to_incorrect"]
            expected = summary.loc[("toward_incorrect", 1), "change"]
            assert changed.sum() / each["n"].sum() == pytest.approx(expected)
    assert "toward incorrect, 1 head" in frame.index
    assert "| toward incorrect, 1 head | " in (study.folder / "results.md").read_text("utf-8")


def test_each_task_is_swept_by_a_ranking_of_its_own(study):
    folder, fit, rank = study.folder / "ablations", study.parts["fit"], study.parts["rank"]
    rankings = study.task_rankings
    assert rankings
    for task in set(study.parts["ablate"].tasks) - set(rankings):
        assert any(
            said.startswith(f"{task}: not ranked by itself: ") for said in study.reporter.said
        )
    frame = study.task_sweeps.set_index(["intervention", "task"])
    for task, ranking in rankings.items():
        assert ranking.metadata["n_train"] == fit.tasks.count(task)
        assert ranking.metadata["n_test"] == rank.tasks.count(task)
        sweep = AblationSweep.load(folder / task / "sweep.json")
        scenarios = held_out(study, task)
        assert len(sweep.clean) == len(scenarios)  # none is thrown away
        for choice, size, _ in (result.setting for result in sweep.results):
            found = next(r for r in sweep.results if r.setting[:2] == (choice, size))
            if choice != "random":
                assert found.heads == ranking.top(size, by=choice)
            with ablate_heads(study.model, found.heads):
                np.testing.assert_array_equal(found.correct, try_scales(study.model, scenarios))
        first = sweep.results[0]
        row = frame.loc[(f"{first.setting.choice.replace('_', ' ')}, 1 head", task)]
        assert row["incorrect_to_correct"] == (first.correct & ~sweep.clean).sum()
        assert row["correct_to_incorrect"] == (~first.correct & sweep.clean).sum()
        assert row["over_baseline"] == row["gain"] - frame.loc[("random, 1 head", task), "gain"]
    assert rankings["numeric_literals"].top(4) != study.ranking.top(4)
    text = (study.folder / "results.md").read_text("utf-8")
    assert "## Ablations by each task's own ranking" in text
    page = (study.folder / "report.html").read_text("utf-8")
    assert "Ablating heads ranked for each task by itself" in page


def test_the_tables_are_there_in_markdown(study):
    text = (study.folder / "results.md").read_text(encoding="utf-8")
    assert "| surprise, outcomes shuffled | " in text
    assert re.search(r"\| learned \| mean of tasks \| -?\d\.\d{3} \[-?\d\.\d{3}, ", text)
    assert text.count("\n## ") == 10


def test_other_predictors_are_tried_on_the_same_scenarios(study):
    tries = study.tries
    assert list(dict.fromkeys(tries["tried"])) == [
        "nothing fitted",
        "boosting",
        "pooling",
        "0.5 of the files",
        "one predictor a task, balanced",
    ]
    read = tries.groupby("tried")["features"].agg(set)
    assert read["pooling"] == {"surprise+confidence"}  # confidence has nothing to pool over
    assert read["boosting"] == {"confidence", "surprise+confidence"}
    assert read["one predictor a task, balanced"] == {"statistics", "confidence"}
    raw = tries.set_index("tried").loc["nothing fitted"]
    table = study.observations.table
    expected = roc_auc_score(table["correct"], table["top_probability"])
    assert raw["auc"] == pytest.approx(expected)


def test_gates_of_some_tasks_only(study, tmp_path, tiny_saved, java_zip):
    task = sorted(set(study.parts["ablate"].tasks))[-1]
    more = GATES.replace("[gates]\n", f'[gates]\ntasks = ["{task}"]\n')
    folder = tmp_path / "out"
    shutil.copytree(study.folder, folder)
    again = Study(settings_of(tmp_path, tiny_saved, java_zip, more), folder, Notes())
    again.run("gates", redo="gates")
    frame = again.gates
    assert set(frame["task"]) == {task, "mean of tasks"}
    before = study.gates[study.gates["task"] == task].reset_index(drop=True)
    after = frame[frame["task"] == task].reset_index(drop=True)
    counts = ["intervention", "n", "incorrect_to_correct", "correct_to_incorrect"]
    pd.testing.assert_frame_equal(before[counts], after[counts])
    with pytest.raises(ValueError, match=r"gates.tasks\[0\] must be one of"):
        settings_of(tmp_path, tiny_saved, java_zip, more.replace(f'["{task}"]', '["sonnets"]'))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('classifiers = ["forest"]', r"tries.classifiers\[0\] must be one of"),
        ("shares = [0.0]", r"tries.shares\[0\] must be above 0 and at most 1, got 0.0"),
        ('features = ["confidence"]', "reads features of heads, but tries.features has none"),
        ("features = []\nclassifiers = []", "tries.features must not be empty"),
        ('features = ["luck"]', "features must be one of"),
    ],
)
def test_tries_that_could_not_run_are_refused(tmp_path, tiny_saved, java_zip, lines, message):
    more = f"[observe]\nsurprise = true\n[tries]\n{lines}\n"
    with pytest.raises(ValueError, match=message):
        settings_of(tmp_path, tiny_saved, java_zip, more)


def test_files_of_the_parts_are_apart(study):
    files = [set(study.parts[name].files) for name in ("fit", "rank", "ablate")]
    assert not files[0] & files[1]
    assert not (files[0] | files[1]) & files[2]


def test_predictors_are_compared_on_all_parts(study):
    frame = study.predictors
    names = {"task", "confidence", "surprise", "surprise, outcomes shuffled"}
    assert set(frame["features"]) == names
    rows = frame.set_index("features")
    over = rows["auc"] - rows.loc["confidence", "auc"]
    told = rows["over_confidence"].dropna()
    pd.testing.assert_series_equal(told, over[told.index], check_names=False)
    assert rows.loc["confidence", ["over_confidence_low", "over_confidence_high"]].tolist() == [
        0,
        0,
    ]
    assert rows.loc["surprise, outcomes shuffled", "auc_low"] < 0.5
    n = sum(len(study.parts[name]) for name in ("fit", "rank", "ablate"))
    assert set(frame["n_scenarios"]) == {n}


def test_an_interrupted_stage_keeps_its_tasks_and_goes_on_to_the_same(study, tmp_path):
    shutil.copytree(study.folder, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "gates")
    (tmp_path / "out" / "gates.parquet").unlink()
    tasks = sorted(set(study.parts["ablate"].tasks))
    again = Study(study.settings, tmp_path / "out", Notes(stop_at=f"{tasks[2]}: learning"))
    with pytest.raises(KeyboardInterrupt):
        again.run("gates")
    kept = sorted(path.stem for path in (tmp_path / "out" / "gates").iterdir())
    assert kept == tasks[:2]
    notes = Notes()
    Study(study.settings, tmp_path / "out", notes).run("gates")
    assert not any(note.startswith(f"{tasks[0]}:") for note in notes.notes)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out" / "gates.parquet"),
        pd.read_parquet(study.folder / "gates.parquet"),
    )


def test_damaged_gates_of_a_task_are_named(study, tmp_path):
    path = sorted((study.folder / "gates").iterdir())[0]
    content = json.loads(path.read_text())
    copy = tmp_path / "task.json"
    for change, message in (
        ({"clean": "012"}, "0 and 1"),
        ({"outcomes": {"learned": "01"}}, "outcomes must be of"),
        ({"gates": {"learned": 3}}, "gates.learned must be a table"),
        ({"version": 7}, "version 7"),
    ):
        copy.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=message) as caught:
            TaskGates.load(copy)
        assert "task.json" in str(caught.value)


def test_the_answers_bias_counts_answers():
    import torch

    bias = answer_bias(torch.tensor([3, 1, 3]), 5)
    np.testing.assert_allclose(bias, np.log1p([0, 1, 0, 2, 0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[gates]\nsteps = []", "gates.steps must be numbers above 0"),
        ("[gates]\nzeroed = [0]", "gates.zeroed must be numbers above 0"),
        ("[gates]\nepochs = 0", "gates.epochs must be 1"),
        ("[gates]\nlearning_rate = 0.0", "learning_rate must be above 0"),
        ('[gates]\npredictor = "confidence"', "gates.predictor needs observe.held_out"),
        (
            '[observe]\nheld_out = true\n[gates]\npredictor = "surprise"',
            "need observe.surprise = true",
        ),
        ('[gates]\nprecision = "float8"', "gates.precision must be one of"),
        ("[gates]\nstep = 3", "unknown key gates.'step'"),
        ("gates = 3", "gates must be a table"),
    ],
)
def test_settings_that_no_stage_could_use_are_refused(tmp_path, more, message):
    path = tmp_path / "study.toml"
    path.write_text(more)
    with pytest.raises(ValueError, match=message):
        StudySettings.from_toml(path)


def test_a_study_without_gates_has_no_such_stage(tmp_path):
    with pytest.raises(ValueError, match=r"a table \[gates\]"):
        Study(StudySettings(), tmp_path / "out").run("gates")


def test_the_catalogue_of_a_study(study, tmp_path):
    with pytest.raises(ValueError, match=r"set mae\.pretrained"):
        catalogue_study(study.settings, tmp_path / "out")
    mae = dataclasses.replace(study.settings.mae, pretrained=str(study.folder / "mae"))
    settings = dataclasses.replace(study.settings, mae=mae)
    text = catalogue_study(
        settings, tmp_path / "out", prompts=12, n_clusters=6, command="aplens catalogue …"
    )
    folder = tmp_path / "out" / "catalogue"
    catalogue = TemplateCatalogue.load(folder / "catalogue.safetensors")
    assert len(catalogue.names) == 6
    assert catalogue.counts.sum() == 12 * 4
    templates = pd.read_parquet(folder / "templates.parquet")
    assert templates["share"].sum() == pytest.approx(1)
    assert (folder / "templates.png").stat().st_size > 5000
    assert "Made by `aplens catalogue …`" in text
    assert "## stability" in text


def test_predicting_from_two_studies_together(study, tmp_path):
    from typer.testing import CliRunner

    from aplens.cli import app

    arguments = ["predict", str(study.folder), str(study.folder), "--features", "surprise"]
    arguments += ["--features", "confidence", "--folds", "3", "--keep", str(tmp_path / "kept.json")]
    arguments += ["--table", str(tmp_path / "table.parquet")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    n, files = len(study.observations), len(set(study.observations.files))
    assert f"{2 * n} scenarios of {files} source files." in result.output
    alone = evaluate_predictors(
        Observations.join([study.observations] * 2), features=["surprise", "confidence"], n_folds=3
    )
    for _, row in alone.iterrows():
        assert f"| {row['features']} | {row['auc']:.3f} [{row['auc_low']:.3f}," in result.output
    assert (tmp_path / "kept.json").is_file()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), alone)
    refused = CliRunner().invoke(app, ["predict", str(study.folder), str(tmp_path)])
    assert refused.exit_code == 1
    assert "there are no observations in" in refused.output


def test_gates_of_other_scenarios_are_not_taken_for_these(study):
    task = sorted(set(study.parts["ablate"].tasks))[0]
    path, scenarios = study.folder / "gates" / f"{task}.json", held_out(study, task)
    assert load_task(path, scenarios) is not None
    assert load_task(path.with_name("none.json"), scenarios) is None
    backwards = scenarios.select(range(len(scenarios))[::-1])  # as many, in another order
    for others in (backwards, scenarios.select([0])):
        with pytest.raises(ValueError, match=r"json holds outcomes of \d+ other scenarios"):
            load_task(path, others)
