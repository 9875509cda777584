"""Sharpen or flatten attention heads' patterns while a block of code runs: one exponent a head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from aplens.interventions import ScalesLike, read_scales
from aplens.models import attach_hooks, describe_model, pattern_hook_name, require_acting


@contextmanager
def sharpen_heads(model: Any, exponents: ScalesLike) -> Iterator[None]:
    """Raise the patterns of heads to a power, each query's attention summing to what it did.

    Where `scale_heads` changes how loud a head is, this changes where it looks: an exponent of 1
    leaves a pattern as it is, above 1 each query attends more to what it attends to most, below 1
    more evenly, and with 0 evenly to every key that it can see. It is an inverse temperature of the
    attention scores. The hook sits on `hook_pattern` and comes off when the block ends, also by an
    exception; hooks of others stay. Blocks nest: exponents multiply. Acts under `model.generate` on
    the prompt and every new token.

    Gradients flow through, and, where `exponents` is a tensor that asks for one, to the exponents:
    that is how `learn_gates(acts_on="pattern")` learns.

    Args:
        model: A HookedTransformer or TransformerBridge.
        exponents: As `scales` of `scale_heads`.

    Raises:
        ValueError: As `scale_heads`.
        TypeError: As `scale_heads`.
        UnsupportedModelError: On entry: the model does not take up patterns that hooks return, as
            the bridges of OPT, GPT-J, GPT-Neo, XGLM, Llama 4 and Gemma 4, whose attention
            TransformerLens leaves to Hugging Face.
    """
    info = describe_model(model)
    table = read_scales(exponents, info)
    layers = [
        layer for layer in range(info.n_layers) if table.requires_grad or (table[layer] != 1).any()
    ]
    require_acting(model, "pattern", layers)
    hooks = [
        (pattern_hook_name(layer), partial(_sharpen, exponents=table[layer])) for layer in layers
    ]
    with attach_hooks(model, hooks):
        yield


def _sharpen(
    pattern: Float[Tensor, "batch head query key"], hook: Any, exponents: Float[Tensor, " head"]
) -> Float[Tensor, "batch head query key"]:
    if pattern.ndim != 4 or pattern.shape[1] != len(exponents):
        raise ValueError(
            f"expected patterns [batch, {len(exponents)} heads, query, key], "
            f"got shape {tuple(pattern.shape)}"
        )
    exact = pattern.float()
    seen = exact > 0
    # A query that sees nothing, such as a padded one, stays as it is: its softmax is of nothing.
    sees = seen.any(dim=-1, keepdim=True)
    logs = exact.where(seen, 1).log() * exponents[:, None, None].to(exact)
    powers = logs.masked_fill(~seen & sees, float("-inf")).softmax(dim=-1)
    # A model with attention sinks has rows that sum to less than 1.
    sharpened = (powers * exact.sum(dim=-1, keepdim=True)).to(pattern)
    if exponents.requires_grad:
        return sharpened
    # Nothing is rounded where nothing changes.
    return pattern.where((exponents == 1)[:, None, None].to(pattern.device), sharpened)
