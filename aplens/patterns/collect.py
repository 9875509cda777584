"""Reading attention patterns out of a hooked model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aplens.heads import Head, HeadsLike, parse_heads
from aplens.models import (
    attach_hooks,
    describe_model,
    last_token_logits,
    pattern_hook_name,
    run_until,
)
from aplens.patterns.soundness import refuse_broken_patterns
from aplens.prompts import Prompts, PromptsLike, read_prompts
from aplens.tables import Shown

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens import ActivationCache

Result = TypeVar("Result")

#: More attention than this on padding means that the model was run without an attention mask.
_LEAK = 1e-3

_PATTERN_HOOK = re.compile(r"blocks\.(\d+)\.attn\.hook_pattern")


@dataclass(frozen=True, repr=False)
class AttentionPatterns(Shown):
    """Attention probabilities of some heads on some prompts.

    Prompts of several lengths stand in the corner of the longest's, zeros around them.

    Attributes:
        values: `Float[Tensor, "batch head query key"]`, probabilities over keys.
        heads: The heads, in the order of `values`' second dimension.
        lengths: `Int[Tensor, "batch"]`, tokens of each prompt (default: all as long as `values`).

    Raises:
        ValueError: When the shape is not (batch, head, query, key) with as many heads as named and
            as many queries as keys, or lengths are not one for each prompt between 1 and that.
    """

    values: Float[Tensor, "batch head query key"]
    heads: tuple[Head, ...]
    lengths: Int[Tensor, " batch"] = None  # type: ignore[assignment]  # all, set below

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if len(shape) != 4 or shape[1] != len(self.heads) or shape[2] != shape[3]:
            raise ValueError(
                f"expected (batch, {len(self.heads)} heads, query, key) with query = key, "
                f"got shape {shape}"
            )
        if self.lengths is None:
            object.__setattr__(self, "lengths", torch.full(shape[:1], shape[2]))
        lengths = self.lengths.tolist()
        if len(lengths) != shape[0] or not all(1 <= length <= shape[2] for length in lengths):
            raise ValueError(
                f"expected {shape[0]} lengths of 1 to {shape[2]} tokens, got {lengths}"
            )

    @classmethod
    def from_cache(cls, cache: Mapping[str, Tensor] | ActivationCache) -> AttentionPatterns:
        """The patterns in what `model.run_with_cache` kept, of all layers that it has.

        Args:
            cache: The `ActivationCache`, or a dictionary by the names of hooks. Of a single prompt
                it may lack the batch dimension. Prompts that were padded have to be taken apart
                with `unpad`.

        Raises:
            ValueError: When it holds no patterns.
        """
        by_layer = {
            int(found[1]): cache[name]
            for name in cache.keys()  # noqa: SIM118  # an ActivationCache iterates otherwise
            if (found := _PATTERN_HOOK.fullmatch(name))
        }
        if not by_layer:
            raise ValueError(
                "this cache has no attention patterns: run_with_cache keeps them as "
                f"{pattern_hook_name(0)!r} unless its names_filter leaves them out"
            )
        layers = sorted(by_layer)
        device = by_layer[layers[0]].device  # a model may be spread over several
        values = torch.cat([by_layer[layer].to(device) for layer in layers], dim=-3)
        heads = [Head(layer, h) for layer in layers for h in range(by_layer[layer].shape[-3])]
        return cls(values if values.ndim == 4 else values[None], tuple(heads))

    def to(self, *device_or_dtype: Any) -> AttentionPatterns:
        """The same patterns on another device or in another format, as `Tensor.to` has it."""
        return AttentionPatterns(self.values.to(*device_or_dtype), self.heads, self.lengths)

    def __len__(self) -> int:
        """Prompts."""
        return self.values.shape[0]

    def __repr__(self) -> str:
        shortest = int(self.lengths.min()) if len(self) else 0
        tokens = "" if shortest == self.n_tokens else f"{shortest} to "
        kind = str(self.values.dtype).removeprefix("torch.")
        return (
            f"AttentionPatterns({len(self)} prompts of {tokens}{self.n_tokens} tokens × "
            f"{len(self.heads)} heads, {kind} on {self.values.device})"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a head: where a query looks, on average over the queries of all prompts.

        Columns: `head`, and `first_token`, `previous_token` and `self`, shares of attention.
        """
        import pandas as pd

        values, n_queries = self.values.float(), int(self.lengths.sum())
        looks = {
            "first_token": values[..., 0],
            "previous_token": values.diagonal(-1, dim1=-2, dim2=-1),
            "self": values.diagonal(dim1=-2, dim2=-1),
        }
        shares = {name: (seen.sum((0, 2)) / n_queries).tolist() for name, seen in looks.items()}
        return pd.DataFrame({"head": [str(head) for head in self.heads], **shares})

    def _shown_rows(self) -> pd.DataFrame:
        return self.to_frame()

    def prompt(self, index: int) -> Float[Tensor, "head query key"]:
        """All heads' patterns on one prompt, no larger than the prompt is long."""
        length = int(self.lengths[index])
        return self.values[index, :, :length, :length]

    def __getitem__(self, head: HeadsLike) -> Float[Tensor, "batch query key"]:
        """The patterns of one head, named in any way `parse_heads` reads.

        Raises:
            KeyError: When that head was not collected.
        """
        (wanted,) = parse_heads(head)
        if wanted not in self.heads:
            raise KeyError(
                f"{wanted} was not collected; these were: {', '.join(map(str, self.heads))}"
            )
        return self.values[:, self.heads.index(wanted)]

    def select(self, prompts: Any) -> AttentionPatterns:
        """The patterns of some prompts: a slice, positions, or a boolean mask."""
        return AttentionPatterns(self.values[prompts], self.heads, self.lengths[prompts])

    def by_length(self) -> Iterator[tuple[Int[Tensor, " some"], AttentionPatterns]]:
        """The prompts of each length by themselves: their places, and their patterns."""
        lengths = self.lengths.unique().tolist()
        if len(lengths) == 1:  # without a copy
            yield torch.arange(len(self)), self.crop(lengths[0])
            return
        for length in lengths:
            rows = (self.lengths == length).nonzero().flatten()
            yield rows, AttentionPatterns(self.values[rows, :, :length, :length], self.heads)

    def crop(self, n_tokens: int) -> AttentionPatterns:
        """The patterns that the first `n_tokens` tokens of the prompts alone would give.

        Exactly so: in a causal model no query sees later tokens. Shorter prompts stay as they are.

        Raises:
            ValueError: When all prompts have fewer tokens, or `n_tokens` is not positive.
        """
        if not 1 <= n_tokens <= self.n_tokens:
            raise ValueError(
                f"cannot crop patterns of {self.n_tokens} tokens to {n_tokens}: expected 1 to "
                f"{self.n_tokens}"
            )
        return AttentionPatterns(
            self.values[..., :n_tokens, :n_tokens], self.heads, self.lengths.clamp(max=n_tokens)
        )

    def unpad(self, attention_mask: Int[Tensor, "batch pos"]) -> AttentionPatterns:
        """The prompts' own patterns, after a forward pass on padded tokens.

        For patterns that a `PatternCollector` took from someone's own loop; `collect_patterns`
        never returns padding.

        Args:
            attention_mask: What the model was given: 1 where a token is the prompt's own. The
                padding may be on either side.

        Raises:
            ValueError: When the shape is wrong, or the prompts' tokens attend to the padding, as
                they do when the model was run without the mask.
        """
        expected = (len(self), self.n_tokens)
        if tuple(attention_mask.shape) != expected:
            raise ValueError(
                f"expected attention_mask {expected}, got {tuple(attention_mask.shape)}"
            )
        own = attention_mask.bool().to(self.values.device)
        leaked = (self.values * (own[:, None, :, None] & ~own[:, None, None, :])).sum(-1).max()
        if leaked > _LEAK:
            raise ValueError(
                f"the prompts' tokens pay up to {leaked.item():.3g} of their attention to padding: "
                "give the model the attention mask, or let collect_patterns run it"
            )
        lengths = own.sum(dim=1).cpu()
        values = self.values.new_zeros(*self.values.shape[:2], *[int(lengths.max())] * 2)
        for target, pattern, keep, length in zip(
            values, self.values, own, lengths.tolist(), strict=True
        ):
            target[:, :length, :length] = pattern[:, keep][:, :, keep]
        return AttentionPatterns(values, self.heads, lengths)

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return self.values.shape[-1]


