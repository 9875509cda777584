"""The families that most tests run on: small random models, built without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from zoo import D_VOCAB, N_HEADS, N_LAYERS, WINDOW, ZOO, make

from aplens.models.classes import ModelKind, build

__all__ = ["D_VOCAB", "FAMILIES", "N_HEADS", "N_LAYERS", "Family", "make_hf", "make_model"]


@dataclass(frozen=True)
class Family:
    """What tests must know of a family.

    Attributes:
        projection: Where in Hugging Face's model a layer's output projection is.
        windows: For each layer how many keys a query sees, its own included; None for all.
        in_hooked: Whether HookedTransformer (TransformerLens 3) can hold the family.
        value_biases: Whether its values have biases, which compatibility mode folds away.
        edits_patterns: Whether a bridge takes up patterns that hooks return.
    """

    projection: str
    windows: tuple[int | None, ...] = (None,) * N_LAYERS
    in_hooked: bool = True
    value_biases: bool = False
    edits_patterns: bool = True


ATTENTION = "model.layers.{}.self_attn.o_proj"
FAMILIES = {
    "gpt2": Family("transformer.h.{}.attn.c_proj", value_biases=True),
    "pythia": Family("gpt_neox.layers.{}.attention.dense", value_biases=True),
    "opt": Family(
        "model.decoder.layers.{}.self_attn.out_proj", value_biases=True, edits_patterns=False
    ),
    "starcoder2": Family(ATTENTION, windows=(WINDOW, WINDOW), in_hooked=False, value_biases=True),
    "llama": Family(ATTENTION),
    "bloom": Family("transformer.h.{}.self_attention.dense", value_biases=True),
    "mistral": Family(ATTENTION, windows=(WINDOW, WINDOW)),
    "gemma3": Family(ATTENTION, windows=(WINDOW, None), in_hooked=False),
}


def make_hf(family: str) -> Any:
    """The Hugging Face model, its weights large enough for heads to attend unevenly."""
    model = make(ZOO[family])
    model.config.architectures = [type(model).__name__]
    return model


def make_model(family: str, kind: ModelKind, dtype: torch.dtype = torch.float32) -> Any:
    """The same model with hooks."""
    hf_model = make_hf(family).to(dtype)
    return build(kind, hf_model, None, name=f"tiny-{family}", device="cpu", dtype=dtype)
