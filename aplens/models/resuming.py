"""Going on from a layer: runs that differ only after it need not compute what comes before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from aplens.models.classes import kind_of


@contextmanager
def keep_residuals(
    model: Any, layers: Iterable[int]
) -> Iterator[dict[int, Float[Tensor, "batch pos d_model"]]]:
    """Keep the residual stream entering each of these layers, in what runs inside the block.

    `last_token_logits(model, residuals[layer], lengths, start_at_layer=layer)` goes on from there:
    hooks of earlier layers have acted and do not act again, those of this layer and later ones do.

    Stays empty for models that cannot go on from a layer: TransformerBridge leaves the loop over
    layers to transformers, and shortformer blocks need more than the residual stream.

    Args:
        model: A HookedTransformer or TransformerBridge.
        layers: The layers.
    """
    residuals: dict[int, Tensor] = {}
    if kind_of(model) != "hooked" or model.cfg.positional_embedding_type == "shortformer":
        yield residuals
        return

    def keeping(layer: int) -> Any:
        # On the block's input, not hook_resid_pre: that hook fires again when the layer runs again.
        def keep(block: Any, inputs: tuple[Tensor, ...]) -> None:
            residuals[layer] = inputs[0].detach()

        return keep

    handles = [model.blocks[layer].register_forward_pre_hook(keeping(layer)) for layer in layers]
    try:
        yield residuals
    finally:
        for handle in handles:
            handle.remove()
