"""Trying gates on held-out prompts, and what they change: balanced, as the paper, and as they come.

The paper measures on as many correct as incorrect prompts. Instead of throwing prompts away, the
balanced accuracy gives both kinds the same weight: half the share of the correct predictions that
are kept, plus half the share of the incorrect ones that are mended. The unchanged model has 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from aplens import read_prompts
from aplens.intervals import FileBootstrap, estimate_from
from aplens.interventions import AblationSweep, ScalesLike, scale_heads
from aplens.models import compute_in, last_token_logits
from paper.exponents import sharpen_heads
from paper.gates import ActsOn, HeadGates, check_acts_on
from paper.over_tasks import MEAN_OF_TASKS, average_tasks

if TYPE_CHECKING:
    import pandas as pd

    from aplens.scenarios import Scenarios

#: Whether the model is correct on each scenario, or how often it is.
Outcomes: TypeAlias = "NDArray[np.bool_] | NDArray[np.float64]"

_TaskResamples: TypeAlias = Float[np.ndarray, "task resample"]
_Measure: TypeAlias = Callable[..., Float[np.ndarray, " resample"]]


def choose_change(acts_on: str) -> Callable[..., AbstractContextManager[None]]:
    """`scale_heads` or `sharpen_heads`, by what a head's number acts on."""
    check_acts_on(acts_on)
    return sharpen_heads if acts_on == "pattern" else scale_heads


