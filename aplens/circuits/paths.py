"""Direct path patching: what one head writes, read by one later head alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from aplens._documents import require_choice
from aplens._progress import Progress, show_progress
from aplens.circuits.metrics import CountedMetric, Metric
from aplens.circuits.runs import (
    CorruptedRun,
    hook_name,
    keeping,
    patch_heads,
    read_pair,
    require_evaluation_mode,
    require_query_heads,
    run_with_cache,
)
from aplens.circuits.table import PatchingTable, make_table
from aplens.heads import Head, HeadsLike
from aplens.models import attach_hooks, describe_model, run_until
from aplens.models.hooks import HookFunction
from aplens.patterns.collect import select_heads
from aplens.prompts import PromptsLike

if TYPE_CHECKING:
    import pandas as pd

PathComponent: TypeAlias = Literal["q", "k", "v"]

#: How far the heads' writes may be from what a layer adds to the residual stream, relatively.
_WRITE_ERROR = 1e-2


@torch.no_grad()
def path_patch(
    model: Any,
    clean: PromptsLike,
    corrupted: PromptsLike,
    senders: HeadsLike,
    receivers: HeadsLike | Literal["logits"] | None = None,
    *,
    metric: Metric,
    component: PathComponent = "q",
    progress: bool | Progress = True,
) -> PatchingTable:
    """Let the direct path from each sender to each receiver alone carry the sender's clean output.

    The corrupted run goes on as it is, but the receiver computes its query (key, value) from the
    residual stream plus what the sender would have written more in the clean run. Everything else,
    MLPs between the two included, keeps seeing the sender's corrupted output. (Wang et al. 2023,
    "Interpretability in the Wild", recompute those MLPs and so count paths through them as direct;
    TransformerLens does not, and nor do we.)

    The numbers are exact, LayerNorm folded or not. Each pair costs one forward pass of the whole
    batch that begins at the receiver's layer, each sender one more. Choose senders well: all pairs
    of SmolLM2's 270 heads are 35 235.

    Args:
        model: A HookedTransformer or TransformerBridge.
        clean: Prompts on which the model does the task: anything `read_prompts` takes.
        corrupted: The same number of prompts, each as long as its clean one.
        senders: Heads whose output is sent: anything `parse_heads` takes, a `HeadRanking` among it.
        receivers: Heads that receive (default: all), or "logits" for each sender's direct effect on
            the logits. A pair whose receiver is not in a later layer has no path and is left out.
        metric: From logits of the whole batch to a scalar, such as `logit_difference(scenarios)`.
            Prompts that differ in length are padded on the right.
        component: Which input of the receiver: `q`, `k` or `v`. Of no meaning for the logits.
        progress: A bar (the default), nothing (False), or a function called with (runs done, runs
            in all).

    Raises:
        ValueError: When a head is out of range, no pair has a path, the prompts differ in shape,
            `component` is unknown, `k` or `v` is asked for where query heads share keys and values,
            a sender's layer normalizes or scales the heads' outputs before adding them to the
            residual stream, the metric is not a finite scalar, or a bridge is in training mode.

    Warns:
        UserWarning: When clean and corrupted give the same metric, so that no share is defined; and
            once for a model whose layers need more of earlier ones than the residual stream: every
            pass then runs all of it.
    """
    require_choice("component", component, get_args(PathComponent))
    require_evaluation_mode(model)
    sources = select_heads(model, senders)
    to_logits = isinstance(receivers, str) and receivers == "logits"
    targets = {} if to_logits else _later_heads(model, sources, receivers)
    paths: list[tuple[Head, Head | None]] = (
        [(sender, None) for sender in sources]
        if to_logits
        else [(sender, head) for sender, heads in targets.items() for head in heads]
    )
    clean_tokens, corrupted_tokens = read_pair(model, clean, corrupted)
    measured = CountedMetric(
        metric, total=len(paths) + 2, tell=show_progress(progress, "Patching paths")
    )

    writing = {sender.layer for sender, _ in paths}
    reading = {head.layer for _, head in paths if head is not None}
    clean_logits, clean_cache = run_with_cache(model, clean_tokens, _write_hooks(model, writing))
    _require_plain_writes(model, clean_cache, writing)
    read = {hook_name(component, layer) for layer in reading}
    kept = {hook_name("z", layer) for layer in writing}
    kept |= {hook_name("resid_pre", layer) for layer in reading}
    first_layers = reading or {model.cfg.n_layers - 1}
    corrupted_run = CorruptedRun(model, corrupted_tokens, first_layers, kept | read)
    require_query_heads(model, {name: corrupted_run.cache[name] for name in read})
    clean_value = float(measured(clean_logits))
    corrupted_value = float(measured(corrupted_run.logits))

    runs = _PathRuns(corrupted_run, clean_cache, measured, component)
    if to_logits:
        values = [runs.to_logits(sender) for sender in sources]
    else:
        values = [
            value for sender, heads in targets.items() for value in runs.to_heads(sender, heads)
        ]
    return make_table(_path_frame(paths, component), values, clean_value, corrupted_value)


@dataclass
class _PathRuns:
    """The patched runs of direct path patching."""

    corrupted: CorruptedRun
    clean: dict[str, Tensor]
    metric: CountedMetric
    component: PathComponent

    def to_logits(self, sender: Head) -> float:
        """The write added to what the final norm reads."""
        last = hook_name("resid_post", self.corrupted.cfg.n_layers - 1)
        hooks = [(last, _adding(self._write(sender)))]
        return float(self.metric(self.corrupted.run_with_hooks(self.corrupted.tokens, hooks)))

    def to_heads(self, sender: Head, receivers: Sequence[Head]) -> list[float]:
        """The receivers' queries as they would be, patched in like any other activation."""
        cache = self._receive(sender, {head.layer for head in receivers})
        rows = [(head, None) for head in receivers]
        return patch_heads(self.corrupted, cache, self.metric, self.component, rows)

    def _receive(self, sender: Head, layers: set[int]) -> dict[str, Tensor]:
        """What every head of `layers` would compute if it alone saw the sender's clean output.

        One pass serves all layers: each is given its input of the corrupted run plus the write, so
        that none sees what the layers before it made of theirs.
        """
        write = self._write(sender)
        cache: dict[str, Tensor] = {}
        hooks: list[tuple[str, HookFunction]] = []
        for layer in layers:
            residual = self.corrupted.cache[hook_name("resid_pre", layer)]
            hooks.append((hook_name("resid_pre", layer), _putting(residual + write.to(residual))))
            name = hook_name(self.component, layer)
            hooks.append((name, keeping(cache, name)))
        model = self.corrupted.model
        with self.corrupted.from_layer(min(layers)), attach_hooks(model, hooks):
            run_until(model, self.corrupted.tokens, max(layers))
        return cache

    def _write(self, sender: Head) -> Float[Tensor, "batch pos d_model"]:
        """What the sender adds more to the residual stream in the clean run."""
        name = hook_name("z", sender.layer)
        clean, corrupted = (
            cache[name][:, :, sender.head] for cache in (self.clean, self.corrupted.cache)
        )
        return (clean - corrupted) @ self.corrupted.model.blocks[sender.layer].attn.W_O[sender.head]


