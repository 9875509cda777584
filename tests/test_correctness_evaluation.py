"""Evaluation: no file on both sides, baselines where they must be, honest intervals."""

from __future__ import annotations

import numpy as np
import pytest
from correctness_helpers import make_observations
from hypothesis import given, settings
from hypothesis import strategies as st

from aplens.correctness import (
    CorrectnessPredictor,
    HeadClusters,
    evaluate_predictors,
    split_by_file,
)
from aplens.correctness.splits import assign_folds
from aplens.heads import Head

PCA = HeadClusters("pca")
FEATURES = ("majority", "task", "confidence", "clusters", "embeddings")


def by_features(frame):
    return frame[frame["task"] == "all"].set_index("features")


def test_a_planted_head_is_found_and_baselines_stay_at_chance():
    observations = make_observations(n=240, planted=Head(1, 1))
    table = by_features(evaluate_predictors(observations, features=FEATURES, clusters=PCA))
    for name in ("clusters", "embeddings"):
        assert table.loc[name, "auc_low"] > 0.7
        assert table.loc[name, "accuracy"] > 0.75
    assert table.loc["majority", "auc"] == 0.5
    for name in ("task", "confidence"):
        assert table.loc[name, "auc_low"] < 0.5 < table.loc[name, "auc_high"] + 0.05
    assert set(table["n_scenarios"]) == {240}
    assert set(table["n_files"]) == {80}
    for measure in ("auc", "accuracy"):
        assert (table[f"{measure}_low"] <= table[measure]).all()
        assert (table[measure] <= table[f"{measure}_high"]).all()


def test_shuffled_outcomes_are_at_chance():
    observations = make_observations(n=240, planted=Head(1, 1))
    covered = 0
    for seed in range(8):
        correct = np.random.default_rng(seed).permutation(observations.table["correct"])
        shuffled = observations.with_outcomes(correct)
        (row,) = evaluate_predictors(shuffled, features=["embeddings"]).itertuples()
        covered += row.auc_low <= 0.5 <= row.auc_high
    assert covered >= 6  # of eight 95 % intervals
    row = evaluate_predictors(shuffled, features=["clusters"], clusters=PCA).iloc[0]
    assert row["auc_low"] <= 0.5 <= row["auc_high"]


def test_files_that_agree_with_themselves_do_not_help():
    """Each file has its own pattern and its own outcome: only a leak could predict it."""
    observations = make_observations(n=240, per_file=6, clumps=False)
    rng = np.random.default_rng(0)
    signature = rng.normal(size=(40, 6, 12)).repeat(6, axis=0)
    observations.embeddings[:] = signature + 0.01 * rng.normal(size=signature.shape)
    observations = observations.with_outcomes((rng.random(40) < 0.5).repeat(6))
    table = by_features(evaluate_predictors(observations, features=["embeddings"]))
    assert table.loc["embeddings", "auc"] < 0.75
    # The same with scenarios as their own files leaks, which shows that the test can fail.
    observations.table["file"] = [str(i) for i in range(240)]
    leaky = by_features(evaluate_predictors(observations, features=["embeddings"]))
    assert leaky.loc["embeddings", "auc"] > 0.95


@settings(max_examples=30, deadline=None)
@given(n_files=st.integers(5, 30), per_file=st.integers(1, 6), seed=st.integers(0, 1000))
def test_no_file_is_on_both_sides(n_files, per_file, seed):
    n = n_files * per_file
    observations = make_observations(n=n, per_file=per_file, n_layers=1, n_heads=1, seed=seed)
    observations = observations.with_outcomes(np.arange(n) % 2 == 0)
    files = np.array(observations.files)
    if n // 2 >= 5:
        folds = assign_folds(observations, 5, seed)
        for file in set(files):
            assert len(set(folds[files == file])) == 1
    train, test = split_by_file(observations, 0.4, seed)
    assert not set(train.files) & set(test.files)
    assert len(train) + len(test) == n
    assert len(test) > 0


