"""Which patches a masked autoencoder hides."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def random_masks(
    n_patterns: int, n_patches: int, mask_ratio: float, generator: torch.Generator
) -> Bool[Tensor, "pattern patch"]:
    """A random mask for each pattern: True where the patch is hidden, the same number in each.

    That is `int(mask_ratio * n_patches)`, as in the paper; but a masked autoencoder needs both
    kinds, so at least one patch is hidden and one is seen.

    Args:
        n_patterns: How many masks.
        n_patches: Patches of one pattern (lower-triangular ones, in row-major order).
        mask_ratio: Share of them to hide.
        generator: The source of randomness, on the CPU, so that a seed means the same masks on
            every device.

    Raises:
        ValueError: When there are fewer than two patches, or the ratio is not between 0 and 1.
    """
    if n_patches < 2:
        raise ValueError(
            f"masking needs 2 patches or more, got {n_patches}: the prompt fits in one patch, take "
            "an AP-MAE of smaller patches"
        )
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
    n_masked = min(max(int(mask_ratio * n_patches), 1), n_patches - 1)
    order = torch.rand(n_patterns, n_patches, generator=generator).argsort(dim=1)
    return order < n_masked