def as_patterns(patterns: Any) -> Any:
    """An `ActivationCache`, or a dictionary of activations, as `AttentionPatterns`; else itself."""
    is_cache = isinstance(patterns, Mapping) or hasattr(patterns, "cache_dict")
    return AttentionPatterns.from_cache(patterns) if is_cache else patterns


class PatternCollector:
    """Collects patterns from whatever runs inside a `with` block.

    Forward passes add up along the batch. Only this collector's hooks come off at the end, also on
    an exception; what was collected stays readable. Edits that other hooks made before are seen.

    Args:
        model: A HookedTransformer or TransformerBridge.
        heads: Which heads (default: all).

    Raises:
        ValueError: When a head is out of range, or its layer has no attention; in a forward pass,
            when what the model computes there is no attention (see `refuse_broken_patterns`).
        UnsupportedModelError: When the model has no causal attention patterns.
    """

    def __init__(self, model: Any, heads: HeadsLike | None = None) -> None:
        self.model = model
        self.heads = select_heads(model, heads)
        self._indices = _indices_by_layer(self.heads)
        self._passes: list[dict[int, Tensor]] = []
        self._stack = ExitStack()

    def __enter__(self) -> PatternCollector:
        self._stack.enter_context(_see_patterns(self.model, self._indices, self._keep))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _keep(self, layer: int, patterns: Tensor) -> None:
        if not self._passes or layer in self._passes[-1]:  # the layer again: a new forward pass
            self._passes.append({})
        self._passes[-1][layer] = patterns[:, self._indices[layer]]  # a copy

    def clear(self) -> None:
        """Forget what was collected so far."""
        self._passes.clear()

    @property
    def patterns(self) -> AttentionPatterns:
        """Everything collected, forward pass after forward pass.

        Raises:
            ValueError: When nothing was collected, or prompts of several lengths were (use one
                collector, or `clear()`, a length), or generation with a KV cache gave single rows.
        """
        if not self._passes:
            raise ValueError("nothing was collected: run the model inside the with block first")
        batches = [_join_layers(layers, self.heads) for layers in self._passes]
        shapes = {tuple(batch.shape[-2:]) for batch in batches}
        if len(shapes) > 1:
            raise ValueError(
                f"forward passes of different (query, key) lengths were collected: "
                f"{sorted(shapes)}; clear() between lengths, and generate without a KV cache"
            )
        return AttentionPatterns(torch.cat(batches), self.heads)


