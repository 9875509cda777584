"""Ablate more and more heads, in named orders and at random, and count which predictions change.

As in the paper: sizes × orders of heads, on as many correct as incorrect held-out scenarios.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from aplens._documents import read_seed
from aplens._io import fingerprint, hash_tokens, own_folder
from aplens._progress import Progress, show_progress
from aplens._store import require_same
from aplens.heads import Head, HeadRanking, HeadsLike, draw_heads, parse_heads
from aplens.interventions.ablation import (
    AblationMethod,
    Substitute,
    ablate_with,
    make_substitute,
)
from aplens.interventions.outcomes import RANDOM, AblationSweep, Setting, SettingResult
from aplens.interventions.partial import PartialOutcomes
from aplens.interventions.sharing import plan_runs
from aplens.models import (
    Residuals,
    can_start_midway,
    compute_in,
    describe_model,
    keep_residuals,
    last_token_logits,
    sketch_weights,
    start_at,
)
from aplens.patterns.soundness import refuse_broken_patterns
from aplens.prompts import Prompts, read_prompts
from aplens.scenarios.answers import require_answers, require_logits

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios

#: The paper's numbers of heads; those a model has no heads for are skipped.
PAPER_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 400, 600, 800)

#: Logits. The largest error of bfloat16 seen on SmolLM2-135M is 0.29 with up to 20 heads zeroed,
#: 0.55 with up to 100; with 200 and more it reaches 5: equal outcomes are not certain there.
MARGIN = 0.75

_FILE = "sweep.json"
_UNFINISHED = "unfinished"


@dataclass(frozen=True)
class SweepPlan:
    """How many heads a sweep ablates, and on which scenarios.

    Args:
        sizes: Numbers of heads. A size that an order has no heads for is skipped, and
            `AblationSweep.skipped` says so.
        random_seeds: For each one draw of as many of the model's heads; none when empty.
        balance: Use equally many correct and incorrect scenarios, as the paper does.
        seed: Draws the balanced scenarios, and `resample`'s prompts.

    Raises:
        ValueError: When there is no size, one is below 1, or a seed no whole number from 0 to
            2**63 - 1.
    """

    sizes: Sequence[int] = PAPER_SIZES
    random_seeds: Sequence[int] = (0, 1, 2)
    balance: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        seeds = tuple(read_seed(one, "each of random_seeds") for one in self.random_seeds)
        object.__setattr__(self, "random_seeds", seeds)
        object.__setattr__(self, "seed", read_seed(self.seed))
        if len(self.sizes) == 0 or min(self.sizes) < 1:
            raise ValueError(f"sizes must be numbers of heads from 1 up, got {tuple(self.sizes)}")


def sweep_ablations(
    model: Any,
    scenarios: Scenarios,
    orders: HeadRanking | Mapping[str, HeadsLike],
    plan: SweepPlan | None = None,
    *,
    method: AblationMethod = "zero",
    reference: Int[Tensor, "prompt pos"] | None = None,
    batch_size: int = 16,
    precision: torch.dtype | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> AblationSweep:
    """Ablate the first heads of each order, and as many random ones, and score the model.

    The scenarios must be held out: nothing that the orders rest on may have seen their files.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: The held-out scenarios.
        orders: For each name, any text but "random", heads in the order in which they are ablated,
            such as {"effects": ranking.top(200), "SHAP": shap.top(200, by="toward_incorrect")}. A
            ranking alone stands for {"importance": ranking}.
        plan: How many heads, on which scenarios (default: `SweepPlan()`, the paper's).
        method: What replaces a head's output: "zero", "mean" or "resample".
        reference: Tokens of the prompts that `mean` and `resample` need. Take prompts that are not
            among `scenarios`. `resample` keeps every swept head's output on all of them in memory.
        batch_size: Prompts a forward pass.
        precision: torch.bfloat16 lets the model compute its matrix products in bfloat16 (default:
            as it is). Where the target's logit and the best other one are then within `MARGIN`, the
            prompt is run again as the model is: outcomes differ only where bfloat16 is off by more.
        folder: Where to keep `sweep.json` and, until the sweep is done, the outcomes so far in the
            folder `unfinished`, rewritten after every batch of prompts. What is found there is not
            run again; settings that are not asked for come back too.
        progress: A bar (the default), nothing (False), or a function called with (settings ×
            scenarios done, settings × scenarios in all).

    Each batch of prompts goes through all settings, in an order in which they share what the model
    computes before they differ (`aplens.interventions.sharing`), and only the last position is
    unembedded.

    Warns:
        UserWarning: The outcomes in `unfinished` are damaged, and run again.

    Raises:
        FolderInUseError: When another run is writing into the folder.
        ValueError: When an argument makes no sense for this model, a target is none of the model's
            tokens, balancing finds only correct or only incorrect scenarios, the folder holds
            another sweep, or a damaged one, or the model is broken: its logits contain NaN or
            infinity, or its patterns are no attention.
    """
    plan = plan or SweepPlan()
    read = _read_orders(model, orders)
    _check(model, scenarios, batch_size)
    tell = show_progress(progress, "Ablating")
    compute_in(model, precision)  # refuses another precision before anything runs
    chosen, skipped = _choose_heads(read, describe_model(model).heads, plan)
    setup = _describe_setup(model, scenarios, read, plan, method, reference)
    setup["precision"] = None if precision is None else str(precision)
    if method == "resample":  # a prompt's donor depends on its place in the batch
        setup["batch_size"] = batch_size
    with nullcontext() if folder is None else own_folder(folder):
        path = None if folder is None else Path(folder) / _FILE
        sweep = None if path is None or not path.exists() else _resume(path, setup, len(scenarios))
        known = set() if sweep is None else {result.setting for result in sweep.results}
        wanted = {setting: heads for setting, heads in chosen.items() if setting not in known}
        heads = tuple(dict.fromkeys(head for group in wanted.values() for head in group))
        substitute = make_substitute(model, heads, method, reference, plan.seed)
        if sweep is None:
            sweep = _start(model, scenarios, plan, batch_size, setup)
        sweep.skipped = list(dict.fromkeys([*sweep.skipped, *skipped]))
        if path is not None:
            sweep.save(path)
        outcomes = PartialOutcomes(path and path.with_name(_UNFINISHED), setup)
        runner = _Runner(model, substitute, precision)
        swept = scenarios.select(sweep.index)
        _run_settings(runner, swept, wanted, batch_size, outcomes, tell)
        sweep.results += [
            SettingResult(setting, heads, outcomes.of(setting)) for setting, heads in wanted.items()
        ]
        if path is not None:
            sweep.save(path)
        outcomes.discard()
    return sweep


@torch.no_grad()
def _run_settings(
    runner: _Runner,
    scenarios: Scenarios,
    settings: Mapping[Setting, tuple[Head, ...]],
    batch_size: int,
    outcomes: PartialOutcomes,
    tell: Progress,
) -> None:
    """Run every setting, one batch of scenarios after the other, and keep what came out."""
    prompts, targets = read_prompts(runner.model, scenarios), scenarios.targets()
    total = len(settings) * len(scenarios)
    for start in range(0, len(scenarios), batch_size):
        rows = slice(start, min(start + batch_size, len(scenarios)))
        missing = {
            setting: heads
            for setting, heads in settings.items()
            if outcomes.count(setting) < rows.stop
        }
        for setting, correct in runner.run(prompts[rows], targets[rows], missing):
            outcomes.put(setting, start, correct)
        if missing:
            outcomes.save()
        tell(len(settings) * rows.stop, total)


@dataclass(frozen=True)
class _Runner:
    """Runs a model with heads ablated."""

    model: Any
    substitute: Substitute
    precision: torch.dtype | None

    def run(
        self,
        prompts: Prompts,
        targets: Int[Tensor, " prompt"],
        settings: Mapping[Setting, tuple[Head, ...]],
    ) -> Iterator[tuple[Setting, NDArray[np.bool_]]]:
        """Whether the ablated model is correct on each prompt, setting by setting."""
        n_layers, residuals = describe_model(self.model).n_layers, Residuals()
        for step in plan_runs(settings, n_layers, midway=can_start_midway(self.model)):
            if step.start < n_layers:  # else heads and outcome are those of the step before
                residuals.forget_after(step.start)
                with (
                    compute_in(self.model, self.precision),
                    ablate_with(self.model, step.heads, self.substitute),
                    keep_residuals(self.model, step.keep, residuals),
                    start_at(self.model, step.start, residuals),
                ):
                    logits = last_token_logits(self.model, prompts.tokens, prompts.lengths)
                correct = self._outcomes(logits, prompts, targets, step.heads)
            yield step.name, correct

    def _outcomes(
        self,
        logits: Float[Tensor, "prompt d_vocab"],
        prompts: Prompts,
        targets: Int[Tensor, " prompt"],
        heads: tuple[Head, ...],
    ) -> NDArray[np.bool_]:
        """Whether the argmax is the target; run again where rounding might have decided it."""
        correct = logits.argmax(dim=-1).cpu() == targets
        if self.precision is None:
            require_logits(logits)
        else:
            sure = _margins(logits, targets) >= MARGIN  # which NaN is not
            unsure = (~sure).nonzero().flatten()
            if len(unsure):
                rows = unsure.to(prompts.tokens.device)
                # Not prompts[rows], which would trim them: resampling pairs positions.
                tokens, lengths = prompts.tokens[rows], prompts.lengths[rows]
                with ablate_with(self.model, heads, self.substitute, unsure):
                    exact = last_token_logits(self.model, tokens, lengths)
                correct[unsure] = require_logits(exact).argmax(dim=-1).cpu() == targets[unsure]
        return correct.numpy()


def _margins(
    logits: Float[Tensor, "prompt d_vocab"], targets: Int[Tensor, " prompt"]
) -> Float[Tensor, " prompt"]:
    """How far apart the logit of the target and the largest other one are."""
    chosen = targets[:, None].to(logits.device)
    of_target = logits.gather(1, chosen)[:, 0]
    of_others = logits.scatter(1, chosen, -torch.inf).amax(dim=-1)
    return (of_target - of_others).float().abs().cpu()


def _read_orders(
    model: Any, orders: HeadRanking | Mapping[str, HeadsLike]
) -> dict[str, tuple[Head, ...]]:
    if isinstance(orders, HeadRanking):
        orders = {"importance": orders}
    info = describe_model(model)
    if not orders:
        raise ValueError("orders must have at least one order of heads, got none")
    for name, heads in orders.items():
        if not isinstance(name, str) or not name or name == RANDOM:
            raise ValueError(f"an order must have a name other than {RANDOM!r}, got {name!r}")
        of = heads.model if isinstance(heads, HeadRanking) else info
        if (of.n_layers, of.n_heads) != (info.n_layers, info.n_heads):
            raise ValueError(
                f"the ranking is of {of.n_layers} layers × {of.n_heads} heads "
                f"({of.name}), the model has {info.n_layers} × {info.n_heads} ({info.name})"
            )
    return {name: parse_heads(heads, info) for name, heads in orders.items()}


def _check(model: Any, scenarios: Scenarios, batch_size: int) -> None:
    if len(scenarios) == 0:
        raise ValueError("there are no scenarios to sweep")
    require_answers(model, scenarios)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")


def _choose_heads(
    orders: Mapping[str, tuple[Head, ...]], of_model: tuple[Head, ...], plan: SweepPlan
) -> tuple[dict[Setting, tuple[Head, ...]], list[str]]:
    """The heads of every setting, small sizes first, and what had to be skipped."""
    chosen: dict[Setting, tuple[Head, ...]] = {}
    skipped: list[str] = []
    for size in sorted(set(plan.sizes)):
        for name, heads in orders.items():
            if size <= len(heads):
                chosen[Setting(name, size, None)] = heads[:size]
            else:
                skipped.append(f"{name}, {size} heads: it has {len(heads)}")
        if size <= len(of_model):
            for seed in plan.random_seeds:
                chosen[Setting(RANDOM, size, seed)] = draw_heads(of_model, size, seed)
        elif plan.random_seeds:
            skipped.append(f"{RANDOM}, {size} heads: the model has {len(of_model)}")
    return chosen, skipped


def _describe_setup(
    model: Any,
    scenarios: Scenarios,
    orders: Mapping[str, tuple[Head, ...]],
    plan: SweepPlan,
    method: AblationMethod,
    reference: Tensor | None,
) -> dict[str, Any]:
    """What decides a setting's outcome; a folder's results must agree in all of it."""
    info, prompts = describe_model(model), scenarios.prompts()
    return {
        "model": info.name,
        "kind": info.kind,
        "dtype": str(info.dtype),
        "weights": sketch_weights(model),
        "scenarios": hash_tokens(prompts.tokens, prompts.lengths, scenarios.targets()),
        "orders": {name: fingerprint([*map(str, heads)]) for name, heads in orders.items()},
        "method": method,
        "reference": None if reference is None else hash_tokens(reference),
        "balance": plan.balance,
        "seed": plan.seed,
    }


def _resume(path: Path, setup: dict[str, Any], n_scenarios: int) -> AblationSweep:
    sweep = AblationSweep.load(path)
    require_same(path, "an ablation sweep", sweep.setup, setup)
    if len(sweep.index) and sweep.index.max() >= n_scenarios:
        raise ValueError(
            f"{path} is a damaged ablation sweep: its index has {sweep.index.max()}, of "
            f"{n_scenarios} scenarios"
        )
    return sweep


def _start(
    model: Any, scenarios: Scenarios, plan: SweepPlan, batch_size: int, setup: dict[str, Any]
) -> AblationSweep:
    """Run the unchanged model once, and pick the scenarios."""
    correct = _outcomes(model, scenarios, batch_size)
    index = _balanced(correct, plan.seed) if plan.balance else np.arange(len(correct))
    files = scenarios.files
    return AblationSweep(index, [files[i] for i in index], correct[index], setup=setup)


def _balanced(correct: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """Equally many correct and incorrect scenarios, as many as there are, in their old order."""
    right, wrong = np.flatnonzero(correct), np.flatnonzero(~correct)
    size = min(len(right), len(wrong))
    if size == 0:
        raise ValueError(
            f"cannot balance: the model is correct on {len(right)} scenarios and incorrect on "
            f"{len(wrong)}; mine more, or pass balance=False"
        )
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(group, size, replace=False) for group in (right, wrong)]
    return np.sort(np.concatenate(drawn))


@torch.no_grad()
def _outcomes(model: Any, scenarios: Scenarios, batch_size: int) -> NDArray[np.bool_]:
    """Whether argmax after the last token is the target, for each scenario."""
    prompts = read_prompts(model, scenarios)
    correct = []
    with refuse_broken_patterns(model):
        for batch, expected in zip(
            prompts.split(batch_size), scenarios.targets().split(batch_size), strict=True
        ):
            logits = require_logits(last_token_logits(model, batch.tokens, batch.lengths))
            correct.append(logits.argmax(dim=-1).cpu() == expected)
    return torch.cat(correct).numpy()
