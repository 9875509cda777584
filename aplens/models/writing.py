"""Whether what a hook writes reaches what the model computes next.

Some of TransformerBridge's families leave attention to Hugging Face's own code and show its
patterns afterwards: a hook that returns another pattern changes nothing there, without a word.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from aplens.models.hooks import HookFunction, attach_hooks, run_model, z_hook_name
from aplens.models.info import UnsupportedModelError, describe_model, probe_tokens

_inert: weakref.WeakKeyDictionary[Any, dict[str, frozenset[int]]] = weakref.WeakKeyDictionary()

#: Changes of heads' outputs below this share of their size are rounding.
_ROUNDING = 1e-2


def require_acting(model: Any, activation: str, layers: Iterable[int]) -> None:
    """Refuse layers in which what a hook returns for an activation changes no head's output.

    The model is asked once, on a few tokens, whatever other hooks are in force.

    Args:
        model: A HookedTransformer or TransformerBridge.
        activation: "pattern", "q", "k" or "v".
        layers: The layers that are to be changed.

    Raises:
        UnsupportedModelError: When hooks only read there.
    """
    known = _inert.setdefault(model, {})
    if activation not in known:
        known[activation] = _find_inert(model, activation)
    if refused := sorted(known[activation].intersection(layers)):
        raise UnsupportedModelError(
            f"what a hook writes at {_hook_name(activation, refused[0])} of "
            f"{describe_model(model).name} changes nothing: TransformerLens leaves this family's "
            "attention to Hugging Face and only shows it. hook_z works (ablate_heads, scale_heads, "
            "activation_patch(activation='z')), and so does a HookedTransformer, where "
            "TransformerLens 3 has one for the family"
        )


@torch.no_grad()
def _find_inert(model: Any, activation: str) -> frozenset[int]:
    """The layers in which writing does nothing, from one pass.

    The first row of the batch stays as it is, each other one is changed in one layer alone.
    """
    info = describe_model(model)
    tokens = probe_tokens(model)
    if len(tokens.unique()) < 2:
        return frozenset()  # whatever attends to whatever, outputs may be the same
    outputs: dict[int, tuple[Tensor, Tensor]] = {}
    hooks: list[tuple[str, HookFunction]] = []
    readers = []
    points = model.hook_dict  # a bridge gathers them anew each time
    for row, layer in enumerate(info.attention_layers, start=1):
        hooks.append((_hook_name(activation, layer), _changing_row(row, activation)))
        # Before the hooks there, which may be somebody's that replaces what heads write.
        point = points[z_hook_name(layer)]
        readers.append(point.register_forward_pre_hook(_keeping_rows(outputs, layer, row)))
    try:
        with warnings.catch_warnings(), attach_hooks(model, hooks):
            warnings.simplefilter("ignore")  # TransformerLens 4 warns of what is asked here
            run_model(model, tokens.repeat(1 + len(info.attention_layers), 1))
    finally:
        for reader in readers:
            reader.remove()
    return frozenset(
        layer
        for layer, (before, after) in outputs.items()
        if (after - before).norm() <= _ROUNDING * before.norm()
    )


def _hook_name(activation: str, layer: int) -> str:
    return f"blocks.{layer}.attn.hook_{activation}"


def _changing_row(row: int, activation: str) -> HookFunction:
    """Give a row of the batch another activation: each query to itself, or positions reversed."""

    def change(value: Tensor, hook: Any) -> Tensor:
        changed = value.clone()
        if activation == "pattern":
            changed[row] = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        else:
            changed[row] = value[row].flip(0)
        return changed

    return change


def _keeping_rows(
    outputs: dict[int, tuple[Tensor, Tensor]], layer: int, row: int
) -> Callable[[Any, tuple[Tensor, ...]], None]:
    """Keep the heads' outputs of the unchanged row and of the one that is changed here."""

    def keep(point: Any, inputs: tuple[Tensor, ...]) -> None:
        outputs[layer] = (inputs[0][0].float().cpu(), inputs[0][row].float().cpu())

    return keep
