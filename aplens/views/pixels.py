"""Patterns as small pictures, one pixel a cell."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from jaxtyping import Float

from aplens.style import HIDDEN, PATTERN_COLORS


def draw_pattern(pattern: Float[np.ndarray, "query key"]) -> str:
    """A log-normalized pattern as the address of a PNG.

    Transparent above the diagonal, grey where it is hidden (NaN), else in the colours of every
    other figure.
    """
    from matplotlib import colormaps
    from matplotlib.image import imsave

    colors = colormaps[PATTERN_COLORS].with_extremes(bad=HIDDEN)
    pixels = colors(np.clip(pattern, 0, 1), bytes=True)
    pixels[~np.tri(len(pattern), dtype=bool)] = 0
    buffer = BytesIO()
    about = {"Software": "aplens"}  # not matplotlib's version: the same pattern is the same page
    imsave(buffer, pixels, format="png", metadata=about, pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
