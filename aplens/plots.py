"""Matplotlib figures. Each function returns a Figure and touches no pyplot state."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from aplens._words import split_features
from aplens.style import (
    CORRECT,
    GREEN,
    GREY,
    HIDDEN,
    INCORRECT,
    INK,
    PATTERN_COLORS,
    PURPLE,
    SKY,
    TEMPLATE_COLORS,
    WIDTH,
    YELLOW,
    new_figure,
    tidy,
)
from aplens.verdicts import METRIC_UNITS

if TYPE_CHECKING:
    from aplens.circuits import PatchingTable
    from aplens.heads import HeadRanking
    from aplens.mae import Reconstruction

#: Shapes of models: circle, triangle, square, diamond, triangle upside down, plus; as in map.js.
MODEL_MARKERS = "o^sDvP"

#: The predictors' features that need no AP-MAE.
PREDICTOR_BASELINES = ("majority", "task", "confidence", "statistics", "regions")

#: What a ranking's scores are, by the method that made it, and their unit.
_QUANTITIES = {
    "predictor": ("SHAP", "log-odds of incorrect"),
    "ablation": ("effect of ablating", ""),
    "attribution": ("estimated effect of ablating", ""),
    "effects": ("effect of ablating", ""),
}

_RANKING_LABELS = {
    "importance": "importance: {size} ({unit})",
    "mean": "mean {name} ({unit}; positive: toward incorrect)",
    "toward_incorrect": "toward incorrect: mean positive {name} ({unit})",
    "toward_correct": "toward correct: mean negative {name} ({unit})",
}
_SCORE_LABELS = {
    "error": "error on hidden patches (squared, log-normalized units)",
    "relative_error": "error on hidden patches, relative to the mean pattern's",
    "variation": "variation with the prompt (mean cosine distance)",
}

#: A map of shares recovered is in full colour from here on at the earliest: less is little.
_LEAST_FULL_SHARE = 0.25

#: Names that a map of shares has room for, and the inches that one of their characters takes.
_MOST_COLUMNS, _MOST_ROWS, _CHARACTER = 30, 45, 0.07

#: More patterns than this no one looks at.
_MOST_PATTERNS = 24

#: Indices that an axis of heads or layers has room for.
_MOST_TICKS = 16

#: Colours and markers of the orders in which heads are ablated; the first two have their meaning.
_TOWARD = {"toward incorrect": (INCORRECT, "o"), "toward correct": (CORRECT, "s")}
_OTHERS = ((GREEN, "^"), (PURPLE, "v"), (YELLOW, "P"), (SKY, "X"))


def plot_head_map(scores: HeadRanking | pd.DataFrame, column: str = "importance") -> Figure:
    """The layer × head map of one score.

    Args:
        scores: A ranking, or a table of heads with the columns `layer` and `head`, such as
            `aplens.correctness.score_heads` makes. Heads it does not list are left grey.
        column: `importance`, `toward_incorrect`, `toward_correct` or `mean` of a ranking; any
            column of numbers of a table. One with a sign, such as `mean`, gets a diverging scale
            centred on 0.

    Raises:
        ValueError: When there is no such score, or a table does not say whose scores these are.
    """
    frame, n_layers, n_heads = _read_scores(scores)
    columns = [
        name for name in frame.select_dtypes("number").columns if name not in ("layer", "head")
    ]
    if column not in columns:
        raise ValueError(f"column must be one of {columns}, got {column!r}")
    values = np.full((n_layers, n_heads), np.nan)
    values[frame["layer"], frame["head"]] = frame[column]
    largest = np.nanmax(np.abs(values), initial=0.0) or 1.0
    signed = column == "mean" or bool((frame[column] < 0).any())
    figure = new_figure(
        width=min(WIDTH, 2.2 + 0.42 * n_heads), height=min(9.0, 1.2 + 0.24 * n_layers)
    )
    axes = figure.subplots()
    axes.set_facecolor("#e6e6e6")
    image = axes.imshow(
        values,
        aspect="auto",
        cmap="RdBu_r" if signed else "viridis",
        vmin=-largest if signed else 0,
        vmax=largest,
    )
    _index_ticks(axes)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label=_label(scores, column))
    return figure


def _label(scores: HeadRanking | pd.DataFrame, column: str) -> str:
    """A score's name and unit."""
    if isinstance(scores, pd.DataFrame):
        return _SCORE_LABELS.get(column, column.replace("_", " "))
    name, unit = _quantity(scores)
    size = f"|mean {name}|" if "effect" in name else f"mean |{name}|"
    return _RANKING_LABELS[column].format(name=name, unit=unit, size=size)


