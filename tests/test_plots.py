from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from aplens import HeadRanking
from aplens.heads import ModelShape
from aplens.interventions import AblationSweep, Setting, SettingResult
from aplens.mae import Reconstruction
from aplens.plots import (
    MODEL_MARKERS,
    PREDICTOR_BASELINES,
    plot_ablation_curve,
    plot_head_map,
    plot_head_places,
    plot_intervals,
    plot_reconstruction,
    plot_shap_summary,
)
from aplens.style import CORRECT, GREY, INCORRECT, to_svg
from aplens.views.embed import read_script


def make_ranking():
    return HeadRanking(
        pd.DataFrame(
            {
                "layer": [0, 1, 1],
                "head": [1, 0, 2],
                "importance": [0.5, 0.2, 0.1],
                "mean": [-0.4, 0.2, 0.0],
                "toward_incorrect": [0.05, 0.2, 0.05],
                "toward_correct": [0.45, 0.0, 0.05],
            }
        ),
        model=ModelShape("tiny", 2, 3),
    )


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_head_map_puts_each_score_in_its_place():
    figure = plot_head_map(make_ranking())
    axes, colorbar = figure.axes
    drawn = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(drawn, [[np.nan, 0.5, np.nan], [0.2, np.nan, 0.1]])
    assert axes.images[0].get_clim() == (0, 0.5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")
    assert "log-odds" in colorbar.get_ylabel()


def test_a_signed_score_is_centred_on_zero():
    image = plot_head_map(make_ranking(), "mean").axes[0].images[0]
    assert image.get_clim() == (-0.4, 0.4)
    assert image.get_cmap().name == "RdBu_r"


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match="got 'layer'"):
        plot_head_map(make_ranking(), "layer")


def test_a_map_names_what_the_rankings_method_measures():
    ranking = make_ranking()
    assert "SHAP" in plot_head_map(ranking).axes[1].get_ylabel()
    ranking.metadata |= {"method": "ablation", "metric": "logit_diff"}
    assert "|mean effect of ablating| (logits)" in plot_head_map(ranking).axes[1].get_ylabel()
    assert "effect of ablating" in plot_shap_summary(ranking).axes[0].get_xlabel()


def test_any_table_of_heads_can_be_mapped():
    table = pd.DataFrame(
        {
            "layer": [0, 1],
            "head": [2, 0],
            "variation": [0.25, np.nan],
            "effect": [-1.0, 0.5],
            "template": ["self", "mixed"],
        }
    )
    axes, colorbar = plot_head_map(table, "variation").axes
    drawn = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(drawn, [[np.nan, np.nan, 0.25], [np.nan, np.nan, np.nan]])
    assert axes.images[0].get_clim() == (0, 0.25)
    assert "variation" in colorbar.get_ylabel()
    assert plot_head_map(table, "effect").axes[0].images[0].get_clim() == (-1, 1)
    with pytest.raises(ValueError, match=r"\['variation', 'effect'\], got 'template'"):
        plot_head_map(table, "template")
    with pytest.raises(ValueError, match="expected columns 'layer' and 'head', got \\['variation"):
        plot_head_map(table[["variation"]], "variation")


def test_shap_summary_shows_both_directions_of_the_top_heads():
    axes = plot_shap_summary(make_ranking(), k=2).axes[0]
    incorrect, correct = axes.containers
    assert labels(axes.yaxis) == ["L1H0", "L0H1"]  # the most important one on top
    assert [bar.get_width() for bar in incorrect] == [0.2, 0.05]
    assert [bar.get_width() for bar in correct] == [-0.0, -0.45]
    assert "log-odds" in axes.get_xlabel()


def make_sweep():
    clean = np.array([True, True, False, False])
    gain = np.array([True, True, True, False])
    heads = make_ranking().top(1)
    return AblationSweep(
        index=np.arange(4),
        files=list("abcd"),
        clean=clean,
        results=[
            SettingResult(Setting("toward_incorrect", 10, None), heads, ~clean),
            SettingResult(Setting("toward_incorrect", 1, None), heads, gain),
            SettingResult(Setting("random", 1, 0), heads, clean),
        ],
    )


def test_ablation_curve_has_a_line_a_choice_and_the_baseline():
    figure = make_sweep().plot()
    axes = figure.axes[0]
    chosen, random = axes.containers
    assert chosen.get_label() == "toward incorrect"
    assert random.get_label() == "random"
    np.testing.assert_allclose(chosen.lines[0].get_ydata(orig=False), [0.75, 0.5])
    assert chosen.lines[0].get_color() == INCORRECT
    np.testing.assert_allclose(chosen.lines[0].get_xdata(orig=False), [1, 10], rtol=0.1)
    assert axes.lines[0].get_ydata() == [0.5, 0.5]
    assert axes.get_xscale() == "log"
    assert labels(axes.xaxis) == ["1", "10"]
    (whiskers,) = chosen.lines[2]
    lowest, highest = whiskers.get_segments()[0][:, 1]
    summary = make_sweep().summary().set_index(["choice", "size"]).loc[("toward_incorrect", 1)]
    assert lowest == pytest.approx(0.5 + summary["change_low"])
    assert highest == pytest.approx(0.5 + summary["change_high"])


