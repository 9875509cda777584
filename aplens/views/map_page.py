"""The page of a map of heads: a scatter, a grid for each model, and what is known of each head.

Everything that the page shows is in it. Typical patterns are lower triangles of 24 × 24 bytes,
packed together: 1,000 heads take 0.3 MB before packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from aplens._words import displayable
from aplens.describe.fingerprints import SIDE, ModelHeads
from aplens.describe.kin import Group, find_nearest
from aplens.patterns.templates import TEMPLATES
from aplens.style import PATTERN_COLORS, TEMPLATE_COLORS
from aplens.views.embed import View, build_view, pack, read_script, to_json
from aplens.views.wording import count

#: Nearest heads listed of each model, and the last characters shown of a prompt.
_N_NEAREST, _TEXT_LENGTH = 5, 280

_HEIGHT = 860

#: The scatter's own units, and the margin that keeps marks inside.
_WIDTH, _TALL, _MARGIN = 640, 600, 16

_METHODS = {"umap": "UMAP", "pca": "PCA"}


def build_page(
    models: Sequence[ModelHeads],
    directions: Float[Tensor, "head d"],
    slices: Sequence[slice],
    places: Float[np.ndarray, "head 2"],
    groups: Sequence[Group],
    method: str,
) -> View:
    """The page as a document of its own.

    `slices` says which of the directions, of all models' heads, are each model's; `method` what
    laid out the places, "umap" or "pca".
    """
    from markupsafe import Markup

    script = read_script("map.js")
    n_heads = len(directions)
    names = ", ".join(displayable(each.name) for each in models)
    data = {
        "side": SIDE,
        "templates": list(TEMPLATE_COLORS),
        "palette": _palette(),
        "models": [_describe_model(each) for each in models],
        "heads": _describe_heads(models, directions, slices, places),
        "first": _strongest_induction_head(models[0]),
        "groups": [
            {"name": group.name, "share": round(group.share, 2), "members": group.members}
            for group in groups
        ],
    }
    return build_view(
        "map.html.j2",
        f"{count(n_heads, 'head')} of {names}",
        height=_HEIGHT,
        scripts=[script],
        note=_note(models, method),
        colors=TEMPLATE_COLORS,
        width=_WIDTH,
        tall=_TALL,
        data=Markup(to_json(data)),
        pictures=pack(_pack_pictures(models)),
        script=Markup(script),
    )


def _strongest_induction_head(model: ModelHeads) -> int:
    """The head that the page opens with."""
    return int(model.template_scores[:, list(TEMPLATES).index("induction")].argmax())


def _note(models: Sequence[ModelHeads], method: str) -> str:
    prompts = " or ".join(dict.fromkeys(count(len(each.texts), "prompt") for each in models))
    return (
        f"Heads that do like things stand near each other ({_METHODS[method]} of their mean "
        f"fingerprints over {prompts}). Colour: what the head does on repeated random tokens. "
        "Point at a head, click to keep it. Keys: arrows go through layers and heads, / searches, "
        "Esc lets go."
    )


def _describe_model(model: ModelHeads) -> dict[str, Any]:
    return {
        "name": displayable(model.name),
        "layers": model.model.n_layers,
        "width": model.model.n_heads,
        "texts": [_shorten(displayable(text, "\n\t")) for text in model.texts],
    }


def _shorten(text: str) -> str:
    """The end of a prompt: surprise is measured there."""
    return text if len(text) <= _TEXT_LENGTH else "…" + text[-_TEXT_LENGTH:]


def _describe_heads(
    models: Sequence[ModelHeads],
    directions: Float[Tensor, "head d"],
    slices: Sequence[slice],
    places: Float[np.ndarray, "head 2"],
) -> dict[str, list[Any]]:
    """One list a fact, each with an entry for every head."""
    templates = list(TEMPLATE_COLORS)
    numbered = [(number, each) for number, each in enumerate(models)]
    return {
        "model": [number for number, each in numbered for _ in each.heads],
        "layer": [head.layer for each in models for head in each.heads],
        "head": [head.head for each in models for head in each.heads],
        "place": _fit(places).round(1).tolist(),
        "template": [templates.index(name) for each in models for name in each.templates],
        "share": [round(share, 2) for each in models for share in each.template_shares.tolist()],
        "spread": [round(spread, 3) for each in models for spread in each.spread.tolist()],
        "nearest": _find_nearest(directions, slices),
        "departures": [row for each in models for row in each.departures.tolist()],
        "surprises": [
            [round(value, 3) for value in row] for each in models for row in each.surprises.tolist()
        ],
    }


def _fit(places: Float[np.ndarray, "head 2"]) -> Float[np.ndarray, "head 2"]:
    """Places in the scatter's own units, the whole of it used."""
    low, high = places.min(0), places.max(0)
    room = np.array([_WIDTH, _TALL]) - 2 * _MARGIN
    return _MARGIN + (places - low) / np.where(high > low, high - low, 1) * room


def _find_nearest(
    directions: Float[Tensor, "head d"], slices: Sequence[slice]
) -> list[list[list[tuple[int, float]]]]:
    """For each head and model the nearest heads: their places and similarities."""
    return [
        [
            [(other, round(value, 3)) for other, value in found]
            for found in (find_nearest(directions, head, _N_NEAREST, of) for of in slices)
        ]
        for head in range(len(directions))
    ]


def _pack_pictures(models: Sequence[ModelHeads]) -> bytes:
    """The lower triangle of each typical pattern, row after row."""
    rows, columns = np.tril_indices(SIDE)
    pictures = np.concatenate([each.pictures.numpy() for each in models])
    return pictures[:, rows, columns].tobytes()


def _palette() -> list[list[int]]:
    """The colours of patterns, as in every other figure."""
    from matplotlib import colormaps

    return (colormaps[PATTERN_COLORS](np.arange(256))[:, :3] * 255).round().astype(int).tolist()
