"""The whole evaluation on a small model, its tables, and its command."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch
from correctness_helpers import make_mae, make_scenarios
from test_paper_reconstruction import in_files
from typer.testing import CliRunner

from aplens.models import last_token_logits
from aplens.patterns import log_normalize
from aplens.scenarios import Scenarios
from paper.evaluation.correctness import CORRECTNESS_BASELINES
from paper.evaluation.embeddings import POOLS, encode_all_pools, select_pools
from paper.evaluation.measure import Evaluation, EvaluationSettings, evaluate_apmaes
from paper.evaluation.reconstruction import BASELINES
from paper.evaluation.tables import evaluation_to_markdown

MAES = {"coarse": make_mae(), "fine": make_mae(seed=1, patch_size=4)}
SETTINGS = EvaluationSettings(prompts=8, reference=4, patterns_per_prompt=7, correctness=24)


def half_right(model, scenarios):
    """The same scenarios, in every second of which the model's prediction is the target."""
    predicted = last_token_logits(model, scenarios.tokens()).argmax(-1).tolist()
    return Scenarios(
        dataclasses.replace(s, target=predicted[i] if i % 2 else (predicted[i] + 1) % 101)
        for i, s in enumerate(scenarios)
    )


@pytest.fixture(scope="module")
def evaluated(any_model):
    seen = []
    held_out = half_right(any_model, in_files(make_scenarios(24, seed=2), "held_out"))
    reference = in_files(make_scenarios(6, seed=1), "reference")
    result = evaluate_apmaes(
        any_model, MAES, reference, held_out, SETTINGS, lambda *step: seen.append(step)
    )
    return result, seen


def test_all_apmaes_and_baselines_are_measured_in_every_respect(evaluated):
    result, _ = evaluated
    assert set(result.reconstruction["predictor"]) == {*MAES, *BASELINES}
    inputs = {f"{label}: {pool}" for label in MAES for pool in POOLS}
    assert {name for name in result.probes["input"] if not name.startswith("raw")} == inputs
    assert "raw pattern, 16 × 16" in set(result.probes["input"])
    assert set(result.probes["domain"]) == {"all", "java", "python", "repeated"}
    assert set(result.correctness["input"]) == {*CORRECTNESS_BASELINES, *inputs}
    assert (result.correctness["n_scenarios"] == 24).all()
    whole = result.reconstruction[result.reconstruction["layers"] == "all"]
    assert set(whole[whole["domain"] == "all"]["n_patterns"]) == {8 * 7}


def test_each_held_out_prompt_runs_once(evaluated):
    _, seen = evaluated
    held_out = [step for step in seen if step[2] == "held-out prompts"]
    assert held_out == [(i + 1, 24, "held-out prompts") for i in range(24)]
    assert sum(step[2] == "reference prompts" for step in seen) == 4


def test_the_same_evaluation_twice_gives_the_same_figures(any_model):
    settings = EvaluationSettings(prompts=8, reference=4, patterns_per_prompt=5)
    sides = [in_files(make_scenarios(8, seed=seed), str(seed)) for seed in (1, 2)]
    first, again = (evaluate_apmaes(any_model, MAES, *sides, settings) for _ in range(2))
    pd.testing.assert_frame_equal(first.reconstruction, again.reconstruction)
    pd.testing.assert_frame_equal(first.probes, again.probes)
    assert first.correctness.empty


def test_only_the_first_tokens_are_looked_at(any_model):
    sides = [in_files(make_scenarios(8, seed=seed), str(seed)) for seed in (1, 2)]
    settings = EvaluationSettings(prompts=8, reference=4, patterns_per_prompt=5)
    short = [
        Scenarios(dataclasses.replace(each, prompt=each.prompt[:12]) for each in side)
        for side in sides
    ]
    cut = dataclasses.replace(settings, tokens=12, pools=("cls",))
    first, expected = (
        evaluate_apmaes(any_model, MAES, *them, how)
        for them, how in ((sides, cut), (short, settings))
    )
    pd.testing.assert_frame_equal(first.reconstruction, expected.reconstruction)
    embedded = {name for name in first.probes["input"] if not name.startswith("raw")}
    assert embedded == {f"{label}: cls" for label in MAES}
    with pytest.raises(ValueError, match="cannot take the first 99 tokens of a prompt of"):
        evaluate_apmaes(any_model, MAES, *sides, dataclasses.replace(settings, tokens=99))


