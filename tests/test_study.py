"""The whole road on a small random model, and its command line; the real model runs in the demo."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import HAS_HOOKED
from fuzz_helpers import flip
from study_fixtures import SOURCE, STUDY, aplens_command

import aplens
from aplens._io import FolderInUseError
from aplens._sums import sketch_files
from aplens.heads import HeadRanking
from aplens.interventions import AblationSweep
from aplens.models.classes import UnsupportedModelError
from aplens.scenarios import Scenario, Scenarios
from aplens.study import Reporter, Study, StudyFolder, StudySettings, corpora, reporting
from aplens.study.config import RankSettings, ScenarioSettings
from aplens.study.report import _notes
from aplens.study.run import of_languages
from aplens.study.stages import Stage, StageRecord, run_stages

ROOT = Path(__file__).parent.parent

# --- settings ----------------------------------------------------------------------------------


def write_toml(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_a_study_file_fills_in_defaults_and_keeps_what_it_says(tmp_path):
    settings = StudySettings.from_toml(
        write_toml(
            tmp_path,
            'seed = 3\n[scenarios]\ncorpus = "src.zip"\ntasks = ["eol"]\n'
            "[mae.training]\npatterns = 500\n[split]\nautoencoder = 0\nfit = 0.6\n",
        )
    )
    assert settings.seed == 3
    (scenarios,) = settings.scenarios
    assert scenarios.corpus == ("src.zip",)
    assert scenarios.tasks == ("eol",)
    assert scenarios.context_length == settings.context_length == 256
    assert settings.mae.training == {"patterns": 500}
    assert settings.split.autoencoder == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[scenarios]\ntaks = []", "unknown key scenarios.'taks'"),
        ("[scenarios]\nper_task = 'many'", "scenarios.per_task must be of type int, got 'many'"),
        (
            "[[scenarios]]\n[[scenarios]]\nper_file = 1.5",
            r"scenarios\[1\].per_file must be of type",
        ),
        ("[[scenarios]]\n[[scenarios]]\ncontext_length = 64", r"one context_length.*\[256, 64\]"),
        ("[[scenarios]]\nstyle = 'fim'\n[[scenarios]]", r"one style.*\['fim', 'auto'\]"),
        ("scenarios = []", "at least one corpus"),
        ("seed = true", "seed must be of type int, got True"),
        ("model = 'gpt2'", "model must be a table"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_a_wrong_study_file_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        StudySettings.from_toml(write_toml(tmp_path, text))
    assert "study.toml" in str(caught.value)


def test_the_demo_is_a_valid_study():
    from importlib.resources import as_file, files

    with as_file(files("aplens") / "studies" / "demo.toml") as path:
        settings = StudySettings.from_toml(path)
    assert settings.model.name == "smollm2-135m"
    assert (settings.rank.features, settings.observe.surprise) == ("clusters", True)


# --- stages ------------------------------------------------------------------------------------


class Diary(Reporter):
    def __init__(self):
        self.entries = []

    def start(self, stage, message):
        self.entries.append(("start", stage))

    def skip(self, stage, wrote):
        self.entries.append(("skip", stage))


def two_stages(folder, second_setting=1, fail=False):
    def first():
        (folder / "a.txt").write_text("a")

    def second():
        if fail:
            raise RuntimeError("broken")
        (folder / "b.txt").write_text("b")

    return [
        Stage("first", "", {"x": (1, 2)}, ["a.txt"], first),
        Stage("second", "", {"y": second_setting}, ["b.txt"], second),
    ]


def run_and_tell(folder, stages, **options):
    diary = Diary()
    run_stages(stages, folder, diary, **options)
    return diary.entries


def test_a_finished_stage_is_skipped_and_a_failed_one_goes_on(tmp_path):
    with pytest.raises(RuntimeError, match="broken"):
        run_and_tell(tmp_path, two_stages(tmp_path, fail=True))
    assert run_and_tell(tmp_path, two_stages(tmp_path)) == [("skip", "first"), ("start", "second")]
    assert run_and_tell(tmp_path, two_stages(tmp_path)) == [("skip", "first"), ("skip", "second")]


def test_a_failed_stage_holds_nothing_and_the_corrected_command_runs(tmp_path):
    def leave_half_and_fail():
        (tmp_path / "b.txt").write_text("half")
        raise RuntimeError("broken")

    stages = two_stages(tmp_path, second_setting=1)
    stages[1] = Stage("second", "", {"y": 1}, ["b.txt"], leave_half_and_fail)
    with pytest.raises(RuntimeError, match="broken"):
        run_and_tell(tmp_path, stages)
    corrected = two_stages(tmp_path, second_setting=2)
    assert run_and_tell(tmp_path, corrected) == [("skip", "first"), ("start", "second")]
    assert (tmp_path / "b.txt").read_text() == "b"


def test_a_stage_whose_file_is_gone_runs_again(tmp_path):
    run_and_tell(tmp_path, two_stages(tmp_path))
    (tmp_path / "a.txt").unlink()
    assert run_and_tell(tmp_path, two_stages(tmp_path))[0] == ("start", "first")


def test_other_settings_are_refused_until_the_stage_is_redone(tmp_path):
    run_and_tell(tmp_path, two_stages(tmp_path))
    changed = two_stages(tmp_path, second_setting=2)
    with pytest.raises(ValueError, match=r"'second' \(y was 1, is 2\).*--redo second"):
        run_and_tell(tmp_path, changed)
    assert run_and_tell(tmp_path, changed, redo="second") == [
        ("skip", "first"),
        ("start", "second"),
    ]
    with pytest.raises(ValueError, match="'third'"):
        run_and_tell(tmp_path, changed, redo="third")


def test_a_changed_early_stage_disowns_the_later_ones(tmp_path):
    run_and_tell(tmp_path, two_stages(tmp_path))
    stages = two_stages(tmp_path)
    stages[0] = Stage("first", "", {"x": (1, 3)}, ["a.txt"], stages[0].run)
    entries = run_and_tell(tmp_path, stages, redo="first")
    assert entries == [("start", "first"), ("start", "second")]


def test_a_setting_that_is_gone_is_refused(tmp_path):
    run_and_tell(tmp_path, two_stages(tmp_path))
    first, second = two_stages(tmp_path)
    first = Stage("first", "", {}, ["a.txt"], first.run)
    with pytest.raises(ValueError, match=r"'first' \(x was \[1, 2\], is None\)"):
        run_and_tell(tmp_path, [first, second])


def writing(folder, text):
    """Two stages, the first of which writes this."""
    first, second = two_stages(folder)
    return [replace(first, run=lambda: (folder / "a.txt").write_text(text)), second]


def test_a_lost_file_that_comes_back_as_another_disowns_what_was_made_of_it(tmp_path):
    run_and_tell(tmp_path, writing(tmp_path, "a"))
    (tmp_path / "a.txt").unlink()
    again = run_and_tell(tmp_path, writing(tmp_path, "a"))
    assert again == [("start", "first"), ("skip", "second")]  # the same again changes nothing
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"'second' .*made from other inputs.*--redo second"):
        run_and_tell(tmp_path, writing(tmp_path, "other"))


def test_a_stage_done_again_alone_disowns_what_was_made_of_it(tmp_path):
    run_and_tell(tmp_path, writing(tmp_path, "a"))
    run_and_tell(tmp_path, writing(tmp_path, "other")[:1], redo="first")
    with pytest.raises(ValueError, match=r"'second' .*made from other inputs"):
        run_and_tell(tmp_path, writing(tmp_path, "other"))


def test_a_file_that_was_damaged_is_named_and_the_advice_works(tmp_path):
    run_and_tell(tmp_path, two_stages(tmp_path))
    (tmp_path / "b.txt").write_text("c")
    with pytest.raises(ValueError, match=r"b\.txt is not what stage 'second' wrote.*--redo second"):
        run_and_tell(tmp_path, two_stages(tmp_path))
    run_and_tell(tmp_path, two_stages(tmp_path), redo="second")
    os.utime(tmp_path / "b.txt", (1, 1))  # touched, and still the same
    assert run_and_tell(tmp_path, two_stages(tmp_path)) == [("skip", "first"), ("skip", "second")]


def test_a_model_that_was_trained_on_in_place_is_another_model(tmp_path, tiny_saved):
    folder = tmp_path / "model"
    shutil.copytree(tiny_saved, folder)
    before = sketch_files(str(folder))
    assert before == sketch_files(str(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert sketch_files(str(tmp_path / "copy")) == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert sketch_files(str(folder)) != before
    assert sketch_files("smollm2-135m") == ""  # names stand for models that do not change


def test_time_is_added_up_over_interruptions(tmp_path):
    with pytest.raises(RuntimeError):
        run_and_tell(tmp_path, two_stages(tmp_path, fail=True))
    before = StageRecord(tmp_path).seconds
    run_and_tell(tmp_path, two_stages(tmp_path))
    assert StageRecord(tmp_path).seconds["second"] >= before["second"]


#: Runs a stage of ten minutes, having said so.
KILLED = """
import sys, time
from pathlib import Path
from aplens.study import stages
from aplens.study.stages import Reporter, Stage, run_stages

