"""Trying gates on held-out prompts, and what they change: balanced, as the paper, and as they come.

The paper measures on as many correct as incorrect prompts. Instead of throwing prompts away, the
balanced accuracy gives both kinds the same weight: half the share of the correct predictions that
are kept, plus half the share of the incorrect ones that are mended. The unchanged model has 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from aplens.interventions.scaling import ScalesLike, scale_heads
from aplens.models import compute_in, last_token_logits
from aplens.prompts import read_prompts
from aplens.scoring.intervals import (
    MEAN_OF_TASKS,
    Estimate,
    FileBootstrap,
    average_tasks,
    estimate_from,
)

if TYPE_CHECKING:
    import pandas as pd

    from aplens.scenarios import Scenarios


@torch.no_grad()
def scaled_logits(
    model: Any,
    scenarios: Scenarios,
    scales: ScalesLike | None = None,
    *,
    batch_size: int = 16,
    precision: torch.dtype | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Float[Tensor, "scenario d_vocab"]:
    """Logits after the last token of each prompt, heads scaled; float32, on the CPU.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: The prompts.
        scales: As for `scale_heads`; None leaves the model as it is.
        batch_size: Prompts a forward pass.
        precision: torch.bfloat16 lets the model compute its matrix products in bfloat16.
        progress: Called with (scenarios done, scenarios in all).
    """
    found = []
    for number, batch in enumerate(read_prompts(model, scenarios).split(batch_size)):
        scaled = nullcontext() if scales is None else scale_heads(model, scales)
        with compute_in(model, precision), scaled:
            found.append(last_token_logits(model, batch.tokens, batch.lengths).float().cpu())
        if progress is not None:
            progress(min((number + 1) * batch_size, len(scenarios)), len(scenarios))
    return torch.cat(found)


def try_scales(
    model: Any, scenarios: Scenarios, scales: ScalesLike | None = None, **options: Any
) -> NDArray[np.bool_]:
    """Whether the model, heads scaled, predicts each target; `options` are `scaled_logits`'s."""
    logits = scaled_logits(model, scenarios, scales, **options)
    return (logits.argmax(dim=-1) == scenarios.targets()).numpy()


@dataclass
class GateTrials:
    """Outcomes of the unchanged model and of interventions on the same held-out scenarios.

    Attributes:
        tasks: Each scenario's task.
        files: Its source file; intervals resample files.
        clean: Whether the unchanged model is correct on it.
        outcomes: The same for every intervention, by name.
    """

    tasks: Sequence[str]
    files: Sequence[str]
    clean: NDArray[np.bool_]
    outcomes: dict[str, NDArray[np.bool_]]

    def apply_where(self, where: NDArray[np.bool_], suffix: str) -> GateTrials:
        """The same interventions, applied to some scenarios only, under other names."""
        outcomes = {
            name + suffix: np.where(where, correct, self.clean)
            for name, correct in self.outcomes.items()
        }
        return GateTrials(self.tasks, self.files, self.clean, outcomes)

    def to_frame(self, seed: int = 0) -> pd.DataFrame:
        """One row for each intervention and task, then one for their mean, each task alike.

        Columns: `intervention`, `task`, `n`, `n_correct` (of the unchanged model), `balanced` (see
        above) less 0.5 as `gain` with its 95 % interval `gain_low`, `gain_high`; `change` of the
        accuracy on all scenarios as they come, with `change_low`, `change_high`; and the counts
        `incorrect_to_correct`, `correct_to_incorrect`. A task with one outcome only has no gain,
        and is left out of its mean.
        """
        import pandas as pd

        weights = FileBootstrap(self.files, seed=seed).weights
        tasks = np.asarray(self.tasks)
        names = sorted(set(self.tasks))
        rows = []
        for intervention, correct in self.outcomes.items():
            gains, changes = [], []
            for task in names:
                chosen = tasks == task
                parts = (weights[:, chosen], self.clean[chosen], correct[chosen])
                gains.append(_balanced_gain(*parts))
                changes.append(_change(*parts))
                counts = _counts(self.clean[chosen], correct[chosen])
                rows.append(_row(intervention, task, counts, gains[-1], changes[-1]))
            counts = _counts(self.clean, correct)
            means = (average_tasks(np.stack(values)) for values in (gains, changes))
            rows.append(_row(intervention, MEAN_OF_TASKS, counts, *means))
        return pd.DataFrame(rows)


def _balanced_gain(
    weights: Float[np.ndarray, "resample scenario"],
    clean: NDArray[np.bool_],
    correct: NDArray[np.bool_],
) -> Float[np.ndarray, " resample"]:
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may lack an outcome
        kept = weights @ (clean & correct) / (weights @ clean)
        mended = weights @ (~clean & correct) / (weights @ ~clean)
    return (kept + mended) / 2 - 0.5


def _change(
    weights: Float[np.ndarray, "resample scenario"],
    clean: NDArray[np.bool_],
    correct: NDArray[np.bool_],
) -> Float[np.ndarray, " resample"]:
    with np.errstate(invalid="ignore"):
        return weights @ (correct.astype(float) - clean) / weights.sum(axis=1)


def _counts(clean: NDArray[np.bool_], correct: NDArray[np.bool_]) -> dict[str, int]:
    return {
        "n": len(clean),
        "n_correct": int(clean.sum()),
        "incorrect_to_correct": int((~clean & correct).sum()),
        "correct_to_incorrect": int((clean & ~correct).sum()),
    }


def _row(
    intervention: str,
    task: str,
    counts: dict[str, int],
    gain: Float[np.ndarray, " resample"],
    change: Float[np.ndarray, " resample"],
) -> dict[str, Any]:
    row: dict[str, Any] = {"intervention": intervention, "task": task, **counts}
    for name, values in (("gain", gain), ("change", change)):
        estimate: Estimate = estimate_from(values)
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return row