def test_a_file_on_both_sides_is_refused(any_model):
    scenarios = make_scenarios(4)
    with pytest.raises(ValueError, match="source files are on both sides"):
        evaluate_apmaes(any_model, MAES, scenarios, scenarios)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": 0}, "prompts must be 1 or more, got 0"),
        ({"correctness": -1}, "correctness must be 0 or more, got -1"),
        ({"pools": ("middle",)}, r"pools must be one or more of .*, got \('middle',\)"),
        ({"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1, got 1.0"),
        ({"tokens": 16, "correctness": 24}, "continued by another token than its target"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EvaluationSettings(**changes)


def test_pools_picked_from_all_are_those_that_the_apmae_makes():
    mae = MAES["coarse"]
    scaled = log_normalize(torch.rand(5, 32, 32).tril().clamp(min=0))
    everything = encode_all_pools(mae, scaled).numpy()
    for pools in POOLS.values():
        expected = mae.encode_patches(mae.grid.patchify(scaled), pool=pools)
        picked = torch.tensor(select_pools(everything, pools))
        assert torch.allclose(picked, expected, atol=1e-6)


def test_the_tables_name_the_command_and_what_they_are_over(evaluated):
    result = Evaluation(*(table.assign(model="tiny") for table in evaluated[0]))
    text = evaluation_to_markdown(result, SETTINGS, "python -m paper evaluate x.toml")
    assert "Command: `python -m paper evaluate x.toml`, seed 0." in text
    assert "56 patterns of 8 prompts from 8 files, 3 mask seeds" in text
    assert "24 prompts from 12 files" in text
    assert "95 % intervals that resample source files" in text
    for name in (*MAES, *BASELINES, *CORRECTNESS_BASELINES):
        assert f"| {name}" in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("| coarse |")]
    assert sorted(widths) == [6, 7]  # all, java, python; all, and three thirds of the layers
    assert "nan" not in text.lower()


def test_the_command_evaluates_a_study_and_writes_its_tables(tmp_path, any_model, monkeypatch):
    from aplens.study import Study
    from paper.__main__ import app

    scenarios = in_files(make_scenarios(60, seed=3), "corpus")
    monkeypatch.setattr(Study, "model", any_model)
    monkeypatch.setattr(
        Study, "_mine", lambda self: scenarios.save(self.folder.path / "scenarios.parquet")
    )
    monkeypatch.setattr("aplens.study.stages.StageRecord.is_done", lambda *_: False)
    (tmp_path / "study.toml").write_text('[model]\nname = "own"\n')
    make_mae().save_pretrained(tmp_path / "mine")
    arguments = ["evaluate", str(tmp_path / "study.toml"), "-o", str(tmp_path / "out")]
    arguments += ["--prompts", "6", "--reference", "4", "--patterns-per-prompt", "6"]
    arguments += ["--model", "own", "--model", "a/other"]
    result = CliRunner().invoke(app, [*arguments, "--mae", str(tmp_path / "mine")])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / "evaluation"
    assert "## own: reconstruction, patches of 8, 50% hidden" in result.output
    assert (folder / "evaluation.md").read_text().strip() in result.output
    assert "python -m paper" in (folder / "evaluation.md").read_text()
    for name in ("reconstruction", "probes"):
        assert set(pd.read_parquet(folder / f"{name}.parquet")["model"]) == {"own", "other"}
    assert not (folder / "correctness.parquet").exists()
    assert (tmp_path / "out" / "models" / "a--other" / "scenarios.parquet").exists()

    (tmp_path / "study.toml").write_text("[split]\nautoencoder = 0\nfit = 0.6\n")
    refused = CliRunner().invoke(app, [*arguments, "--mae", str(tmp_path / "mine")])
    assert refused.exit_code == 1
    assert "give split.autoencoder a share above 0" in refused.output