def test_every_order_of_heads_has_a_colour_of_its_own():
    names = ["effects", "SHAP toward incorrect", "SHAP toward correct", "costs $5_", "random"]
    row = {"size": 1, "accuracy": 0.5, "change": 0, "change_low": -0.1, "change_high": 0.1}
    frame = pd.DataFrame([row | {"choice": name} for name in names[::-1]])
    figure = plot_ablation_curve(frame, 0.6)
    lines = {box.get_label(): box.lines[0] for box in figure.axes[0].containers}
    assert lines["SHAP toward incorrect"].get_color() == INCORRECT
    assert lines["SHAP toward correct"].get_color() == CORRECT
    assert lines["random"].get_color() == GREY
    assert len({line.get_color() for line in lines.values()}) == 5
    assert len({line.get_marker() for line in lines.values()}) == 5
    texts = figure.axes[0].get_legend().get_texts()
    to_svg(figure)
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(0 <= box.x0 < box.x1 <= figure.bbox.width for box in boxes)


def test_interval_plots_draw_every_row_with_its_bounds():
    tasks = pd.DataFrame(
        {"accuracy": [0.8, 0.5], "accuracy_low": [0.7, 0.4], "accuracy_high": [0.9, np.nan]},
        index=pd.Index(["eol (20)", "random (30)"], name="task (scenarios)"),
    )
    axes = plot_intervals(tasks, "accuracy", "accuracy (95 % interval)").axes[0]
    assert labels(axes.yaxis) == ["eol (20)", "random (30)"]
    places = [container.lines[0].get_ydata()[0] for container in axes.containers]
    assert places == [1, 0]  # the first on top
    assert axes.get_ylabel() == "task (scenarios)"
    assert axes.get_xlabel() == "accuracy (95 % interval)"
    dots = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert dots == [0.8, 0.5]
    (bounds,) = axes.containers[0].lines[2]
    np.testing.assert_allclose(bounds.get_segments()[0][:, 0], [0.7, 0.9])
    assert axes.get_legend() is None


def test_baselines_look_different():
    frame = pd.DataFrame(
        {"auc": [0.8, 0.7], "auc_low": [0.75, 0.65], "auc_high": [0.85, 0.75]},
        index=["confidence", "embedding"],
    )
    axes = plot_intervals(frame, "auc", "AUC", PREDICTOR_BASELINES, chance=0.5).axes[0]
    confidence, embedding = (container.lines[0].get_color() for container in axes.containers)
    assert (confidence, embedding) == (GREY, CORRECT)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["AP-MAE", "baseline"]
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in axes.lines)


def test_a_figure_of_heads_has_the_shapes_of_the_page_and_says_when_they_repeat():
    listed = read_script("map.js").split("const SHAPES = [")[1].split("];")[0]
    shapes = [line.rpartition("// ")[2] for line in listed.strip().splitlines()]
    assert shapes == ["circle", "triangle", "square", "diamond", "triangle upside down", "plus"]
    assert MODEL_MARKERS == "o^sDvP"
    names = [f"model {number}" for number in range(7)]
    frame = pd.DataFrame({"x": range(7), "y": 0.0, "template": "self", "model": names})
    texts = plot_head_places(frame).axes[0].get_legend().get_texts()
    shown = [text.get_text() for text in texts]
    assert shown == ["self", "model 0, model 6", *names[1:6]]


def make_reconstruction():
    original = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)).tril()
    masked = original.clone()
    masked[:, 3:, :3] = float("nan")
    return SimpleNamespace(
        original=original,
        masked=masked,
        reconstructed=original / 2,
        error=torch.tensor([0.25, 0.5]),
    )


def test_reconstruction_shows_three_views_a_pattern():
    result = make_reconstruction()
    figure = plot_reconstruction(result, ["L5H3", "L9H6"])
    grid = [axes for axes in figure.axes if axes.images]
    assert len(grid) == 6
    assert [axes.get_title() for axes in grid[:3]] == ["original", "masked", "reconstructed"]
    assert grid[3].get_ylabel().startswith("L9H6")
    assert "0.5000" in grid[5].get_xlabel()
    above = np.triu_indices(6, k=1)
    for axes in grid:
        assert axes.images[0].get_array().mask[above].all()  # nothing above the diagonal
    np.testing.assert_allclose(grid[3].images[0].get_array().filled(0), result.original[1])
    hidden = ~grid[1].images[1].get_array().mask
    np.testing.assert_array_equal(hidden, torch.isnan(result.masked[0]).numpy())


def test_reconstruction_needs_a_label_a_pattern():
    with pytest.raises(ValueError, match="each of 2 patterns, got 1"):
        plot_reconstruction(make_reconstruction(), ["L5H3"])


def test_more_patterns_than_anyone_looks_at_are_refused():
    many = torch.zeros(5, 5, 8, 8)
    result = Reconstruction(many, many, many, many[..., 0] > 0, many[..., 0, 0])
    with pytest.raises(ValueError, match="25 patterns are too many to look at: reconstruct up to"):
        result.plot()


def test_figures_show_themselves_in_notebooks_and_are_reproducible():
    figure, again = (plot_ablation_curve(make_sweep().summary(), 0.5) for _ in range(2))
    assert isinstance(figure, Figure)
    assert to_svg(figure) == to_svg(again)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_no_pyplot_and_no_global_settings():
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "import pandas as pd\n"
        "from aplens.plots import plot_intervals\n"
        "from aplens.style import to_svg\n"
        "row = {'auc': 0.5, 'auc_low': 0.4, 'auc_high': 0.6}\n"
        "to_svg(plot_intervals(pd.DataFrame([row]), 'auc', 'AUC'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
