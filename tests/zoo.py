"""Families and variants of causal language models, small and random, as Hugging Face folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

N_LAYERS, N_HEADS, N_CTX, D_VOCAB, WINDOW = 2, 4, 128, 101, 8

_SIZES = {
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GPT2_SIZES = {
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "n_embd": 32,
    "n_positions": N_CTX,
    "vocab_size": D_VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_HEADS_OF_8 = {**_GROUPED, "head_dim": 8}
_GEMMA = {**_SIZES, "num_key_value_heads": 1, "head_dim": 16}
_BLOOM_SIZES = {"n_layer": N_LAYERS, "n_head": N_HEADS, "hidden_size": 32, "vocab_size": D_VOCAB}
_SWITCHED = ["sliding_attention", "full_attention"]
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_THETA = {"rope_theta": 1e4}


@dataclass(frozen=True)
class Variant:
    """One configuration of a family.

    Attributes:
        family: What transformers' classes of it begin with, such as "Llama".
        options: Of its configuration.
        hooked: Whether HookedTransformer (TransformerLens 3) holds the same model.
        refused_on: The versions of TransformerLens on which no class does.
        head: What the class with a language model's head is called.
        config: What the configuration's class is called.
    """

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    hooked: bool = False
    refused_on: tuple[int, ...] = ()
    head: str = "ForCausalLM"
    config: str = "Config"


def _llama(hooked: bool = False, **rope: Any) -> Variant:
    return Variant("Llama", {**_GROUPED, "rope_parameters": {**_THETA, **rope}}, hooked=hooked)


ZOO = {
    "gpt2": Variant("GPT2", _GPT2_SIZES, head="LMHeadModel", hooked=True),
    "gpt-neo": Variant(
        "GPTNeo",
        {
            **_SIZES,
            "intermediate_size": 128,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": WINDOW,
            "attention_types": [[["global", "local"], 1]],
        },
        hooked=True,
    ),
    "gpt-j": Variant("GPTJ", {**_GPT2_SIZES, "rotary_dim": 4}, hooked=True),
    "codegen": Variant("CodeGen", {**_GPT2_SIZES, "rotary_dim": 4}),
    "gpt-bigcode": Variant("GPTBigCode", _GPT2_SIZES),
    "pythia": Variant("GPTNeoX", {**_SIZES, "rotary_pct": 0.25}, hooked=True),
    "pythia, sequential": Variant(
        "GPTNeoX", {**_SIZES, "use_parallel_residual": False}, hooked=True
    ),
    "opt": Variant("OPT", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, hooked=True),
    "opt, projected": Variant(
        "OPT", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    ),
    "xglm": Variant(
        "XGLM", {**_SIZES, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}
    ),
    "bloom": Variant("Bloom", {**_BLOOM_SIZES, "seq_length": N_CTX}, hooked=True),
    "mpt": Variant(
        "Mpt",
        {
            "n_layers": 2,
            "n_heads": 4,
            "d_model": 32,
            "vocab_size": D_VOCAB,
            "max_seq_len": N_CTX,
            "expansion_ratio": 2,
        },
    ),
    "falcon": Variant("Falcon", {**_SIZES, "multi_query": True, "alibi": False}),
    "falcon, new layout": Variant(
        "Falcon",
        {**_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
        refused_on=(3, 4),
    ),
    "falcon, alibi": Variant("Falcon", {**_SIZES, "alibi": True, "multi_query": False}),
    "phi": Variant("Phi", _SIZES),
    "phi3": Variant("Phi3", {**_GROUPED, "sliding_window": WINDOW}, hooked=True),
    "phi3, longrope": Variant(
        "Phi3",
        {
            **_GROUPED,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                **_THETA,
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0, 3.0, 4.0, 8.0],
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama": Variant("Llama", _GROUPED, hooked=True),
    "llama, linear rope": _llama(rope_type="linear", factor=4.0),
    "llama, dynamic rope": _llama(
        rope_type="dynamic", factor=4.0, original_max_position_embeddings=64, hooked=True
    ),
    "llama, yarn rope": _llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "llama, llama3 rope": _llama(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
        hooked=True,
    ),
    "llama, mlp bias": Variant("Llama", {**_GROUPED, "mlp_bias": True}),
    "llama, attention bias": Variant("Llama", {**_GROUPED, "attention_bias": True}),
    "llama, wide heads": Variant("Llama", {**_GROUPED, "head_dim": 16}),
    "mistral": Variant("Mistral", {**_GROUPED, "sliding_window": WINDOW}, hooked=True),
    "mistral, no window": Variant("Mistral", {**_GROUPED, "sliding_window": None}, hooked=True),
    "mixtral": Variant("Mixtral", {**_GROUPED, "num_local_experts": 4}, hooked=True),
    "qwen2": Variant("Qwen2", _GROUPED, hooked=True),
    "qwen2, window": Variant(
        "Qwen2",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen2-moe": Variant("Qwen2Moe", {**_GROUPED, **_MOE, "shared_expert_intermediate_size": 24}),
    "qwen3": Variant("Qwen3", _HEADS_OF_8, hooked=True),
    "qwen3-moe": Variant("Qwen3Moe", {**_HEADS_OF_8, **_MOE}),
    "gemma": Variant("Gemma", _GEMMA),
    "gemma2": Variant("Gemma2", {**_GEMMA, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}),
    "gemma3": Variant(
        "Gemma3",
        {**_GEMMA, "query_pre_attn_scalar": 16, "sliding_window": WINDOW, "layer_types": _SWITCHED},
        config="TextConfig",
    ),
    "starcoder2": Variant("Starcoder2", {**_GROUPED, "sliding_window": WINDOW}),
    "stablelm": Variant("StableLm", {**_SIZES, "num_key_value_heads": 4}),
    "cohere": Variant("Cohere", {**_GROUPED}, refused_on=(3,)),
    "cohere2": Variant(
        "Cohere2", {**_GROUPED, "sliding_window": WINDOW, "layer_types": _SWITCHED}, refused_on=(3,)
    ),
    "granite": Variant(
        "Granite",
        {
            **_GROUPED,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 2.0,
            "logits_scaling": 2.0,
        },
    ),
    "olmo": Variant("Olmo", _GROUPED),
    "olmo2": Variant("Olmo2", _GROUPED),
    "olmo3": Variant(
        "Olmo3", {**_GROUPED, "sliding_window": WINDOW, "layer_types": _SWITCHED}, hooked=True
    ),
    "olmoe": Variant(
        "Olmoe",
        {**_SIZES, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2},
        hooked=True,
    ),
    "smollm3": Variant("SmolLM3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    "glm": Variant("Glm", {**_HEADS_OF_8}),
    "glm4": Variant("Glm4", {**_HEADS_OF_8}),
    "gpt-oss": Variant(
        "GptOss",
        {
            **_HEADS_OF_8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": _SWITCHED,
            "rope_parameters": {**_THETA, "rope_type": "default"},
        },
        hooked=True,
    ),
    "nemotron": Variant("Nemotron", _GROUPED),
    "exaone4": Variant("Exaone4", {**_GROUPED, "sliding_window": WINDOW, "layer_types": _SWITCHED}),
    "seed-oss": Variant("SeedOss", _HEADS_OF_8),
    "apertus": Variant("Apertus", _GROUPED, hooked=True),
    "ernie4.5": Variant("Ernie4_5", _GROUPED),
    "granite-moe": Variant(
        "GraniteMoe", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "llama4": Variant(
        "Llama4",
        {
            **_HEADS_OF_8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": WINDOW,
        },
        config="TextConfig",
    ),
    "gemma4": Variant(
        "Gemma4",
        {
            **_HEADS_OF_8,
            "sliding_window": WINDOW,
            "layer_types": _SWITCHED,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
        config="TextConfig",
    ),
    "deepseek-v3": Variant(
        "DeepseekV3",
        {
            **_SIZES,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt": Variant("OpenAIGPT", _GPT2_SIZES, head="LMHeadModel"),
    "helium": Variant("Helium", _HEADS_OF_8, refused_on=(3, 4)),
    "persimmon": Variant("Persimmon", _SIZES, refused_on=(3, 4)),
    "mamba": Variant(
        "Mamba",
        {"num_hidden_layers": 2, "hidden_size": 16, "vocab_size": 50, "state_size": 4},
        refused_on=(3, 4),
    ),
}


def make(variant: Variant) -> Any:
    """The Hugging Face model, its weights large enough for heads to attend unevenly."""
    import transformers

    config = getattr(transformers, variant.family + variant.config)(**variant.options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class = getattr(transformers, variant.family + variant.head)
        attention = None if variant.family == "Mamba" else "eager"
        model = model_class._from_config(config, attn_implementation=attention).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def save(variant: Variant, folder: Path) -> Any:
    """The model, after it was saved as a folder."""
    model = make(variant)
    model.save_pretrained(folder)
    return model
