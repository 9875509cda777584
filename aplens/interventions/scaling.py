"""Heads' outputs multiplied by one number a head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from aplens._words import shorten
from aplens.heads import parse_heads
from aplens.models import ModelInfo, attach_hooks, describe_model, z_hook_name

ScalesLike: TypeAlias = "Mapping[Any, float] | Float[np.ndarray | Tensor, 'layer head']"


@contextmanager
def scale_heads(
    model: Any,
    scales: ScalesLike | None = None,
    *,
    per_prompt: Sequence[ScalesLike] | Float[Tensor, "prompt layer head"] | None = None,
) -> Iterator[None]:
    """Multiply the output of heads by a number, at every position, inside the `with` block.

    1 leaves a head as it is, 0 is `ablate_heads`, 2 doubles what it writes, and a negative number
    turns it round. The hook sits on `hook_z`, before the output projection, so that a bias of the
    projection stays. It comes off when the block ends, also by an exception; hooks of others stay.
    Blocks nest: scales multiply. Acts under `model.generate` on the prompt and every new token.

    Gradients flow through to everything before the heads, and, where `scales` is a tensor that
    asks for one, to the scales.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scales: For every prompt alike: a table from heads, as `parse_heads` names them, to numbers,
            where a key may name several heads and heads that are not named keep 1; or one number
            for every head, `[layer, head]`.
        per_prompt: Instead of `scales`: one of these for each prompt of the batch, or a tensor
            `[prompt, layer, head]`.

    Raises:
        ValueError: On entry: a head is out of range or named twice, a number is not finite, an
            array is not `[layer, head]` of this model, or both or neither of `scales` and
            `per_prompt` are given. In the forward pass: the batch is not the size of `per_prompt`.
        TypeError: On entry: something is no table of numbers.
    """
    info = describe_model(model)
    if (scales is None) == (per_prompt is None):
        raise ValueError("give either scales (for every prompt) or per_prompt (one a prompt)")
    if per_prompt is None:
        table = read_scales(scales, info)[None]  # type: ignore[arg-type]  # one of both is given
    else:
        table = _read_per_prompt(per_prompt, info)
    hooks = [
        (z_hook_name(layer), partial(_scale, scales=table[:, layer], per_prompt=scales is None))
        for layer in range(info.n_layers)
        if table.requires_grad or (table[:, layer] != 1).any()
    ]
    with attach_hooks(model, hooks):
        yield


def _scale(
    z: Float[Tensor, "batch pos head d_head"],
    hook: Any,
    scales: Float[Tensor, "prompt head"],
    per_prompt: bool,
) -> Tensor:
    if per_prompt and len(scales) != len(z):
        raise ValueError(f"per_prompt has scales for {len(scales)} prompts, the batch has {len(z)}")
    if z.ndim != 4 or z.shape[2] != scales.shape[1]:
        raise ValueError(
            f"expected head outputs [batch, pos, {scales.shape[1]} heads, d_head], "
            f"got shape {tuple(z.shape)}"
        )
    return z * scales[:, None, :, None].to(z)


def _read_per_prompt(
    per_prompt: Sequence[ScalesLike] | Tensor, info: ModelInfo
) -> Float[Tensor, "prompt layer head"]:
    if isinstance(per_prompt, str | Mapping) or not hasattr(per_prompt, "__len__"):
        raise TypeError(
            "per_prompt must be a sequence with one table of scales for each prompt, "
            f"got {shorten(per_prompt)}"
        )
    if len(per_prompt) == 0:
        raise ValueError("per_prompt must have scales for at least one prompt, got none")
    return torch.stack([read_scales(scales, info) for scales in per_prompt])


def read_scales(scales: ScalesLike, info: ModelInfo) -> Float[Tensor, "layer head"]:
    """One number a head, from a table from heads to numbers or an array `[layer, head]`.

    Heads that a table does not name get 1. A tensor stays part of its graph.

    Raises:
        ValueError: When a head is out of range or named twice, a number is not finite, or an array
            is not `[layer, head]` of this model.
        TypeError: When this is no table of numbers.
    """
    if isinstance(scales, Mapping):
        table = _read_table(scales, info)
    elif isinstance(scales, np.ndarray | Tensor):
        table = torch.as_tensor(scales)
        if not table.requires_grad:
            table = table.to(torch.float32)
        if table.shape != (info.n_layers, info.n_heads):
            raise ValueError(
                f"scales must be [{info.n_layers} layers, {info.n_heads} heads] for {info.name}, "
                f"got shape {tuple(table.shape)}"
            )
    else:
        raise TypeError(
            "scales must be a table from heads to numbers or an array [layer, head], got "
            f"{shorten(scales)} of type {type(scales).__name__}"
        )
    broken = (~table.detach().isfinite()).nonzero()
    if len(broken):
        layer, head = broken[0].tolist()
        raise ValueError(f"the scale of L{layer}H{head} is {table[layer, head].item()}, not finite")
    return table


def _read_table(scales: Mapping[Any, Any], info: ModelInfo) -> Float[Tensor, "layer head"]:
    table = torch.ones(info.n_layers, info.n_heads)
    seen = set()
    for names, scale in scales.items():
        if isinstance(scale, bool) or not isinstance(scale, int | float | np.number | Tensor):
            raise TypeError(f"the scale of {names} must be a number, got {shorten(scale)}")
        for head in parse_heads(names, info):
            if head in seen:
                raise ValueError(f"scales name {head} twice")
            seen.add(head)
            table[head] = float(scale)
    return table
