"""What a notebook shows of a result: one line, and a table with the line above it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from correctness_helpers import make_mae, make_observations, make_scenarios

import aplens
from aplens.correctness import CorrectnessPredictor, attribute_heads
from aplens.heads import HeadRanking, ModelShape, all_heads

MODEL = ModelShape("tiny<model>", 3, 4)


def make_ranking(effects, interval=0.1, **facts):
    import pandas as pd

    frame = pd.DataFrame(all_heads(3, 4), columns=["layer", "head"])
    frame["mean"] = effects
    frame["importance"] = frame["mean"].abs()
    frame[["toward_incorrect", "toward_correct"]] = 0.0
    frame["low"], frame["high"] = frame["mean"] - interval, frame["mean"] + interval
    frame["measured"] = True
    return HeadRanking(frame, MODEL, {"method": "effects", "metric": "logit_diff", **facts})


@pytest.fixture(scope="module")
def results(any_model):
    scenarios = make_scenarios(12)
    patterns = aplens.collect_patterns(any_model, scenarios)
    clean = [[5, 6], [8, 9]]
    metric = aplens.logit_difference(aplens.make_scenarios(any_model, clean, [1, 2], [3, 4]))
    observations = make_observations()
    predictor = CorrectnessPredictor("statistics").fit(observations)
    return {
        "AttentionPatterns": patterns,
        "Reconstruction": make_mae().reconstruct(patterns),
        "HeadEffects": aplens.measure_effects(any_model, scenarios),
        "HeadRanking": aplens.rank_heads(any_model, scenarios),
        "AblationSweep": aplens.sweep_ablations(
            any_model,
            scenarios,
            {"first": "L0H1, L1H1"},
            aplens.SweepPlan(sizes=(1, 2), balance=False),
        ),
        "PatchingTable": aplens.path_patch(
            any_model, clean, [[5, 7], [8, 1]], "L0H1", metric=metric
        ),
        "Observations": observations,
        "Scenarios": scenarios,
        "HeadAttributions": attribute_heads(predictor, observations),
        "Prompts": scenarios.prompts(),
        "CorrectnessPredictor": predictor,
    }


NAMES = (
    "AttentionPatterns",
    "Reconstruction",
    "HeadEffects",
    "HeadRanking",
    "AblationSweep",
    "PatchingTable",
    "Observations",
    "Scenarios",
    "HeadAttributions",
    "Prompts",
    "CorrectnessPredictor",
)
WITHOUT_TABLE = ("Prompts", "CorrectnessPredictor")


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_one_line_and_in_a_notebook_a_short_table(name, results):
    result = results[name]
    line = repr(result)
    assert line.startswith(f"{name}(")
    assert len(line) < 200
    assert "\n" not in line
    if name in WITHOUT_TABLE:
        return
    shown = result._repr_html_()
    assert 1 <= shown.count("<tr>") - 1 <= 10
    assert "<caption>" + line[:12] in shown
    assert len(result.to_frame())  # which the caption names where there is more


def test_a_ranking_shows_its_verdict_before_its_table_and_map(results):
    shown = make_ranking(np.linspace(-2, 0, 12))._repr_html_()
    verdict, table, picture = (shown.index(part) for part in ("<strong>", "<table>", "<img"))
    assert verdict < table < picture
    assert re.search(r"Of 12 heads measured, \d+ have an effect", shown)
    assert "tiny&lt;model&gt;" in shown
    assert "tiny<model>" not in shown


def test_a_ranking_at_chance_says_so_and_shows_no_map():
    ranking = make_ranking(np.linspace(-2, 0, 12), auc=[0.55, 0.45, 0.65])
    assert ranking.is_at_chance
    assert ranking.verdict.startswith("At chance: do not use its order.")
    assert "<img" not in ranking._repr_html_()
    assert not make_ranking(np.linspace(-2, 0, 12), auc=[0.6, 0.55, 0.65]).is_at_chance


@pytest.mark.parametrize(
    ("ranking", "said"),
    [
        (make_ranking(np.full(12, 0.001)), "moves the answer by 0.00 logits"),
        (make_ranking(np.full(12, 0.05)), "None of 12 heads measured"),
        (make_ranking(np.full(12, 0.05), np.nan), "no interval"),
    ],
)
def test_a_verdict_says_what_was_not_found(ranking, said):
    assert said in ranking.verdict