def require_finite(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
    """The logits, none of which is NaN or infinite."""
    if not logits.detach().amax(dim=-1).isfinite().all():
        raise ValueError("the model's logits contain NaN or infinity: its forward pass is broken")
    return logits


@torch.no_grad()
def scaled_logits(
    model: Any,
    scenarios: Scenarios,
    scales: HeadGates | ScalesLike | None = None,
    *,
    acts_on: ActsOn = "output",
    batch_size: int = 16,
    precision: torch.dtype | None = None,
) -> Float[Tensor, "scenario d_vocab"]:
    """Logits after the last token of each prompt, heads scaled or sharpened; float32, on the CPU.

    Gates say themselves which of the two they do.
    """
    if isinstance(scales, HeadGates):
        scales, acts_on = scales.values, scales.acts_on
    apply = choose_change(acts_on)
    found = []
    for batch in read_prompts(model, scenarios).split(batch_size):
        scaled = nullcontext() if scales is None else apply(model, scales)
        with compute_in(model, precision), scaled:
            logits = last_token_logits(model, batch.tokens, batch.lengths)
        found.append(require_finite(logits).float().cpu())
    return torch.cat(found)


@dataclass
class GateTrials:
    """Outcomes of the unchanged model and of interventions on the same held-out scenarios.

    Attributes:
        tasks: Each scenario's task.
        files: Its source file; intervals resample files.
        clean: Whether the unchanged model is correct on it.
        outcomes: The same for every intervention, by name; of one that was drawn several times, the
            share of draws with which the model is correct.
    """

    tasks: Sequence[str]
    files: Sequence[str]
    clean: NDArray[np.bool_]
    outcomes: Mapping[str, Outcomes]

    @classmethod
    def join(cls, parts: Sequence[GateTrials]) -> GateTrials:
        """Trials of several tasks, one below the other; the interventions that all of them have.

        Raises:
            ValueError: When there are no parts.
        """
        if not parts:
            raise ValueError("expected at least one part to join, got none")
        common = [name for name in parts[0].outcomes if all(name in p.outcomes for p in parts)]
        return cls(
            [task for part in parts for task in part.tasks],
            [file for part in parts for file in part.files],
            np.concatenate([part.clean for part in parts]),
            {name: np.concatenate([part.outcomes[name] for part in parts]) for name in common},
        )

    @classmethod
    def of_sweep(cls, sweep: AblationSweep, tasks: Sequence[str]) -> GateTrials:
        """A sweep's settings, to be looked at task by task and balanced by weights.

        Draws of random heads of one size are one intervention, each scenario's outcome the share of
        draws with which the model is correct.
        """
        if len(tasks) <= sweep.index.max(initial=-1):
            raise ValueError(
                f"expected the tasks of all scenarios that were swept, at least "
                f"{sweep.index.max() + 1}, got {len(tasks)}"
            )
        outcomes = {name_heads(*key): each for key, each in sweep.mean_outcomes().items()}
        return cls([tasks[i] for i in sweep.index], sweep.files, sweep.clean, outcomes)

    def apply_where(self, where: NDArray[np.bool_], suffix: str) -> GateTrials:
        """The same interventions, applied to some scenarios only, under other names."""
        outcomes = {
            name + suffix: np.where(where, correct, self.clean)
            for name, correct in self.outcomes.items()
        }
        return GateTrials(self.tasks, self.files, self.clean, outcomes)

    def to_frame(
        self, seed: int = 0, *, baseline: str | Mapping[str, str] | None = None
    ) -> pd.DataFrame:
        """One row for each intervention and task, then one for their mean, each task alike.

        Columns: `intervention`, `task`, `n`, `n_correct` (of the unchanged model), `balanced` (see
        above) less 0.5 as `gain` with its 95 % interval `gain_low`, `gain_high`; `change` of the
        accuracy on all scenarios as they come, with `change_low`, `change_high`; and the counts
        `incorrect_to_correct`, `correct_to_incorrect`. A task with one outcome only has no gain,
        and is left out of its mean. With a `baseline`, the name of an intervention, or for each
        intervention the name of its own (NaN where there is none), also `over_baseline`, its `gain`
        less the baseline's on the same resamples, with `over_baseline_low`, `over_baseline_high`.
        """
        import pandas as pd

        if isinstance(baseline, str):
            baseline = dict.fromkeys(self.outcomes, baseline)
        for name in {} if baseline is None else baseline.values():
            if name not in self.outcomes:
                raise ValueError(f"baseline must be one of {list(self.outcomes)}, got {name!r}")
        weights = FileBootstrap(self.files, seed=seed).weights
        tasks = np.asarray(self.tasks)
        parts = {task: tasks == task for task in sorted(set(self.tasks))}

        def by_task(measure: _Measure, correct: Outcomes) -> _TaskResamples:
            return np.stack(
                [measure(weights[:, i], self.clean[i], correct[i]) for i in parts.values()]
            )

        gains = {name: by_task(_balanced_gain, c) for name, c in self.outcomes.items()}
        rows = []
        for name, correct in self.outcomes.items():
            measured = {"gain": gains[name], "change": by_task(_change, correct)}
            if baseline is not None:
                other = gains.get(baseline.get(name, ""), np.nan)
                measured["over_baseline"] = gains[name] - other
            for number, (task, chosen) in enumerate(parts.items()):
                row: dict[str, Any] = {"intervention": name, "task": task}
                row |= _counts(self.clean[chosen], correct[chosen])
                rows.append(row | _estimates({key: one[number] for key, one in measured.items()}))
            row = {"intervention": name, "task": MEAN_OF_TASKS, **_counts(self.clean, correct)}
            rows.append(row | _estimates({key: average_tasks(v) for key, v in measured.items()}))
        return pd.DataFrame(rows)


def name_heads(choice: str, size: int) -> str:
    """As "toward incorrect, 5 heads"."""
    return f"{choice.replace('_', ' ')}, {size} head" + ("" if size == 1 else "s")


def _balanced_gain(
    weights: Float[np.ndarray, "resample scenario"],
    clean: NDArray[np.bool_],
    correct: Outcomes,
) -> Float[np.ndarray, " resample"]:
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may lack an outcome
        kept = weights @ (clean * correct) / (weights @ clean)
        mended = weights @ (~clean * correct) / (weights @ ~clean)
    return (kept + mended) / 2 - 0.5


def _change(
    weights: Float[np.ndarray, "resample scenario"],
    clean: NDArray[np.bool_],
    correct: Outcomes,
) -> Float[np.ndarray, " resample"]:
    with np.errstate(invalid="ignore"):
        return weights @ (correct.astype(float) - clean) / weights.sum(axis=1)


def _counts(clean: NDArray[np.bool_], correct: Outcomes) -> dict[str, int]:
    """How many there are, and how many change; a mean over draws is rounded to a whole number."""
    return {
        "n": len(clean),
        "n_correct": int(clean.sum()),
        "incorrect_to_correct": round(float((~clean * correct).sum())),
        "correct_to_incorrect": round(float((clean * (1.0 - correct)).sum())),
    }


def _estimates(measured: dict[str, Float[np.ndarray, " resample"]]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, values in measured.items():
        row |= estimate_from(values).columns(name)
    return row
