"""Patterns as small pictures, one pixel a cell."""

from __future__ import annotations

import base64
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from aplens.style import HIDDEN, PATTERN_COLORS

if TYPE_CHECKING:
    from PIL.Image import Image

#: Log-normalized patterns' difference from which on, up or down, it is drawn in full colour.
FULL_DIFFERENCE = 0.25

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


def draw_difference(difference: Float[np.ndarray, "row column"]) -> str:
    """A difference of log-normalized patterns as the address of a PNG.

    Brown below 0, white at 0, teal above; transparent where there is none (NaN) and, in a square
    one, above the diagonal.
    """
    from matplotlib import colormaps
    from PIL.Image import fromarray

    shares = 0.5 + np.nan_to_num(difference) / (2 * FULL_DIFFERENCE)
    colors = (colormaps["BrBG"](shares.clip(0, 1)) * 255).round().astype(np.uint8)
    colors[np.isnan(difference), 3] = 0
    if difference.shape[0] == difference.shape[1]:
        colors[~np.tri(len(difference), dtype=bool), 3] = 0
    return _address(fromarray(colors))


def draw_difference_scale() -> str:
    """The colours of a difference, left to right, as the address of a PNG."""
    return draw_difference(np.linspace(-FULL_DIFFERENCE, FULL_DIFFERENCE, 200)[None])


def _png(places: UInt8[np.ndarray, "row column"]) -> str:
    from PIL.Image import frombytes

    height, width = places.shape
    image = frombytes("P", (width, height), places.tobytes())
    image.putpalette(_palette())
    return _address(image, transparency=_ABOVE)


def _address(image: Image, **options: int) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache
def _palette() -> bytes:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    colors = colormaps[PATTERN_COLORS](np.linspace(0, 1, 256 - _FIRST_COLOR))[:, :3]
    special = [(1, 1, 1), to_rgb(HIDDEN)]
    return (np.concatenate([special, colors]) * 255).round().astype(np.uint8).tobytes()