def collect_patterns(
    model: Any,
    prompts: PromptsLike,
    heads: HeadsLike | None = None,
    batch_size: int | None = None,
    *,
    prepend_bos: bool | None = None,
) -> AttentionPatterns:
    """Patterns of the chosen heads; the forward pass stops after the last layer needed.

    Everything is held at once: 270 heads on 256 tokens take 71 MB a prompt in float32. For many
    prompts use `stream_patterns`.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: Text, token ids, a tokenizer's output, scenarios, of any lengths; see
            `aplens.prompts.read_prompts`.
        heads: Which heads (default: all).
        batch_size: Prompts a forward pass (default: all in one).
        prepend_bos: Whether texts begin with BOS (default: as the model does).

    Raises:
        ValueError: When a head is out of range, prompts are empty, too long, or not the model's, or
            what the model computes is no attention.
        TypeError: When `prompts` is no form of prompts.
        UnsupportedModelError: When the model has no causal attention patterns.
    """
    chosen = select_heads(model, heads)
    read = read_prompts(model, prompts, prepend_bos=prepend_bos)
    last_layer = max(head.layer for head in chosen)
    values = []
    for batch in read.split(batch_size or len(read)):
        with PatternCollector(model, chosen) as collector:
            run_until(model, batch.tokens, last_layer)
        padding = read.n_tokens - batch.n_tokens
        patterns = _without_padding(collector.patterns, batch)
        values.append(F.pad(patterns.values, (0, padding, 0, padding)))
    return AttentionPatterns(torch.cat(values), chosen, read.lengths.cpu())


@torch.no_grad()
def stream_patterns(
    model: Any,
    prompts: PromptsLike,
    heads: HeadsLike | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[slice, AttentionPatterns, Float[Tensor, "batch d_vocab"]]]:
    """Run prompts batch by batch; memory does not grow with their number.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: Texts, token ids or a tokenizer's output: anything `read_prompts` takes.
        heads: Which heads (default: all).
        batch_size: Prompts a forward pass.

    Yields:
        Which prompts these are, their patterns, and the logits after their last token.

    Raises:
        ValueError: When a head is out of range, prompts are empty, too long, or not the model's, or
            what the model computes is no attention.
        TypeError: When `prompts` is no form of prompts.
        UnsupportedModelError: When the model has no causal attention patterns.
    """
    chosen = select_heads(model, heads)
    start = 0
    for batch in read_prompts(model, prompts).split(batch_size):
        with PatternCollector(model, chosen) as collector:
            logits = last_token_logits(model, batch.tokens, batch.lengths)
        yield (
            slice(start, start + len(batch)),
            _without_padding(collector.patterns, batch),
            logits,
        )
        start += len(batch)