def _quantity(ranking: HeadRanking) -> tuple[str, str]:
    """What a ranking's scores are, and their unit."""
    facts = ranking.metadata
    name, unit = _QUANTITIES.get(str(facts.get("method", "predictor")), ("score", ""))
    return name, unit or METRIC_UNITS.get(str(facts.get("metric")), "unit not given")


def _read_scores(scores: HeadRanking | pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """The table, and how many layers and heads a layer the map has."""
    if not isinstance(scores, pd.DataFrame):
        return scores.to_frame(), scores.model.n_layers, scores.model.n_heads
    if not {"layer", "head"} <= set(scores.columns):
        raise ValueError(f"expected columns 'layer' and 'head', got {list(scores.columns)}")
    return scores, int(scores["layer"].max()) + 1, int(scores["head"].max()) + 1


def plot_head_places(frame: pd.DataFrame) -> Figure:
    """Heads in a plane, one dot each: its colour is the template, its shape the model.

    Shapes are those of the page of a map. There are six; from the seventh model on they repeat, and
    the legend names all models of a shape.

    Args:
        frame: One row a head: `x`, `y`, `template` (of `aplens.patterns.TEMPLATES`, or "mixed") and
            `model`.
    """
    figure = new_figure(WIDTH, 5.0)
    axes = figure.subplots()
    markers = dict(zip(dict.fromkeys(frame["model"]), cycle(MODEL_MARKERS)))
    for (model, template), rows in frame.groupby(["model", "template"], sort=False):
        axes.scatter(
            rows["x"],
            rows["y"],
            s=26,
            marker=markers[model],
            color=TEMPLATE_COLORS[str(template)],
            linewidths=0,
            alpha=0.85,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_color("#dddddd")
    shown = [name for name in TEMPLATE_COLORS if name in set(frame["template"])]
    entries = [("o", TEMPLATE_COLORS[name], name.replace("_", " ")) for name in shown]
    if len(markers) > 1:
        for marker in dict.fromkeys(markers.values()):
            models = [str(model) for model, of_model in markers.items() if of_model == marker]
            entries.append((marker, INK, ", ".join(models)))
    handles = [
        Line2D([], [], marker=marker, color=color, linestyle="", markersize=6, label=label)
        for marker, color, label in entries
    ]
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9
    )
    return figure


def plot_reconstruction(
    reconstruction: Reconstruction, labels: Sequence[object] | None = None
) -> Figure:
    """What `Reconstruction.plot` draws: patterns, what was hidden of them, and what was made of it.

    Args:
        reconstruction: What `APMAE.reconstruct` returned of at most 24 patterns.
        labels: A name for each pattern, such as its head.

    Raises:
        ValueError: When there are more patterns, or not as many labels as patterns.
    """
    columns = {
        name: values.reshape(-1, *values.shape[-2:]).detach().cpu().float().numpy()
        for name, values in (
            ("original", reconstruction.original),
            ("masked", reconstruction.masked),
            ("reconstructed", reconstruction.reconstructed),
        )
    }
    errors = reconstruction.error.reshape(-1).tolist()
    if len(errors) > _MOST_PATTERNS:
        raise ValueError(
            f"{len(errors)} patterns are too many to look at: reconstruct up to {_MOST_PATTERNS}"
        )
    names = [f"pattern {index}" for index in range(len(errors))] if labels is None else labels
    if len(names) != len(errors):
        raise ValueError(f"expected a label for each of {len(errors)} patterns, got {len(names)}")
    figure = new_figure(WIDTH, 0.7 + 2.15 * len(errors))
    grid = figure.subplots(len(errors), 3, squeeze=False, sharex=True, sharey=True)
    for row, (label, error) in enumerate(zip(names, errors, strict=True)):
        for axes, (title, patterns) in zip(grid[row], columns.items(), strict=True):
            image = draw_pattern(axes, patterns[row])
            if row == 0:
                axes.set_title(title, fontsize=10)
        grid[row, 0].set_ylabel(f"{label}\nquery position", fontsize=9)
        grid[row, 2].set_xlabel(f"squared error {error:.4f}", fontsize=8)
    figure.supxlabel("key position", fontsize=9)
    figure.colorbar(
        image,
        ax=grid,
        label="log-normalized attention",
        shrink=min(1.0, 1.6 / len(errors)),
    )
    return figure


def plot_shap_summary(ranking: HeadRanking, k: int = 15) -> Figure:
    """How far each of the `k` most important heads pushes either way.

    SHAP values, or the effects of a ranking made by ablation or attribution.
    """
    name, unit = _quantity(ranking)
    frame = ranking.to_frame().head(k).iloc[::-1]
    figure = new_figure(WIDTH, 1.0 + 0.27 * len(frame))
    axes = figure.subplots()
    axes.barh(frame.index, frame["toward_incorrect"], color=INCORRECT, label="toward incorrect")
    axes.barh(frame.index, -frame["toward_correct"], color=CORRECT, label="toward correct")
    axes.axvline(0, color=INK, linewidth=0.8)
    limit = 1.05 * max(frame[["toward_incorrect", "toward_correct"]].max().max(), 1e-12)
    axes.set_xlim(-limit, limit)
    axes.set_xlabel(f"mean {name}, negative and positive part ({unit})")
    axes.set_ylabel("head")
    tidy(axes, grid="x")
    _legend_above(axes, 2)
    return figure


def plot_ablation_curve(summary: pd.DataFrame, clean_accuracy: float) -> Figure:
    """Accuracy against the number of ablated heads, one line an order, random heads dashed.

    Intervals are those of the change from the unchanged model on the same scenarios: which
    scenarios were easy does not widen them.

    Args:
        summary: `AblationSweep.summary()`.
        clean_accuracy: The unchanged model's accuracy on the same scenarios.
    """
    figure = new_figure(WIDTH, 4.0)
    axes = figure.subplots()
    draw_ablation_curve(axes, summary, clean_accuracy)
    axes.annotate(
        "unchanged model",
        (1, clean_accuracy),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=INK,
    )
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]), top=min(1.0, axes.get_ylim()[1]))
    axes.set_xlabel("heads ablated (log scale)")
    axes.set_ylabel("accuracy (95 % interval of the change)")
    _legend_above(axes, 3)
    return figure


