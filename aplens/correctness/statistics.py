"""Eight hand-made numbers a pattern: the baseline that an AP-MAE's embeddings have to beat.

Two describe the whole log-normalized pattern, six its last row: the attention of the position that
predicts, which carries most of what tells a correct prediction from a wrong one (docs/method.md).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aplens.patterns import PatchGrid, log_normalize

#: What `pattern_statistics` computes, in its order.
STATISTICS = (
    "mean",  # of the log-normalized pattern, on and below the diagonal
    "spread",  # its standard deviation there
    "last_mean",  # of the log-normalized last row
    "last_entropy",  # of the last row's attention, in nats
    "last_max",  # the largest attention of the last row
    "last_first",  # the last row's attention to the first token
    "last_previous",  # to the token before itself; 0 for a prompt of one token
    "last_distance",  # mean distance looked back, as a share of the longest possible
)


def pattern_statistics(
    attention: Float[Tensor, "*pattern query key"],
) -> Float[Tensor, "*pattern 8"]:
    """Describe causal attention patterns by the numbers that `STATISTICS` names.

    Args:
        attention: Attention probabilities, in any precision.

    Returns:
        The statistics in float32, finite for any patterns.

    Raises:
        ValueError: When patterns are empty or not square, contain NaN, or are no probabilities.
    """
    n = attention.shape[-1] if attention.ndim >= 2 else 0
    if n == 0 or attention.shape[-2] != n:
        raise ValueError(f"expected patterns (..., query, key), got shape {tuple(attention.shape)}")
    scaled = log_normalize(attention)
    return _describe(scaled, scaled[..., -1, :], attention[..., -1, :].float())


def patch_statistics(
    scaled: Float[Tensor, "*pattern patch pixel"],
    attention: Float[Tensor, "*pattern query key"],
    grid: PatchGrid,
) -> Float[Tensor, "*pattern 8"]:
    """`pattern_statistics` of `attention` that is cut and log-normalized already."""
    last_scaled = grid.last_query(scaled, attention.shape[-1])
    return _describe(scaled, last_scaled, attention[..., -1, :].float())


def _describe(
    scaled: Float[Tensor, "*pattern some values"],
    last_scaled: Float[Tensor, "*pattern key"],
    last: Float[Tensor, "*pattern key"],
) -> Float[Tensor, "*pattern 8"]:
    n = last.shape[-1]
    # Above the diagonal all is 0, so a sum over everything is one over the lower triangle.
    n_values = n * (n + 1) / 2
    mean = scaled.sum((-2, -1)) / n_values
    variance = scaled.square().sum((-2, -1)) / n_values - mean.square()
    distance = torch.arange(n - 1, -1, -1, device=last.device) / max(n - 1, 1)
    return torch.stack(
        [
            mean,
            variance.clamp_min(0).sqrt(),  # rounding may leave it just below 0
            last_scaled.mean(-1),
            torch.special.entr(last).sum(-1),
            last.amax(-1),
            last[..., 0],
            last[..., -2] if n > 1 else torch.zeros_like(last[..., 0]),
            last @ distance,
        ],
        dim=-1,
    )
