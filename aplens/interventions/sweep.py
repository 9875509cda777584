"""Ablate more and more heads, in named orders and at random, and count which predictions change.

As in the paper: sizes × orders of heads, on as many correct as incorrect held-out scenarios.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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
from aplens._store import Store
from aplens.heads import Head, HeadRanking, HeadsLike, draw_heads, parse_heads
from aplens.interventions.ablation import (
    AblationMethod,
    Substitute,
    ablate_with,
    make_substitute,
    take_batch,
)
from aplens.interventions.outcomes import (
    RANDOM,
    AblationSweep,
    Setting,
    SettingResult,
    read_bits,
    write_bits,
)
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
from aplens.prompts import Prompts, PromptsLike, read_prompts
from aplens.scenarios.answers import require_answers, require_logits

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios

#: The paper's numbers of heads; those a model has no heads for are skipped.
PAPER_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 400, 600, 800)

#: Logits. The largest error of bfloat16 seen on SmolLM2-135M is 0.29 with up to 20 heads zeroed,
#: 0.55 with up to 100; with 200 and more it reaches 5: equal outcomes are not certain there.
MARGIN = 0.75

_FILE = "sweep.json"
#: What a folder holds besides, by its keys: the outcomes of the unchanged model and of settings.
_CLEAN, _ABLATED = "clean", "ablated"


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
    reference: PromptsLike | None = None,
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
        reference: The prompts that `mean` and `resample` need, in any form that `read_prompts`
            takes. Take prompts that are not among `scenarios`. For `resample` they must be as long
            as the longest scenario (of longer ones the first tokens are used), and every swept
            head's output on all of them is kept in memory.
        batch_size: Prompts a forward pass.
        precision: torch.bfloat16 lets the model compute its matrix products in bfloat16 (default:
            as it is). Where the target's logit and the best other one are then within 0.75, the
            prompt is run again as the model is: outcomes differ only where bfloat16 is off by more.
        folder: Where to keep outcomes, rewritten after every batch of prompts, and at the end
            `sweep.json`. Outcomes that are found there are not run again; settings that are not
            asked for come back too.
        progress: A bar (the default), nothing (False), or a function called with (settings ×
            scenarios done, settings × scenarios in all).

    Each batch of prompts goes through all settings. What the unchanged model computes before a
    setting's first layer is computed once for all of them: for each layer at which one begins, the
    residual stream of one batch is kept on the device. Only the last position is unembedded.

    Warns:
        UserWarning: Outcomes in the folder are damaged, and run again.

    Raises:
        FolderInUseError: When another run is writing into the folder.
        ValueError: When an argument makes no sense for this model, a target is none of the model's
            tokens, balancing finds only correct or only incorrect scenarios, the folder holds
            another sweep, or the model is broken: its logits contain NaN or infinity, or its
            patterns are no attention.
    """
    plan = plan or SweepPlan()
    read = _read_orders(model, orders)
    _check(model, scenarios, batch_size)
    tell = show_progress(progress, "Ablating")
    compute_in(model, precision)  # refuses another precision before anything runs
    prompts, targets = read_prompts(model, scenarios), scenarios.targets()
    reference = None if reference is None else read_prompts(model, reference)
    substituting = partial(
        make_substitute,
        model,
        method=method,
        reference=reference,
        seed=plan.seed,
        n_tokens=prompts.n_tokens,
    )
    substituting(())  # likewise refuses what cannot be
    chosen, skipped = _choose_heads(read, describe_model(model).heads, plan)
    setup = _describe_setup(model, scenarios, read, plan, method, reference)
    setup["precision"] = None if precision is None else str(precision)
    with nullcontext() if folder is None else own_folder(folder):
        kept = _Kept(folder, setup)
        clean = kept.clean(lambda: _clean_outcomes(model, prompts, targets, batch_size))
        index = _balanced(clean, plan.seed) if plan.balance else np.arange(len(clean))
        missing = {of: heads for of, heads in chosen.items() if kept.count(of) < len(index)}
        substitute = substituting(sorted({head for heads in missing.values() for head in heads}))
        runner = _Runner(model, prompts, targets, method, substitute, precision)
        _run_settings(runner, torch.from_numpy(index), missing, batch_size, kept, tell)
        results = [
            SettingResult(of, _heads_of(of, read, describe_model(model).heads), kept.ablated[of])
            for of in dict.fromkeys([*chosen, *kept.ablated])
            if kept.count(of) == len(index)
        ]
        files = [scenarios.files[i] for i in index]
        sweep = AblationSweep(index, files, clean[index], results, skipped, setup)
        if folder is not None:
            sweep.save(Path(folder) / _FILE)
    return sweep


class _Kept:
    """Whether the model was correct, as far as it was run; a folder keeps it, where there is one.

    Attributes:
        ablated: For each setting, on the first of the swept scenarios or all.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, setup: dict[str, Any]) -> None:
        self._store = None if folder is None else Store(folder, "ablation outcomes", setup)
        saved = [] if self._store is None else self._store.recall(_ABLATED, list)
        self.ablated = {Setting(*setting): read_bits(bits) for setting, bits in saved}

    def clean(self, run: Callable[[], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """The outcomes of the unchanged model, which is run where they are not known."""
        if self._store is None:
            return run()
        return read_bits(self._store.recall(_CLEAN, lambda: write_bits(run())))

    def count(self, setting: Setting) -> int:
        """Scenarios on which a setting's outcome is known."""
        return len(self.ablated.get(setting, ()))

    def put(self, setting: Setting, start: int, correct: NDArray[np.bool_]) -> None:
        """Note a setting's outcomes on scenarios from `start` on."""
        before = self.ablated.get(setting, correct[:0])[:start]
        self.ablated[setting] = np.concatenate([before, correct])

    def save(self) -> None:
        """Keep what is known of the settings."""
        if self._store is not None:
            known = [[setting, write_bits(correct)] for setting, correct in self.ablated.items()]
            self._store.write(_ABLATED, known)


