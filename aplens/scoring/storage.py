"""How embeddings lie in shards, and how they come back head by head."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor

from aplens.scoring.head_array import HeadArray
from aplens.scoring.packing import pack, unpack
from aplens.scoring.shards import ShardFolder

Storage: TypeAlias = Literal["float16", "packed"]


def store_embeddings(
    embeddings: Float16[Tensor, "head scenario d_embed"], storage: Storage
) -> dict[str, Tensor]:
    """A shard's arrays of embeddings."""
    if storage == "float16":
        return {"embeddings": embeddings}
    codes, scale = pack(embeddings.numpy())
    return {
        "embeddings.codes": torch.from_numpy(codes),
        "embeddings.scale": torch.from_numpy(scale),
    }


def stored_embeddings(shards: ShardFolder) -> HeadArray:
    """The embeddings of all scenarios, in float16 whatever the storage; nothing is read yet."""
    run = shards.run
    shape = (run["n_scenarios"], len(run["heads"]), run["d_embed"])

    def read_head(head: int) -> np.ndarray:
        if run["storage"] == "float16":
            return np.concatenate(list(shards.read_head("embeddings", head)))
        parts = zip(
            shards.read_head("embeddings.codes", head),
            shards.read_head("embeddings.scale", head),
            strict=True,
        )
        return np.concatenate([unpack(*part).astype(np.float16) for part in parts])

    return HeadArray(shape, np.float16, read_head)
