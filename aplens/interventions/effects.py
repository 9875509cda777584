"""What each head does for a metric: measured by ablating it, or estimated from one gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens._documents import require_choice
from aplens._progress import Progress, show_progress
from aplens.heads import Head, HeadRanking, HeadsLike, ModelShape
from aplens.intervals import FileBootstrap, sign_flip_p_values
from aplens.interventions.ablation import (
    AblationMethod,
    ablate_singly,
    make_substitute,
    take_batch,
)
from aplens.models import (
    attach_hooks,
    can_start_midway,
    describe_model,
    keep_residuals,
    last_token_logits,
    start_at,
    z_hook_name,
)
from aplens.patterns.collect import select_heads
from aplens.patterns.soundness import refuse_broken_patterns
from aplens.prompts import Prompts, PromptsLike, read_prompts
from aplens.scenarios.answers import require_answers, require_logits
from aplens.tables import SHOWN_ROWS, Shown

if TYPE_CHECKING:
    import pandas as pd

    from aplens.scenarios import Scenarios

#: What an effect is measured by: the answer's log-probability, in nats, or its logit less that of
#: the wrong answer.
AnswerMetric: TypeAlias = Literal["log_prob", "logit_diff"]


@dataclass(frozen=True, repr=False)
class HeadEffects(Shown):
    """What ablating each head alone does to a metric, prompt by prompt.

    Costs are counted in passes over the whole set of prompts, so that they compare between methods
    whatever the batches: measuring n heads takes n + 1 forward passes (one of them unchanged),
    estimating them one forward and one backward pass. Passes over reference prompts are not
    counted, nor is it subtracted when measuring skips the layers before the ablated one.

    Attributes:
        heads: The heads.
        values: `Float[ndarray, "head prompt"]`, the metric with the head ablated less `clean`.
            Positive: the head works against the answer.
        clean: `Float[ndarray, "prompt"]`, the metric of the unchanged model.
        metric: "log_prob" (nats) or "logit_diff" (logits).
        method: What replaced the heads' outputs, as in `ablate_heads`.
        estimated: Whether the values are first-order estimates.
        groups: Each prompt's group (source file); intervals resample groups.
        model: The model that the heads are of.
        n_forward_passes: Forward passes over the set of prompts.
        n_backward_passes: Backward passes over it.
    """

    heads: tuple[Head, ...]
    values: Float[np.ndarray, "head prompt"]
    clean: Float[np.ndarray, " prompt"]
    metric: AnswerMetric
    method: AblationMethod
    estimated: bool
    groups: list[str]
    model: ModelShape
    n_forward_passes: int
    n_backward_passes: int

    def __repr__(self) -> str:
        how = "estimated" if self.estimated else "measured"
        best = ", ".join(str(self.heads[place]) for place in self._largest(3))
        return (
            f"HeadEffects({len(self.heads)} heads of {self.model.name} × "
            f"{len(self.clean)} prompts, {self.metric}, {how}, largest: {best})"
        )

    def _largest(self, k: int) -> list[int]:
        """Places of the heads with the largest mean effect."""
        means = np.abs(self.values.mean(axis=1))
        return np.argsort(-means, kind="stable")[:k].tolist()

    def _shown_rows(self) -> pd.DataFrame:
        # Tests and their correction are left out: they need all heads, and take seconds.
        import pandas as pd

        bootstrap = FileBootstrap(self.groups)
        several = len(set(self.groups)) > 1
        rows = []
        for place in self._largest(SHOWN_ROWS):
            mean, low, high = bootstrap.mean(self.values[place])
            ends = {"effect_low": low, "effect_high": high} if several else {}
            rows.append({"head": str(self.heads[place]), "effect": mean, **ends})
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row a head, in the order of `heads`, with the head's name as index.

        Columns: `layer`, `head`, `mean` (the mean effect over prompts) with its 95 % interval
        `low`, `high`, `magnitude` (the mean |effect|), `p`, how often chance gives a mean as far
        from 0 (a permutation test that draws the signs of groups), and `q`, the same corrected for
        as many heads as there are rows: of the heads with q below 0.05, about 5 % have no effect
        (Benjamini and Hochberg 1995). Interval and test go by groups; with a single group there are
        none, and they are NaN.
        """
        import pandas as pd
        from scipy.stats import false_discovery_control

        bootstrap = FileBootstrap(self.groups)
        frame = pd.DataFrame(self.heads, columns=["layer", "head"])
        frame[["mean", "low", "high"]] = [tuple(bootstrap.mean(row)) for row in self.values]
        frame["magnitude"] = np.abs(self.values).mean(axis=1)
        if len(set(self.groups)) == 1:
            frame[["low", "high", "p", "q"]] = np.nan
        else:
            frame["p"] = sign_flip_p_values(self.values, self.groups)
            frame["q"] = false_discovery_control(frame["p"])
        frame.index = pd.Index([str(head) for head in self.heads], name="name")
        return frame

    def to_ranking(self, estimates: HeadEffects | None = None) -> HeadRanking:
        """Rank heads by the size of their mean effect, in the metric's units.

        `toward_incorrect` is the mean positive part of a head's effect: how much better the answer
        does without the head. The ranking's `measured` says which effects are no estimates.

        Args:
            estimates: Effects of heads that are not among these; both are ranked together.
        """
        import pandas as pd

        facts = {
            "method": "attribution" if self.estimated else "ablation",
            "ablation": self.method,
            "metric": self.metric,
            "clean": float(self.clean.mean()),
            "n_prompts": len(self.clean),
            "n_forward_passes": self.n_forward_passes,
            "n_backward_passes": self.n_backward_passes,
        }
        frame = self._ranked_columns()
        if estimates is not None:
            others = estimates._ranked_columns().drop(frame.index, errors="ignore")
            frame = pd.concat([frame, others])
        return HeadRanking(frame, self.model, facts)

    def _ranked_columns(self) -> pd.DataFrame:
        frame = self.to_frame()
        frame["importance"] = frame["mean"].abs()
        frame["toward_incorrect"] = self.values.clip(min=0).mean(axis=1)
        frame["toward_correct"] = (-self.values).clip(min=0).mean(axis=1)
        frame["measured"] = not self.estimated
        return frame


