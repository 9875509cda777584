"""Where the predicting position's attention goes: shares of it by region of the prompt.

A hand-made description like `aplens.correctness.statistics`, finer in where and blind to all else.
It is the baseline of the same shares less what AP-MAE expects of them
(`aplens.correctness.surprise`).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

#: The regions, which share all keys among them. The last three are farther and farther back.
REGIONS = (
    "first",  # the first token
    "self",  # the query's own token
    "previous",  # the one before it
    "near",  # 2 to 8 tokens back
    "middle",  # 9 to 32 tokens back
    "far",  # farther back, but for the first token
)

_NEAR, _MIDDLE = 8, 32


def attention_by_region(
    last: Float[Tensor, "*pattern key"],
) -> Float[Tensor, "*pattern 6"]:
    """Sum the last query's attention over each of `REGIONS`; its own token is the last key."""
    return last.float() @ _members(last.shape[-1], last.device)


@lru_cache(maxsize=16)
def _members(n_tokens: int, device: torch.device) -> Float[Tensor, "key region"]:
    """1 where a key belongs to a region."""
    back = torch.arange(n_tokens - 1, -1, -1)
    region = 1 + torch.bucketize(back, torch.tensor([0, 1, _NEAR, _MIDDLE]))
    region[0] = 0  # whatever its distance
    return torch.nn.functional.one_hot(region, len(REGIONS)).float().to(device)
