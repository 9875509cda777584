"""The patterns of a shorter prompt, out of those of a longer one, without another forward pass."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from aplens.patterns.patches import PatchGrid


def crop_patches(
    scaled: Float[Tensor, "pattern patch pixel"], grid: PatchGrid, n_tokens: int
) -> Float[Tensor, "pattern some pixel"]:
    """The patches that the first `n_tokens` tokens of the prompts would have given.

    In a causal model no query depends on later tokens, so these are the first rows of the pattern;
    only the smallest attention, which log-normalizing divides by, is another.

    Args:
        scaled: Log-normalized lower-triangular patches of patterns without zeros below the
            diagonal (no padding, no sliding window).
        grid: How they were cut.
        n_tokens: Tokens to keep, at most as many as the patches hold.

    Raises:
        ValueError: When `n_tokens` does not fit.
    """
    k = grid.n_patches_for(n_tokens)
    if k > scaled.shape[1]:
        raise ValueError(f"{scaled.shape[1]} patches hold fewer than {n_tokens} tokens")
    inside = grid.causal(n_tokens, scaled.device)
    depth = (1 - scaled[:, :k].float()) * inside  # ln a / m, which is 1 where a is the smallest
    deepest = depth.amax((1, 2), keepdim=True)
    # Attention 1 everywhere has depth 0 everywhere, and stays.
    return (1 - depth / torch.where(deepest > 0, deepest, 1.0)) * inside


def depth_scales(
    scaled: Float[Tensor, "pattern patch pixel"], grid: PatchGrid
) -> Float[Tensor, " length"]:
    """What cropping to each length multiplies 1 - scaled by, on average over patterns.

    A shorter prompt spreads its attention over fewer keys, so its smallest attention is larger, and
    the same attention lies deeper on its scale. With this number a mean pattern can be cropped.

    Args:
        scaled: Log-normalized lower-triangular patches of patterns without zeros below the
            diagonal.
        grid: How they were cut.

    Returns:
        One factor, 1 or more, for every length from 1 token to the patterns' own.
    """
    n_tokens = grid.n_rows_of(scaled.shape[1]) * grid.patch_size
    patterns = grid.unpatchify(scaled.float(), n_tokens)
    depth = (1 - patterns).tril()
    deepest = depth.amax(-1).cummax(-1).values
    # A single token attends to itself alone: depth 0, which no factor changes.
    return torch.where(deepest > 0, 1 / deepest, 1.0).mean(0)
