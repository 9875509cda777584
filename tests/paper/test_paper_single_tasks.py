"""Predictors task by task: each alone, balanced; one of all, judged on each; on fewer files."""

from __future__ import annotations

import numpy as np
import pytest
from correctness_helpers import make_observations

from aplens.correctness import assign_folds, cross_validate, evaluate_predictors, score_table
from aplens.heads import Head
from paper.by_task import score_tasks
from paper.over_tasks import MEAN_OF_TASKS
from paper.single_tasks import evaluate_single_tasks
from paper.tries import evaluate_with_fewer_files


def test_single_tasks_are_balanced_and_their_mean_counts_each_alike():
    observations = make_observations(n=400, planted=Head(1, 1))
    rare = observations.table["correct"] & (np.arange(400) % 3 > 0)
    observations = observations.with_outcomes(rare)  # most are wrong: guessing would be above 0.5
    features = ["majority", "embeddings"]
    table = evaluate_single_tasks(observations, features=features).set_index(["features", "task"])
    tasks = ["eol", "identifiers"]
    mean = table.loc[("embeddings", MEAN_OF_TASKS)]
    assert mean["accuracy"] == pytest.approx(table.loc["embeddings"].loc[tasks, "accuracy"].mean())
    assert mean["accuracy_low"] > 0.55
    assert mean["auc_low"] > 0.6
    assert abs(table.loc[("majority", MEAN_OF_TASKS), "accuracy"] - 0.5) < 0.1
    n_correct = observations.table.groupby("task")["correct"].sum()
    for task in tasks:
        assert table.loc[("embeddings", task), "n_scenarios"] == 2 * n_correct[task]
    assert mean["n_scenarios"] == 2 * n_correct.sum()


def test_a_task_without_both_outcomes_is_left_out_of_the_single_ones():
    observations = make_observations(n=200, planted=Head(1, 1))
    always = (observations.table["task"] == "eol") | observations.table["correct"]
    table = evaluate_single_tasks(observations.with_outcomes(always), features=["embeddings"])
    assert list(table["task"]) == ["identifiers", MEAN_OF_TASKS]
    with pytest.raises(ValueError, match="no task has 5 scenarios of either outcome"):
        evaluate_single_tasks(observations.with_outcomes(np.ones(200, dtype=bool)))


def score_each(observations, features):
    folds = assign_folds(observations, 5, 0)
    scores = cross_validate(observations, folds, [features])
    return score_tasks(observations, scores, folds, 0), score_table(observations, scores)


def test_the_same_predictions_are_judged_task_by_task():
    observations = make_observations(n=200, planted=Head(0, 0))
    table, whole = score_each(observations, "embeddings")
    assert list(table["task"]) == ["eol", "identifiers"]
    assert table["n_scenarios"].sum() == whole["n_scenarios"].item() == 200
    hits = (table["accuracy"] * table["n_scenarios"]).sum()
    assert hits == pytest.approx(200 * whole["accuracy"].item())
    assert (table["auc"] > 0.7).all()
    observations.table["task"] = ["rare"] * 9 + list(observations.table["task"][9:])
    with pytest.warns(UserWarning, match="1 of 3 tasks have fewer than 10 scenarios"):
        table, _ = score_each(observations, "embeddings")
    assert list(table["task"]) == ["eol", "identifiers"]


def test_a_task_with_one_outcome_has_accuracy_but_no_auc():
    observations = make_observations(n=120, planted=Head(0, 0))
    always = (observations.table["task"] == "eol") | observations.table["correct"]
    table, _ = score_each(observations.with_outcomes(always), "task")
    row = table.set_index("task").loc["eol"]
    assert row[["auc", "auc_low", "auc_high"]].isna().all()
    assert row["accuracy"] > 0.9


def test_fewer_training_files_predict_worse_on_the_same_scenarios():
    observations = make_observations(n=400, planted=Head(1, 1))
    whole = evaluate_predictors(observations, features=["embeddings"])
    for share in (1.0, 0.1):
        part = evaluate_with_fewer_files(observations, share, features=["embeddings"])
        assert part["n_scenarios"].item() == 400
        assert part.equals(whole) == (share == 1)
    assert part["auc"].item() < whole["auc"].item()
