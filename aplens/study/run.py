"""The road from source files to a report, as stages that can be interrupted and gone on with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplens._io import atomic_write, write_json
from aplens._processes import join_processes
from aplens.study.config import SHUFFLED, ScenarioSettings, StudySettings
from aplens.study.parts import first_of_each, observed_of, of_languages, of_task
from aplens.study.saved import (
    PREDICTOR_COLUMNS,
    TRIAL_COLUMNS,
    TRIED_COLUMNS,
    TRUTH_COLUMNS,
    read_ranking,
    read_sweep,
    read_table,
)
from aplens.study.stages import Reporter, Stage, run_stages

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from aplens.heads import HeadRanking
    from aplens.interventions import AblationSweep
    from aplens.mae import APMAE, TrainingProgress
    from aplens.scenarios import Scenarios
    from aplens.scoring import HeadScorer, Observations
    from aplens.study.corpora import StudyCorpus

_MESSAGES = {
    "mine": "completion scenarios from source files",
    "train": "AP-MAE on this model's attention patterns",
    "observe": "the model on every scenario, every head's pattern encoded",
    "rank": "clusters, predictors of correctness, SHAP",
    "tries": "other predictors of correctness",
    "ablate": "ranked and random heads on held-out scenarios",
    "gates": "heads scaled, task by task, on held-out scenarios",
    "truth": "every head ablated by itself, on held-out scenarios",
    "report": "one HTML file",
}
STAGES = tuple(_MESSAGES)

#: The parts of the scenarios that each stage takes.
_TAKES = {
    "train": ("autoencoder", "fit"),
    "observe": ("fit", "rank"),
    "rank": ("fit", "rank"),
    "ablate": ("fit", "ablate"),
    "gates": ("fit", "rank", "ablate"),
    "truth": ("rank", "ablate"),
}

#: Stages that a study has only where its file has their table.
_OPTIONAL = ("tries", "gates", "truth")

#: Stages that several processes do together.
_SHARED = ("train", "observe")

#: Prompts whose head outputs replace ablated ones (mean, resample); all are held at once.
_REFERENCE_PROMPTS = 32


class Study:
    """One study in one folder.

    Args:
        settings: What to do.
        folder: Where its results go; what is already there is gone on with.
        reporter: Told what happens (default: nobody).
        command: How the study was started, for its report.
    """

    def __init__(
        self,
        settings: StudySettings,
        folder: str | os.PathLike[str],
        reporter: Reporter | None = None,
        command: str = "",
    ) -> None:
        self.settings = settings
        self.folder = Path(folder)
        self.reporter = reporter or Reporter()
        self.command = command

    def run(self, until: str = "report", *, redo: str | None = None) -> None:
        """Bring a stage, and those it needs, up to date.

        Args:
            until: The last stage to run, one of `STAGES`.
            redo: The stage to run again from its beginning, and with it all that follow.

        Raises:
            ValueError: When a stage is unknown, the folder holds one made with other settings, or
                `split` has no share for a part that one of the stages takes.
        """
        if until not in STAGES:
            raise ValueError(f"unknown stage {until!r}: the stages are {list(STAGES)}")
        if until in _OPTIONAL and getattr(self.settings, until) is None:
            raise ValueError(f"this study has no {until}: give its file a table [{until}]")
        stages = self._stages(until)
        self._require_parts([one.name for one in stages])
        run_stages(stages, self.folder, self.reporter, redo=redo)

    def _require_parts(self, stages: Sequence[str]) -> None:
        """Before hours of earlier stages, not in the one that misses them."""
        for stage in stages:
            if stage == "train" and self.settings.mae.pretrained:
                continue
            for part in _TAKES.get(stage, ()):
                if getattr(self.settings.split, part) == 0:
                    raise ValueError(
                        f"split.{part} is 0, but stage {stage!r} takes the scenarios of that part"
                    )

    # --- what the stages leave behind ----------------------------------------------------------

    @cached_property
    def model(self) -> Any:
        """The hooked model."""
        from aplens.models import load_model

        self.reporter.say(f"loading {self.settings.model.name}")
        wanted = self.settings.model
        return load_model(
            wanted.name,
            wanted.kind,  # type: ignore[arg-type]
            dtype=_dtype(wanted.dtype),  # type: ignore[arg-type]
            n_devices=wanted.n_devices,
            device_map=wanted.device_map or None,
        )

    @cached_property
    def scenarios(self) -> Scenarios:
        """All scenarios mined."""
        from aplens.scenarios import Scenarios

        return Scenarios.load(self.folder / "scenarios.parquet")

    @cached_property
    def parts(self) -> dict[str, Scenarios]:
        """The scenarios by purpose; no source file is in two parts."""
        shares = dataclasses.asdict(self.settings.split)
        used = {name: share for name, share in shares.items() if share > 0}
        return self.scenarios.split(used, self.settings.seed)

    @cached_property
    def mae(self) -> APMAE:
        """The AP-MAE that encodes."""
        from aplens.mae import APMAE

        return APMAE.from_pretrained(self.folder / "mae")

    @cached_property
    def observations(self) -> Observations:
        """What was observed on `fit`, `rank` and, where it was asked for, `ablate`, in this order.

        `observed_part` takes one of them.
        """
        from aplens.scoring import Observations

        return Observations.open(self.folder / "observations")

    @property
    def observed_parts(self) -> tuple[str, ...]:
        """The parts that are observed, in the order of `observations`."""
        return ("fit", "rank", "ablate") if self.settings.observe.held_out else ("fit", "rank")

    def observed_part(self, name: str) -> Observations:
        """What was observed on one part.

        Raises:
            ValueError: When that part was not observed.
        """
        start = 0
        for part in self.observed_parts:
            stop = start + len(self.parts[part])
            if part == name:
                return self.observations.select(range(start, stop))
            start = stop
        raise ValueError(f"part {name!r} is not observed: set observe.held_out = true")

    @cached_property
    def ranking(self) -> HeadRanking:
        """The heads, ranked."""
        return read_ranking(self.folder / "ranking.json")

    @cached_property
    def predictors(self) -> pd.DataFrame:
        """How well each set of features predicts correctness; see `evaluate_predictors`."""
        return read_table(self.folder / "predictors.parquet", PREDICTOR_COLUMNS)

    @cached_property
    def tries(self) -> pd.DataFrame:
        """Other predictors of correctness; see `try_predictors`."""
        return read_table(self.folder / "tries.parquet", TRIED_COLUMNS)

    @cached_property
    def sweep(self) -> AblationSweep:
        """The ablations."""
        return read_sweep(self.folder / "ablations" / "sweep.json")

    @cached_property
    def sweep_trials(self) -> pd.DataFrame:
        """The ablations balanced by weights and task by task; see `GateTrials.to_frame`."""
        return read_table(self.folder / "ablations" / "trials.parquet", TRIAL_COLUMNS)

    @cached_property
    def task_sweeps(self) -> pd.DataFrame | None:
        """The ablations by each task's own ranking; None where there are none."""
        path = self.folder / "ablations" / "by_task.parquet"
        return read_table(path, TRIAL_COLUMNS) if path.exists() else None

    @cached_property
    def task_rankings(self) -> dict[str, HeadRanking]:
        """Each task's own ranking, by the task's name; none where there are none."""
        paths = sorted((self.folder / "ablations" / "rankings").glob("*.json"))
        return {path.stem: read_ranking(path) for path in paths}

    @cached_property
    def gates(self) -> pd.DataFrame:
        """What scaled heads change, task by task; see `GateTrials.to_frame`."""
        return read_table(self.folder / "gates.parquet", TRIAL_COLUMNS)

    @cached_property
    def truth(self) -> pd.DataFrame:
        """Rankings against every head's own ablation; see `compare_rankings`."""
        return read_table(self.folder / "truth.parquet", TRUTH_COLUMNS)

    # --- the stages ----------------------------------------------------------------------------

    def _stages(self, until: str) -> list[Stage]:
        settings = self.settings

        def stage(name: str, outputs: list[str], run: Callable[[], None], *parts: Any) -> Stage:
            keys = {key: v for part in parts if part for key, v in _flatten(part).items()}
            keys = {"seed": settings.seed, **keys}
            defaults = {key: v for part in parts if part for key, v in _defaults(part).items()}
            return Stage(name, _MESSAGES[name], keys, outputs, run, name in _SHARED, defaults)

        mined = ["scenarios.parquet", "corpus.json"]
        ranked = ["ranking.json", "predictors.parquet", "predictions.json"]
        stages = [
            stage("mine", mined, self._mine, settings.model, settings.scenarios),
            stage("train", ["mae"], self._train, settings.mae, settings.split),
            stage("observe", ["observations"], self._observe, settings.observe),
            stage("rank", ranked, self._rank, settings.rank),
            stage("tries", ["tries", "tries.parquet"], self._tries, settings.tries),
            stage(
                "ablate", ["ablations", "ablations/trials.parquet"], self._ablate, settings.ablate
            ),
            stage("gates", ["gates", "gates.parquet"], self._gates, settings.gates),
            stage("truth", ["truth.parquet"], self._truth, settings.truth),
            stage("report", ["report.html", "results.md"], self._report),
        ]
        absent = {name for name in _OPTIONAL if getattr(settings, name) is None}
        wanted = set(STAGES[: STAGES.index(until) + 1]) - absent
        return [one for one in stages if one.name in wanted]

    def _mine(self) -> None:
        from aplens.scenarios import list_tasks
        from aplens.study.corpora import find_corpus, interleave, path_prefixes

        tables = self.settings.scenarios
        corpora = [find_corpus(table) for table in tables]
        totals = [
            table.per_task * len(set(table.tasks or list_tasks(found.language)))
            for table, found in zip(tables, corpora, strict=True)
        ]
        mined: list[Scenarios] = []
        for table, found, prefix in zip(tables, corpora, path_prefixes(corpora), strict=True):
            self.reporter.say(found.note or f"from {found.name}")
            mined.append(self._mine_corpus(table, found, prefix, sum(map(len, mined)), sum(totals)))
        scenarios = interleave(mined)
        scenarios.save(self.folder / "scenarios.parquet")
        write_json(self.folder / "corpus.json", [found.describe() for found in corpora])
        n_files = len(set(scenarios.files))
        n_tasks = len(scenarios.counts())
        self.reporter.say(f"{len(scenarios)} scenarios of {n_tasks} tasks from {n_files} files")

    def _mine_corpus(
        self, wanted: ScenarioSettings, found: StudyCorpus, prefix: str, before: int, total: int
    ) -> Scenarios:
        """One corpus's scenarios, `before` of a `total` having been mined from others."""
        from aplens.scenarios import Scenarios, mine_scenarios

        scenarios = mine_scenarios(
            found.corpus,
            self.model,
            language=found.language,
            tasks=wanted.tasks or None,
            per_task=wanted.per_task,
            per_file=wanted.per_file,
            context_length=wanted.context_length,
            style=wanted.style,  # type: ignore[arg-type]
            seed=self.settings.seed,
            progress=lambda done, _: self.reporter.update(before + done, total),
        )
        return Scenarios(dataclasses.replace(s, file=prefix + s.file) for s in scenarios)

    def _train(self) -> None:
        from aplens.mae import APMAE, APMAEConfig, TrainingSettings, train_apmae

        wanted, folder = self.settings.mae, self.folder / "mae"
        if wanted.pretrained:
            self.reporter.say(f"nothing to train: {wanted.pretrained} is pretrained")
            if join_processes().is_main:
                APMAE.from_pretrained(wanted.pretrained).save_pretrained(folder)
            return
        config = dataclasses.replace(getattr(APMAEConfig, wanted.preset)(), **wanted.config)
        recipe = TrainingSettings.small if wanted.preset == "small" else TrainingSettings
        result = train_apmae(
            self.model,
            of_languages(self.parts["autoencoder"], wanted.languages),
            config,
            folder,
            validation=self.parts["fit"],
            settings=recipe(**{"seed": self.settings.seed, **wanted.training}),
            progress=self._show_training,
        )
        self.reporter.say(
            f"error on held-out patterns {result.validation_ratio:.2f} of the mean patch's "
            f"(the additive fit without training: {result.additive_ratio:.2f})"
        )

    def _show_training(self, progress: TrainingProgress) -> None:
        note = f"{progress.patterns_per_second:.0f} patterns/s"
        if progress.loss is not None:
            note += f", loss {progress.loss:.4f}"
        if progress.seconds_left is not None:
            note += f", {progress.seconds_left:.0f} s left"
        self.reporter.update(progress.patterns, progress.total, note)

    def _observe(self) -> None:
        from aplens.scenarios import Scenarios
        from aplens.scoring import observe

        wanted = self.settings.observe
        observe(
            self.model,
            Scenarios(s for part in self.observed_parts for s in self.parts[part]),
            self.mae,
            self.folder / "observations",
            batch_size=wanted.batch_size,
            shard_size=wanted.shard_size,
            surprise=wanted.surprise,
            storage=wanted.storage,  # type: ignore[arg-type]
            patterns=wanted.patterns,
            precision=_dtype(wanted.precision),
            progress=self.reporter.update,
        )

    def _rank(self) -> None:
        import pandas as pd

        from aplens.scoring import FEATURE_SETS

        wanted = self.settings.rank
        fit, held_out = self.observed_part("fit"), self.observed_part("rank")
        self.reporter.say(f"predictors of correctness, {wanted.folds} folds by source file")
        scorer = self._new_scorer()
        table = scorer.evaluate(
            self.observations,
            features=wanted.compare or FEATURE_SETS,
            by_task=wanted.by_task,
            n_folds=wanted.folds,
            progress=self.reporter.update,
            keep=self.folder / "predictions.json",
        )
        if wanted.shuffled:
            table = pd.concat([table, self._evaluate_shuffled()], ignore_index=True)
        self.reporter.say(f"SHAP of {wanted.features} on {len(held_out)} scenarios")
        scorer.fit(fit).rank(held_out).save(self.folder / "ranking.json")
        with atomic_write(self.folder / "predictors.parquet") as temporary:
            table.to_parquet(temporary, index=False)

    def _new_scorer(self) -> HeadScorer:
        """Ranks heads as `[rank]` asks for."""
        from aplens.scoring import HeadClusters, HeadScorer

        wanted, seed = self.settings.rank, self.settings.seed
        clusters = HeadClusters(wanted.reducer, seed=seed)  # type: ignore[arg-type]
        return HeadScorer(self.mae, features=wanted.features, clusters=clusters, seed=seed)

    def _tries(self) -> None:
        from aplens.scoring import HeadClusters
        from aplens.study.tries import try_predictors

        wanted, rank, seed = self.settings.tries, self.settings.rank, self.settings.seed
        assert wanted is not None
        table = try_predictors(
            self.observations,
            wanted,
            HeadClusters(rank.reducer, seed=seed),  # type: ignore[arg-type]
            n_folds=rank.folds,
            seed=seed,
            folder=self.folder / "tries",
            tell=self.reporter.update,
        )
        with atomic_write(self.folder / "tries.parquet") as temporary:
            table.to_parquet(temporary, index=False)

    def _evaluate_shuffled(self) -> pd.DataFrame:
        """Predictors of outcomes that were dealt out at random: at chance, unless they leak."""
        import numpy as np

        from aplens.scoring import evaluate_predictors

        wanted, seed = self.settings.rank, self.settings.seed
        correct = self.observations.table["correct"].to_numpy(dtype=bool)
        dealt = np.random.default_rng(seed).permutation(correct)
        table = evaluate_predictors(
            self.observations.with_outcomes(dealt),
            features=wanted.shuffled,
            n_folds=wanted.folds,
            seed=seed,
            progress=self.reporter.update,
        )
        return table.assign(features=table["features"] + SHUFFLED)

    def _ablate(self) -> None:
        from aplens.study.sweeps import run_sweep, tabulate_sweep

        wanted = self.settings.ablate
        held_out = self.parts["ablate"]
        if wanted.per_task:
            held_out = held_out.select(first_of_each(held_out.tasks, wanted.per_task))
        folder = self.folder / "ablations"
        run = partial(
            run_sweep,
            self.model,
            settings=wanted,
            reference=self.parts["fit"].tokens()[:_REFERENCE_PROMPTS],
            seed=self.settings.seed,
            precision=_dtype(wanted.precision),
        )
        sweep = run(held_out, self.ranking, folder=folder, progress=self.reporter.update)
        trials = tabulate_sweep(sweep, held_out.tasks, self.settings.seed)
        with atomic_write(folder / "trials.parquet") as temporary:
            trials.to_parquet(temporary, index=False)
        if wanted.by_task:
            # Balanced by weights: of one task there are few to throw away.
            unbalanced = dataclasses.replace(wanted, balance=False)
            self._ablate_by_task(held_out, partial(run, settings=unbalanced))

    def _ablate_by_task(self, held_out: Scenarios, run: Callable[..., AblationSweep]) -> None:
        """Rank the heads for each task by itself, and ablate them on its scenarios."""
        from aplens.study.sweeps import rank_task, tabulate_task_sweeps

        folder = self.folder / "ablations"
        tasks = sorted(set(held_out.tasks))
        sweeps, scenarios = {}, {}
        for number, task in enumerate(tasks):
            fit, rank = (observed_of(self.observed_part(part), task) for part in ("fit", "rank"))
            try:
                ranking = rank_task(
                    self._new_scorer(), fit, rank, folder / "rankings" / f"{task}.json"
                )
            except ValueError as error:  # few scenarios, or one outcome; the others can be ranked
                self.reporter.say(f"{task}: not ranked by itself: {error}")
                continue
            scenarios[task] = of_task(held_out, task)
            show = partial(self._show_part, task, number, len(tasks))
            sweeps[task] = run(scenarios[task], ranking, folder=folder / task, progress=show)
        if not sweeps:
            raise ValueError("ablate.by_task: the heads could be ranked for no task by itself")
        of_tasks = {task: scenarios[task].tasks for task in sweeps}
        table = tabulate_task_sweeps(sweeps, of_tasks, self.settings.seed)
        with atomic_write(folder / "by_task.parquet") as temporary:
            table.to_parquet(temporary, index=False)

    def _show_part(self, task: str, number: int, n_tasks: int, done: int, total: int) -> None:
        """Progress of one of several sweeps of like size."""
        self.reporter.update(number * total + done, n_tasks * total, task)

    def _gates(self) -> None:
        import pandas as pd

        from aplens.interventions import GateTrials
        from aplens.study.gates import BIAS, gate_task, load_task, to_trials

        wanted, folder, results = self.settings.gates, self.folder / "gates", []
        assert wanted is not None
        folder.mkdir(exist_ok=True)
        tasks = sorted(set(wanted.tasks or self.parts["ablate"].tasks))
        kept = slice(wanted.per_task or None)
        held_out = [of_task(self.parts["ablate"], task)[kept] for task in tasks]
        for number, (task, scenarios) in enumerate(zip(tasks, held_out, strict=True)):
            path = folder / f"{task}.json"
            result = load_task(path, scenarios)
            if result is None:
                result = gate_task(
                    self.model,
                    of_task(self.parts["fit"], task),
                    of_task(self.parts["rank"], task),
                    scenarios,
                    wanted,
                    _dtype(wanted.precision),
                    self.settings.seed,
                    partial(self._show_task, f"{task}: ", number, len(tasks)),
                    self.ranking,
                )
                result.save(path)
            results.append(result)
        trials = GateTrials.join(list(map(to_trials, held_out, results)))
        tables = [trials.to_frame(self.settings.seed, baseline=BIAS).assign(gated=False)]
        if wanted.predictor:
            where = " where an error is expected"
            expected = self._expected_errors(wanted.predictor, held_out)
            gated = trials.apply_where(expected, where)
            frame = gated.to_frame(self.settings.seed, baseline=BIAS + where)
            tables.append(frame.assign(gated=True))
        with atomic_write(self.folder / "gates.parquet") as temporary:
            pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)

    def _show_task(self, task: str, number: int, total: int, note: str) -> None:
        self.reporter.update(number, total, task + note)

    def _expected_errors(self, features: str, held_out: Sequence[Scenarios]) -> NDArray[np.bool_]:
        """Whether a predictor that saw `fit` and `rank` expects an error, in the order given."""
        import numpy as np

        from aplens.scoring import CorrectnessPredictor

        n = len(self.parts["fit"]) + len(self.parts["rank"])
        predictor = CorrectnessPredictor(features, seed=self.settings.seed)
        predictor.fit(self.observations.select(range(n)))
        expected = predictor.decision_function(self.observed_part("ablate")) > 0
        tasks = np.array(self.parts["ablate"].tasks)
        by_task = [expected[tasks == part.tasks[0]][: len(part)] for part in held_out]
        return np.concatenate(by_task)

    def _truth(self) -> None:
        from aplens.interventions import estimate_effects, measure_effects
        from aplens.models import compute_in
        from aplens.scoring import STATISTICS
        from aplens.study.truth import compare_rankings

        wanted = self.settings.truth
        assert wanted is not None
        held_out, ranked_on = (
            self.parts[part].select(first_of_each(self.parts[part].tasks, n))
            for part, n in (("ablate", wanted.per_task), ("rank", wanted.attribution_per_task))
        )
        with compute_in(self.model, _dtype(wanted.precision)):
            truth = measure_effects(
                self.model,
                held_out,
                batch_size=wanted.batch_size,
                progress=self.reporter.update,
            )
            estimates = estimate_effects(self.model, ranked_on, batch_size=wanted.batch_size)
        importance = self.ranking.to_frame().set_index(["layer", "head"])["importance"]
        entropy = self.observed_part("rank").statistics[:, :, STATISTICS.index("last_entropy")]
        scores = {
            f"SHAP of {self.settings.rank.features}": importance.loc[list(truth.heads)].to_numpy(),
            "attribution": abs(estimates.values.mean(axis=1)),
            "low entropy of the last query": -entropy.mean(axis=0),
            "high entropy of the last query": entropy.mean(axis=0),
        }
        table = compare_rankings(truth, scores, seed=self.settings.seed)
        with atomic_write(self.folder / "truth.parquet") as temporary:
            table.to_parquet(temporary, index=False)

    def _report(self) -> None:
        from aplens.study.report import gather_report
        from aplens.study.results import results_to_markdown
        from aplens.viz import write_report

        with atomic_write(self.folder / "results.md") as temporary:
            temporary.write_text(results_to_markdown(self), encoding="utf-8")
        write_report(self.folder / "report.html", gather_report(self))

    def summary(self) -> str:
        """The ranking's first heads, the ablation table and the report's path, as plain text."""
        from aplens.study.report import summarize

        return summarize(self)


def _dtype(name: str) -> torch.dtype | None:
    """The format that torch calls so; None for no name. `check_values` knows the names."""
    import torch

    return getattr(torch, name) if name else None


def _flatten(part: Any) -> dict[str, Any]:
    """Settings by name; those of several corpora are numbered as in the study file."""
    if not isinstance(part, tuple):
        return dataclasses.asdict(part)
    if len(part) == 1:
        return dataclasses.asdict(part[0])
    numbered = {
        f"scenarios[{i}].{key}": value
        for i, table in enumerate(part)
        for key, value in dataclasses.asdict(table).items()
    }
    return {"corpora": len(part), **numbered}


def _defaults(part: Any) -> dict[str, Any]:
    """What `_flatten` gives where a study file says nothing."""
    if isinstance(part, tuple):
        part = part[0]
    return {
        one.name: one.default
        for one in dataclasses.fields(part)
        if one.default is not dataclasses.MISSING
    }
