"""A head's habit: the attention that AP-MAE expects of a query from the rest of the pattern.

The patches of one row of the grid are hidden and filled in from all other rows. Where a query's
attention departs from what comes out, the head does something of its own on this prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from aplens.mae.model import APMAE


def fill_in_queries(
    mae: APMAE,
    scaled: Float[Tensor, "pattern patch pixel"],
    n_tokens: int,
    n_queries: int,
    precision: torch.dtype | None = None,
) -> Float[Tensor, "pattern {n_queries} key"]:
    """The last queries as AP-MAE fills them in, log-normalized, each grid row by itself."""
    require_visible(mae, n_tokens)
    p, first = mae.grid.patch_size, n_tokens - n_queries
    rows = range(first // p, mae.grid.n_rows_for(n_tokens))
    filled = []
    for row in rows:
        mask = torch.zeros(scaled.shape[1], dtype=torch.bool, device=scaled.device)
        mask[mae.grid.row(row)] = True
        guess = mae.predict_hidden(
            scaled, mask.expand(len(scaled), -1), n_tokens=n_tokens, precision=precision
        )
        queries = rearrange(guess, "n column (query key) -> n query (column key)", query=p)
        filled.append(F.pad(queries, (0, rows.stop * p - queries.shape[-1])))
    begin = first - rows.start * p
    return torch.cat(filled, dim=1)[:, begin : begin + n_queries, :n_tokens]


def to_attention(
    expected: Float[Tensor, "pattern some_query key"], smallest: Float[Tensor, "pattern 1 1"]
) -> Float[Tensor, "pattern some_query key"]:
    """Undo the log-normalization of the last queries, and let each query's attention sum to 1.

    `smallest` is what `aplens.patterns.smallest_log` gives of the whole patterns.
    """
    some, n = expected.shape[-2:]
    later = torch.ones(n, n, dtype=torch.bool, device=expected.device).triu(1)[n - some :]
    return ((1 - expected) * smallest).masked_fill(later, -torch.inf).softmax(-1)


def require_visible(mae: APMAE, n_tokens: int) -> None:
    """Refuse prompts of which nothing is left to see when one grid row is hidden."""
    if n_tokens <= mae.grid.patch_size:
        raise ValueError(
            "what AP-MAE expects needs prompts longer than one patch, "
            f"{mae.grid.patch_size} tokens for this AP-MAE, got {n_tokens}"
        )
