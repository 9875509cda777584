"""Embeddings in six bits a number: a fifth of float32, and close enough for every use here.

Each head's numbers lie between the smallest and the largest that a shard has of them, in 63 steps.
The error of rounding is at most half a step, about 2 % of the number's own spread over scenarios.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

_LEVELS = 63  # six bits: 0 to 63


def pack(
    values: Float[np.ndarray, "head scenario width"],
) -> tuple[UInt8[np.ndarray, "head scenario bytes"], Float[np.ndarray, "head 2 width"]]:
    """Round to 64 levels, and put four numbers into three bytes.

    Args:
        values: Finite numbers.

    Returns:
        The codes, and for each head and number the lowest level and the step between levels.
    """
    values = values.astype(np.float32)
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    # Halved first: the range of two numbers that float32 holds may be one that it does not.
    step = (high / _LEVELS - low / _LEVELS).astype(np.float32)
    places = np.divide(values - low, step, out=np.zeros_like(values), where=step > 0)
    codes = np.rint(places).clip(0, _LEVELS).astype(np.uint8)
    filling = -codes.shape[-1] % 4
    quads = np.pad(codes, ((0, 0), (0, 0), (0, filling)))
    a, b, c, d = np.moveaxis(quads.reshape(*quads.shape[:-1], -1, 4), -1, 0)
    # Three codes keep the low six bits of a byte each; the fourth is spread over their high two.
    packed = np.stack([a | (d & 3) << 6, b | (d >> 2 & 3) << 6, c | (d >> 4) << 6], axis=-1)
    return packed.reshape(*packed.shape[:-2], -1), np.concatenate([low, step], axis=1)


def unpack(
    codes: UInt8[np.ndarray, "*head scenario bytes"], scale: Float[np.ndarray, "*head 2 width"]
) -> Float[np.ndarray, "*head scenario width"]:
    """The numbers that `pack` rounded, in float32."""
    a, b, c = np.moveaxis(codes.reshape(*codes.shape[:-1], -1, 3), -1, 0)
    d = a >> 6 | (b >> 6) << 2 | (c >> 6) << 4
    quads = np.stack([a & 63, b & 63, c & 63, d], axis=-1)
    width = scale.shape[-1]
    flat = quads.reshape(*quads.shape[:-2], -1)[..., :width].astype(np.float32)
    low, step = scale[..., :1, :], scale[..., 1:, :]
    return flat * step + low