@torch.no_grad()
def read_layers(
    model: Any,
    prompts: Prompts,
    read: Callable[[AttentionPatterns], Result],
    heads: tuple[Head, ...] | None = None,
) -> tuple[list[Result], Float[Tensor, "batch d_vocab"]]:
    """Run prompts once, and look at the patterns of each layer while the model has them.

    No pattern is copied or kept, so that this costs the forward pass and what `read` does. The
    patterns are the model's own memory: `read` must not change them.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: On the model's device.
        read: Called with the heads of one layer, layer by layer. Prompts of several lengths are
            padded on the right, as for `AttentionPatterns`, but queries beyond a prompt's end are
            not zeroed: `AttentionPatterns.prompt` and `by_length` leave them out.
        heads: Which heads, layer by layer (default: all).

    Returns:
        What `read` returned for each layer that has such heads, and the logits after each prompt's
        last token.

    Raises:
        ValueError: When what the model computes is no attention.
        UnsupportedModelError: When the model has no causal attention patterns.
    """
    info, lengths = describe_model(model), prompts.lengths.cpu()
    results: list[Result] = []

    by_layer = _indices_by_layer(heads or info.heads)

    def look(layer: int, patterns: Tensor) -> None:
        indices = by_layer[layer]
        if len(indices) < info.n_heads:
            patterns = patterns[:, indices]
        of = tuple(Head(layer, head) for head in indices)
        with torch.autocast(patterns.device.type, enabled=False):  # that is for the model alone
            results.append(read(AttentionPatterns(patterns, of, lengths)))

    with _see_patterns(model, by_layer, look):
        logits = last_token_logits(model, prompts.tokens, prompts.lengths)
    return results, logits


def select_heads(model: Any, heads: HeadsLike | None) -> tuple[Head, ...]:
    """The heads asked for, checked against the model; all that have patterns when None."""
    info = describe_model(model)
    if heads is None:
        return info.heads
    chosen = parse_heads(heads, info)
    if not chosen:
        raise ValueError("no heads were chosen: the selection is empty")
    blind = [head for head in chosen if head.layer not in info.attention_layers]
    if blind:
        raise ValueError(
            f"{', '.join(map(str, blind))}: these layers of {info.name} have no attention patterns"
        )
    return chosen


def _without_padding(patterns: AttentionPatterns, prompts: Prompts) -> AttentionPatterns:
    """Patterns of prompts padded on the right, zero where query or key is padding."""
    lengths = prompts.lengths.cpu()
    if int(lengths.min()) == prompts.n_tokens:
        return patterns
    # What a prompt's own queries pay to padding is 0 already: it comes later.
    own = prompts.mask.to(patterns.values.device)[:, None, :, None]
    return AttentionPatterns(patterns.values * own, patterns.heads, lengths)


@contextmanager
def _see_patterns(
    model: Any, layers: Iterable[int], see: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Inside the block `see` is called with each of these layers and its heads' patterns."""

    def tell(layer: int, patterns: Tensor, hook: Any) -> None:
        see(layer, patterns.detach())

    hooks = [(pattern_hook_name(layer), partial(tell, layer)) for layer in layers]
    with refuse_broken_patterns(model, layers), attach_hooks(model, hooks):
        yield


def _indices_by_layer(heads: tuple[Head, ...]) -> dict[int, list[int]]:
    indices: dict[int, list[int]] = {}
    for layer, head in heads:
        indices.setdefault(layer, []).append(head)
    return indices


def _join_layers(
    layers: dict[int, Tensor], heads: tuple[Head, ...]
) -> Float[Tensor, "batch head query key"]:
    """One tensor over all heads, in the order they were asked for."""
    wanted = _indices_by_layer(heads)
    missing = sorted(set(wanted) - set(layers))
    if missing:
        raise ValueError(f"a forward pass stopped before layers {missing}, whose heads were chosen")
    device = layers[next(iter(wanted))].device  # a model may be spread over several
    found = [layers[head.layer][:, wanted[head.layer].index(head.head)] for head in heads]
    return torch.stack([patterns.to(device) for patterns in found], dim=1)
