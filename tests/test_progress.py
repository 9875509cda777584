"""Long calls show how far they are, unless told not to."""

from __future__ import annotations

import pytest
from correctness_helpers import make_mae, make_scenarios
from mae_helpers import tiny_mae

import aplens
from aplens import _progress

CLEAN, CORRUPTED = [[5, 6, 7], [8, 9, 10]], [[5, 6, 8], [8, 9, 11]]


def train(model, folder, **options):
    config = aplens.mae.APMAEConfig(
        n_ctx=16, patch_size=4, encoder_dim=8, decoder_dim=8, encoder_depth=1, decoder_depth=1
    )
    from aplens.mae import TrainingSettings

    scenarios = make_scenarios(12, n_tokens=16)
    return aplens.train_apmae(
        model,
        scenarios.select(range(8)),
        config,
        folder,
        validation=scenarios.select(range(8, 12)),
        settings=TrainingSettings.small(patterns=32, prompts_per_round=4, batch_size=16),
        **options,
    )


CALLS = {
    "Ranking heads": lambda model, _, **bar: aplens.rank_heads(model, make_scenarios(), **bar),
    "Measuring effects": lambda model, _, **bar: aplens.measure_effects(
        model, make_scenarios(), **bar
    ),
    "Estimating effects": lambda model, _, **bar: aplens.estimate_effects(
        model, make_scenarios(), **bar
    ),
    "Ablating": lambda model, _, **bar: aplens.sweep_ablations(
        model,
        make_scenarios(),
        {"first": "L0H1"},
        aplens.SweepPlan(sizes=(1,), balance=False),
        **bar,
    ),
    "Describing heads": lambda model, _, **bar: aplens.describe_heads(
        model, make_scenarios(), "L0H1", mae=make_mae(), **bar
    ),
    "Scoring heads": lambda model, _, **bar: aplens.score_heads(
        model, make_scenarios(), mae=make_mae(), **bar
    ),
    "Mapping heads": lambda model, _, **bar: aplens.map_heads(
        {"one": model, "other": model},
        make_scenarios(),
        mae=tiny_mae(fingerprint_dim=8, n_ctx=32),
        **bar,
    ),
    "Observing": lambda model, _, **bar: aplens.observe(model, make_scenarios(), make_mae(), **bar),
    "Finding clusters": lambda model, _, **bar: aplens.show_clusters(
        model, make_scenarios(12), "L0H1", mae=make_mae(), reducer="pca", **bar
    ),
    "Patching paths": lambda model, _, **bar: aplens.path_patch(
        model,
        CLEAN,
        CORRUPTED,
        "L0H1",
        "logits",
        metric=aplens.logit_difference(aplens.make_scenarios(model, CLEAN, [1, 2], [3, 4])),
        **bar,
    ),
    "Training": train,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_long_call_shows_a_bar_unless_told_not_to(name, any_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_progress, "_DELAY", 0)
    CALLS[name](any_model, tmp_path / "silent", progress=False)
    assert capsys.readouterr().err == ""
    CALLS[name](any_model, tmp_path / "told")
    shown = capsys.readouterr().err
    assert f"{name}: 100%" in shown
    assert shown.count("\n") == 1  # one bar, none within it


def test_a_short_call_shows_none(any_model, capsys):
    aplens.measure_effects(any_model, make_scenarios())
    assert capsys.readouterr().err == ""


def test_what_is_no_progress_is_refused(any_model):
    with pytest.raises(TypeError, match=r"progress must be True, False or a function.*'yes'"):
        aplens.measure_effects(any_model, make_scenarios(), progress="yes")
