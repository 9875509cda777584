"""The low-rank fit: the additive fit, and what few query and key directions add to it.

Before the softmax an attention pattern is a product of queries and keys, so its logarithm is a
low-rank matrix plus one number a query. The additive fit (`aplens.mae.additive`) takes the parts of
it that one number a query, a key and a distance can tell. This fit explains what they leave: every
query and every key gets a short vector, the inner products of which are the remainder. The vectors
are estimated from the visible patches of that one pattern by alternating ridge regressions and
extended into its hidden patches (matrix completion; Hastie et al., 2015). Nothing is trained.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aplens.mae.additive import additive_fit
from aplens.patterns import PatchGrid

#: Length of a query's and a key's vector.
RANK = 16

# The penalty on the vectors, as a multiple of the remainder's standard deviation × √tokens: about
# the largest singular value that noise of this size has. It falls to its last value in equal
# ratios, so that the strong directions settle before the weak ones may join.
_FIRST_PENALTY, _LAST_PENALTY, _ROUNDS = 1.9, 0.31, 6


def low_rank_fit(
    patches: Float[Tensor, "pattern patch pixel"],
    mask: Bool[Tensor, "pattern patch"],
    mean: Float[Tensor, "position pixel"],
    grid: PatchGrid,
) -> Float[Tensor, "pattern patch pixel"]:
    """Predict every patch as its additive fit plus query × key products.

    Args:
        patches: Log-normalized lower-triangular patches in row-major order, 0 above the diagonal.
        mask: True where a patch is hidden. Hidden patches are never read.
        mean: The mean patch at every position, 0 above the diagonal.
        grid: The full patch grid.

    Returns:
        The fit at every patch, visible ones included, in log-normalized units.
    """
    fit = additive_fit(patches, mask, mean, grid)
    return fit.add_(complete(patches - fit, mask, grid))


def complete(
    remainder: Float[Tensor, "pattern patch pixel"],
    mask: Bool[Tensor, "pattern patch"],
    grid: PatchGrid,
) -> Float[Tensor, "pattern patch pixel"]:
    """The low-rank completion of what the additive fit left over of visible patches."""
    n, k, _ = remainder.shape
    p, n_rows = grid.patch_size, grid.n_rows_of(k)
    rows, columns = grid.rows[:k].to(mask.device), grid.columns[:k].to(mask.device)
    seen = _Seen.of(remainder, mask, rows, columns, n_rows)

    keys = _first_keys(n_rows, p, mask.device) * (2 * seen.noise.sqrt())
    keys = keys.flatten(0, 1)
    for penalty in torch.logspace(
        math.log10(_FIRST_PENALTY), math.log10(_LAST_PENALTY), _ROUNDS
    ).tolist():
        damping = penalty * seen.noise * torch.eye(RANK, device=mask.device)
        damping = damping.expand(n, n_rows, RANK, RANK).flatten(0, 1)
        queries = _regress(seen.values, keys, seen.query_block, seen.key_block, damping)
        seen.fill_above_diagonal(queries, keys)
        keys = _regress(seen.values.mT, queries, seen.key_block, seen.query_block, damping)
        seen.fill_above_diagonal(queries, keys)
    queries, keys = queries.unflatten(0, (n, n_rows)), keys.unflatten(0, (n, n_rows))
    products = queries.index_select(1, rows) @ keys.index_select(1, columns).mT
    products[:, rows == columns] *= 1 - seen.above
    return products.flatten(-2)


class _Seen(NamedTuple):
    """The visible patches of all patterns, one after the other.

    Queries and keys lie in blocks of p; block b of pattern n has number n × n_rows + b.
    """

    values: Float[Tensor, "visible p p"]  # those that the diagonal cuts come first
    query_block: Int[Tensor, " visible"]
    key_block: Int[Tensor, " visible"]
    cut: Float[Tensor, "cut p p"]  # those first ones, as they were
    above: Float[Tensor, "p p"]  # 1 where their pixels lie above the diagonal
    noise: Float[Tensor, "pattern 1 1 1"]  # standard deviation × √tokens

    @classmethod
    def of(
        cls,
        remainder: Float[Tensor, "pattern patch pixel"],
        mask: Bool[Tensor, "pattern patch"],
        rows: Int[Tensor, " patch"],
        columns: Int[Tensor, " patch"],
        n_rows: int,
    ) -> _Seen:
        p = math.isqrt(remainder.shape[-1])
        above = torch.ones(p, p, device=mask.device).triu(1)
        n_cut, pattern, patch = _visible(mask, rows == columns)
        place = pattern * remainder.shape[1] + patch
        values = remainder.flatten(0, 1).index_select(0, place).unflatten(-1, (p, p))
        values[:n_cut] *= 1 - above
        pixels = torch.where(rows == columns, p * (p + 1) / 2, float(p * p))
        squares, counts = (
            torch.zeros(len(mask), device=mask.device).index_add_(0, pattern, each)
            for each in (values.square().sum((1, 2)), pixels[patch])
        )
        # A pattern without any remainder still needs a penalty that is not zero.
        deviation = (squares / counts.clamp_min(1)).sqrt().clamp_min(1e-6)
        return cls(
            values=values,
            query_block=pattern * n_rows + rows[patch],
            key_block=pattern * n_rows + columns[patch],
            cut=values[:n_cut].clone(),
            above=above,
            noise=deviation.view(-1, 1, 1, 1) * math.sqrt(n_rows * p),
        )

    def fill_above_diagonal(
        self, queries: Float[Tensor, "block p rank"], keys: Float[Tensor, "block p rank"]
    ) -> None:
        """Let pixels that no pattern has agree with the fit, so that they never pull at it.

        With them filled in, all queries of a block have seen the same keys and share one system of
        equations.
        """
        n_cut = len(self.cut)
        queries = queries.index_select(0, self.query_block[:n_cut])
        products = queries @ keys.index_select(0, self.key_block[:n_cut]).mT
        torch.addcmul(self.cut, products, self.above, out=self.values[:n_cut])


def _visible(
    mask: Bool[Tensor, "pattern patch"], on_diagonal: Bool[Tensor, " patch"]
) -> tuple[int, Int[Tensor, " visible"], Int[Tensor, " visible"]]:
    """How many visible patches lie on the diagonal; pattern and patch of all, those ones first."""
    cut = (~mask & on_diagonal).nonzero()
    pattern, patch = torch.cat([cut, (~mask & ~on_diagonal).nonzero()]).unbind(1)
    return len(cut), pattern, patch


def _regress(
    values: Float[Tensor, "visible p p"],
    others: Float[Tensor, "block p rank"],
    own_block: Int[Tensor, " visible"],
    other_block: Int[Tensor, " visible"],
    damping: Float[Tensor, "block rank rank"],
) -> Float[Tensor, "block p rank"]:
    """Ridge regression of every query on the keys it was seen with; or of keys on queries."""
    # `index_select` copies whole blocks; indexing, number by number, takes twice as long.
    gram = (others.mT @ others).index_select(0, other_block)
    normal = damping.index_add(0, own_block, gram)
    seen = values @ others.index_select(0, other_block)
    target = torch.zeros_like(others).index_add_(0, own_block, seen)
    # Many small systems: inverting the triangles, then products, takes half as long as solving.
    triangle = torch.linalg.cholesky(normal)
    identity = torch.eye(normal.shape[-1], device=normal.device).expand_as(normal)
    inverse = torch.linalg.solve_triangular(triangle, identity, upper=False)
    return target @ (inverse.mT @ inverse)


@lru_cache(maxsize=16)
def _first_keys(n_rows: int, p: int, device: torch.device) -> Float[Tensor, "1 n_rows p rank"]:
    """Any directions will do to start from; the same ones always, whatever the random state."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(n_rows * p, RANK, generator=generator) / math.sqrt(n_rows * p)
    return directions.view(1, n_rows, p, RANK).to(device)
