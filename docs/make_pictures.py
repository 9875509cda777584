"""Draw the pictures of the documentation from the real SmolLM2-135M and the shipped AP-MAE.

`make docs-pictures` takes a few minutes on two CPU cores. Prompts come from Python's
standard library, which every machine has; another version of it changes the pictures' details.
"""

from __future__ import annotations

from io import BytesIO
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

import aplens
from aplens.correctness import HeadClusters, Observations, rank_by_predictor, split_by_file
from aplens.mae import Reconstruction
from aplens.plots import plot_head_map, plot_shap_summary
from aplens.scenarios import python_standard_library
from aplens.style import INK, new_figure

FOLDER = Path(__file__).parent / "images"
DPI = 110
CLUSTER_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")

SHOWN_HEADS = ("L11H1", "L1H1", "L19H4")  # looks back in steps, at certain tokens, at a section
CLUSTERED_HEAD = "L5H5"
HABIT_HEAD = "L23H3"  # the first head on this prompt: README.md, docs/getting-started.md
HABIT_PROMPT = "When Mary and John went to the store, Mary gave a drink to"


def main() -> None:
    """Observe the model on Python code, and draw everything."""
    model = aplens.load_model("smollm2-135m", kind="bridge")
    mae = aplens.APMAE.from_pretrained("aplens-short")
    scenarios = aplens.mine_scenarios(
        model, python_standard_library(), language="python", per_task=12, context_length=64
    )
    observations = aplens.observe(model, scenarios, mae)
    draw_all(model, mae, scenarios, observations)


def draw_all(
    model: Any, mae: aplens.APMAE, scenarios: aplens.Scenarios, observations: Observations
) -> None:
    """Every picture of the documentation."""
    patterns = aplens.collect_patterns(model, scenarios.tokens()[3:4], heads=SHOWN_HEADS)
    reconstruction = mae.reconstruct(patterns, mask_ratio=0.5, seed=0)
    of_one_head = aplens.collect_patterns(model, scenarios.tokens(), heads=CLUSTERED_HEAD)
    ranking = aplens.rank_heads(model, scenarios, verify=0)

    FOLDER.mkdir(exist_ok=True)
    save(draw_overview(reconstruction, ranking), "overview")
    save(draw_preparation(patterns.values[0, 0], mae), "preparation")
    save(reconstruction.plot(labels=SHOWN_HEADS), "reconstruction")
    save(draw_clusters(of_one_head.values[:, 0], mae), "clusters")
    save(plot_shap_summary(rank_by_shap(observations), k=10), "shap")
    save(plot_head_map(ranking), "ranking")
    save(draw_habit(model, mae), "habit")
    started = plot_head_map(rank_getting_started(model))
    started.set_size_inches(4.2, 5.2)  # beside text
    save(started, "started")


def rank_by_shap(observations: Observations) -> aplens.HeadRanking:
    """Heads ranked by SHAP on files that the predictor has not seen."""
    train, test = split_by_file(observations, 0.4, seed=0)
    return rank_by_predictor(train, test, features="embeddings")


def draw_overview(reconstruction: Reconstruction, ranking: aplens.HeadRanking) -> Figure:
    """The whole road in one row: a pattern, what AP-MAE does with it, the heads it ranks."""
    figure = new_figure(9.0, 2.5)
    panels = figure.subplots(1, 4)
    show_pattern(panels[0], reconstruction.original[0, 0], "attention pattern")
    show_pattern(panels[1], reconstruction.masked[0, 0], "half of it hidden")
    show_pattern(panels[2], reconstruction.reconstructed[0, 0], "filled in by AP-MAE")
    frame = ranking.to_frame()
    scores = np.zeros((ranking.model.n_layers, ranking.model.n_heads))
    scores[frame["layer"], frame["head"]] = frame["importance"]
    panels[3].imshow(scores, aspect="auto", cmap="viridis")
    panels[3].set_title("heads ranked", fontsize=10)
    panels[3].set_xlabel("head", fontsize=8)
    panels[3].set_ylabel("layer", fontsize=8)
    panels[3].tick_params(labelsize=7)
    return figure


def rank_getting_started(model: Any) -> aplens.HeadRanking:
    """The ranking of docs/getting-started.md."""
    pairs = list(permutations(["Mary", "John", "Tom", "Lucy"], 2))
    prompts = [f"When {a} and {b} went to the store, {a} gave a drink to" for a, b in pairs]
    right, wrong = [f" {b}" for _, b in pairs], [f" {a}" for a, _ in pairs]
    scenarios = aplens.make_scenarios(model, prompts, right, wrong_answers=wrong)
    return aplens.rank_heads(model, scenarios)


