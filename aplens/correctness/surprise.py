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

from aplens.correctness.regions import attention_by_region

if TYPE_CHECKING:
    from aplens.mae import APMAE

#: What "surprise" holds of a pattern, in its order, in log-normalized units.
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
    smallest: Float[Tensor, "pattern 1 1"],
) -> dict[str, Float[Tensor, "pattern number"]]:
    """Compare the last query's attention with what AP-MAE fills in for it.

    The patterns are of prompts of one length, longer than one patch: else nothing is left to see.
    `smallest` is what `aplens.patterns.smallest_log` gives of them.

    Returns:
        "surprise": the numbers that `SURPRISES` names. "unexpected": the share of attention that
        goes to each of `REGIONS`, less the share expected.
    """
    from aplens.mae.habit import fill_in_queries, to_attention

    n = attention.shape[-1]
    filled = fill_in_queries(mae, scaled, n, 1)
    difference = mae.grid.last_query(scaled, n) - filled[:, 0]
    last = attention[:, -1].to(difference)
    numbers = [
        difference.square().mean(-1),
        difference.mean(-1),
        difference.amax(-1),
        (last * difference).sum(-1),
    ]
    return {
        "surprise": torch.stack(numbers, dim=-1),
        "unexpected": attention_by_region(last - to_attention(filled, smallest)[:, 0]),
    }
