"""The kinds of patterns that a head has, as a figure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from aplens._progress import Progress
from aplens._tokens import last_text
from aplens.correctness.clusters import Reducer
from aplens.heads import HeadsLike
from aplens.models import describe_model
from aplens.patterns.collect import select_heads
from aplens.plots import draw_pattern
from aplens.scenarios import Scenarios
from aplens.style import WIDTH, new_figure
from aplens.views.typical import N_TYPICAL, ClusterPatterns, find_typical_patterns
from aplens.views.wording import count, join

if TYPE_CHECKING:
    from aplens.mae import APMAE

#: Log-normalized patterns' difference from which on, up or down, it is drawn in full colour.
_FULL_DIFFERENCE = 0.25

#: Inches that a cluster takes, the colours below all of them, and the title.
_ROW, _SCALES, _TITLE = 2.75, 0.8, 0.7

#: Characters that a line across the figure has room for, and one below a pattern.
_ACROSS, _BELOW = 92, 18


def show_clusters(
    model: Any,
    scenarios: Scenarios,
    head: HeadsLike,
    *,
    mae: APMAE,
    reducer: Reducer = "pca",
    progress: bool | Progress = True,
) -> Figure:
    """What kinds of patterns one head has: its clusters, with the typical patterns of each.

    For each cluster: how many scenarios it has, how often the model is right on them, what tells
    them from all others (the templates that the head follows, the tasks, the length), the mean of
    their log-normalized patterns, its difference from the mean of all others, and the three
    patterns nearest to the cluster's centre by cosine in the AP-MAE's embedding space, with the
    ends of their prompts. Clusters are those of `HeadClusters` (docs/method.md, step 8), numbered
    from 1 in order of size; what is in none stands last. The scenarios are run twice; no more than
    a batch of patterns and what is shown is held at a time.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: At least 10.
        head: One head.
        mae: The AP-MAE that encodes the patterns.
        reducer: As `HeadClusters` takes it.
        progress: A bar (the default), nothing (False), or a function called with (prompts run,
            prompts to run); each is run twice.

    Returns:
        A matplotlib figure with one row a cluster. Prompts in a script that its font lacks need
        another one, by matplotlib's `font.family`.

    Raises:
        ValueError: When there is not one head or it is out of range, there are fewer than 10
            scenarios, or they are longer than the AP-MAE takes.
        ImportError: When `reducer` is "umap" and umap-learn is not installed.
    """
    chosen = select_heads(model, head)
    if len(chosen) != 1:
        raise ValueError(f"expected one head, got {len(chosen)}: {', '.join(map(str, chosen))}")
    clusters = find_typical_patterns(
        model, scenarios, chosen[0], mae=mae, reducer=reducer, progress=progress
    )
    n_clusters = sum(cluster.label >= 0 for cluster in clusters)  # what is in none is no cluster
    longest = max(len(cluster.mean) for cluster in clusters)
    figure = new_figure(WIDTH, _TITLE + _ROW * len(clusters) + _SCALES)
    figure.suptitle(
        f"{count(n_clusters, 'cluster')} of {chosen[0]} of {describe_model(model).name}\n"
        f"{count(len(scenarios), 'scenario')} of up to {count(longest, 'token')}. "
        "Queries run down, keys to the right.",
        fontsize=11,
        parse_math=False,
    )
    # A row is a figure of its own, or its title would widen the first column.
    heights = [_ROW] * len(clusters) + [_SCALES]
    *rows, below = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for number, (row, cluster) in enumerate(zip(rows, clusters, strict=True), start=1):
        name = "In no cluster" if cluster.label < 0 else f"Cluster {number}"
        row.suptitle(
            "\n".join([_describe(name, cluster, len(scenarios)), *_tell_apart(cluster)]),
            x=0.01,
            ha="left",
            fontsize=10,
            parse_math=False,
        )
        n_columns = N_TYPICAL + (2 if len(clusters) > 1 else 1)
        images = _draw_cluster(row.subplots(1, n_columns), cluster, model, scenarios)
    _add_scales(below, images)
    return figure


def _describe(name: str, cluster: ClusterPatterns, n_scenarios: int) -> str:
    share = len(cluster.members) / n_scenarios
    size = f"{count(len(cluster.members), 'scenario')} ({share:.0%})"
    return join(name, size, f"{cluster.accuracy:.0%} answered correctly")


def _tell_apart(cluster: ClusterPatterns) -> list[str]:
    if np.isnan(cluster.difference).all():
        return []  # there are no others
    told = "; ".join(cluster.apart) or "no template, task or length tells it from the others"
    return wrap(told, _ACROSS)


def _draw_cluster(
    row: Sequence[Axes], cluster: ClusterPatterns, model: Any, scenarios: Scenarios
) -> list[AxesImage]:
    """Fill a row; returns the images of the mean and, where there are others, of the difference."""
    n_means = len(row) - N_TYPICAL
    images = [draw_pattern(row[0], cluster.mean)]
    captions = ["mean", "mean − that of the others"][:n_means]
    if n_means > 1:
        images.append(_draw_difference(row[1], cluster.difference))
    for axes, (index, pattern) in zip(row[n_means:], cluster.typical, strict=False):
        draw_pattern(axes, pattern)
        scenario = scenarios[index]
        text = last_text(model, scenario.prompt)
        captions.append("\n".join(filter(None, [f"scenario {index}", scenario.task, text])))
    for axes in row[len(captions) :]:  # a small cluster has fewer patterns than there is room for
        axes.set_axis_off()
    for axes, caption in zip(row, captions, strict=False):
        lines = "\n".join(map(_break, caption.split("\n")))
        axes.set_xlabel(lines, fontsize=9, loc="left", parse_math=False)
        axes.set_anchor("N")  # below the title; what room is left stands between rows
        axes.set_xticks([])
        axes.set_yticks([])
    return images


def _break(text: str) -> str:
    """Text, or code that has few blanks, in lines that end at words."""
    lines = [""]
    for word in re.findall(rf"\w{{1,{_BELOW}}}[^\w\s]?|\W", re.sub(" +", " ", text)):
        if len(lines[-1] + word) > _BELOW and lines[-1]:
            lines.append("")
        lines[-1] += word
    return "\n".join(map(str.strip, lines))


def _draw_difference(axes: Axes, difference: Float[np.ndarray, "query key"]) -> AxesImage:
    """Brown below 0, teal above; nothing above the diagonal and where there is none (NaN)."""
    below = np.tri(len(difference), dtype=bool)
    axes.spines[["top", "right"]].set_visible(False)
    return axes.imshow(
        np.ma.masked_array(difference, mask=~below | np.isnan(difference)),
        cmap="BrBG",
        vmin=-_FULL_DIFFERENCE,
        vmax=_FULL_DIFFERENCE,
        interpolation="nearest",
    )


def _add_scales(below: SubFigure, images: Sequence[AxesImage]) -> None:
    """The colours of patterns and, where there is any, of differences."""
    labels = ("log-normalized attention", "difference of such means")
    places = below.subplots(1, 2)
    for axes, image, label in zip(places, images, labels, strict=False):
        below.colorbar(image, cax=axes, orientation="horizontal")
        axes.tick_params(labelsize=9)
        axes.set_xlabel(label, fontsize=9)
    for axes in places[len(images) :]:
        axes.set_axis_off()
