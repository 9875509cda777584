"""The paper's released checkpoints, in aplens's terms: what their keys and names of weights mean.

Such a folder holds `config.json` of `model_type` "ap_mae" and `model.safetensors`
(docs/released-checkpoints.md). Both architectures are the same but for their names, once the
decoder is told to see nothing but CLS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aplens._words import shorten
from aplens.mae.config import APMAEConfig

MODEL_TYPE = "ap_mae"

# Fields of APMAEConfig, and the keys that hold them.
_KEYS = {
    "n_ctx": "max_length",
    "patch_size": "patch_size",
    "mask_ratio": "mask_ratio",
    **{
        f"{half}_{ours}": f"{half}_{theirs}"
        for half in ("encoder", "decoder")
        for ours, theirs in (
            ("dim", "dim"),
            ("depth", "layers"),
            ("heads", "heads"),
            ("d_head", "dim_head"),
            ("d_mlp", "mlp_dim"),
        )
    },
    "layer_norm_eps": "layer_norm_eps",
    "qkv_bias": "qkv_bias",
}

# Other keys that change what is computed, with the one value that aplens computes. A checkpoint
# without such a key has that value. The last one is the training script's: how patterns were
# scaled. Dropout is not among them, since it only acts in training.
_FIXED = {"hidden_act": "gelu", "encoder_pool": "cls", "attention_scaler": "log_normalize"}

# The parts of a block, and what they are called here.
_PARTS = {
    "0.norm": "norm1",
    "0.to_qkv": "attn.qkv",
    "0.to_out.0": "attn.proj",
    "1.net.0": "norm2",
    "1.net.1": "mlp.fc1",
    "1.net.4": "mlp.fc2",
}


def read_config(values: Mapping[str, Any]) -> APMAEConfig:
    """The configuration that a released `config.json` describes.

    Keys that do not change what is computed, such as those of transformers or of the training
    script, are passed over.
    """
    missing = sorted(key for key in _KEYS.values() if key not in values)
    if missing:
        raise ValueError(f"missing keys {missing}")
    for key, computed in _FIXED.items():
        if values.get(key, computed) != computed:
            raise ValueError(f"{key} must be {computed!r}, got {shorten(values[key])}")
    try:
        return APMAEConfig(
            **{field: values[key] for field, key in _KEYS.items()},
            patch_input="layer_norm",
            decoder_context="cls",
            base="none",
        )
    except ValueError as error:
        raise ValueError(_in_their_terms(str(error))) from error


def rename(weights: Mapping[str, Tensor], config: APMAEConfig) -> dict[str, Tensor]:
    """A released checkpoint's weights by the names that they have here.

    An attention of a single head as wide as the model has no output projection there; here it has
    one that hands on its input. A name that is none of theirs stays.
    """
    renamed = _absent_projections(config)
    for name, value in weights.items():
        ours = _our_name(name)
        renamed[name if ours in renamed else ours] = value
    return renamed


def _absent_projections(config: APMAEConfig) -> dict[str, Tensor]:
    identities = {}
    for half in ("encoder", "decoder"):
        dim, depth, heads, d_head = (
            getattr(config, f"{half}_{size}") for size in ("dim", "depth", "heads", "d_head")
        )
        for block in range(depth if heads == 1 and d_head == dim else 0):
            projection = f"{half}.transformer.blocks.{block}.attn.proj"
            identities[f"{projection}.weight"] = torch.eye(dim)
            identities[f"{projection}.bias"] = torch.zeros(dim)
    return identities


def _our_name(name: str) -> str:
    in_block = re.fullmatch(r"(\w+)\.transformer\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if in_block and in_block[3] in _PARTS:
        half, block, part, kind = in_block.groups()
        return f"{half}.transformer.blocks.{block}.{_PARTS[part]}.{kind}"
    return name.replace("patches_to_embedding", "patch_embedding").replace(
        "pos_embedding", "positions"
    )


def _in_their_terms(message: str) -> str:
    for ours, theirs in _KEYS.items():
        message = re.sub(rf"\b{ours}\b", theirs, message)
    return message
