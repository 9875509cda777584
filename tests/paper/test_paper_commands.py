"""The commands on several studies, the catalogue of one, and what is drawn from folders."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from correctness_helpers import make_mae, make_observations, make_scenarios
from study_fixtures import STUDY
from typer.testing import CliRunner

from aplens import observe
from aplens.correctness import evaluate_predictors
from aplens.study import Study, StudySettings
from paper.__main__ import app
from paper.catalogue import TemplateCatalogue
from paper.predict import join_observations


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_saved, java_zip):
    """A small study that was observed."""
    base = tmp_path_factory.mktemp("study")
    path = base / "small.toml"
    path.write_text(STUDY.format(model=tiny_saved, corpus=java_zip, kind="bridge"))
    study = Study(StudySettings.from_toml(path), base / "out")
    study.run("observe")
    return path, study


def test_the_catalogue_of_a_study(study, tmp_path):
    path, observed = study
    arguments = ["catalogue", path, "-o", tmp_path / "out", "--prompts", 12, "--clusters", 6]
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "set mae.pretrained" in refused.output
    result = run(*arguments, "--set", f"mae.pretrained={observed.folder.path / 'mae'}")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / "catalogue"
    catalogue = TemplateCatalogue.load(folder / "catalogue.safetensors")
    assert len(catalogue.names) == 6
    assert catalogue.counts.sum() == 12 * 4
    templates = pd.read_parquet(folder / "templates.parquet")
    assert templates["share"].sum() == pytest.approx(1)
    assert (folder / "templates.png").stat().st_size > 5000
    text = (folder / "catalogue.md").read_text()
    assert "Made by `python -m paper" in text
    assert "## stability" in text
    assert text.strip() in result.output


def test_predicting_from_two_studies_together(study, tmp_path):
    _, observed = study
    arguments = ["--features", "statistics", "--features", "confidence", "--folds", 3]
    arguments += ["--keep", tmp_path / "kept", "--table", tmp_path / "table.parquet"]
    result = run("predict", observed.folder.path, observed.folder.path, *arguments)
    assert result.exit_code == 0, result.output
    n, files = len(observed.folder.observations), len(set(observed.folder.observations.files))
    assert f"{2 * n} scenarios of {files} source files." in result.output
    alone = evaluate_predictors(
        join_observations([observed.folder.observations] * 2),
        features=["statistics", "confidence"],
        n_folds=3,
    )
    for _, row in alone.iterrows():
        assert f"| {row['features']} | {row['auc']:.3f} [{row['auc_low']:.3f}," in result.output
    assert list((tmp_path / "kept").iterdir())
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), alone)
    refused = run("predict", observed.folder.path, tmp_path)
    assert refused.exit_code == 1
    assert "there are no observations in" in refused.output


def test_joined_observations_are_those_of_observing_together(tiny_model, tmp_path):
    mae, scenarios, options = make_mae(), make_scenarios(10), {"shard_size": 4}
    parts = [
        observe(tiny_model, scenarios[:6], mae, tmp_path / "a", **options),
        observe(tiny_model, scenarios[6:], mae, tmp_path / "b", **options),
    ]
    together = observe(tiny_model, scenarios, mae, tmp_path / "all", **options)
    joined = join_observations(parts)
    pd.testing.assert_frame_equal(joined.table, together.table)
    # Batches differ, and with them the last digits.
    np.testing.assert_allclose(joined.embeddings, np.asarray(together.embeddings), atol=2e-3)
    np.testing.assert_allclose(
        joined.numbers("statistics"), together.numbers("statistics"), atol=1e-5
    )
    some = joined.select([7, 1])
    np.testing.assert_array_equal(some.embeddings[0], parts[1].embeddings[1])
    assert some.files == [joined.files[7], joined.files[1]]
    with pytest.raises(ValueError, match="'surprise' in keep"):
        _ = joined.numbers("surprise")
    # Without features named, those are compared whose numbers all parts have.
    assert joined.kept == {"statistics"}


def test_observations_of_different_things_are_not_joined(tiny_model, tmp_path):
    scenarios = make_scenarios(4)
    one = observe(tiny_model, scenarios, make_mae(), tmp_path / "one")
    other = observe(tiny_model, scenarios, make_mae(seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match=r"mae differs: part 0 has .*, part 1 has"):
        join_observations([one, other])
    with pytest.raises(ValueError, match="model differs"):
        join_observations([make_observations(n=4), one])
    with pytest.raises(ValueError, match="model differs"):
        join_observations([make_observations(n=4), make_observations(n=4, n_heads=2, n_layers=3)])
