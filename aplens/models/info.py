"""Facts about a hooked model, and the refusal of models that have no causal attention patterns."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from aplens._io import fingerprint, hash_tensors
from aplens.heads import Head, ModelShape
from aplens.models.classes import ModelKind, UnsupportedModelError, first_parameter, kind_of
from aplens.models.hooks import attach_hooks, pattern_hook_name, run_until

#: Values of a parameter that `sketch_weights` reads.
_SKETCHED = 1024

_described: weakref.WeakKeyDictionary[Any, ModelInfo] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class ModelInfo(ModelShape):
    """What aplens needs to know of a model.

    Attributes:
        name: The model's name, for labels and fingerprints.
        kind: "hooked" or "bridge".
        n_layers: All layers, also those without attention.
        n_heads: Query heads a layer.
        d_head: Width of one head's output.
        n_ctx: The longest prompt, in tokens.
        attention_layers: The layers that have attention patterns (all, but for hybrid models).
        device: Where the embeddings live.
        dtype: The parameters' type.
    """

    kind: ModelKind
    d_head: int
    n_ctx: int
    attention_layers: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @property
    def shape(self) -> ModelShape:
        """What results keep of the model."""
        return ModelShape(self.name, self.n_layers, self.n_heads)

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every head that has patterns, layer by layer."""
        return tuple(
            Head(layer, head) for layer in self.attention_layers for head in range(self.n_heads)
        )


def describe_model(model: Any) -> ModelInfo:
    """Look at a hooked model once, and refuse one that aplens cannot work with.

    Raises:
        UnsupportedModelError: When it is no HookedTransformer or TransformerBridge, has no
            attention patterns (Mamba), or attends to later tokens (BERT).
    """
    kind = kind_of(model)
    if kind is None:
        raise UnsupportedModelError(
            "expected a HookedTransformer or a TransformerBridge of a causal language model as the "
            f"model, which comes first; got {type(model).__name__}"
        )
    cached = _described.get(model)
    if cached is not None:
        parameter = first_parameter(model)  # it may have moved or changed type since
        if (parameter.device, parameter.dtype) == (cached.device, cached.dtype):
            return cached
    info = _inspect(model, kind)
    _described[model] = info
    return info


def sketch_weights(model: Any) -> str:
    """A short hash of the model's parameters: of their shapes, and of values spread over each.

    Whoever trains on changes every parameter, so that this tells, without reading gigabytes. The
    same weights as a HookedTransformer and as a TransformerBridge differ in it. Of parameters that
    are offloaded only the shape counts.
    """
    parameters = dict(model.named_parameters())
    shapes = {name: list(value.shape) for name, value in parameters.items()}
    some = {name: _spread(value) for name, value in parameters.items() if not value.is_meta}
    return fingerprint([shapes, hash_tensors(some)])


def _spread(value: Tensor) -> Tensor:
    """At most twice `_SKETCHED` of a tensor's values, at even steps."""
    flat = value.detach().flatten()
    return flat[:: max(1, len(flat) // _SKETCHED)]


def _inspect(model: Any, kind: ModelKind) -> ModelInfo:
    name = str(model.cfg.model_name)
    layers = _attention_layers(model, name)
    _require_causal(model, name, layers[0])
    parameter = first_parameter(model)
    return ModelInfo(
        name=name,
        kind=kind,
        n_layers=int(model.cfg.n_layers),
        n_heads=int(model.cfg.n_heads),
        d_head=int(model.cfg.d_head),
        n_ctx=int(model.cfg.n_ctx),
        attention_layers=layers,
        device=parameter.device,
        dtype=parameter.dtype,
    )


def _attention_layers(model: Any, name: str) -> tuple[int, ...]:
    hooks = model.hook_dict
    layers = tuple(
        layer for layer in range(int(model.cfg.n_layers)) if pattern_hook_name(layer) in hooks
    )
    if not layers:
        raise UnsupportedModelError(
            f"{name} has no attention patterns: no layer has {pattern_hook_name(0)!r}"
        )
    return layers


def probe_tokens(model: Any) -> Int[Tensor, "1 pos"]:
    """Three tokens to try a model on, or as many as its context takes."""
    tokens = torch.arange(1, 1 + min(3, int(model.cfg.n_ctx)), device=first_parameter(model).device)
    d_vocab = int(model.cfg.d_vocab)
    return (tokens % d_vocab if d_vocab > 0 else tokens)[None]


def _require_causal(model: Any, name: str, layer: int) -> None:
    """Ask the model itself, on a few tokens: configurations do not say it reliably."""
    seen: list[torch.Tensor] = []
    tokens = probe_tokens(model)
    n_tokens = tokens.shape[1]
    try:
        with attach_hooks(
            model, [(pattern_hook_name(layer), lambda pattern, hook: seen.append(pattern))]
        ):
            run_until(model, tokens, layer)
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} cannot run on plain tokens as a causal language model does: {error}"
        ) from error
    if not seen:
        raise UnsupportedModelError(
            f"{name} ran, but {pattern_hook_name(layer)!r} never fired: its attention "
            "implementation computes no pattern (load it with attn_implementation='eager')"
        )
    shape = tuple(seen[0].shape)
    expected = (1, int(model.cfg.n_heads), n_tokens, n_tokens)
    if shape != expected:
        raise UnsupportedModelError(
            f"{name}: expected patterns of shape (batch, head, query, key) = {expected} on "
            f"{n_tokens} tokens, got {shape}"
        )
    if seen[0].triu(diagonal=1).any():
        raise UnsupportedModelError(
            f"{name} attends to later tokens: AP-MAE reads causal (lower-triangular) patterns only"
        )