def draw_habit(model: Any, mae: aplens.APMAE) -> Figure:
    """One head on one prompt: its attention, its habit, and what it does beyond that."""
    patterns = aplens.collect_patterns(model, HABIT_PROMPT, heads=HABIT_HEAD)
    attention, habit = patterns.values[0, 0], mae.expect(patterns, None)[0, 0]
    tokens = ["start", *(word.strip() for word in model.to_str_tokens(HABIT_PROMPT)[1:])]
    figure = new_figure(8.2, 3.5)
    panels = figure.subplots(1, 3, sharey=True)
    titles = (f"{HABIT_HEAD} attends", "its habit: what AP-MAE expects", "surprise: the difference")
    for panel, values, title in zip(
        panels, (attention, habit, attention - habit), titles, strict=True
    ):
        shown = np.ma.masked_array(values.numpy(), ~np.tri(len(values), dtype=bool))
        if title == titles[-1]:
            panel.imshow(shown, cmap="RdBu_r", vmin=-0.7, vmax=0.7)
        else:
            panel.imshow(shown, cmap="Blues", vmin=0, vmax=0.7)
        panel.set_title(title, fontsize=10, color=INK)
        panel.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(tokens)), tokens, fontsize=8)
    panels[0].set_ylabel("query: the token that attends", fontsize=8)
    panels[1].set_xlabel("key: the token attended to", fontsize=8)
    return figure


def draw_preparation(attention: torch.Tensor, mae: aplens.APMAE) -> Figure:
    """What is done to a pattern before AP-MAE reads it."""
    scaled = aplens.patterns.log_normalize(attention)
    figure = new_figure(7.5, 2.8)
    panels = figure.subplots(1, 3)
    show_pattern(panels[0], attention, "attention")
    show_pattern(panels[1], scaled, "log-normalized")
    show_pattern(panels[2], scaled, f"{mae.grid.n_patches} patches")
    size = mae.grid.patch_size
    for row, column in zip(mae.grid.rows.tolist(), mae.grid.columns.tolist(), strict=True):
        corner = (column * size - 0.5, row * size - 0.5)
        panels[2].add_patch(
            Rectangle(corner, size, size, edgecolor="#555555", facecolor="none", linewidth=0.8)
        )
    return figure


def draw_clusters(attention: torch.Tensor, mae: aplens.APMAE) -> Figure:
    """One head's embeddings on many prompts, and patterns from the two largest clusters."""
    embeddings = mae.encode(attention).numpy()
    labels = HeadClusters("pca").fit(embeddings[:, None]).labels_[:, 0]
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    _, _, directions = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    places = (unit - unit.mean(0)) @ directions[:2].T

    figure = new_figure(8.0, 3.4)
    left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
    axes = left.subplots()
    names, counts = np.unique(labels[labels >= 0], return_counts=True)
    axes.scatter(*places[labels < 0].T, s=12, color="#bbbbbb", label="none")
    for name in names:
        color = CLUSTER_COLORS[name % len(CLUSTER_COLORS)]
        axes.scatter(*places[labels == name].T, s=14, color=color, label=f"cluster {name}")
    axes.set_title(f"{CLUSTERED_HEAD} on {len(labels)} prompts", fontsize=10)
    axes.set_xlabel("first direction of the embeddings", fontsize=8)
    axes.set_ylabel("second", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=8, frameon=False)

    largest = names[np.argsort(-counts)][:2]
    grid = right.subplots(2, 3)
    for row, name in zip(grid, largest, strict=True):
        members = np.flatnonzero(labels == name)
        middle = unit[members].mean(0)
        nearest = members[np.argsort(-(unit[members] @ middle))][:3]
        for panel, prompt in zip(row, nearest, strict=True):
            show_pattern(panel, aplens.patterns.log_normalize(attention[prompt]))
        row[1].set_title(f"cluster {name}", fontsize=9, color=CLUSTER_COLORS[name])
    return figure


def show_pattern(axes: Axes, pattern: torch.Tensor, title: str | None = None) -> None:
    """Nothing above the diagonal, grey where a patch is hidden."""
    values = pattern.float().numpy()
    below = np.tri(len(values), dtype=bool)
    axes.imshow(np.where(below & np.isnan(values), 0.75, np.nan), cmap="gray", vmin=0, vmax=1)
    axes.imshow(np.ma.masked_array(values, ~below | np.isnan(values)), cmap="magma", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=10, color=INK)


def save(figure: Figure, name: str) -> None:
    """A PNG of 256 colours, small enough for a repository."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
