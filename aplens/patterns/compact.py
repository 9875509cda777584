"""Patterns in a seventh of float32's space: lower-triangular patches, one byte a value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from aplens.patterns.normalize import log_normalize, smallest_log
from aplens.patterns.patches import PatchGrid

#: Code 0 is no attention at all; 1 to 255 are log-normalized attention from 0 to 1.
_STEPS = 254


class CompactPatterns(NamedTuple):
    """Patterns as bytes.

    A log-normalized value is off by at most 1/508. Attention is the exponential of it, so that
    with a smallest attention of 1e-9 it is off by at most 4 %, of itself.

    Attributes:
        codes: Log-normalized attention of every lower-triangular patch, rounded.
        floors: The natural logarithm of each pattern's smallest attention.
    """

    codes: UInt8[Tensor, "*pattern patch pixel"]
    floors: Float[Tensor, "*pattern"]


def compact_patterns(attention: Float[Tensor, "*pattern patch pixel"]) -> CompactPatterns:
    """Round patterns to bytes.

    Args:
        attention: Probabilities, as `PatchGrid.patchify` cuts them.

    Raises:
        ValueError: When there is NaN, or a value outside [0, 1].
    """
    scaled = log_normalize(attention)
    codes = scaled.mul_(_STEPS).round_().add_(1).mul_(attention > 0)
    return CompactPatterns(codes.to(torch.uint8), smallest_log(attention.float())[..., 0, 0])


def restore_patterns(
    compact: CompactPatterns, grid: PatchGrid, n_tokens: int
) -> Float[Tensor, "*pattern query key"]:
    """The attention probabilities, but for rounding.

    Args:
        compact: As `compact_patterns` makes them.
        grid: How the patterns were cut.
        n_tokens: Tokens of the prompts.
    """
    scaled = (compact.codes.float() - 1) / _STEPS
    attention = (compact.floors[..., None, None] * (1 - scaled)).exp()
    return grid.unpatchify(attention.mul_(compact.codes > 0), n_tokens)
