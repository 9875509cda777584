"""Whether a hooked model computes what the Hugging Face model computes that it was made from.

TransformerLens converts the options of a configuration that it knows, and passes over the others
without a word: the result runs, and is another model. So both are run once and compared.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens.models.classes import own_context, text_config
from aplens.models.hooks import attach_hooks, last_token_logits, pattern_hook_name
from aplens.models.info import UnsupportedModelError, describe_model

#: Tokens that are compared where nothing in the configuration begins to act later.
_FEW_TOKENS = 32
#: How far past the first position that a window or a rope switch acts on.
_BEYOND = 8
#: The largest difference, relative to the largest value, that is rounding.
_TOLERANCE = 1e-3
#: More than this many tokens only where a pass costs at most so many multiplications and numbers.
_MANY_TOKENS, _COSTLY, _LARGE = 512, 1e12, 2**28
#: Ropes that compute something else for prompts longer than those the model was trained on.
_SWITCHING = ("dynamic", "longrope")


@dataclass(frozen=True)
class OriginalRun:
    """One forward pass of the Hugging Face model.

    Attributes:
        tokens: `Int[Tensor, "1 pos"]`, drawn once and for all from the whole vocabulary.
        patterns: Of each layer that has any, `Float[Tensor, "1 head query key"]`.
        logits: `Float[Tensor, "1 d_vocab"]`, after the last token.
    """

    tokens: Int[Tensor, "1 pos"]
    patterns: tuple[Float[Tensor, "1 head query key"], ...]
    logits: Float[Tensor, "1 d_vocab"]


@dataclass(frozen=True)
class Difference:
    """The largest differences between two models, each relative to the original's largest value.

    Attributes:
        patterns: Of attention probabilities, over all layers; None where there are none.
        logits: Of the logits after the last token.
        dtype: The type that both computed in.
    """

    patterns: float | None
    logits: float
    dtype: torch.dtype

    @property
    def is_rounding(self) -> bool:
        """Whether both are the same model."""
        # Half precision rounds in every layer anew.
        allowed = max(_TOLERANCE, 8 * torch.finfo(self.dtype).eps)
        return self.logits <= allowed and (self.patterns is None or self.patterns <= allowed)

    def __str__(self) -> str:
        logits = f"the logits by {self.logits:.2g} of the largest"
        if self.patterns is None:
            return f"{logits} (patterns have no counterpart)"
        return f"attention patterns differ by up to {self.patterns:.2g}, {logits}"


@torch.no_grad()
def run_original(hf_model: Any) -> OriginalRun:
    """Run a Hugging Face model with eager attention once, as `difference` does the hooked one.

    Before TransformerBridge wraps it: from then on the model computes what the bridge does.

    Raises:
        UnsupportedModelError: When it does not run on plain tokens, or its logits are not finite.
    """
    name = type(hf_model).__name__
    try:
        embedding = hf_model.get_input_embeddings()
        tokens = torch.randint(
            embedding.num_embeddings,
            (1, _n_tokens(hf_model)),
            generator=torch.Generator().manual_seed(0),
        ).to(embedding.weight.device)
        everything = torch.ones_like(tokens)
        with _last_position_only(hf_model):
            output = hf_model(tokens, attention_mask=everything, output_attentions=True)
    except (MemoryError, torch.OutOfMemoryError):  # `verify=False` needs less
        raise
    except Exception as error:  # whatever a model raises that reads something else than tokens
        raise UnsupportedModelError(
            f"a {name} cannot run on plain tokens as a causal language model does: {error}"
        ) from error
    logits = output.logits[:, -1]
    if not logits.isfinite().all():
        raise UnsupportedModelError(
            f"this {name}'s own logits are not finite: are weights damaged?"
        )
    layers = getattr(output, "attentions", None) or ()
    patterns = tuple(layer for layer in layers if isinstance(layer, Tensor) and layer.ndim == 4)
    return OriginalRun(tokens, patterns, logits)


def _last_position_only(hf_model: Any) -> AbstractContextManager[object]:
    """Unembed no other position inside the block: a vocabulary may be most of a small model."""
    head = hf_model.get_output_embeddings()
    if head is None:
        return nullcontext()
    handle: AbstractContextManager[object] = head.register_forward_pre_hook(
        lambda module, inputs: (inputs[0][:, -1:], *inputs[1:])
    )
    return handle


@torch.no_grad()
def difference(model: Any, original: OriginalRun) -> Difference:
    """Run the hooked model on the same tokens and compare patterns of every layer, and logits."""
    info = describe_model(model)
    seen: list[Tensor] = []
    hooks = [
        (pattern_hook_name(layer), lambda pattern, hook: seen.append(pattern))
        for layer in info.attention_layers
    ]
    with attach_hooks(model, hooks):
        logits = last_token_logits(model, original.tokens.to(info.device))
    patterns = None
    if len(seen) == len(original.patterns):
        pairs = zip(seen, original.patterns, strict=True)
        patterns = max(_largest(found, expected) for found, expected in pairs)
    return Difference(patterns, _largest(logits, original.logits), info.dtype)


def _largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected value."""
    if found.shape != expected.shape:
        return math.inf
    expected = expected.float()
    gap = (found.to(expected.device).float() - expected).abs().max()
    share = float(gap / expected.abs().max())
    return share if math.isfinite(share) else math.inf


def _n_tokens(hf_model: Any) -> int:
    """As many as pass every position at which the model begins to compute something else."""
    config = text_config(hf_model.config)
    longest = own_context(hf_model.config) or _FEW_TOKENS
    n_tokens = min(_FEW_TOKENS, longest)
    for window in _windows(config):
        wanted = min(window + _BEYOND, longest)
        if window >= longest or wanted <= n_tokens:
            continue
        if not _is_cheap(hf_model, config, wanted):
            warnings.warn(
                f"this {type(hf_model).__name__} was compared with Hugging Face's on {n_tokens} "
                f"tokens: what it does beyond {window:,} was not tried",
                stacklevel=2,
            )
            break
        n_tokens = wanted
    if any(rope.get("rope_type", "default") != "default" for rope in _ropes(config)):
        # Scaled at every position, but little at the first ones.
        n_tokens = max(n_tokens, min(_MANY_TOKENS, longest))
    return n_tokens


def _windows(config: Any) -> list[int]:
    """Numbers of tokens beyond which attention or its rotary positions change, smallest first."""
    keys = ("sliding_window", "window_size", "attention_chunk_size")
    limits = [getattr(config, key, None) for key in keys]
    if not getattr(config, "use_sliding_window", True):
        limits = []
    own = getattr(config, "original_max_position_embeddings", None)
    limits += [
        rope.get("original_max_position_embeddings") or own
        for rope in _ropes(config)
        if rope.get("rope_type") in _SWITCHING
    ]
    return sorted({limit for limit in limits if isinstance(limit, int)})


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """One rope's parameters, or those of each type of layer."""
    parameters = getattr(config, "rope_parameters", None)
    if isinstance(parameters, dict):
        nested = [value for value in parameters.values() if isinstance(value, dict)]
        yield from nested or [parameters]


def _is_cheap(hf_model: Any, config: Any, n_tokens: int) -> bool:
    if n_tokens <= _MANY_TOKENS:
        return True
    patterns = int(config.num_hidden_layers) * int(config.num_attention_heads) * n_tokens**2
    return hf_model.num_parameters() * n_tokens <= _COSTLY and patterns <= _LARGE
