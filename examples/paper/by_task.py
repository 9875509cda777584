"""The command `by-task`: a study's predictors and its ablations, task by task.

The paper ranks heads for each task by a predictor of that task alone, and ablates them on that
task's scenarios. The study's own ranking is over all tasks together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from aplens import HeadRanking, SweepPlan, sweep_ablations
from aplens.correctness import (
    HeadClusters,
    Observations,
    assign_folds,
    cross_validate,
    rank_by_predictor,
    score_table,
)
from aplens.correctness.evaluation import FEWEST_OF_TASK, usual_features
from aplens.interventions import AblationSweep, SettingResult
from paper.files import write_table
from paper.over_tasks import MEAN_OF_TASKS
from paper.parts import NAMES_IN_PAPER, dtype_of, of_task, paper_orders
from paper.trials import GateTrials, name_heads

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios
    from aplens.study import Study
    from paper.settings import ByTaskSettings

#: Prompts whose head outputs replace ablated ones (mean, resample), as many as a study takes.
_REFERENCE_PROMPTS = 32


def tabulate_by_task(
    study: Study, settings: ByTaskSettings, folder: Path
) -> Iterator[tuple[str, pd.DataFrame]]:
    """A study's results task by task, each a title and a table that is kept in the folder."""
    held_out = study.folder.swept
    predictors = evaluate_by_task(study)
    write_table(folder / "predictors.parquet", predictors)
    yield "Predictors of correctness, task by task", predictors
    swept = in_paper_names(study.folder.sweep)
    trials = tabulate_sweep(swept, held_out.tasks, study.settings.seed)
    write_table(folder / "trials.parquet", trials)
    yield "Ablations, balanced and task by task", trials
    if settings.own_rankings:
        rankings = rank_tasks(study, sorted(set(held_out.tasks)), folder / "rankings")
        yield "Each task's own ranking: its predictor", tabulate_rankings(rankings)
        table = sweep_tasks(study, held_out, rankings, folder / "sweeps")
        write_table(folder / "own_rankings.parquet", table)
        yield "Ablations by each task's own ranking", table


def in_paper_names(sweep: AblationSweep) -> AblationSweep:
    """A study's sweep, its orders called as in the paper; by effects is none of them."""

    def rename(result: SettingResult) -> SettingResult:
        name = result.setting.choice
        setting = result.setting._replace(choice=NAMES_IN_PAPER.get(name, name))
        return replace(result, setting=setting)

    return replace(sweep, results=[rename(result) for result in sweep.results])


def evaluate_by_task(study: Study) -> pd.DataFrame:
    """The predictions that the study's stage `rank` kept, judged task by task."""
    rank, seed, observations = study.settings.rank, study.settings.seed, study.folder.observations
    folds = assign_folds(observations, rank.folds, seed)
    scores = cross_validate(
        observations,
        folds,
        rank.compare or usual_features(observations),
        seed=seed,
        progress=study.reporter.update,
        folder=study.folder.path / "predictions",
        clusters=HeadClusters(rank.reducer, seed=seed),  # type: ignore[arg-type]
    )
    return score_tasks(observations, scores, folds, seed)


def score_tasks(
    observations: Observations,
    scores: Mapping[str, Float[np.ndarray, " scenario"]],
    folds: Int[np.ndarray, " scenario"],
    seed: int,
) -> pd.DataFrame:
    """`score_table` of each task's scenarios; a task of fewer than ten has no row.

    An AUC is NaN where a task has only one outcome.

    Warns:
        UserWarning: Tasks are left out; how many is said.
    """
    of_scenario = observations.table["task"].to_numpy()
    tasks = sorted(set(of_scenario))
    told = [task for task in tasks if (of_scenario == task).sum() >= FEWEST_OF_TASK]
    if few := len(tasks) - len(told):
        warnings.warn(
            f"{few} of {len(tasks)} tasks have fewer than {FEWEST_OF_TASK} scenarios: they have no "
            "row",
            stacklevel=2,
        )
    tables = []
    for task in told:
        chosen = of_scenario == task
        table = score_table(
            observations.select(chosen),
            {name: values[chosen] for name, values in scores.items()},
            folds=folds[chosen],
            seed=seed,
        )
        tables.append(table.assign(task=task))
    return pd.concat(tables, ignore_index=True)


