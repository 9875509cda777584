"""Tables and figures from folders, and the hand-off's: planted figures come out in their places."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from aplens.heads import Head, HeadRanking, ModelShape, all_heads
from paper import __main__ as command
from paper.handoff import read_results, tabulate
from paper.over_tasks import MEAN_OF_TASKS
from paper.parts import paper_orders


def run(*arguments):
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def with_bounds(row, **figures):
    """A row with figures, each a hundredth below and above."""
    for name, value in figures.items():
        row |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
    return row


def trials(**columns):
    names = ("toward incorrect, 1 head", "random, 1 head")
    return pd.DataFrame(
        with_bounds(
            {"task": task, "intervention": name, "n": 20, "n_correct": 9, "gated": False}
            | {"incorrect_to_correct": 3, "correct_to_incorrect": 1}
            | {"choice": name.partition(",")[0].replace(" ", "_"), "size": 1}
            | columns,
            gain=0.125 - 0.5 * number,
            over_baseline=0.25,
            change=0.0625,
        )
        for task in ("string_literals", MEAN_OF_TASKS)
        for number, name in enumerate(names)
    )


@pytest.fixture
def folder(tmp_path):
    """What the tables read of a study that was run."""
    rows = [
        with_bounds(
            {"features": name, "task": "all", "n_scenarios": 100},
            auc=auc,
            accuracy=0.7,
            over_confidence=auc - 0.75,
            calibration_error=0.02,
        )
        for name, auc in (("confidence", 0.75), ("surprise+confidence", 0.875))
    ]
    predictors = pd.DataFrame(rows)
    predictors.to_parquet(tmp_path / "predictors.parquet")
    single = predictors.assign(tried="single tasks", task="eol", train_share=1.0)
    tried = predictors.assign(tried="0.5 of the files", train_share=0.5)
    pd.concat([tried, single]).to_parquet(tmp_path / "tries.parquet")
    trials().assign(intervention=["learned", "answer bias"] * 2).to_parquet(
        tmp_path / "gates.parquet"
    )
    (tmp_path / "by_task").mkdir()
    for name in ("trials", "own_rankings"):
        trials().to_parquet(tmp_path / "by_task" / f"{name}.parquet")
    return tmp_path


def test_tables_show_figures_with_intervals(folder):
    predictors = run("tables", "predictors", folder)
    assert "| surprise+confidence | 0.875 [0.865, 0.885] |" in predictors
    assert "| surprise+confidence, over confidence | +0.125 [+0.115, +0.135] |" in predictors
    tries = run("tables", "tries", folder)
    assert "| 0.5 of the files | confidence | 0.750 [0.740, 0.760] |" in tries
    assert "| eol | 100 | 0.700 [0.690, 0.710] |" in tries
    gates = run("tables", "gates", folder)
    assert "| learned | +12.5 [+11.5, +13.5] | +25.0 [+24.0, +26.0] |" in gates
    assert "| string literals | 20 (9) | +12.5 [+11.5, +13.5] |" in gates
    sweep = run("tables", "sweep", folder)
    assert "| random, 1 head | -37.5 [-38.5, -36.5] |" in sweep
    own = run("tables", "task_sweeps", folder)
    assert "| string literals | 20 (9) | +12.5 [+11.5, +13.5] |" in own


def test_figures_are_drawn_under_their_names(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PICTURES", tmp_path)
    run("figures", "scenarios", folder, "--name", "scenarios-100")
    run("figures", "gates", f"Java={folder}")
    run("figures", "task_sweeps", folder)
    for name in ("scenarios-100", "gates", "task-sweeps"):
        assert (tmp_path / f"study-{name}.png").stat().st_size > 5000


def test_the_hand_off_counts_the_heads_that_matter(tmp_path):
    heads = [list(head) for head in all_heads(10, 10)]
    effects = [[1 - i / 100 + 0.001 * prompt for prompt in range(6)] for i in range(100)]
    choices = {
        "AP-MAE: distance from prose|0": {"order": heads, "cost": 5},
        "random|0": {"order": heads[::-1], "cost": 7},
    }
    truth = {"heads": heads, "effects": effects, "clean": [2.0] * 6, "metric": "logit_diff"}
    path = tmp_path / "ioi.json"
    backwards = truth | {"effects": effects[::-1]}
    results = {"truths": {"zero": truth, "mean": backwards}, "choices": choices}
    path.write_text(json.dumps({"setup": {"n_matter": 60}, **results}))
    table = tabulate(read_results(path), n_resamples=20).set_index(["method", "truth"])
    assert table.loc[("AP-MAE: distance from prose", "zero"), ["once", "twice"]].tolist() == [1, 1]
    assert table.loc[("random", "zero"), ["once", "twice"]].tolist() == [1 / 3, 1]
    assert table.loc[("random", "mean"), ["once", "twice"]].tolist() == [1, 1]
    text = run(
        *("handoff", "--folder", tmp_path, "--tables"),
        *("--figure", tmp_path / "handoff.png", "--csv", tmp_path / "handoff.csv"),
    )
    line = "| AP-MAE: distance from prose | 5 | 1.00 [1.00, 1.00] | 0.33 [0.33, 0.33] |"
    assert line in text
    assert set(pd.read_csv(tmp_path / "handoff.csv")["truth"]) == {"zero", "mean"}
    assert "largest effects (zero): L0H0 +1.00" in text
    assert (tmp_path / "handoff.png").stat().st_size > 5000


def test_a_hand_off_of_another_set_up_is_refused(tmp_path):
    (tmp_path / "ioi.json").write_text(
        '{"setup": {"model": "another"}, "truths": {}, "choices": {}}'
    )
    arguments = ["handoff", "--task", "ioi", "--folder", str(tmp_path)]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 1
    assert "was made with {'model': 'another'}" in result.output
    unknown = CliRunner().invoke(command.app, ["handoff", "--task", "chess"])
    assert "task must be one of ['ioi', 'induction', 'java'], got 'chess'" in unknown.output


def test_the_papers_orders_are_the_heads_that_push_each_way_and_those_that_do_not():
    values = np.array([[0.5], [-0.4], [0.3], [-0.2], [1e-6], [0.0]])
    ranking = HeadRanking.from_values(all_heads(2, 3), values, ModelShape("tiny", 2, 3))
    assert paper_orders(ranking) == {
        "toward_incorrect": (Head(0, 0), Head(0, 2), Head(1, 1)),
        "toward_correct": (Head(0, 1), Head(1, 0)),
        "neutral": (Head(1, 2), Head(1, 1)),
    }
