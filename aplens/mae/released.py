"""The paper's released checkpoints, in aplens's terms: what their keys and names of weights mean.

Such a folder holds `config.json` of `model_type` "ap_mae" and `model.safetensors`
(docs/released-checkpoints.md). Both architectures are the same but for their names, once the
decoder is told to see nothing but CLS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from aplens._words import shorten
from aplens.mae.config import APMAEConfig

if TYPE_CHECKING:
    from aplens.mae.model import APMAE

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

# The weights of a block.
_PARTS = {
    "norm1": "0.norm",
    "attn.qkv": "0.to_qkv",
    "attn.proj": "0.to_out.0",
    "norm2": "1.net.0",
    "mlp.fc1": "1.net.1",
    "mlp.fc2": "1.net.4",
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


def stored_names(mae: APMAE) -> dict[str, str]:
    """What a released checkpoint calls each weight of `mae` that it holds.

    An attention of a single head as wide as the model has no output projection there.
    """
    without = tuple(f"{half}." for half in _halves_without_projection(mae.config))
    return {
        name: _stored_name(name)
        for name in mae.state_dict()
        if not (name.startswith(without) and ".attn.proj." in name)
    }


@torch.no_grad()
def bypass_absent_projections(mae: APMAE) -> None:
    """Make the output projections that a released checkpoint does not have hand on their input."""
    stored = stored_names(mae)
    for name, value in mae.state_dict().items():  # the model's own memory
        if name not in stored:
            value.copy_(torch.eye(len(value)) if name.endswith(".weight") else torch.tensor(0.0))


def _halves_without_projection(config: APMAEConfig) -> list[str]:
    sizes = {
        "encoder": (config.encoder_heads, config.encoder_d_head, config.encoder_dim),
        "decoder": (config.decoder_heads, config.decoder_d_head, config.decoder_dim),
    }
    return [half for half, (heads, d_head, dim) in sizes.items() if heads == 1 and d_head == dim]


def _stored_name(name: str) -> str:
    in_block = re.fullmatch(r"(\w+)\.transformer\.blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if in_block:
        half, block, part, kind = in_block.groups()
        return f"{half}.transformer.layers.{block}.{_PARTS[part]}.{kind}"
    return name.replace("patch_embedding", "patches_to_embedding").replace(
        "positions", "pos_embedding"
    )


def _in_their_terms(message: str) -> str:
    for ours, theirs in _KEYS.items():
        message = re.sub(rf"\b{ours}\b", theirs, message)
    return message