def rank_tasks(study: Study, tasks: Sequence[str], folder: Path) -> dict[str, HeadRanking]:
    """A ranking for each task, by a predictor of that task alone; made once."""
    rank, seed = study.settings.rank, study.settings.seed
    rankings = {}
    for number, task in enumerate(tasks):
        study.reporter.update(number, len(tasks), f"{task}: ranking")
        path = folder / f"{task}.json"
        if path.exists():
            rankings[task] = HeadRanking.load(path)
            continue
        clusters = HeadClusters(rank.reducer, seed=seed)  # type: ignore[arg-type]
        parts = (study.folder.observed_part(part) for part in ("fit", "rank"))
        fit, held_out = (part.select(part.table["task"].to_numpy() == task) for part in parts)
        try:
            rankings[task] = rank_by_predictor(
                fit, held_out, features=rank.features, clusters=clusters, seed=seed
            )
        except ValueError as error:  # few scenarios, or one outcome; the others can be ranked
            study.reporter.say(f"{task}: not ranked by itself: {error}")
            continue
        rankings[task].save(path)
    if not rankings:
        raise ValueError("by_task.own_rankings: the heads could be ranked for no task by itself")
    return rankings


def sweep_tasks(
    study: Study, held_out: Scenarios, rankings: Mapping[str, HeadRanking], folder: Path
) -> pd.DataFrame:
    """The study's sweep on each task's scenarios, with that task's ranking.

    Returns:
        As `tabulate_task_sweeps`.
    """
    ablate, sweeps, tasks = study.settings.ablate, {}, {}
    for number, (task, ranking) in enumerate(rankings.items()):
        scenarios = of_task(held_out, task)
        tasks[task] = scenarios.tasks
        sweeps[task] = sweep_ablations(
            study.model,
            scenarios,
            paper_orders(ranking),
            SweepPlan(
                sizes=ablate.sizes,
                random_seeds=ablate.random_seeds,
                balance=False,  # balanced by weights: of one task there are few to throw away
                seed=study.settings.seed,
            ),
            method=ablate.method,  # type: ignore[arg-type]
            reference=study.folder.parts["fit"].tokens()[:_REFERENCE_PROMPTS],
            batch_size=ablate.batch_size,
            precision=dtype_of(ablate.precision),
            folder=folder / task,
            progress=partial(_tell, study, task, number, len(rankings)),
        )
    return tabulate_task_sweeps(sweeps, tasks, study.settings.seed)


def _tell(study: Study, task: str, number: int, n_tasks: int, done: int, total: int) -> None:
    """Progress of one of several sweeps of like size."""
    study.reporter.update(number * total + done, n_tasks * total, task)


def tabulate_rankings(rankings: Mapping[str, HeadRanking]) -> pd.DataFrame:
    """How well each task's own predictor does on held-out files, beside the model's confidence."""
    rows = []
    for task, ranking in rankings.items():
        row = {"task": task, **{key: ranking.metadata[key] for key in ("n_train", "n_test")}}
        for name in ("auc", "confidence_auc"):
            ends = zip(("", "_low", "_high"), ranking.metadata[name], strict=True)
            row |= {name + end: value for end, value in ends}
        rows.append(row)
    return pd.DataFrame(rows)


def tabulate_sweep(sweep: AblationSweep, tasks: Sequence[str], seed: int) -> pd.DataFrame:
    """One sweep's settings, balanced and task by task, against random heads of the same number.

    Returns:
        What `GateTrials.to_frame` gives, with two more columns: `choice` and `size`.
    """
    return _tabulate(GateTrials.of_sweep(sweep, tasks), [sweep], seed)


def tabulate_task_sweeps(
    sweeps: Mapping[str, AblationSweep], tasks: Mapping[str, Sequence[str]], seed: int
) -> pd.DataFrame:
    """The sweeps of several tasks in one table; a mean over tasks where all have the setting."""
    trials = {task: GateTrials.of_sweep(sweep, tasks[task]) for task, sweep in sweeps.items()}
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