stages._NOTED_EVERY = 0.1

def work():
    print("started", flush=True)
    time.sleep(600)

run_stages([Stage("long", "", {}, ["a.txt"], work)], Path(sys.argv[1]), Reporter())
"""


def test_the_time_of_a_run_that_was_killed_is_counted(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "started\n"
        begun = time.monotonic()
        time.sleep(2)
        ran = time.monotonic() - begun
        process.send_signal(signal.SIGKILL)
    counted = StageRecord(tmp_path).seconds["long"]
    assert ran - 1 <= counted <= ran + 1  # a busy machine may be late
    done = Stage("long", "", {}, ["a.txt"], lambda: (tmp_path / "a.txt").write_text("a"))
    assert run_and_tell(tmp_path, [done]) == [("start", "long")]
    assert StageRecord(tmp_path).seconds["long"] >= counted


def test_a_damaged_note_of_a_stage_is_named_and_the_advice_works(tmp_path):
    run_and_tell(tmp_path, two_stages(tmp_path))
    note = tmp_path / "stages" / "second.json"
    note.write_text(note.read_text().replace('"y": 1', '"y": 2'))
    with pytest.raises(ValueError, match=r"second\.json is damaged.*--redo second"):
        run_and_tell(tmp_path, two_stages(tmp_path))
    again = run_and_tell(tmp_path, two_stages(tmp_path), redo="second")
    assert again == [("skip", "first"), ("start", "second")]


def test_a_folder_opened_alone_has_results_but_no_parts(tmp_path):
    Scenarios([Scenario("eol", "java", "a.java", 1, ";", (1, 2), 4, "left_to_right")]).save(
        tmp_path / "scenarios.parquet"
    )
    found = StudyFolder(tmp_path)
    assert found.scenarios.tasks == ["eol"]
    with pytest.raises(ValueError, match="was opened without the study's settings"):
        _ = found.parts


def test_settings_made_in_python_are_checked_as_a_files_are():
    with pytest.raises(ValueError, match=r"rank\.folds"):
        StudySettings(rank=RankSettings(folds=1))


# --- the whole road ----------------------------------------------------------------------------


#: The other class takes the same road in tests/test_processes.py and the paper's tests.
KIND = "hooked" if HAS_HOOKED else "bridge"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_saved, java_zip):
    """A whole study, run by the command line."""
    base = tmp_path_factory.mktemp("study")
    path = base / "small.toml"
    path.write_text(STUDY.format(model=tiny_saved, corpus=java_zip, kind=KIND))
    command = ["run", path, "--folder", base / "out"]
    result = aplens_command(*command)
    assert result.exit_code == 0, result.output
    return command, base / "out", result.stdout


def test_the_command_says_what_it_wrote_and_ends_with_the_results(finished):
    _, folder, output = finished
    names = ("scenarios.parquet", "mae", "observations", "ranking.json", "shap.json", "ablations")
    for name in names:
        assert str(folder / name) in output
        assert (folder / name).exists()
    assert "there is no jdk-that-is-not-there: using" in output
    opening = [
        "Of 4 heads measured, ",
        "Errors on held-out files are told by ",
        "The SHAP ranking on ",
    ]
    places = [output.index(words) for words in [*opening, "Accuracy by task"]]
    assert places == sorted(places)
    end = output[output.index("by the effect of ablating") :]
    assert "nothing ablated: accuracy 50.0%" in end
    assert end.strip().endswith(f"Report: {folder / 'report.html'}")


def test_parts_share_no_file_and_the_sweep_used_only_its_own(finished):
    _, folder, _ = finished
    settings = StudySettings.from_toml(folder.parent / "small.toml")
    study = Study(settings, folder)
    files = {name: set(part.files) for name, part in study.folder.parts.items()}
    names = list(files)
    assert names == ["autoencoder", "fit", "rank", "ablate"]
    assert all(files[a].isdisjoint(files[b]) for a in names for b in names if a < b)
    assert set(study.folder.sweep.files) <= files["ablate"]
    assert set(study.folder.observations.files) == files["fit"] | files["rank"]
    assert len(study.folder.ranking) == len(study.folder.ranking.measured) == 4
    assert set(study.folder.ranked.files) <= files["rank"]
    counts = study.folder.ranked.counts()
    assert sum(counts.values()) == 20
    assert set(counts.values()) == {3, 4}  # six tasks alike
    choices = set(study.folder.sweep.to_frame()["choice"])
    assert choices == {"effects", "SHAP toward incorrect", "SHAP toward correct", "random"}


def test_the_report_holds_the_rankings_heads_and_hostile_titles_stay_text(finished):
    _, folder, _ = finished
    page = (folder / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    for head in HeadRanking.load(folder / "ranking.json").top(4):
        assert str(head) in page
    assert "head's mean" in html.unescape(page)
    sweep = AblationSweep.load(folder / "ablations" / "sweep.json")
    assert set(sweep.to_frame()["choice"]) >= {"random"}


def test_a_hostile_title_is_text_in_the_results_too(finished):
    _, folder, _ = finished
    first, *rest = (folder / "results.md").read_text().splitlines()
    assert first == "# small &lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;"
    assert "<script" not in "".join(rest)


#: What a study's folder is asked for, and the files that are then read.
READ = {
    "scenarios": ["scenarios.parquet"],
    "corpora": ["corpus.json"],
    "mae": ["mae/config.json", "mae/model.safetensors"],
    "ranking": ["ranking.json"],
    "shap": ["shap.json"],
    "predictors": ["predictors.parquet"],
    "sweep": ["ablations/sweep.json"],
}


def test_a_flipped_bit_in_any_file_that_is_read_is_noticed(finished, tmp_path):
    _, folder, _ = finished
    shutil.copytree(folder, tmp_path / "out")
    settings = StudySettings.from_toml(folder.parent / "small.toml")
    for asked, files in READ.items():
        for name in files:
            path = tmp_path / "out" / name
            whole, times = path.read_bytes(), path.stat()
            for place in (0, len(whole) // 3, len(whole) - 2):
                path.write_bytes(flip(whole, [8 * place]))
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
                with pytest.raises(ValueError, match=r"is not what stage .* --redo \w+") as caught:
                    getattr(StudyFolder(tmp_path / "out", settings), asked)
                assert str(path) in str(caught.value)
            path.write_bytes(whole)
            assert getattr(StudyFolder(tmp_path / "out", settings), asked) is not None


def test_results_that_lie_alone_are_read_and_nothing_is_written(finished, tmp_path):
    _, folder, _ = finished
    shutil.copytree(folder, tmp_path / "alone", ignore=shutil.ignore_patterns("stages"))
    alone = StudyFolder(tmp_path / "alone")
    assert alone.ranking.top(4) == StudyFolder(folder).ranking.top(4)
    assert alone.seconds == {}
    assert not (tmp_path / "alone" / "stages").exists()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("ranking.json", "metadata.metric is missing"),
        ("shap.json", "metadata.features is missing"),
        ("ablations/sweep.json", "is damaged"),
        ("corpus.json", r"\[0\].name is missing"),
    ],
)
def test_an_emptied_table_that_lies_alone_is_refused_by_name(finished, tmp_path, file, words):
    _, folder, _ = finished
    shutil.copytree(folder, tmp_path / "out", ignore=shutil.ignore_patterns("stages"))
    path = tmp_path / "out" / file
    document = json.loads(path.read_text())
    emptied = {name: {"metadata": {}} for name in ("ranking.json", "shap.json")}
    emptied |= {"ablations/sweep.json": {"setup": {}}}
    path.write_text(json.dumps([{}] if file == "corpus.json" else document | emptied[file]))
    study = Study(StudySettings.from_toml(folder.parent / "small.toml"), tmp_path / "out")
    with pytest.raises(ValueError, match=words) as caught:
        study.summary() if file != "corpus.json" else _notes(study.folder)
    assert str(path) in str(caught.value)


def test_a_table_of_predictors_without_a_column_is_refused_by_name(tmp_path):
    columns = ["task", "features"]
    columns += [name + end for name in ("auc", "accuracy") for end in ("", "_low", "_high")]
    whole = pd.DataFrame([dict.fromkeys(columns, 0.5)])
    file = tmp_path / "predictors.parquet"
    whole.to_parquet(file)
    assert StudyFolder(tmp_path).predictors.equals(whole)
    for column in whole:
        whole.drop(columns=column).to_parquet(file)
        with pytest.raises(ValueError, match=rf"predictors\.parquet .*column {column} is missing"):
            _ = StudyFolder(tmp_path).predictors


def test_the_same_command_again_does_nothing_again(finished):
    command, folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = aplens_command(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("done before") == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_study_goes_on_where_its_model_is_spread_otherwise(finished):
    command, _, _ = finished
    command = [*command, "--set", 'model.device_map="auto"', "--until", "mine"]
    result = aplens_command(*command)
    assert result.exit_code == 0, result.output
    assert "mine: done before" in result.stdout


def test_one_changed_setting_is_refused_by_name(finished):
    command, folder, _ = finished
    path = folder.parent / "small.toml"
    changed = folder.parent / "changed.toml"
    changed.write_text(path.read_text().replace("sizes = [1, 3]", "sizes = [2]"))
    result = aplens_command(*(changed if part == path else part for part in command))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # said, not raised
    assert "stage 'ablate' (ablate.sizes was [1, 3], is [2])" in result.stdout


def test_errors_are_one_line_and_exit_code_one(tmp_path):
    path = write_toml(tmp_path, '[scenarios]\ncorpus = "/no/such/folder"\n[model]\nname = "./none"')
    result = aplens_command(*run_until(path, "mine", tmp_path / "out"))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # said, not raised
    assert re.fullmatch(r"(.*\n)*error: .*/no/such/folder.*\n", result.stdout)


@pytest.mark.parametrize(
    ("error", "is_said"),
    [
        (ValueError("out of range"), True),
        (FileNotFoundError("there is no such file"), True),
        (FolderInUseError("another run"), True),
        (UnsupportedModelError("no attention"), True),
        (ImportError("pip install 'aplens[gguf]'"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (ModuleNotFoundError("No module named 'x'", name="x"), False),
        (TypeError("f() takes 1 argument"), False),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_a_fault_of_the_program_keeps_its_traceback(error, is_said, capsys):
    with pytest.raises(SystemExit if is_said else type(error)), reporting():
        raise error
    assert (f"error: {error}" in capsys.readouterr().out) is is_said


def test_another_title_is_another_report(finished):
    command, *_ = finished
    result = aplens_command(*command, "--set", "title=other")
    assert result.exit_code == 1
    assert "another stage 'report' (title was 'small " in result.stdout
    assert "--redo report" in result.stdout
    again = aplens_command(*command, "--until", "ablate", "--set", "title=other")
    assert again.exit_code == 0  # no other stage depends on it


def test_stage_settings_are_recorded_as_json(finished):
    _, folder, _ = finished
    seconds = StageRecord(folder).seconds
    assert list(seconds) == ["mine", "train", "observe", "rank", "ablate", "report"]
    assert all(number > 0 for number in seconds.values())
    note = json.loads((folder / "stages" / "ablate.json").read_text())["value"]
    assert note["finished"]
    assert note["settings"]["ablate"]["sizes"] == [1, 3]


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "studies").glob("*.toml")))
def test_the_example_studies_are_valid(path):
    assert StudySettings.from_toml(path).title


# --- several corpora ----------------------------------------------------------------------------

CORPUS = """
[[scenarios]]
corpus = "{corpus}"
language = "{language}"
prefix = "{prefix}"
per_task = 6
per_file = 2
context_length = 32
"""
CODE_TASKS = 'tasks = ["identifiers", "eol"]\n'


def sources_of(tmp_path, name, n_files=12):
    """A folder with Java and prose in files that are called the same in every such folder."""
    folder = tmp_path / name / "src"
    for i in range(n_files):
        (folder / f"part{i % 2}").mkdir(parents=True, exist_ok=True)
        java = SOURCE.format(i=i, j=f"{len(name)}{i}")
        (folder / f"part{i % 2}" / f"A{i}.java").write_text(java)
        text = f"In {name}, number {i} of the parts; it adds, and keeps what it had. " * 9
        (folder / f"part{i % 2}" / f"A{i}.txt").write_text(text)
    return folder


def mined(tmp_path, tiny_saved, tables, folder="out"):
    path = write_toml(tmp_path, f'[model]\nname = "{tiny_saved}"\n' + "".join(tables))
    study = Study(StudySettings.from_toml(path), tmp_path / folder, Progress())
    study.run("mine")
    return study


class Progress(Reporter):
    def __init__(self):
        self.steps = []

    def update(self, done, total, note=""):
        self.steps.append((done, total))


def test_several_corpora_are_one_study_with_files_of_their_own(tmp_path, tiny_saved):
    one, other = sources_of(tmp_path, "one"), sources_of(tmp_path, "other")
    tables = [
        CORPUS.format(corpus=one, language="java", prefix="") + CODE_TASKS,
        CORPUS.format(corpus=other, language="java", prefix="part0/") + CODE_TASKS,
        CORPUS.format(corpus=other, language="java", prefix="part1/") + CODE_TASKS,
        CORPUS.format(corpus=one, language="prose", prefix=""),
    ]
    study = mined(tmp_path, tiny_saved, tables)
    scenarios = study.folder.scenarios
    assert {language: scenarios.languages.count(language) for language in ("java", "prose")} == {
        "java": 36,
        "prose": 18,
    }
    # Two parts of one corpus share their names, two corpora do not.
    assert {file.split("/part")[0] for file in scenarios.files} == {"src", "src-2"}
    assert study.reporter.steps[-1] == (54, 54)
    assert study.reporter.steps == sorted(study.reporter.steps)
    # Each beginning has all languages.
    assert {"java", "prose"} == set(scenarios.languages[:6])
    noted = json.loads((study.folder.path / "corpus.json").read_text())
    assert [corpus["language"] for corpus in noted] == ["java", "java", "java", "prose"]
    for part in study.folder.parts.values():
        assert set(part.languages) == {"java", "prose"}


def test_changed_corpora_are_refused_by_number(tmp_path, tiny_saved):
    folder = sources_of(tmp_path, "one")
    table = CORPUS.format(corpus=folder, language="java", prefix="") + CODE_TASKS
    prose = CORPUS.format(corpus=folder, language="prose", prefix="")
    mined(tmp_path, tiny_saved, [table, prose, prose])
    with pytest.raises(ValueError, match=r"scenarios\[1\].per_file was 2, is 3"):
        mined(tmp_path, tiny_saved, [table, prose.replace("file = 2", "file = 3"), prose])
    with pytest.raises(ValueError, match=r"stage 'mine' \(scenarios\[2\] was {.*}, is None\)"):
        mined(tmp_path, tiny_saved, [table, prose])
    with pytest.raises(ValueError, match=r"\(scenarios\[1\] was .*; scenarios\[2\] was .*None\)"):
        mined(tmp_path, tiny_saved, [table])


def test_one_corpus_keeps_the_names_of_its_files(tmp_path, tiny_saved):
    folder = sources_of(tmp_path, "one")
    table = CORPUS.format(corpus=folder, language="java", prefix="part1/") + CODE_TASKS
    study = mined(tmp_path, tiny_saved, [table])
    assert all(file.startswith("part1/") for file in study.folder.scenarios.files)
    assert mined(
        tmp_path, tiny_saved, [table.replace("[[scenarios]]", "[scenarios]")]
    ).folder.scenarios


def test_what_stands_in_for_a_corpus_is_read_whole_and_says_so(monkeypatch):
    monkeypatch.setattr(corpora, "find_jdk_source", lambda: None)
    settings = ScenarioSettings(corpus=("jdk", "python"), prefix="java.base/")
    found = corpora.find_corpus(settings)
    assert found.language == "python"
    assert "standard library instead, all of it: no prefix 'java.base/'" in found.note
    assert next(found.corpus.files()).text
    assert "all of it" not in corpora.find_corpus(replace(settings, prefix="")).note


def test_training_needs_only_the_parts_that_it_uses(tmp_path, tiny_saved):
    folder = sources_of(tmp_path, "one")
    text = CORPUS.format(corpus=folder, language="java", prefix="") + CODE_TASKS
    text += CORPUS.format(corpus=folder, language="prose", prefix="")
    text += "[split]\nautoencoder = 0.7\nfit = 0.3\nrank = 0\nablate = 0\n"
    text += "[mae]\nconfig = { n_ctx = 32, patch_size = 8, encoder_depth = 1, decoder_depth = 1 }\n"
    text += "[mae.training]\npatterns = 64\n"
    study = mined(tmp_path, tiny_saved, [text])
    study.run("train")
    assert study.folder.mae.config.n_ctx == 32
    with pytest.raises(ValueError, match=r"split\.rank is 0, but stage 'observe' takes"):
        study.run("ablate")


# --- interrupts and full disks -----------------------------------------------------------------


@pytest.fixture
def small_study(tmp_path, tiny_saved, java_zip):
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(model=tiny_saved, corpus=java_zip, kind=KIND))
    return path


def run_until(path, stage, folder):
    return ["run", str(path), "--until", stage, "--folder", str(folder)]


def test_a_strangers_task_that_is_a_path_is_refused_on_load(tmp_path):
    import pyarrow.parquet as pq

    place = tmp_path / "study"
    good = Scenario("eol", "java", "a.java", 1, ";", (1, 2, 3), 4, "left_to_right")
    Scenarios([good]).save(place / "scenarios.parquet")
    table = pq.read_table(place / "scenarios.parquet")
    for task in ("../../outside", "/outside", "..\\outside", ""):
        hostile = table.set_column(0, table.schema.field("task"), [[task]])
        pq.write_table(hostile, place / "scenarios.parquet")
        study = Study(StudySettings(), place)
        with pytest.raises(
            ValueError, match=r"scenarios\.parquet is damaged: .*task must"
        ) as caught:
            _ = study.folder.scenarios
        assert repr(task) in str(caught.value)


def test_a_task_of_a_study_file_is_no_path(tmp_path):
    path = write_toml(tmp_path, '[scenarios]\ntasks = ["eol", "../../x"]')
    with pytest.raises(ValueError, match=r"scenarios\.tasks\[1\] must be a plain file name"):
        StudySettings.from_toml(path)


def test_what_a_killed_stage_left_in_its_folders_is_cleared(tmp_path):
    def run():
        (tmp_path / "ablations").mkdir(exist_ok=True)

    half = tmp_path / "ablations" / "deep" / ".partial-abc" / "eol.json"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    run_and_tell(tmp_path, [Stage("ablate", "", {}, ["ablations"], run)])
    assert not half.parent.exists()


def test_after_ctrl_c_the_same_command_goes_on_to_the_same_ranking(small_study, tmp_path, finished):
    (_, straight, _), broken = finished, tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, "-m", "aplens", *run_until(small_study, "rank", broken)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts what runs in the background with Ctrl-C ignored, and children inherit it.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if line.startswith("train:"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=120) == 130, rest
    assert "the same command goes on" in rest
    assert "Traceback" not in rest
    assert not (broken / "ranking.json").exists()

    again = aplens_command(*run_until(small_study, "rank", broken))
    assert "mine: done before" in again.stdout, again.output
    assert (broken / "ranking.json").read_bytes() == (straight / "ranking.json").read_bytes()


def test_a_full_disk_is_one_line_and_leaves_no_half_file(small_study, tmp_path):
    folder = tmp_path / "full"
    limit = "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
    limit += "sys.argv[0] = 'aplens'; runpy.run_module('aplens', run_name='__main__')"
    arguments = run_until(small_study, "mine", folder)
    result = subprocess.run(
        [sys.executable, "-c", limit, *arguments], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "error:" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert str(folder / "scenarios.parquet") in result.stdout.replace("\n", "")
    assert not list(folder.glob("*.parquet"))
    assert not list(folder.glob(".partial-*"))
    assert aplens_command(*arguments).exit_code == 0
    assert (folder / "scenarios.parquet").exists()


def test_settings_of_the_file_can_be_replaced(tmp_path):
    path = write_toml(
        tmp_path,
        'title = "old"\n[mae]\npretrained = "aplens-base"\n[mae.config]\nn_ctx = 64\n'
        "[scenarios]\ncontext_length = 64\n",
    )
    changes = [
        'mae.pretrained = ""',
        "mae.config.base=none",
        "mae.training.passes = 3",
        'title="new"',
        "split.fit=0.5",
        "split.rank=0.1",
    ]
    settings = StudySettings.from_toml(path, changes)
    assert settings.mae.config == {"n_ctx": 64, "base": "none"}
    assert settings.mae.training == {"passes": 3}
    assert settings.mae.pretrained is None
    assert (settings.title, settings.split.fit, settings.split.rank) == ("new", 0.5, 0.1)


def test_a_replaced_setting_of_several_corpora_leaves_them_as_they_are(tmp_path):
    corpora = "".join(f'[[scenarios]]\ncorpus = "{name}"\n' for name in ("one", "other"))
    path = write_toml(tmp_path, corpora)
    settings = StudySettings.from_toml(path, ["scenarios.per_task=7", "scenarios.style=fim"])
    assert [table.corpus for table in settings.scenarios] == [("one",), ("other",)]
    assert [(table.per_task, table.style) for table in settings.scenarios] == [(7, "fim")] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mae.presett=small", "unknown key mae.'presett'"),
        ("seed=much", "seed must be of type int, got 'much'"),
        ("[mae", "expected a setting such as"),
    ],
)
def test_impossible_replacements_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StudySettings.from_toml(write_toml(tmp_path, ""), [change])


def test_training_on_some_of_the_languages(tmp_path):
    both = Scenarios(
        Scenario("random", language, f"{i}", 1, "x", (1, 2, 3), 4, "left_to_right")
        for i, language in enumerate(["java", "java", "java", "python", "python"])
    )
    assert set(of_languages(both, ("python",)).languages) == {"python"}
    assert len(of_languages(both, ())) == 5
    with pytest.raises(ValueError, match=r"names \['prose'\], but .* \['java', 'python'\]"):
        of_languages(both, ("prose", "java"))


def test_a_report_says_that_a_pretrained_apmae_may_know_the_files(tmp_path):
    (tmp_path / "corpus.json").write_text("[]")
    for pretrained in ("", "aplens-base"):
        settings = StudySettings.from_toml(
            write_toml(tmp_path, f'[mae]\npretrained = "{pretrained}"')
        )
        notes = " ".join(_notes(StudyFolder(tmp_path, settings)))
        assert ("aplens-base was trained before" in notes) is bool(pretrained)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('[ablate]\nprecision = "float8"', "ablate.precision must be one of"),
        ('[observe]\nsurprise = false\n[rank]\nfeatures = "surprise"', "need observe.surprise"),
        ('[rank]\ncompare = ["luck"]', "features must be one of"),
        ("[ablate]\nbatch_size = 0", "ablate.batch_size must be 1"),
        ("[ablate]\nper_task = 0", "ablate.per_task must be 1 to"),
        ("[model]\nkind = 'hook'", r"model.kind must be one of \['auto', 'hooked', 'bridge'\]"),
        ("[gates]\nsteps = [1.0]", "unknown key 'gates'"),
        ('[rank]\nreducer = "auto"', r"rank.reducer must be one of \['umap', 'pca'\]"),
        (
            '[scenarios]\ntasks = ["identifier"]',
            r"scenarios.tasks\[0\] must be one of .*identifiers",
        ),
        (
            '[scenarios]\ncorpus = ["python", "jdk"]\nprefix = "json/"',
            "scenarios.prefix must be empty where the corpus is 'python', .* got 'json/'",
        ),
        (
            '[scenarios]\ncorpus = "prose"\nprefix = "a/"',
            "scenarios.prefix must be empty .*'prose'",
        ),
        ("[scenarios]\ncontext_length = 512", "context_length is 512, but .* up to 256"),
    ],
)
def test_settings_that_no_stage_could_use_are_refused(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        StudySettings.from_toml(write_toml(tmp_path, more))


def test_an_apmae_is_looked_for_before_the_first_stage(tmp_path):
    for mae, message in (
        ('pretrained = "aplens-bass"', "aplens-bass"),
        ('pretrained = "aplens-short"', "context_length is 128, but .* up to 64"),
    ):
        file = write_toml(tmp_path, f"[scenarios]\ncontext_length = 128\n[mae]\n{mae}")
        study = Study(StudySettings.from_toml(file), tmp_path / "out")
        with pytest.raises((ValueError, OSError), match=message):
            study.run()
        assert not (tmp_path / "out" / "stages").exists()
        # The one that is there goes before the stage is done again: what takes its place comes
        # first.
        (tmp_path / "old" / "mae").mkdir(parents=True, exist_ok=True)
        study = Study(StudySettings.from_toml(file), tmp_path / "old")
        with pytest.raises((ValueError, OSError), match=message):
            study.run(redo="train")
        assert (tmp_path / "old" / "mae").exists()


def test_an_unknown_stage_and_the_version(tmp_path):
    told = aplens_command("run", write_toml(tmp_path, ""), "--until", "gates")
    assert told.exit_code == 1
    assert "unknown stage 'gates'" in told.output
    assert aplens_command("--version").output == f"aplens {aplens.__version__}\n"
