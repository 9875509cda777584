"""Which patches a masked autoencoder hides."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def count_masked(n_patches: int, mask_ratio: float) -> int:
    """How many of `n_patches` patches are hidden: `int(mask_ratio * n_patches)`, as in the paper.

    A masked autoencoder needs both kinds, so at least one patch is hidden and one is seen.
    """
    if n_patches < 2:
        raise ValueError(
            f"masking needs 2 patches or more, got {n_patches}: the prompt fits in one patch, take "
            "an AP-MAE of smaller patches"
        )
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
    return min(max(int(mask_ratio * n_patches), 1), n_patches - 1)


def random_masks(
    n_patterns: int, n_patches: int, mask_ratio: float, generator: torch.Generator
) -> Bool[Tensor, "pattern patch"]:
    """A random mask for each pattern: True where the patch is hidden, the same number in each.

    Args:
        n_patterns: How many masks.
        n_patches: Patches of one pattern (lower-triangular ones, in row-major order).
        mask_ratio: Share of them to hide.
        generator: The source of randomness, on the CPU, so that a seed means the same masks on
            every device.

    Raises:
        ValueError: As `count_masked`.
    """
    n_masked = count_masked(n_patches, mask_ratio)
    order = torch.rand(n_patterns, n_patches, generator=generator).argsort(dim=1)
    return order < n_masked
