"""Refusing attention that is no probabilities, where the model computes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aplens.heads import Head
from aplens.models import describe_model, pattern_hook_name

#: How far above 1 a row may sum: this, and twice the rounding of the pattern's type.
_ROUNDING = 1e-3


@contextmanager
def refuse_broken_patterns(model: Any, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Let forward passes inside the block fail at a layer whose patterns are no probabilities.

    TransformerLens puts zeros where a softmax is NaN, so that a head with a broken weight looks
    like one that attends to nothing. Each query's attention has to sum to 1, or, as attention sinks
    take their share, to less but more than 0. Queries at a prompt's start that a mask lets see
    nothing, in no head of the layer, are padding and may have zeros.

    What is looked at is the model's own pattern, before any hook: what hooks make of it, zeros
    among it, is their owner's wish.

    Args:
        model: A HookedTransformer or TransformerBridge.
        layers: Layers with attention (default: all).

    Raises:
        ValueError: In the forward pass; layer, head, prompt, query and the sum are named.
    """
    info = describe_model(model)
    points = model.hook_dict  # a bridge gathers them anew each time
    with ExitStack() as stack:
        for layer in info.attention_layers if layers is None else layers:
            check = partial(_check, layer=layer, name=info.name)
            point = points[pattern_hook_name(layer)]
            # Not add_hook, which adds to the end: others' hooks would have acted before.
            stack.enter_context(point.register_forward_hook(check, prepend=True))
        yield


@torch.no_grad()
def _check(
    point: Any,
    inputs: Any,
    pattern: Float[Tensor, "batch head query key"],
    *,
    layer: int,
    name: str,
) -> None:
    if pattern.is_meta:  # shapes without numbers
        return
    sums = pattern.sum(dim=-1, dtype=torch.float32)
    most = 1 + _ROUNDING + 2 * torch.finfo(pattern.dtype).eps
    smallest, largest = torch.stack(sums.aminmax()).tolist()
    if smallest > 0 and largest <= most:  # which NaN is not
        return
    sound = ((sums > 0) & (sums <= most)) | _sees_nothing(sums)[:, None]
    if sound.all():
        return
    prompt, head, query = (~sound).nonzero()[0].tolist()
    total = sums[prompt, head, query].item()
    dropout = "; so does dropout, which model.eval() switches off" if point.training else ""
    raise ValueError(
        f"the attention of {Head(layer, head)} of {name} is broken: that of query {query} of "
        f"prompt {prompt} in the batch sums to {total:.4g}, expected 1 (or less, but more than 0, "
        "with attention sinks). NaN or infinity in the head's weights or in what it reads does "
        f"this{dropout}"
    )


def _sees_nothing(sums: Float[Tensor, "batch head query"]) -> Bool[Tensor, "batch query"]:
    """Queries before a prompt's first token, where it was padded on the left and masked."""
    from_start = (sums == 0).all(dim=1).cummin(dim=1).values
    return from_start & ~from_start[:, -1:]
