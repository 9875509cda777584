"""Reading and changing activations through a model's own hook points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens.models.classes import first_parameter, kind_of

HookFunction: TypeAlias = Callable[[Tensor, Any], Tensor | None]


def pattern_hook_name(layer: int) -> str:
    """The hook on a layer's attention probabilities, `Float[Tensor, "batch head query key"]`."""
    return f"blocks.{layer}.attn.hook_pattern"


def z_hook_name(layer: int) -> str:
    """The hook on the heads' outputs before the output projection.

    Its tensor is `Float[Tensor, "batch pos head d_head"]`.
    """
    return f"blocks.{layer}.attn.hook_z"


@contextmanager
def attach_hooks(model: Any, hooks: Iterable[tuple[str, HookFunction]]) -> Iterator[None]:
    """Attach hooks for the length of a `with` block.

    Exactly these come off at its end, also on an exception; every other hook stays. They also see
    passes made through `run_with_hooks`, `run_with_cache` and `generate`.

    Args:
        model: A HookedTransformer or TransformerBridge.
        hooks: Pairs of a hook's name and `function(tensor, hook)`, which may return a replacement.

    Raises:
        ValueError: When the model has no hook of that name; nothing is attached then.
    """
    points = model.hook_dict
    pairs = list(hooks)
    for name, _ in pairs:
        if name not in points:
            raise ValueError(f"{model.cfg.model_name} has no hook named {name!r}")
    attached: list[tuple[Any, Any]] = []
    try:
        for name, function in pairs:
            point = points[name]
            point.add_hook(function)
            attached.append((point, point.fwd_hooks[-1]))
        yield
    finally:
        for point, handle in attached:
            handle.hook.remove()
            # The model's own reset_hooks() may have taken it already.
            point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]


def compute_in(model: Any, precision: torch.dtype | None) -> AbstractContextManager[object]:
    """Let a model's matrix products run in this precision inside the block; None changes nothing.

    Raises:
        ValueError: When the precision is neither None nor torch.bfloat16.
    """
    if precision is None:
        return nullcontext()
    if precision != torch.bfloat16:
        raise ValueError(f"precision must be None or torch.bfloat16, got {precision!r}")
    return torch.autocast(first_parameter(model).device.type, dtype=precision)


def run_model(model: Any, tokens: Int[Tensor, "batch pos"], **options: Any) -> Any:
    """`model(tokens)`, in which every token counts.

    A HookedTransformer whose tokenizer pads on the left takes tokens that look like padding (GPT-2
    pads with the end-of-text token) for padding, unless it is told otherwise.
    """
    tokenizer = getattr(model, "tokenizer", None)
    pads_left = getattr(tokenizer, "padding_side", "right") == "left"
    if kind_of(model) == "hooked" and pads_left:
        options["attention_mask"] = torch.ones_like(tokens)
    return model(tokens, **options)


@torch.no_grad()
def run_until(model: Any, tokens: Int[Tensor, "batch pos"], last_layer: int) -> None:
    """Run the model for its hooks' sake and stop after `last_layer`."""
    if last_layer + 1 < model.cfg.n_layers:
        run_model(model, tokens, stop_at_layer=last_layer + 1)
    else:
        last_token_logits(model, tokens)


def last_token_logits(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch d_vocab"]:
    """Logits after the last token of each prompt; no other position is unembedded.

    What reaches the unembedding is cut to the last position, so that everything before and after it
    (final norm, soft caps) runs as the model does it. Other hooks in force act as usual; a hook on
    the unembedding sees one position.

    Args:
        model: A HookedTransformer or TransformerBridge.
        tokens: Prompts; padded on the right where they are shorter.
        lengths: Tokens of each prompt (default: all of them).
    """

    def keep_last(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        residual = inputs[0]
        if lengths is None:
            return (residual[:, -1:], *inputs[1:])
        rows = torch.arange(len(residual), device=residual.device)
        return (residual[rows, lengths.to(residual.device) - 1][:, None], *inputs[1:])

    handle = model.unembed.register_forward_pre_hook(keep_last)
    try:
        return run_model(model, tokens)[:, -1]
    finally:
        handle.remove()
