"""How far the predicting position's attention departs from what AP-MAE expects of it.

The last grid row of patches, which holds the query that predicts, is hidden and filled in from the
rest of the pattern. What is left over is the part of that query's attention that neither the head's
habits nor the prompt's earlier queries foretell: a use of the autoencoder that its embedding does
not have, since one query is a 32nd of the pixels of its patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from aplens.mae import APMAE

#: What `patch_surprise` computes, in its order, in log-normalized units.
SURPRISES = (
    "last_error",  # mean squared difference over the last query's keys
    "last_shift",  # mean difference: attends more (or less) broadly than expected
    "last_most",  # the largest difference: the key that is attended to most unexpectedly
    "last_attended",  # mean difference, weighted by the attention itself
)


def patch_surprise(
    mae: APMAE,
    scaled: Float[Tensor, "pattern patch pixel"],
    attention: Float[Tensor, "pattern query key"],
    precision: torch.dtype | None = None,
) -> Float[Tensor, "pattern 4"]:
    """Compare the last query's attention with what AP-MAE fills in for it.

    Args:
        mae: The AP-MAE.
        scaled: The patterns' log-normalized lower-triangular patches.
        attention: The patterns, of prompts of one length.
        precision: As for `APMAE.fill_in`.

    Returns:
        The numbers that `SURPRISES` names.

    Raises:
        ValueError: When the prompt is no longer than one patch: nothing is left to see.
    """
    n, p = attention.shape[-1], mae.grid.patch_size
    require_surprise(mae, n)
    last_row = mae.grid.last_row(n)
    mask = torch.zeros(scaled.shape[1], dtype=torch.bool, device=scaled.device)
    mask[last_row] = True
    filled = mae.fill_in(scaled, mask.expand(len(scaled), -1), n_tokens=n, precision=precision)
    difference = (scaled - filled)[:, last_row].unflatten(-1, (p, p))
    of_query = difference[:, :, (n - 1) % p].flatten(1)[:, :n]
    weights = attention[:, -1].to(of_query)
    return torch.stack(
        [
            of_query.square().mean(-1),
            of_query.mean(-1),
            of_query.amax(-1),
            (weights * of_query).sum(-1),
        ],
        dim=-1,
    )


def require_surprise(mae: APMAE, n_tokens: int) -> None:
    """Refuse prompts of which nothing is left to see when the last query's patches are hidden.

    Raises:
        ValueError: When `n_tokens` is not more than one patch.
    """
    if n_tokens <= mae.grid.patch_size:
        raise ValueError(
            f"surprise needs prompts longer than one patch, {mae.grid.patch_size} tokens for this "
            f"AP-MAE, got {n_tokens}"
        )
