"""Clean, corrupted and patched runs, which both kinds of patching are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens.circuits.metrics import CountedMetric
from aplens.heads import Head
from aplens.models import (
    Residuals,
    attach_hooks,
    can_start_midway,
    describe_model,
    keep_residuals,
    run_model,
    start_at,
)
from aplens.models.hooks import HookFunction
from aplens.patterns.soundness import refuse_broken_patterns
from aplens.prompts import PromptsLike, read_prompts

HeadActivation: TypeAlias = Literal["z", "q", "k", "v", "pattern"]


def patch_heads(
    run: CorruptedRun,
    cache: dict[str, Tensor],
    metric: CountedMetric,
    activation: HeadActivation,
    rows: Sequence[tuple[Head, int | None]],
) -> list[float]:
    """The metric with `cache`'s activation of each head, at one position or all, in the run."""
    import pandas as pd
    from transformer_lens import patching

    by_position = rows[0][1] is not None
    if activation == "pattern":
        columns = ["layer", "head", "pos"] if by_position else ["layer", "head"]
        setters = (
            patching.layer_head_pattern_patch_setter,
            patching.layer_head_pos_pattern_patch_setter,
        )
    else:
        columns = ["layer", "pos", "head"] if by_position else ["layer", "head"]
        setters = (
            patching.layer_head_vector_patch_setter,
            patching.layer_pos_head_vector_patch_setter,
        )
    index = pd.DataFrame(
        [{"layer": head.layer, "head": head.head, "pos": position} for head, position in rows]
    )[columns]
    runner: Any = run
    given: Any = cache
    with _without_bar(patching):
        values: Any = patching.generic_activation_patch(
            runner, run.tokens, given, metric, setters[by_position], activation, index_df=index
        )
    return values.tolist()


class CorruptedRun:
    """The run of the corrupted prompts, and again with hooks from the first layer they change.

    It stands for the model in `generic_activation_patch`: the model's own `run_with_hooks` would,
    with a tokenizer that pads on the left, take the prompts' first tokens for padding, and would
    pass over a hook that the model does not have.

    Args:
        model: A HookedTransformer or TransformerBridge.
        tokens: The corrupted prompts.
        layers: Where patched runs will begin.
        names: Hooks whose activations are kept.

    Attributes:
        logits: Of the run with nothing patched.
        cache: What the hooks named saw in it.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "batch pos"],
        layers: Iterable[int],
        names: Iterable[str] = (),
    ) -> None:
        self.model, self.cfg, self.tokens = model, model.cfg, tokens
        self._residuals = Residuals()
        with keep_residuals(model, layers if can_start_midway(model) else (), self._residuals):
            self.logits, self.cache = run_with_cache(model, tokens, names)

    @contextmanager
    def from_layer(self, layer: int) -> Iterator[None]:
        """Let runs inside the block begin at a layer, or at the first where they have to."""
        first = layer if layer in self._residuals.by_layer else 0
        with start_at(self.model, first, self._residuals):
            yield

    def run_with_hooks(
        self, tokens: Int[Tensor, "batch pos"], fwd_hooks: list[tuple[str, HookFunction]]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits with hooks, each of which is named `blocks.{layer}.…`."""
        first = min(int(name.split(".")[1]) for name, _ in fwd_hooks)
        with self.from_layer(first), attach_hooks(self.model, fwd_hooks):
            return run_model(self.model, tokens)


@contextmanager
def _without_bar(patching: Any) -> Iterator[None]:
    """TransformerLens draws a bar that no argument turns off."""
    bar = patching.tqdm
    patching.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        patching.tqdm = bar


def run_with_cache(
    model: Any, tokens: Int[Tensor, "batch pos"], names: Iterable[str] = ()
) -> tuple[Float[Tensor, "batch pos d_vocab"], dict[str, Tensor]]:
    """The logits, and what the hooks named saw."""
    cache: dict[str, Tensor] = {}
    hooks = [(name, keeping(cache, name)) for name in names]
    with refuse_broken_patterns(model), attach_hooks(model, hooks):
        return run_model(model, tokens), cache


def keeping(cache: dict[str, Tensor], name: str) -> HookFunction:
    """A hook that keeps a copy: patching changes activations in place."""

    def keep(value: Tensor, hook: Any) -> None:
        cache[name] = value.clone()

    return keep


def hook_name(activation: str, layer: int) -> str:
    """The hook on an activation of a layer's heads, its residual stream or its MLP."""
    of_layer = activation in ("resid_pre", "resid_post", "mlp_out")
    return (
        f"blocks.{layer}.hook_{activation}"
        if of_layer
        else f"blocks.{layer}.attn.hook_{activation}"
    )


def read_pair(
    model: Any, clean: PromptsLike, corrupted: PromptsLike
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Tokens of both, position by position comparable."""
    first, second = read_prompts(model, clean), read_prompts(model, corrupted)
    if first.tokens.shape != second.tokens.shape:
        raise ValueError(
            "clean and corrupted must have the same shape (prompt, pos), got "
            f"{tuple(first.tokens.shape)} and {tuple(second.tokens.shape)}"
        )
    if not torch.equal(first.lengths, second.lengths):
        raise ValueError(
            "each corrupted prompt must be as long as its clean one, got lengths "
            f"{first.lengths.tolist()} and {second.lengths.tolist()}"
        )
    return first.tokens, second.tokens


def require_evaluation_mode(model: Any) -> None:
    """Dropout would differ from run to run; a HookedTransformer has none."""
    info = describe_model(model)
    if info.kind == "bridge" and any(module.training for module in model.modules()):
        raise ValueError(f"{info.name} is in training mode: call model.eval() before patching")


def require_query_heads(model: Any, cache: dict[str, Tensor]) -> None:
    """Refuse activations that are not one for each query head: keys and values may be shared."""
    info = describe_model(model)
    for name, value in cache.items():
        n_heads = value.shape[1 if name.endswith("pattern") else 2]
        if n_heads != info.n_heads:
            raise ValueError(
                f"{name} of {info.name} has {n_heads} heads, shared by {info.n_heads} query heads "
                "(grouped-query attention): it cannot be patched for one head alone; 'q' can"
            )
