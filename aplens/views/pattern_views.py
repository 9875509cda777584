"""Patterns as AP-MAE sees them: what it reconstructs, and the kinds that a head has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aplens._progress import Progress
from aplens._tokens import last_text
from aplens.correctness.clusters import Reducer
from aplens.heads import Head, HeadRanking, HeadsLike, parse_heads
from aplens.models import describe_model
from aplens.patterns import AttentionPatterns
from aplens.patterns.collect import select_heads
from aplens.scenarios import Scenarios
from aplens.style import HIDDEN
from aplens.views.embed import View, build_view
from aplens.views.pixels import (
    FULL_DIFFERENCE,
    draw_difference,
    draw_difference_scale,
    draw_pattern,
    draw_scale,
)
from aplens.views.typical import ClusterPatterns, find_typical_patterns
from aplens.views.wording import TOP_HEADS, at_most, count, join

if TYPE_CHECKING:
    from aplens.mae import APMAE

#: Sides of pictures, and heights of what stands around them, in pixels.
_TILE_SIDE = 256
_CLUSTER_TILE_SIDE = 176
_NARROWEST_TILE = 94
_ROW_TEXT, _PROMPT_TEXT, _TEXT_HEIGHT = 74, 56, 118
_TALLEST = 900


def show_reconstruction(
    mae: APMAE,
    patterns: AttentionPatterns,
    *,
    heads: HeadsLike | None = None,
    prompt: int = 0,
    mask_ratio: float | None = None,
    seed: int = 0,
) -> View:
    """Patterns, what is hidden of them, and what AP-MAE makes of it, side by side.

    Args:
        mae: The AP-MAE.
        patterns: What `collect_patterns` returned.
        heads: Which of its heads, at most 24. A `HeadRanking` stands for its 6 best. Default: all.
        prompt: Which of its prompts, from 0.
        mask_ratio: Share of the patches to hide (default: the AP-MAE's own).
        seed: Decides which patches.

    Raises:
        ValueError: When no heads or too many are chosen, there is no such prompt, or it is longer
            than the AP-MAE takes.
        KeyError: When a head was not collected.
    """
    if not 0 <= prompt < len(patterns):
        raise ValueError(f"prompt must be 0 to {len(patterns) - 1}, got {prompt}")
    chosen = _choose_collected(patterns, heads)
    rows = [patterns.heads.index(head) for head in chosen]
    result = mae.reconstruct(patterns.prompt(prompt)[rows], mask_ratio, seed)
    steps = [
        (name, values.float().cpu().numpy())
        for name, values in (
            ("original", result.original),
            ("masked", result.masked),
            ("reconstructed", result.reconstructed),
        )
    ]
    hidden = f"{result.mask.float().mean():.0%} of the patches hidden"
    return _build_patterns_view(
        [
            _Row(
                str(head),
                f"squared error {error:.4f}",
                [_Tile(draw_pattern(values[index]), name) for name, values in steps],
            )
            for index, (head, error) in enumerate(
                zip(chosen, result.error.flatten().tolist(), strict=True)
            )
        ],
        title=f"Reconstruction of {count(len(chosen), 'pattern')}",
        note=f"Prompt {prompt}, {count(result.original.shape[-1], 'token')}, {hidden}; the error "
        "is the mean over hidden cells. Queries run down, keys to the right.",
        n_tokens=result.original.shape[-1],
        side=_TILE_SIDE,
        shows_hidden=True,
    )


def show_clusters(
    model: Any,
    scenarios: Scenarios,
    head: HeadsLike,
    *,
    mae: APMAE,
    reducer: Reducer = "pca",
    progress: bool | Progress = True,
) -> View:
    """What kinds of patterns one head has: its clusters, with the typical patterns of each.

    For each cluster: how many scenarios it has, how often the model is right on them, what tells
    them from all others (the templates that the head follows, the tasks, the length), the mean of
    their log-normalized patterns, its difference from the mean of all others, and the three
    patterns nearest to the cluster's centre by cosine in the AP-MAE's embedding space. Clusters are
    those of `HeadClusters` (docs/method.md, step 8), numbered from 1 in order of size; what is in
    none stands last. The scenarios are run twice; no more than a batch of patterns and what is
    shown is held at a time.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: At least 10.
        head: One head.
        mae: The AP-MAE that encodes the patterns.
        reducer: As `HeadClusters` takes it.
        progress: A bar (the default), nothing (False), or a function called with (prompts run,
            prompts to run); each is run twice.

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
    longest = max(len(cluster.mean) for cluster in clusters)
    return _build_patterns_view(
        [
            _describe_cluster(model, scenarios, cluster, number)
            for number, cluster in enumerate(clusters, start=1)
        ],
        title=f"{_kinds(clusters)} of {chosen[0]} of {describe_model(model).name}",
        note=f"{count(len(scenarios), 'scenario')} of up to {count(longest, 'token')}. First the "
        "mean of a cluster and how it differs from all others, then the patterns nearest to its "
        "centre. Queries run down, keys to the right.",
        n_tokens=longest,
        side=_CLUSTER_TILE_SIDE,
        shows_difference=len(clusters) > 1,
    )


class _Tile(NamedTuple):
    """One pattern as a picture."""

    source: str
    caption: str
    text: str = ""


class _Row(NamedTuple):
    """Patterns that belong together."""

    title: str
    detail: str
    tiles: Sequence[_Tile]
    apart: str = ""


def _build_patterns_view(
    rows: Sequence[_Row],
    *,
    title: str,
    note: str,
    n_tokens: int,
    side: int,
    shows_hidden: bool = False,
    shows_difference: bool = False,
) -> View:
    # Cells become squares of whole pixels; only what may be larger than its place is smoothed.
    drawn = n_tokens * (side // n_tokens) or side
    text = _PROMPT_TEXT if any(tile.text for row in rows for tile in row.tiles) else 0
    return build_view(
        "patterns.html.j2",
        title,
        height=min(_TALLEST, _TEXT_HEIGHT + len(rows) * (drawn + text + _ROW_TEXT)),
        note=note,
        rows=rows,
        side=drawn,
        columns=max(len(row.tiles) for row in rows),
        rendering="pixelated" if n_tokens <= _NARROWEST_TILE else "auto",
        narrowest=_NARROWEST_TILE,
        scale=draw_scale(),
        difference=draw_difference_scale() if shows_difference else "",
        full_difference=f"{FULL_DIFFERENCE:.2f}",
        hidden_color=HIDDEN,
        shows_hidden=shows_hidden,
    )


def _choose_collected(patterns: AttentionPatterns, heads: HeadsLike | None) -> tuple[Head, ...]:
    if heads is None:
        return at_most(patterns.heads)
    chosen = parse_heads(heads.top(TOP_HEADS) if isinstance(heads, HeadRanking) else heads)
    if not chosen:
        raise ValueError("no heads were chosen: the selection is empty")
    missing = [str(head) for head in chosen if head not in patterns.heads]
    if missing:
        raise KeyError(
            f"{', '.join(missing)} not collected; these were: {', '.join(map(str, patterns.heads))}"
        )
    return at_most(chosen)


def _describe_cluster(
    model: Any, scenarios: Scenarios, cluster: ClusterPatterns, number: int
) -> _Row:
    share = len(cluster.members) / len(scenarios)
    size = f"{count(len(cluster.members), 'scenario')} ({share:.0%})"
    tiles = [
        _Tile(
            draw_pattern(pattern),
            join(f"scenario {index}", scenarios[index].task),
            last_text(model, scenarios[index].prompt),
        )
        for index, pattern in cluster.typical
    ]
    first = [_Tile(draw_pattern(cluster.mean), "mean")]
    if not np.isnan(cluster.difference).all():  # there are others
        first.append(_Tile(draw_difference(cluster.difference), "mean − that of the others"))
    return _Row(
        "In no cluster" if cluster.label < 0 else f"Cluster {number}",
        f"{size} · {cluster.accuracy:.0%} answered correctly",
        [*first, *tiles],
        "; ".join(cluster.apart) or "no template, task or length tells it from the others",
    )


def _kinds(clusters: Sequence[ClusterPatterns]) -> str:
    return count(sum(cluster.label >= 0 for cluster in clusters), "cluster")
