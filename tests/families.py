"""Small random models of the families that people use, built without a download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from aplens.models.classes import ModelKind, Placement, build

N_LAYERS, N_HEADS, N_CTX, D_VOCAB, WINDOW = 2, 4, 64, 101, 8


@dataclass(frozen=True)
class Family:
    """A family's smallest member, and what tests must know of it.

    Attributes:
        make: Builds the Hugging Face model.
        projection: Where in it a layer's output projection is.
        windows: For each layer how many keys a query sees, its own included; None for all.
        in_hooked: Whether HookedTransformer (TransformerLens 3) can hold the family.
        value_biases: Whether its values have biases, which compatibility mode folds away.
    """

    make: Callable[[], Any]
    projection: str
    windows: tuple[int | None, ...] = (None,) * N_LAYERS
    in_hooked: bool = True
    value_biases: bool = False


def _sizes(**other: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "vocab_size": D_VOCAB,
        "max_position_embeddings": N_CTX,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **other,
    }


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_embd=32,
        n_positions=N_CTX,
        vocab_size=D_VOCAB,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def _pythia() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**_sizes(rotary_pct=0.25, use_parallel_residual=True)))


def _starcoder2() -> Any:
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    config = Starcoder2Config(**_sizes(num_key_value_heads=2, sliding_window=WINDOW))
    return Starcoder2ForCausalLM(config)


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_sizes(num_key_value_heads=2)))


def _bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        hidden_size=32,
        vocab_size=D_VOCAB,
        seq_length=N_CTX,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return BloomForCausalLM(config)


def _mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_sizes(num_key_value_heads=2, sliding_window=WINDOW)))


def _gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **_sizes(
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
        )
    )
    return Gemma3ForCausalLM(config)


ATTENTION = "model.layers.{}.self_attn.o_proj"
FAMILIES = {
    "gpt2": Family(_gpt2, "transformer.h.{}.attn.c_proj", value_biases=True),
    "pythia": Family(_pythia, "gpt_neox.layers.{}.attention.dense", value_biases=True),
    "starcoder2": Family(
        _starcoder2, ATTENTION, windows=(WINDOW, WINDOW), in_hooked=False, value_biases=True
    ),
    "llama": Family(_llama, ATTENTION),
    "bloom": Family(_bloom, "transformer.h.{}.self_attention.dense", value_biases=True),
    "mistral": Family(_mistral, ATTENTION, windows=(WINDOW, WINDOW)),
    "gemma3": Family(_gemma3, ATTENTION, windows=(WINDOW, None), in_hooked=False),
}


def make_hf(family: str) -> Any:
    """The Hugging Face model, its weights large enough for heads to attend unevenly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family].make().eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    model.set_attn_implementation("eager")
    model.config.architectures = [type(model).__name__]
    return model


def make_model(family: str, kind: ModelKind, dtype: torch.dtype = torch.float32) -> Any:
    """The same model with hooks."""
    hf_model = make_hf(family).to(dtype)
    return build(
        kind, hf_model, None, name=f"tiny-{family}", placement=Placement("cpu"), dtype=dtype
    )
