"""How far the predicting position's attention departs from what AP-MAE expects of it.

The last grid row of patches, which holds the query that predicts, is hidden and filled in from the
rest of the pattern. What is left over is the part of that query's attention that neither the head's
habits nor the prompt's earlier queries foretell: a use of the autoencoder that its embedding does
not have, since one query is a 32nd of the pixels of its patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from aplens.patterns.normalize import smallest_log
from aplens.scoring.regions import attention_by_region

if TYPE_CHECKING:
    from aplens.mae import APMAE

#: What `Surprise.surprise` holds, in its order, in log-normalized units.
SURPRISES = (
    "last_error",  # mean squared difference over the last query's keys
    "last_shift",  # mean difference: attends more (or less) broadly than expected
    "last_most",  # the largest difference: the key that is attended to most unexpectedly
    "last_attended",  # mean difference, weighted by the attention itself
)


class Surprise(NamedTuple):
    """What departs from the expectation.

    Attributes:
        surprise: The numbers that `SURPRISES` names.
        unexpected: The share of attention that goes to each of `REGIONS`, less the share expected.
    """

    surprise: Float[Tensor, "pattern 4"]
    unexpected: Float[Tensor, "pattern 6"]


def patch_surprise(
    mae: APMAE,
    scaled: Float[Tensor, "pattern patch pixel"],
    attention: Float[Tensor, "pattern query key"],
    precision: torch.dtype | None = None,
) -> Surprise:
    """Compare the last query's attention with what AP-MAE fills in for it.

    Args:
        mae: The AP-MAE.
        scaled: The patterns' log-normalized lower-triangular patches.
        attention: The patterns, of prompts of one length.
        precision: As for `APMAE.fill_in`.

    Raises:
        ValueError: When the prompt is no longer than one patch: nothing is left to see.
    """
    n = attention.shape[-1]
    require_surprise(mae, n)
    last_row = mae.grid.last_row(n)
    mask = torch.zeros(scaled.shape[1], dtype=torch.bool, device=scaled.device)
    mask[last_row] = True
    filled = mae.fill_in(scaled, mask.expand(len(scaled), -1), n_tokens=n, precision=precision)
    expected, seen = (
        _last_query(patches[:, last_row], mae.grid.patch_size, n) for patches in (filled, scaled)
    )
    difference = seen - expected
    last = attention[:, -1].to(difference)
    return Surprise(
        torch.stack(
            [
                difference.square().mean(-1),
                difference.mean(-1),
                difference.amax(-1),
                (last * difference).sum(-1),
            ],
            dim=-1,
        ),
        attention_by_region(last - _to_attention(expected, attention)),
    )


def _last_query(
    patches: Float[Tensor, "pattern some pixel"], patch_size: int, n_tokens: int
) -> Float[Tensor, "pattern key"]:
    """The last query's values out of the last grid row of patches."""
    by_query = patches.unflatten(-1, (patch_size, patch_size))
    return by_query[:, :, (n_tokens - 1) % patch_size].flatten(1)[:, :n_tokens]


def _to_attention(
    scaled: Float[Tensor, "pattern key"], attention: Float[Tensor, "pattern query key"]
) -> Float[Tensor, "pattern key"]:
    """Undo the log-normalization of a filled-in query, and let its attention sum to 1 again."""
    smallest = smallest_log(attention.float())[:, 0].to(scaled)
    return ((1 - scaled) * smallest).softmax(-1)


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
