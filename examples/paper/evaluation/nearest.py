"""The nearest visible patch: what copying a neighbour says about a hidden patch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aplens.patterns import PatchGrid


def nearest_visible(
    patches: Float[Tensor, "pattern patch pixel"],
    mask: Bool[Tensor, "pattern patch"],
    grid: PatchGrid,
) -> Float[Tensor, "pattern patch pixel"]:
    """Replace each hidden patch by a copy of the visible one that is nearest in the grid.

    Patches on the diagonal, half of them zeros, look like no others: they copy from each other as
    long as one is visible, and so do all others. Among patches at the same distance that with the
    same keys comes first, then the earlier one. What lies above the diagonal stays 0.

    Args:
        patches: Log-normalized lower-triangular patches in row-major order.
        mask: True where a patch is hidden. Hidden patches are never read.
        grid: The patch grid; `patches` may be those of a shorter prompt.
    """
    rank = _preferences(grid, patches.shape[1]).to(patches.device)
    # A hidden patch ranks behind all visible ones.
    rank = rank + mask[:, None, :] * rank.numel()
    source = rank.argmin(dim=2)
    copied = patches.gather(1, source[..., None].expand_as(patches))
    filled = torch.where(mask[..., None], copied, patches)
    causal = grid.causal(grid.n_ctx, patches.device)[: patches.shape[1]]
    return filled * causal.to(patches.dtype)


def _preferences(grid: PatchGrid, k: int) -> Int[Tensor, "patch patch"]:
    """For each patch, the place of every other in the order in which it would copy them."""
    rows, columns = grid.rows[:k], grid.columns[:k]
    on_diagonal = rows == columns
    down = rows[:, None] - rows
    across = columns[:, None] - columns
    other_kind = (on_diagonal[:, None] != on_diagonal).long()
    side = grid.n_rows
    order = (other_kind * 2 * side**2 + down**2 + across**2) * side + across.abs()
    return order.argsort(dim=1, stable=True).argsort(dim=1)
