"""The stage `ablate`: one sweep with the study's ranking, and one for each task with its own.

The paper ranks heads for each task by a predictor of that task alone, and ablates them on that
task's scenarios. The study's own ranking is over all tasks together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplens.heads import HeadRanking
from aplens.intervals import MEAN_OF_TASKS
from aplens.interventions import AblationSweep, GateTrials, sweep_ablations
from aplens.interventions.results import name_heads
from aplens.study.saved import read_ranking

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from jaxtyping import Int
    from torch import Tensor

    from aplens.scenarios import Scenarios
    from aplens.scoring import HeadScorer, Observations
    from aplens.study.config import AblateSettings


def run_sweep(
    model: Any,
    held_out: Scenarios,
    ranking: HeadRanking,
    settings: AblateSettings,
    *,
    reference: Int[Tensor, "prompt pos"],
    seed: int,
    precision: torch.dtype | None,
    folder: Path,
    progress: Callable[[int, int], object] | None = None,
) -> AblationSweep:
    """`sweep_ablations` as a study's `[ablate]` asks for it."""
    return sweep_ablations(
        model,
        held_out,
        ranking,
        sizes=settings.sizes,
        choices=settings.choices,  # type: ignore[arg-type]
        random_seeds=settings.random_seeds,
        method=settings.method,  # type: ignore[arg-type]
        reference=reference,
        balance=settings.balance,
        seed=seed,
        batch_size=settings.batch_size,
        precision=precision,
        folder=folder,
        progress=progress,
    )


def rank_task(
    scorer: HeadScorer, fit: Observations, held_out: Observations, path: Path
) -> HeadRanking:
    """One task's ranking, read where it was made before.

    Raises:
        ValueError: When the task has one outcome only, or too few scenarios to cluster.
    """
    if path.exists():
        return read_ranking(path)
    ranking = scorer.fit(fit).rank(held_out)
    path.parent.mkdir(exist_ok=True)
    ranking.save(path)
    return ranking


def tabulate_sweep(sweep: AblationSweep, tasks: Sequence[str], seed: int) -> pd.DataFrame:
    """One sweep's settings, balanced and task by task, against random heads of the same number.

    Returns:
        What `GateTrials.to_frame` gives, with two more columns: `choice` and `size`.
    """
    return _tabulate(sweep.to_trials(tasks), [sweep], seed)


def tabulate_task_sweeps(
    sweeps: Mapping[str, AblationSweep], tasks: Mapping[str, Sequence[str]], seed: int
) -> pd.DataFrame:
    """The sweeps of several tasks in one table; a mean over tasks where all have the setting.

    Args:
        sweeps: The sweep of each task.
        tasks: The tasks of the scenarios that each was given.
        seed: Of the resamples.

    Returns:
        As `tabulate_sweep`.
    """
    import pandas as pd

    trials = {task: sweep.to_trials(tasks[task]) for task, sweep in sweeps.items()}
    frames = [_tabulate(trials[task], [sweep], seed) for task, sweep in sweeps.items()]
    by_task = pd.concat([frame[frame["task"] != MEAN_OF_TASKS] for frame in frames])
    means = _tabulate(GateTrials.join(list(trials.values())), list(sweeps.values()), seed)
    return pd.concat([by_task, means[means["task"] == MEAN_OF_TASKS]], ignore_index=True)


def _tabulate(trials: GateTrials, sweeps: Sequence[AblationSweep], seed: int) -> pd.DataFrame:
    """Trials of sweeps' settings, each against as many random heads where these were tried."""
    settings = {
        name_heads(result.setting.choice, result.setting.size): result.setting
        for sweep in sweeps
        for result in sweep.results
    }
    at_random = {name: name_heads("random", settings[name].size) for name in trials.outcomes}
    baseline = {
        name: other
        for name, other in at_random.items()
        if name != other and other in trials.outcomes
    }
    frame = trials.to_frame(seed, baseline=baseline)
    chosen = [settings[name] for name in frame["intervention"]]
    return frame.assign(choice=[one.choice for one in chosen], size=[one.size for one in chosen])
