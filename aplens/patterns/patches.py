"""The grid of square patches on and below the diagonal of a causal pattern."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class PatchGrid:
    """Cuts causal patterns into patches and puts them back, exactly.

    Only the patches on or below the diagonal exist here: 36 of the 8 × 8 for 256 tokens and patches
    of 32 × 32 (docs/method.md, step 4). They are numbered row by row, so that a shorter prompt's
    patches are the first ones of a longer prompt's.

    Args:
        n_ctx: The longest pattern, in tokens.
        patch_size: A patch's side, in tokens.

    Attributes:
        n_rows: Rows (and columns) of the full grid.
        n_patches: Patches on or below its diagonal.
        n_pixels: Values in a patch.
        rows: Each patch's row in the grid, `Int[Tensor, "patch"]`.
        columns: Each patch's column in the grid, `Int[Tensor, "patch"]`.

    Raises:
        ValueError: When a size is not positive, or patches do not divide the context.
    """

    def __init__(self, n_ctx: int, patch_size: int) -> None:
        if n_ctx < 1 or patch_size < 1 or n_ctx % patch_size:
            raise ValueError(
                f"patch_size must divide n_ctx, both positive: got n_ctx={n_ctx}, "
                f"patch_size={patch_size}"
            )
        self.n_ctx = n_ctx
        self.patch_size = patch_size
        self.n_rows = n_ctx // patch_size
        self.n_patches = _triangle(self.n_rows)
        self.n_pixels = patch_size**2
        self.rows: Int[Tensor, " patch"]
        self.columns: Int[Tensor, " patch"]
        self.rows, self.columns = torch.tril_indices(self.n_rows, self.n_rows).unbind()

    def __repr__(self) -> str:
        return f"PatchGrid(n_ctx={self.n_ctx}, patch_size={self.patch_size})"

    def n_rows_for(self, n_tokens: int) -> int:
        """Grid rows that a prompt of `n_tokens` fills, the last one perhaps in part.

        Raises:
            ValueError: When the prompt is empty or longer than `n_ctx`.
        """
        if not 1 <= n_tokens <= self.n_ctx:
            raise ValueError(
                f"patterns of {n_tokens} tokens do not fit, expected 1 to {self.n_ctx}: use an "
                "AP-MAE of a longer context, or keep the first tokens (AttentionPatterns.crop)"
            )
        return -(-n_tokens // self.patch_size)

    def n_patches_for(self, n_tokens: int) -> int:
        """Patches on or below the diagonal for a prompt of `n_tokens`."""
        return _triangle(self.n_rows_for(n_tokens))

    def n_rows_of(self, n_patches: int) -> int:
        """Grid rows that these many patches on or below the diagonal fill."""
        return math.isqrt(2 * n_patches)  # n_patches = rows (rows + 1) / 2

    def causal(
        self, n_tokens: int, device: torch.device | None = None
    ) -> Float[Tensor, "patch pixel"]:
        """1 on and below the diagonal of a prompt of `n_tokens`, 0 above it and in the padding."""
        return self.patchify(torch.ones(n_tokens, n_tokens, device=device).tril())

    def inside(
        self, n_tokens: int, device: torch.device | None = None
    ) -> Float[Tensor, "patch pixel"]:
        """1 inside a prompt of `n_tokens`, 0 in the padding of its last patches."""
        return self.patchify(torch.ones(n_tokens, n_tokens, device=device))

    def row(self, number: int) -> slice:
        """Which patches are those of one row of the grid, from 0."""
        return slice(_triangle(number), _triangle(number + 1))

    def last_row(self, n_tokens: int) -> slice:
        """Which of a prompt's patches hold its last query, the one whose output predicts."""
        return self.row(self.n_rows_for(n_tokens) - 1)

    def last_query(
        self, patches: Float[Tensor, "*pattern patch pixel"], n_tokens: int
    ) -> Float[Tensor, "*pattern key"]:
        """A prompt's last query, out of the patches of a pattern of `n_tokens`."""
        p = self.patch_size
        last = patches[..., self.last_row(n_tokens), :].unflatten(-1, (p, p))
        return last[..., (n_tokens - 1) % p, :].flatten(-2)[..., :n_tokens]

    def patchify(
        self, patterns: Float[Tensor, "*pattern query key"]
    ) -> Float[Tensor, "*pattern patch pixel"]:
        """Take the patches on or below the diagonal; a partial last patch is filled with zeros.

        Raises:
            ValueError: When patterns are not square, or longer than `n_ctx`.
        """
        n_tokens = _side(patterns)
        rows = self.n_rows_for(n_tokens)
        filling = rows * self.patch_size - n_tokens
        if filling:
            patterns = F.pad(patterns, (0, filling, 0, filling))
        p = self.patch_size
        grid = rearrange(patterns, "... (r p) (c q) -> ... r c p q", p=p, q=p)
        k = _triangle(rows)
        return grid[..., self.rows[:k], self.columns[:k], :, :].flatten(-2)

    def unpatchify(
        self, patches: Float[Tensor, "*pattern patch pixel"], n_tokens: int | None = None
    ) -> Float[Tensor, "*pattern query key"]:
        """Put patches back; what lies in patches above the diagonal is 0.

        Args:
            patches: As `patchify` makes them.
            n_tokens: The patterns' side (default: `n_ctx`).

        Raises:
            ValueError: When the number of patches or pixels does not fit `n_tokens`.
        """
        n_tokens = self.n_ctx if n_tokens is None else n_tokens
        rows = self.n_rows_for(n_tokens)
        expected = (_triangle(rows), self.n_pixels)
        if tuple(patches.shape[-2:]) != expected:
            raise ValueError(
                f"expected (patch, pixel) = {expected} for {n_tokens} tokens, "
                f"got {tuple(patches.shape[-2:])}"
            )
        p = self.patch_size
        grid = patches.new_zeros(*patches.shape[:-2], rows, rows, p, p)
        k = expected[0]
        grid[..., self.rows[:k], self.columns[:k], :, :] = patches.unflatten(-1, (p, p))
        whole = rearrange(grid, "... r c p q -> ... (r p) (c q)")
        return whole[..., :n_tokens, :n_tokens]


def _triangle(rows: int) -> int:
    return rows * (rows + 1) // 2


def _side(patterns: Tensor) -> int:
    if patterns.ndim < 2 or patterns.shape[-1] != patterns.shape[-2]:
        raise ValueError(
            "expected square patterns (..., query, key), got shape "
            f"{tuple(patterns.shape)}; a step of generation with a KV cache has only one query"
        )
    return patterns.shape[-1]
