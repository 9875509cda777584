"""Patterns as small pictures, one pixel a cell."""

from __future__ import annotations

import base64
from functools import lru_cache
from io import BytesIO

import numpy as np
from jaxtyping import Float, UInt8

from aplens.style import HIDDEN, PATTERN_COLORS

#: Places in the palette: above the diagonal, hidden, and then the colours.
_ABOVE, _HIDDEN, _FIRST_COLOR = 0, 1, 2


def draw_pattern(pattern: Float[np.ndarray, "query key"]) -> str:
    """A log-normalized pattern as the address of a PNG.

    Transparent above the diagonal, grey where it is hidden (NaN), else in the colours of every
    other figure.
    """
    colors = 255 - _FIRST_COLOR
    shades = np.nan_to_num(pattern).clip(0, 1) * colors
    places = _FIRST_COLOR + shades.round().astype(np.uint8)
    places[np.isnan(pattern)] = _HIDDEN
    places[~np.tri(len(pattern), dtype=bool)] = _ABOVE
    return _png(places)


def draw_scale() -> str:
    """The colours from 0 to 1, left to right, as the address of a PNG."""
    return _png(np.arange(_FIRST_COLOR, 256, dtype=np.uint8)[None])


def _png(places: UInt8[np.ndarray, "row column"]) -> str:
    from PIL import Image

    height, width = places.shape
    image = Image.frombytes("P", (width, height), places.tobytes())
    image.putpalette(_palette())
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True, transparency=_ABOVE)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache
def _palette() -> bytes:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    colors = colormaps[PATTERN_COLORS](np.linspace(0, 1, 256 - _FIRST_COLOR))[:, :3]
    special = [(1, 1, 1), to_rgb(HIDDEN)]
    return (np.concatenate([special, colors]) * 255).round().astype(np.uint8).tobytes()
