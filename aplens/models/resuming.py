"""Going on from a layer: runs that differ only after it need not compute what comes before."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from aplens.models.info import describe_model, probe_tokens

_suffices: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


@dataclass
class Residuals:
    """The residual stream as it enters some layers.

    Attributes:
        by_layer: `Float[Tensor, "batch pos d_model"]`, by layer.
        n_outputs: How many values a block returns as a tuple; 0 where it returns the stream itself.
    """

    by_layer: dict[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
    n_outputs: int = 0

    def as_output(self, residual: Float[Tensor, "batch pos d_model"]) -> Any:
        """The stream in the form in which a block returns it."""
        return residual if self.n_outputs == 0 else (residual, *[None] * (self.n_outputs - 1))


@contextmanager
def keep_residuals(
    model: Any, layers: Iterable[int], residuals: Residuals | None = None
) -> Iterator[Residuals]:
    """Keep the residual stream entering each of these layers, in what runs inside the block.

    Args:
        model: A HookedTransformer or TransformerBridge.
        layers: The layers.
        residuals: Where to keep it (default: a new one).
    """
    kept = residuals or Residuals()

    def keeping(layer: int) -> Any:
        # On the block's input, not hook_resid_pre: TransformerBridge's hooks may see another form.
        def keep(block: Any, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            stream = inputs[0] if inputs else options["hidden_states"]
            kept.by_layer[layer] = stream.detach()

        return keep

    def note_form(block: Any, inputs: Any, output: Any) -> None:
        kept.n_outputs = len(output) if isinstance(output, tuple) else 0

    handles = [
        model.blocks[layer].register_forward_pre_hook(keeping(layer), with_kwargs=True)
        for layer in layers
    ]
    handles.append(model.blocks[-1].register_forward_hook(note_form))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def start_at(model: Any, layer: int, residuals: Residuals, n_copies: int = 1) -> Iterator[None]:
    """Let forward passes inside the block begin at a layer.

    The blocks before it are passed over: they compute nothing, and none of their hooks fires. What
    was kept stands for them, so hooks that were in force when it was kept have acted. Those of this
    layer and later ones act as usual. The model is to be given the same tokens as then.

    Right only where `can_start_midway`.

    Args:
        model: A HookedTransformer or TransformerBridge.
        layer: Where to begin; 0 changes nothing.
        residuals: As `keep_residuals` kept them, with this layer among them.
        n_copies: How many times the batch of tokens repeats what was kept.
    """
    describe_model(model)  # which runs it when it never did before, and must run all of it
    skipped = [model.blocks[number] for number in range(layer)]
    # In its dictionary, because a bridge's blocks hand what is set on to what they wrap. There may
    # be one already, of accelerate or of whoever changed the block.
    before = [block.__dict__.get("forward") for block in skipped]
    if skipped:
        stream = residuals.by_layer[layer].repeat(n_copies, 1, 1)
    for block in skipped:
        block.__dict__["forward"] = lambda *inputs, **options: residuals.as_output(stream)
    try:
        yield
    finally:
        for block, forward in zip(skipped, before, strict=True):
            if forward is None:
                del block.__dict__["forward"]  # the class's own is back
            else:
                block.__dict__["forward"] = forward


def can_start_midway(model: Any) -> bool:
    """Whether a layer needs of those before it the residual stream alone, as `start_at` assumes.

    Some models share keys and values between layers. The model is asked, on a few tokens, once;
    when it cannot there is a warning. Ask before other hooks are in force.

    Args:
        model: A HookedTransformer or TransformerBridge.
    """
    if model not in _suffices:
        _suffices[model] = _same_from_every_layer(model)
        if not _suffices[model]:
            warnings.warn(
                f"later layers of {describe_model(model).name} need more of earlier ones than the "
                "residual stream: runs that differ only in later layers share nothing, and take "
                "longer",
                stacklevel=3,
            )
    return _suffices[model]


@torch.no_grad()
def _same_from_every_layer(model: Any) -> bool:
    info = describe_model(model)
    tokens = probe_tokens(model)
    layers = range(1, info.n_layers)
    with keep_residuals(model, layers) as residuals:
        expected = model(tokens)
    for layer in layers:
        try:
            with start_at(model, layer, residuals):
                found = model(tokens)
        except Exception:  # whatever the model raises when it misses something
            return False
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            return False
    return True