def _later_heads(
    model: Any, senders: Sequence[Head], receivers: HeadsLike | None
) -> dict[Head, list[Head]]:
    """For each sender that has any, the receivers in later layers."""
    heads = select_heads(model, receivers)
    later = {sender: [head for head in heads if head.layer > sender.layer] for sender in senders}
    if not any(later.values()):
        raise ValueError(
            "no receiver is in a later layer than a sender: the first sender is in layer "
            f"{min(senders).layer}, the last receiver in layer {max(heads).layer}"
        )
    return {sender: found for sender, found in later.items() if found}


def _write_hooks(model: Any, layers: Iterable[int]) -> set[str]:
    """What `_require_plain_writes` reads; an attention-only model has no `mlp_out`."""
    wanted = ("z", "resid_pre", "resid_post", "mlp_out")
    names = {hook_name(activation, layer) for layer in layers for activation in wanted}
    points = model.hook_dict  # a bridge gathers them anew each time
    return {name for name in names if name in points or not name.endswith("mlp_out")}


def _require_plain_writes(model: Any, cache: dict[str, Tensor], layers: Iterable[int]) -> None:
    """Refuse layers that do anything to the heads' outputs but project, add and add a bias.

    Asked of the activations, because families differ in where they normalize (Gemma, OLMo 2) or
    scale (Granite), and their configurations do not say it reliably.
    """
    for layer in layers:
        before, after, z = (
            cache[hook_name(name, layer)] for name in ("resid_pre", "resid_post", "z")
        )
        mlp = cache.get(hook_name("mlp_out", layer))
        written = after.float() - before.float() - (0 if mlp is None else mlp.float())
        weight = model.blocks[layer].attn.W_O.float()
        rest = written - torch.einsum("bphd,hdm->bpm", z.float(), weight)
        rest = rest - rest.flatten(0, 1).median(dim=0).values  # the bias, the same everywhere
        rounding = 8 * torch.finfo(after.dtype).eps * after.float().norm(dim=-1)
        if (rest.norm(dim=-1) > _WRITE_ERROR * written.norm(dim=-1) + rounding).any():
            raise ValueError(
                f"layer {layer} of {describe_model(model).name} normalizes or scales its heads' "
                "outputs before it adds them to the residual stream: what one head writes there is "
                "not z @ W_O, and path patching is not defined for it"
            )


def _putting(replacement: Tensor) -> HookFunction:
    return lambda value, hook: replacement


def _adding(change: Tensor) -> HookFunction:
    return lambda value, hook: value + change.to(value)


def _path_frame(
    pairs: Sequence[tuple[Head, Head | None]], component: PathComponent
) -> pd.DataFrame:
    import pandas as pd

    senders, receivers = zip(*pairs, strict=True)
    whole = pd.Int64Dtype()  # may be missing, and stays whole
    return pd.DataFrame(
        {
            "sender": [str(head) for head in senders],
            "sender_layer": [head.layer for head in senders],
            "sender_head": [head.head for head in senders],
            "receiver": ["logits" if head is None else str(head) for head in receivers],
            "receiver_layer": pd.array([head and head.layer for head in receivers], dtype=whole),
            "receiver_head": pd.array([head and head.head for head in receivers], dtype=whole),
            "component": [None if head is None else component for head in receivers],
        }
    )