def test_progress_counts_fits():
    seen = []
    evaluate_predictors(
        make_observations(n=60),
        features=["majority", "task"],
        n_folds=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 6) for i in range(1, 7)]


def test_settings_reach_the_predictors():
    observations = make_observations(n=60)
    with pytest.raises(ValueError, match="classifier must be one of"):
        evaluate_predictors(observations, features=["task"], classifier="forest")


def test_what_cannot_be_evaluated_is_refused():
    observations = make_observations(n=60, per_file=20)
    with pytest.raises(ValueError, match="between 2 and the number of source files, 3; got 5"):
        evaluate_predictors(observations)
    with pytest.raises(ValueError, match="got 60 correct and 0 incorrect"):
        evaluate_predictors(observations.with_outcomes(True), n_folds=3)
    with pytest.raises(ValueError, match="got 1 incorrect and 59 correct"):
        evaluate_predictors(observations.with_outcomes(np.arange(60) > 0), n_folds=3)
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1"):
        split_by_file(observations, 1.0, seed=0)
    with pytest.raises(ValueError, match="2 files or more, got 1"):
        split_by_file(make_observations(n=10, per_file=10), 0.5, seed=0)
    observations.embeddings[7, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        evaluate_predictors(observations, features=["embeddings"], n_folds=3)


def test_an_interrupted_evaluation_goes_on_to_the_same_table(tmp_path, monkeypatch):
    observations, folder = make_observations(n=90), tmp_path / "predictions"
    options = {"features": ["confidence", "embeddings"], "n_folds": 3}
    expected = evaluate_predictors(observations, **options)

    def stop_at(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_predictors(observations, **options, folder=folder, progress=stop_at)
    fitted = []
    real = CorrectnessPredictor.fit

    def counting(self, observations):
        fitted.append(self.features)
        return real(self, observations)

    monkeypatch.setattr(CorrectnessPredictor, "fit", counting)
    assert evaluate_predictors(observations, **options, folder=folder).equals(expected)
    assert len(fitted) == 3
    assert evaluate_predictors(observations, **options, folder=folder).equals(expected)
    assert len(fitted) == 3
    (folder / "confidence-fold-1.json").write_text("{")
    with pytest.warns(UserWarning, match=r"confidence-fold-1\.json is not valid.*done again"):
        assert evaluate_predictors(observations, **options, folder=folder).equals(expected)
    assert len(fitted) == 4


def test_predictions_of_something_else_are_refused(tmp_path):
    observations, folder = make_observations(n=90), tmp_path / "predictions"
    evaluate_predictors(observations, features=["confidence"], n_folds=3, folder=folder)
    for others, changes, difference in [
        (make_observations(n=90, seed=1), {}, "data was"),
        (observations, {"seed": 1}, "seed was 0, is 1"),
        (observations, {"clusters": HeadClusters("pca", seed=3)}, "settings was"),
        (observations, {"n_folds": 4}, "n_folds was 3, is 4"),
    ]:
        options = {"n_folds": 3, "folder": folder, **changes}
        with pytest.raises(ValueError, match=difference):
            evaluate_predictors(others, features=["confidence"], **options)
    # Clusters that are left out are those by PCA, and never taken for others.
    default = HeadClusters("pca")
    evaluate_predictors(
        observations, features=["confidence"], n_folds=3, folder=folder, clusters=default
    )
    by_umap = HeadClusters("pca")
    by_umap.reducer = "umap"  # whether or not it is installed
    with pytest.raises(ValueError, match="settings was"):
        evaluate_predictors(
            observations, features=["confidence"], n_folds=3, folder=folder, clusters=by_umap
        )


def test_calibration_is_told_for_every_predictor():
    observations = make_observations(n=400, planted=Head(1, 1))
    row = evaluate_predictors(observations, features=["embeddings"]).iloc[0]
    assert row["calibration_error_low"] <= row["calibration_error"] < 0.15