@torch.no_grad()
def measure_effects(
    model: Any,
    scenarios: Scenarios,
    heads: HeadsLike | None = None,
    *,
    metric: AnswerMetric = "log_prob",
    method: AblationMethod = "zero",
    reference: PromptsLike | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool | Progress = True,
) -> HeadEffects:
    """Ablate every head by itself and measure what that does to the metric on each prompt.

    The same as `ablate_heads` head by head, but for rounding. Where there are few prompts, several
    heads of a layer are ablated in one forward pass, each on its own copy of the prompts. That pass
    begins at their layer, which halves the work for all heads, unless later layers of the model
    need more of earlier ones than the residual stream.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: Prompts of any lengths with their targets.
        heads: Which heads (default: all).
        metric: "log_prob": log-probability of the target after the last token, in nats.
            "logit_diff": the target's logit less that of the wrong answer, which every scenario
            must have.
        method: What replaces a head's output: "zero", "mean" (its mean over the reference) or
            "resample" (its output on a reference prompt).
        reference: Prompts for `mean` and `resample`, in any form that `read_prompts` takes. For
            `resample` they must be as long as the longest scenario; of longer ones the first tokens
            are used.
        batch_size: Prompts a forward pass, the copies for several heads counted.
        seed: Decides which reference prompt `resample` takes for which scenario.
        progress: A bar (the default), nothing (False), or a function called with (heads × prompts
            measured, heads × prompts in all).

    Raises:
        ValueError: When a head is out of range, metric or method is unknown, `logit_diff` lacks a
            wrong answer, an answer is none of the model's tokens, `mean` or `resample` lacks a
            reference or has too short ones, the seed is no whole number from 0 to 2**63 - 1, or the
            model is broken: its logits contain NaN or infinity, or its patterns are no attention.
    """
    task = _Task.read(model, scenarios, heads, metric, batch_size)
    n_tokens = task.prompts.n_tokens
    substitute = make_substitute(model, task.heads, method, reference, seed, n_tokens)
    clean, values = task.empty_results()
    midway = can_start_midway(model)
    tell, n_done = show_progress(progress, "Measuring effects"), 0
    for numbers in task.batches(batch_size):
        prompts = take_batch(task.prompts, numbers, method)
        with (
            refuse_broken_patterns(model),
            keep_residuals(model, task.by_layer) as residuals,
        ):
            logits = last_token_logits(model, prompts.tokens, prompts.lengths)
        clean[numbers] = task.evaluate(logits, numbers)
        at_once = max(1, batch_size // len(numbers))
        for layer, places in task.heads_at_once(at_once):
            n_copies = len(places)
            with (
                ablate_singly(model, [task.heads[i] for i in places], substitute, numbers),
                start_at(model, layer if midway else 0, residuals, n_copies),
            ):
                copies = prompts.tokens.repeat(n_copies, 1), prompts.lengths.repeat(n_copies)
                logits = last_token_logits(model, *copies)
            for place, ablated in zip(places, logits.split(len(numbers)), strict=True):
                values[place, numbers] = task.evaluate(ablated, numbers) - clean[numbers]
            n_done += len(places) * len(numbers)
            tell(n_done, values.numel())
    return HeadEffects(
        task.heads,
        values.numpy(),
        clean.numpy(),
        metric,
        method,
        estimated=False,
        groups=scenarios.files,
        model=describe_model(model),
        n_forward_passes=len(task.heads) + 1,
        n_backward_passes=0,
    )


@torch.inference_mode(mode=False)  # inside it nothing can be differentiated, even with enable_grad
@torch.enable_grad()
def estimate_effects(
    model: Any,
    scenarios: Scenarios,
    heads: HeadsLike | None = None,
    *,
    metric: AnswerMetric = "log_prob",
    method: Literal["zero", "mean"] = "zero",
    reference: PromptsLike | None = None,
    batch_size: int = 8,
    progress: bool | Progress = True,
) -> HeadEffects:
    """Estimate what `measure_effects` measures, for all heads from one gradient.

    Attribution patching (Nanda 2023; Syed et al. 2023): the metric's gradient with respect to a
    head's output, times what ablating would change of that output, summed over positions. With
    `zero` this is the gradient of a gate on the head, at 1 (Michel et al. 2019). It is exact where
    the metric is linear in the output; softmax and norms after the head are not.

    The parameters' gradients are neither computed nor touched. Works inside `torch.no_grad`.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: Prompts of any lengths with their targets.
        heads: Which heads (default: all).
        metric: "log_prob": log-probability of the target after the last token, in nats.
            "logit_diff": the target's logit less that of the wrong answer, which every scenario
            must have.
        method: The ablation that is estimated: "zero" or "mean".
        reference: Prompts for `mean`, in any form that `read_prompts` takes.
        batch_size: Prompts a forward and backward pass.
        progress: A bar (the default), nothing (False), or a function called with (prompts done,
            prompts in all).

    Raises:
        ValueError: When a head is out of range, metric or method is unknown, `logit_diff` lacks a
            wrong answer, an answer is none of the model's tokens, `mean` lacks a reference, or the
            model is broken: its logits contain NaN or infinity, or its patterns are no attention.
    """
    if method not in ("zero", "mean"):
        raise ValueError(f"an estimate needs method 'zero' or 'mean', got {method!r}")
    task = _Task.read(model, scenarios, heads, metric, batch_size)
    substitute = make_substitute(model, task.heads, method, reference)
    clean, values = task.empty_results()
    by_layer = task.by_layer
    tell, n_done = show_progress(progress, "Estimating effects"), 0
    for numbers in task.batches(batch_size):
        prompts = task.prompts[numbers]
        with refuse_broken_patterns(model), _keep_outputs(model, by_layer) as outputs:
            logits = last_token_logits(model, prompts.tokens, prompts.lengths)
        metrics = task.evaluate(logits, numbers)
        gradients = torch.autograd.grad(metrics.sum(), list(outputs.values()))
        clean[numbers] = metrics.detach()
        for (layer, z), gradient in zip(outputs.items(), gradients, strict=True):
            places = by_layer[layer]
            members = [task.heads[place] for place in places]
            columns = [head.head for head in members]
            change = substitute(members, z, numbers) - z.detach()[:, :, columns]
            products = gradient[:, :, columns].float() * change.float()
            estimates = products.sum(dim=(1, 3), dtype=torch.float64)
            values[torch.tensor(places)[:, None], numbers] = estimates.T.cpu()
        n_done += len(numbers)
        tell(n_done, len(clean))
    return HeadEffects(
        task.heads,
        values.numpy(),
        clean.numpy(),
        metric,
        method,
        estimated=True,
        groups=scenarios.files,
        model=describe_model(model),
        n_forward_passes=1,
        n_backward_passes=1,
    )


@dataclass(frozen=True)
class _Task:
    """Which heads, on which prompts, and the tokens that the metric looks at."""

    heads: tuple[Head, ...]
    prompts: Prompts
    targets: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"] | None

    @classmethod
    def read(
        cls,
        model: Any,
        scenarios: Scenarios,
        heads: HeadsLike | None,
        metric: AnswerMetric,
        batch_size: int,
    ) -> _Task:
        require_choice("metric", metric, get_args(AnswerMetric))
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        require_answers(model, scenarios)
        return cls(
            select_heads(model, heads),
            read_prompts(model, scenarios),
            scenarios.targets(),
            scenarios.wrong_targets() if metric == "logit_diff" else None,
        )

    @property
    def by_layer(self) -> dict[int, list[int]]:
        """The places, in `heads`, of each layer's heads."""
        places: dict[int, list[int]] = {}
        for place, head in enumerate(self.heads):
            places.setdefault(head.layer, []).append(place)
        return places

    def heads_at_once(self, size: int) -> Iterator[tuple[int, list[int]]]:
        """The places of at most `size` heads of one layer at a time, with that layer."""
        for layer, places in self.by_layer.items():
            for start in range(0, len(places), size):
                yield layer, places[start : start + size]

    def batches(self, size: int) -> Iterator[Int[Tensor, " some"]]:
        """The numbers of at most `size` prompts at a time, those of like length together."""
        yield from self.prompts.lengths.cpu().argsort(stable=True).split(size)

    def empty_results(
        self,
    ) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "head prompt"]]:
        n_prompts = len(self.prompts)
        return (
            torch.zeros(n_prompts, dtype=torch.float64),
            torch.zeros(len(self.heads), n_prompts, dtype=torch.float64),
        )

    def evaluate(
        self, logits: Float[Tensor, "some d_vocab"], numbers: Int[Tensor, " some"]
    ) -> Float[Tensor, " some"]:
        """The metric on some prompts, on the CPU; what is not finite is refused."""
        scores = require_logits(logits).float()
        target = scores.gather(1, self.targets[numbers].to(scores.device)[:, None])[:, 0]
        if self.wrong is None:
            rest = scores.logsumexp(dim=-1)
        else:
            rest = scores.gather(1, self.wrong[numbers].to(scores.device)[:, None])[:, 0]
        metrics = (target - rest).double().cpu()
        if not metrics.isfinite().all():
            raise ValueError("an answer's logit is minus infinity: an effect on it is no number")
        return metrics


@contextmanager
def _keep_outputs(
    model: Any, layers: Iterable[int]
) -> Iterator[dict[int, Float[Tensor, "batch pos head d_head"]]]:
    """Keep the heads' outputs of some layers so that a metric can be differentiated by them."""
    outputs: dict[int, Tensor] = {}

    def keeping(layer: int) -> Callable[..., Tensor]:
        def keep(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
            # A leaf where no parameter before it asks for a gradient.
            outputs[layer] = z if z.requires_grad else z.detach().requires_grad_()
            return outputs[layer]

        return keep

    with attach_hooks(model, [(z_hook_name(layer), keeping(layer)) for layer in layers]):
        yield outputs
