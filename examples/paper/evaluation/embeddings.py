"""The ways to pool an AP-MAE's tokens that probes and predictors compare."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from aplens.mae import APMAE

_ALL_POOLS = ("cls", "mean", "last_query")
_PATTERNS_AT_ONCE = 64

#: What is compared, by its name in tables.
POOLS = {
    "cls": ("cls",),
    "last_query": ("last_query",),
    "mean": ("mean",),
    "cls + last_query": ("cls", "last_query"),
    "cls + last_query + mean": ("cls", "last_query", "mean"),
}


@torch.no_grad()
def encode_all_pools(
    mae: APMAE, scaled: Float[Tensor, "pattern query key"]
) -> Float[Tensor, "pattern 3*dim"]:
    """Every pool of log-normalized patterns, side by side, from one encoding."""
    patches = mae.grid.patchify(scaled.to(mae.device))
    return torch.cat(
        [
            mae.encode_patches(some, pool=_ALL_POOLS, n_tokens=scaled.shape[-1])
            for some in patches.split(_PATTERNS_AT_ONCE)
        ]
    ).cpu()


def select_pools(
    embeddings: Float[np.ndarray, "... 3*dim"], pools: tuple[str, ...]
) -> Float[np.ndarray, "... dim*pool"]:
    """Some of the pools that `encode_all_pools` put side by side."""
    blocks = dict(zip(_ALL_POOLS, np.split(embeddings, len(_ALL_POOLS), axis=-1), strict=True))
    return np.concatenate([blocks[pool] for pool in pools], axis=-1)
