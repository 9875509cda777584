"""A predictor for each task alone: balanced, and averaged with each task alike."""

from __future__ import annotations

import numpy as np
import pytest
from correctness_helpers import make_observations

from aplens.heads import Head
from paper.over_tasks import MEAN_OF_TASKS
from paper.single_tasks import evaluate_single_tasks


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