def draw_ablation_curve(axes: Axes, summary: pd.DataFrame, clean_accuracy: float) -> None:
    """The lines of `plot_ablation_curve`, into axes that may be a panel of a larger figure."""
    axes.axhline(clean_accuracy, color=INK, linewidth=1, linestyle=":")
    styles = _order_styles(list(dict.fromkeys(summary["choice"])))
    for place, (choice, (color, marker)) in enumerate(styles.items()):
        rows = summary[summary["choice"] == choice].sort_values("size")
        # Side by side, or the intervals of one size would hide each other.
        nudge = 1.04 ** (place - (len(styles) - 1) / 2)
        axes.errorbar(
            rows["size"] * nudge,
            rows["accuracy"],
            yerr=_error_bars(rows, "change", "change_low", "change_high"),
            label=choice.replace("_", " ").replace("$", r"\$"),  # text, not mathematics
            color=color,
            marker=marker,
            linestyle="--" if choice == "random" else "-",
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
        )
    sizes = sorted(set(summary["size"]))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(size) for size in sizes])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    tidy(axes, grid="y")


def _order_styles(names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Each order's colour and marker; random heads come last, in grey."""
    styles: dict[str, tuple[str, str]] = {}
    others = cycle(_OTHERS)
    named = [name for name in names if name != "random"]
    for name in named:
        meant = next(
            (s for end, s in _TOWARD.items() if name.replace("_", " ").endswith(end)), None
        )
        styles[name] = next(others) if meant is None or meant in styles.values() else meant
    return styles | {name: (GREY, "D") for name in names if name == "random"}


def plot_patching(table: PatchingTable, k: int = 30) -> Figure:
    """How much of the clean metric each patch recovers: what `PatchingTable.plot` draws.

    Args:
        table: What `activation_patch` or `path_patch` returned.
        k: How many bars at most.

    Raises:
        ValueError: When `k` is not positive, or clean and corrupted gave the same metric.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    table.require_recovery()
    frame = table.to_frame()
    if "position" in frame:
        return _plot_recovery_map(frame, "name", "position")
    if "receiver_layer" in frame and frame["receiver_layer"].notna().any():
        return _plot_recovery_map(frame, "sender", "receiver")
    return _plot_recovery_bars(frame, "sender" if "sender" in frame else "name", k)


def _plot_recovery_map(frame: pd.DataFrame, row: str, column: str) -> Figure:
    rows = list(dict.fromkeys(frame[row]))
    if column == "receiver":
        frame = frame.sort_values(["receiver_layer", "receiver_head"], kind="stable")
    columns = list(dict.fromkeys(frame[column]))
    shares = frame.pivot(index=row, columns=column, values="recovered").loc[rows, columns]
    largest = max(_LEAST_FULL_SHARE, float(shares.abs().max().max()))
    names = [str(name) for name in rows], _name_columns(frame, column, columns)
    margins = [_CHARACTER * max(map(len, labels)) for labels in names]
    figure = new_figure(
        width=min(WIDTH, 2.4 + margins[0] + 0.24 * len(columns)),
        height=min(9.0, max(2.6, 1.0 + margins[1] + 0.24 * len(rows))),
    )
    axes = figure.subplots()
    axes.set_facecolor("#e6e6e6")
    image = axes.imshow(shares, aspect="auto", cmap="RdBu", vmin=-largest, vmax=largest)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(labelsize=8)
    _name_ticks(axes.yaxis, "head" if row == "name" else row, names[0], _MOST_ROWS)
    _name_ticks(axes.xaxis, column, names[1], _MOST_COLUMNS)
    figure.colorbar(image, ax=axes, label="share recovered")
    return figure


def _name_columns(frame: pd.DataFrame, column: str, columns: Sequence[Any]) -> list[str]:
    """The columns of a map; of positions with their tokens."""
    if "token" not in frame:
        return [str(name) for name in columns]
    tokens = frame.drop_duplicates(column).set_index(column)["token"]
    return [f"{tokens[name]} ({name})" for name in columns]


def _name_ticks(axis: Axis, label: str, names: Sequence[str], most: int) -> None:
    """As many names as there is room for, the last among them; the label says if others are not."""
    step = -(-len(names) // most)
    places = range((len(names) - 1) % step, len(names), step)
    axis.set_ticks(places, [names[place] for place in places])
    for text in axis.get_ticklabels():
        text.set_parse_math(False)  # a dollar is a token like any other
    axis.set_label_text(label if step == 1 else f"{label} (one in {step} named)")


def _plot_recovery_bars(frame: pd.DataFrame, name: str, k: int) -> Figure:
    furthest = frame["recovered"].abs().sort_values(ascending=False, kind="stable").index[:k]
    shown = frame.loc[furthest].sort_values("recovered", kind="stable")
    figure = new_figure(WIDTH, max(2.2, 1.0 + 0.27 * len(shown)))
    axes = figure.subplots()
    colors = [CORRECT if share > 0 else INCORRECT for share in shown["recovered"]]
    axes.barh(shown[name], shown["recovered"], color=colors)
    axes.axvline(0, color=INK, linewidth=0.8)
    lowest, highest = axes.get_xlim()
    axes.set_xlim(lowest, max(highest, _LEAST_FULL_SHARE))
    axes.set_xlabel("share of the clean metric recovered")
    axes.set_ylabel("head" if name == "name" else "sender, to the logits")
    tidy(axes, grid="x")
    return figure


def plot_intervals(
    frame: pd.DataFrame,
    value: str,
    label: str,
    baselines: Collection[str] = (),
    chance: float | None = None,
) -> Figure:
    """Figures with their intervals, one dot a row, the first row on top.

    Args:
        frame: The columns `value`, and `{value}_low` and `{value}_high` for the interval's ends;
            no bar is drawn where an end is NaN. Its index names the rows, and the index's name the
            axis.
        value: Which column to draw, such as "auc".
        label: What the figures are, such as "AUC (95 % interval)".
        baselines: Which rows are no AP-MAE; they, and names joined of them by "+", are grey.
        chance: Where to draw a dotted line, such as the AUC of a guess.
    """
    names = [str(name) for name in frame.index]
    colors = [GREY if is_baseline(name, baselines) else CORRECT for name in names]
    places = range(len(frame) - 1, -1, -1)
    figure = new_figure(WIDTH, 1.0 + 0.32 * len(frame))
    axes = figure.subplots()
    errors = _error_bars(frame, value, f"{value}_low", f"{value}_high")
    for row, (place, color) in enumerate(zip(places, colors, strict=True)):
        axes.errorbar(
            frame[value].iloc[row],
            place,
            xerr=errors[:, row : row + 1],
            fmt="o",
            color=color,
            markersize=6,
            elinewidth=1.5,
            capsize=3,
        )
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(frame) - 0.4)
    axes.set_xlabel(label)
    axes.set_ylabel(str(frame.index.name or ""))
    tidy(axes, grid="x")
    if chance is not None:
        axes.axvline(chance, color=INK, linewidth=1, linestyle=":")
    if len(set(colors)) > 1:
        axes.plot([], [], "o", color=CORRECT, label="AP-MAE")
        axes.plot([], [], "o", color=GREY, label="baseline")
        _legend_above(axes, 2)
    return figure


def _error_bars(frame: pd.DataFrame, value: str, low: str, high: str) -> Any:
    """Distances below and above, as errorbar wants them; no bar where there is no interval."""
    distances = np.stack([frame[value] - frame[low], frame[high] - frame[value]]).astype(float)
    return np.nan_to_num(distances).clip(min=0)


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=9
    )


def _index_ticks(axes: Axes) -> None:
    """Every index while there is room for it, else every second, fifth, or tenth."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(
            MaxNLocator(_MOST_TICKS, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
        )
    axes.tick_params(labelsize=9)


def draw_pattern(axes: Axes, pattern: Float[np.ndarray, "query key"]) -> AxesImage:
    """A log-normalized pattern: nothing above the diagonal, grey where it is hidden (NaN)."""
    below = np.tri(len(pattern), dtype=bool)
    hidden = below & np.isnan(pattern)
    image = axes.imshow(
        np.ma.masked_array(pattern, mask=~below | hidden),
        cmap=PATTERN_COLORS,
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.imshow(
        np.ma.masked_array(np.ones(pattern.shape), mask=~hidden),
        cmap=ListedColormap([HIDDEN]),
        interpolation="nearest",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return image


def is_baseline(name: str, baselines: Collection[str]) -> bool:
    """Whether every part of a name joined by "+" is a baseline."""
    return all(part in baselines for part in split_features(name))
