"""The additive fit: what row, column and diagonal effects alone say about hidden patches.

A log-normalized attention pattern is mostly "how much this query looks anywhere" (a row effect) +
"how salient this key is" (a column effect) + "how far back" (a diagonal effect). The fit estimates
the three from the visible patches, as deviations from the mean pattern, by ridge regression, and
extends them into the hidden patches. It needs no training and is the baseline that an AP-MAE has to
beat (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aplens.patterns import PatchGrid

#: Ridge penalty on every effect, in observed pixels, as a share of the patch size: 8 for patches of
#: 32 (docs/method.md).
RIDGE = 0.25

# Conjugate gradients solve the same ridge equations as backfitting would, in fewer passes: after
# this many the fit's error on real patterns no longer changes in the third digit.
_STEPS = 8


def additive_fit(
    patches: Float[Tensor, "pattern patch pixel"],
    mask: Bool[Tensor, "pattern patch"],
    mean: Float[Tensor, "position pixel"],
    grid: PatchGrid,
) -> Float[Tensor, "pattern patch pixel"]:
    """Predict every patch as mean + row + column + diagonal effects of the visible patches.

    An effect that is seen on as many pixels as a quarter of the patch size is halved.

    Args:
        patches: Log-normalized lower-triangular patches in row-major order, 0 above the diagonal;
            those of a shorter prompt are a prefix of the full grid's.
        mask: True where a patch is hidden. Hidden patches are never read.
        mean: The mean patch at every position, 0 above the diagonal; those of a longer prompt
            may follow.
        grid: The full patch grid.

    Returns:
        The fit at every patch, visible ones included, in log-normalized units.
    """
    k = patches.shape[1]
    design = _design(grid.n_rows, grid.patch_size, patches.device)
    visible = (~mask).to(patches.dtype)[..., None]
    # Masked by selection, not by multiplication: 0 × NaN would let a hidden NaN through.
    residual = torch.where(mask[..., None], 0.0, patches - mean[:k])
    effects = _solve_ridge(
        lambda blocks: design.collect(visible * design.project(design.spread(blocks, k))),
        target=design.collect(residual @ design.pixels),
        seen=design.collect(visible * design.counts[:k]),
        ridge=RIDGE * grid.patch_size,
    )
    return mean[:k] + (design.spread(effects, k) @ design.pixels.T) * design.causal[:k]


class _Design(NamedTuple):
    """How pixels and effects belong together.

    Effects live in blocks of p: n_rows blocks of rows, n_rows of columns, n_rows + 1 of diagonals.
    A patch meets four of them: its rows, its columns, and two neighbouring blocks of diagonals.
    """

    pixels: Float[Tensor, "pixel effect"]  # 1 where a pixel of a full patch has the effect
    causal: Float[Tensor, "patch pixel"]  # 0 above the diagonal
    counts: Float[Tensor, "patch effect"]  # pixels under each effect of a patch
    gram: Float[Tensor, "effect effect"]  # pixels that two effects of a full patch share
    gram_diagonal: Float[Tensor, "effect effect"]  # the same in a patch on the diagonal
    on_diagonal: Int[Tensor, " n_rows"]  # the patches on the diagonal
    blocks: Int[Tensor, "patch 4"]  # which blocks a patch meets
    n_blocks: int

    def spread(
        self, effects: Float[Tensor, "pattern block p"], k: int
    ) -> Float[Tensor, "pattern patch effect"]:
        """Hand every one of the first k patches the effects it meets."""
        met = effects.index_select(1, self.blocks[:k].flatten())
        return rearrange(met, "n (k four) p -> n k (four p)", four=4)

    def collect(
        self, per_patch: Float[Tensor, "pattern patch effect"]
    ) -> Float[Tensor, "pattern block p"]:
        """Add up over the patches that meet an effect: the transpose of `spread`."""
        n, k, _ = per_patch.shape
        parts = rearrange(per_patch, "n k (four p) -> n (k four) p", four=4)
        total = parts.new_zeros(n, self.n_blocks, parts.shape[-1])
        return total.index_add_(1, self.blocks[:k].flatten(), parts)

    def project(
        self, local: Float[Tensor, "pattern patch effect"]
    ) -> Float[Tensor, "pattern patch effect"]:
        """Sum, under each effect of a patch, the pixels that the patch's effects make."""
        out = local @ self.gram
        diagonal = self.on_diagonal[self.on_diagonal < local.shape[1]]
        return out.index_copy_(1, diagonal, local.index_select(1, diagonal) @ self.gram_diagonal)


@lru_cache(maxsize=16)
def _design(n_rows: int, p: int, device: torch.device) -> _Design:
    row, column = (
        index.flatten() for index in torch.meshgrid(*[torch.arange(p)] * 2, indexing="ij")
    )
    pixels = torch.zeros(p * p, 4 * p)
    pixel = torch.arange(p * p)
    pixels[pixel, row] = 1
    pixels[pixel, p + column] = 1
    pixels[pixel, 2 * p + (row - column + p)] = 1

    patch_row, patch_column = torch.tril_indices(n_rows, n_rows)
    diagonal = patch_row - patch_column
    causal = torch.ones(len(diagonal), p * p)
    causal[diagonal == 0] = (row >= column).float()
    on_diagonal = (diagonal == 0).nonzero().flatten()
    first_diagonal = 2 * n_rows + diagonal
    blocks = torch.stack(
        [patch_row, n_rows + patch_column, first_diagonal, first_diagonal + 1], dim=1
    )
    return _Design(
        pixels=pixels.to(device),
        causal=causal.to(device),
        counts=(causal @ pixels).to(device),
        gram=(pixels.T @ pixels).to(device),
        gram_diagonal=(pixels.T @ (causal[on_diagonal[0], :, None] * pixels)).to(device),
        on_diagonal=on_diagonal.to(device),
        blocks=blocks.to(device),
        n_blocks=3 * n_rows + 1,
    )


def _solve_ridge(
    apply: Callable[[Tensor], Tensor],
    target: Float[Tensor, "pattern block p"],
    seen: Float[Tensor, "pattern block p"],
    ridge: float,
) -> Float[Tensor, "pattern block p"]:
    """Solve (normal equations + ridge) × effects = target by conjugate gradients, per pattern.

    `seen`, the pixels observed under each effect, is the diagonal of the equations and scales them.
    """

    def dot(left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(dim=(1, 2), keepdim=True)

    scale = 1 / (seen + ridge)
    solution = torch.zeros_like(target)
    residual = target
    direction = scaled = scale * residual
    energy = dot(residual, scaled)
    tiny = torch.finfo(target.dtype).tiny  # a pattern that is solved already must not divide 0 by 0
    for _ in range(_STEPS):
        image = apply(direction) + ridge * direction
        step = energy / dot(direction, image).clamp_min(tiny)
        solution = solution + step * direction
        residual = residual - step * image
        scaled = scale * residual
        previous, energy = energy, dot(residual, scaled)
        direction = scaled + energy / previous.clamp_min(tiny) * direction
    return solution