@torch.no_grad()
def _run_settings(
    runner: _Runner,
    index: Int[Tensor, " swept"],
    settings: Mapping[Setting, tuple[Head, ...]],
    batch_size: int,
    kept: _Kept,
    tell: Progress,
) -> None:
    """Run every setting, one batch of scenarios after the other, and keep what came out."""
    for start in range(0, len(index), batch_size):
        numbers = torch.arange(start, min(start + batch_size, len(index)))
        stop = start + len(numbers)
        missing = {of: heads for of, heads in settings.items() if kept.count(of) < stop}
        for setting, correct in runner.run(index[numbers], numbers, missing):
            kept.put(setting, start, correct)
        if missing:
            kept.save()
        tell(len(settings) * stop, len(settings) * len(index))


@dataclass(frozen=True)
class _Runner:
    """Runs a model with heads ablated on some of the prompts, and looks whether it is correct."""

    model: Any
    prompts: Prompts
    targets: Int[Tensor, " prompt"]
    method: AblationMethod
    substitute: Substitute
    precision: torch.dtype | None

    def run(
        self,
        rows: Int[Tensor, " some"],
        numbers: Int[Tensor, " some"],
        settings: Mapping[Setting, tuple[Head, ...]],
    ) -> Iterator[tuple[Setting, NDArray[np.bool_]]]:
        """Whether the ablated model is correct on each of these prompts, setting by setting.

        `numbers` are their places among all that are swept, by which resampling takes donors.
        """
        prompts, targets = take_batch(self.prompts, rows, self.method), self.targets[rows]
        midway = can_start_midway(self.model)
        starts = {of: min(heads).layer if midway else 0 for of, heads in settings.items()}
        residuals = Residuals()
        # The setting that begins last comes first: up to there it is the unchanged model.
        to_keep = set(starts.values()) - {0}
        for setting in sorted(starts, key=starts.__getitem__, reverse=True):
            with (
                compute_in(self.model, self.precision),
                ablate_with(self.model, settings[setting], self.substitute, numbers),
                keep_residuals(self.model, to_keep, residuals),
                start_at(self.model, 0 if to_keep else starts[setting], residuals),
            ):
                logits = last_token_logits(self.model, prompts.tokens, prompts.lengths)
            to_keep = set()
            yield setting, self._outcomes(logits, prompts, targets, numbers, settings[setting])

    def _outcomes(
        self,
        logits: Float[Tensor, "some d_vocab"],
        prompts: Prompts,
        targets: Int[Tensor, " some"],
        numbers: Int[Tensor, " some"],
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
                with ablate_with(self.model, heads, self.substitute, numbers[unsure]):
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
    chosen: list[Setting] = []
    skipped: list[str] = []
    for size in sorted(set(plan.sizes)):
        for name, heads in orders.items():
            if size <= len(heads):
                chosen.append(Setting(name, size, None))
            else:
                skipped.append(f"{name}, {size} heads: it has {len(heads)}")
        if size <= len(of_model):
            chosen += [Setting(RANDOM, size, seed) for seed in plan.random_seeds]
        elif plan.random_seeds:
            skipped.append(f"{RANDOM}, {size} heads: the model has {len(of_model)}")
    return {setting: _heads_of(setting, orders, of_model) for setting in chosen}, skipped


def _heads_of(
    setting: Setting, orders: Mapping[str, tuple[Head, ...]], of_model: tuple[Head, ...]
) -> tuple[Head, ...]:
    if setting.seed is not None:
        return draw_heads(of_model, setting.size, setting.seed)
    return orders[setting.choice][: setting.size]


def _describe_setup(
    model: Any,
    scenarios: Scenarios,
    orders: Mapping[str, tuple[Head, ...]],
    plan: SweepPlan,
    method: AblationMethod,
    reference: Prompts | None,
) -> dict[str, Any]:
    """What decides a setting's outcome; a folder's results must agree in all of it."""
    info, prompts = describe_model(model), scenarios.prompts()
    given = None if reference is None else hash_tokens(reference.tokens, reference.lengths)
    return {
        "model": info.name,
        "kind": info.kind,
        "dtype": str(info.dtype),
        "weights": sketch_weights(model),
        "scenarios": hash_tokens(prompts.tokens, prompts.lengths, scenarios.targets()),
        "orders": {name: fingerprint([*map(str, heads)]) for name, heads in orders.items()},
        "method": method,
        "reference": given,
        "balance": plan.balance,
        "seed": plan.seed,
    }


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
def _clean_outcomes(
    model: Any, prompts: Prompts, targets: Int[Tensor, " prompt"], batch_size: int
) -> NDArray[np.bool_]:
    """Whether the unchanged model's argmax after the last token is the target, on each prompt."""
    correct = []
    with refuse_broken_patterns(model):
        for batch, expected in zip(
            prompts.split(batch_size), targets.split(batch_size), strict=True
        ):
            logits = require_logits(last_token_logits(model, batch.tokens, batch.lengths))
            correct.append(logits.argmax(dim=-1).cpu() == expected)
    return torch.cat(correct).numpy()
