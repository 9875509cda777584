"""The road from source files to a report, as stages that can be interrupted and gone on with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from aplens._io import atomic_write, write_json
from aplens._processes import join_processes
from aplens._sums import sketch_files
from aplens._words import split_features
from aplens.study.config import ScenarioSettings, StudySettings, require_length
from aplens.study.findings import EFFECTS, SHAP_CORRECT, SHAP_INCORRECT
from aplens.study.folder import StudyFolder
from aplens.study.stages import Reporter, Stage, run_stages

if TYPE_CHECKING:
    import torch

    from aplens.correctness import Keep
    from aplens.scenarios import Scenarios
    from aplens.study.corpora import StudyCorpus

_MESSAGES = {
    "mine": "completion scenarios from source files",
    "train": "AP-MAE on this model's attention patterns",
    "observe": "the model on every scenario, every head's pattern encoded",
    "rank": "the heads by effect, predictors of correctness, SHAP",
    "ablate": "the first heads of each order, and random ones, on held-out scenarios",
    "report": "one HTML file",
}
STAGES = tuple(_MESSAGES)

#: The parts of the scenarios that each stage takes.
_TAKES = {
    "train": ("autoencoder", "fit"),
    "observe": ("fit", "rank"),
    "rank": ("fit", "rank"),
    "ablate": ("fit", "ablate"),
}

#: Stages that several processes do together.
_SHARED = ("train", "observe")

#: Prompts whose head outputs replace ablated ones (mean, resample); all are held at once.
_REFERENCE_PROMPTS = 32

#: How many times as long as another predictor one on clusters takes to fit, a head.
_FIT_UMAP, _FIT_PCA = 0.3, 0.01


class Study:
    """One study in one folder.

    Args:
        settings: What to do.
        folder: Where its results go, and are read from; what is already there is gone on with.
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
        self.folder = StudyFolder(folder, settings)
        self.reporter = reporter or Reporter()
        self.command = command

    def run(self, until: str = "report", *, redo: str | None = None) -> None:
        """Bring a stage, and those it needs, up to date.

        Args:
            until: The last stage to run, one of `STAGES`.
            redo: The stage to run again from its beginning, and with it all that follow.

        Raises:
            ValueError: When a stage is unknown, the folder holds one made with other settings, or
                `split` has no share for a part that one of the stages takes, or the AP-MAE is too
                short for the prompts.
            CheckpointError: When there is no such AP-MAE.
        """
        if until not in STAGES:
            raise ValueError(f"unknown stage {until!r}: the stages are {list(STAGES)}")
        stages = self._stages(until)
        self._require_parts([one.name for one in stages])
        if "train" in [one.name for one in stages]:
            self._require_mae(redo)
        if "rank" in [one.name for one in stages]:
            from aplens.correctness.clusters import require_reducer

            require_reducer(self.settings.rank.reducer)
        self.folder = StudyFolder(self.folder.path, self.settings)  # what was read may be redone
        run_stages(stages, self.folder.path, self.reporter, redo=redo)

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

    def _require_mae(self, redo: str | None) -> None:
        """Refuse an AP-MAE that is not there, or too short, before the first stage.

        Of one that is in the study's folder already, and stays, that was found out before.
        """
        from aplens.mae import APMAE
        from aplens.mae.habit import require_visible

        wanted, n_tokens = self.settings.mae.pretrained, self.settings.context_length
        stays = (self.folder.path / "mae").exists() and redo not in ("mine", "train")
        if wanted is None or stays:
            return
        mae = APMAE.from_pretrained(wanted)
        require_length(mae.config.n_ctx, n_tokens)
        if self.settings.observe.surprise:
            require_visible(mae, n_tokens)

    @cached_property
    def model(self) -> Any:
        """The hooked model."""
        from aplens.models import load_model

        self.reporter.say(f"loading {self.settings.model.name}")
        wanted = self.settings.model
        return load_model(
            wanted.name,
            wanted.kind,
            dtype=_dtype(wanted.dtype),  # type: ignore[arg-type]
            device_map=wanted.device_map,
        )

    # --- the stages ----------------------------------------------------------------------------

    def _stages(self, until: str) -> list[Stage]:
        tables = self.settings.to_dict()
        # On other GPUs the same study goes on: what comes out is the same.
        tables["model"].pop("device_map", None)
        # A model in a folder may be trained on there, and all later stages are made from it.
        tables["weights of the model"] = sketch_files(self.settings.model.name)

        def stage(
            name: str, keys: Sequence[str], outputs: Sequence[str], run: Callable[[], None]
        ) -> Stage:
            wanted = {key: tables[key] for key in ("seed", *keys)}
            return Stage(name, _MESSAGES[name], wanted, outputs, run, name in _SHARED)

        first = ["model", "weights of the model", "scenarios"]
        mined = ["scenarios.parquet", "corpus.json"]
        ranked = ["ranking.json", "shap.json", "predictors.parquet", "predictions"]
        stages = [
            stage("mine", first, mined, self._mine),
            stage("train", ["mae", "split"], ["mae"], self._train),
            stage("observe", ["observe"], ["observations"], self._observe),
            stage("rank", ["rank"], ranked, self._rank),
            stage("ablate", ["ablate"], ["ablations"], self._ablate),
            stage("report", ["title"], ["report.html", "results.md"], self._report),
        ]
        return stages[: STAGES.index(until) + 1]

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
        scenarios.save(self.folder.path / "scenarios.parquet")
        write_json(self.folder.path / "corpus.json", [found.describe() for found in corpora])
        n_files = len(set(scenarios.files))
        n_tasks = len(scenarios.counts())
        self.reporter.say(f"{len(scenarios)} scenarios of {n_tasks} tasks from {n_files} files")

    def _mine_corpus(
        self, wanted: ScenarioSettings, found: StudyCorpus, prefix: str, before: int, total: int
    ) -> Scenarios:
        """One corpus's scenarios, `before` of a `total` having been mined from others."""
        from aplens.scenarios import Scenarios, mine_scenarios

        scenarios = mine_scenarios(
            self.model,
            found.corpus,
            language=found.language,
            tasks=wanted.tasks or None,
            per_task=wanted.per_task,
            per_file=wanted.per_file,
            context_length=wanted.context_length,
            style=wanted.style,
            seed=self.settings.seed,
            progress=lambda done, _: self.reporter.update(before + done, total),
        )
        return Scenarios(dataclasses.replace(s, file=prefix + s.file) for s in scenarios)

    def _train(self) -> None:
        from aplens.mae import APMAE, train_apmae

        wanted, folder = self.settings.mae, self.folder.path / "mae"
        if wanted.pretrained:
            self.reporter.say(f"nothing to train: {wanted.pretrained} is pretrained")
            if join_processes().is_main:
                APMAE.from_pretrained(wanted.pretrained).save_pretrained(folder)
            return
        result = train_apmae(
            self.model,
            of_languages(self.folder.parts["autoencoder"], wanted.languages),
            wanted.make_config(),
            folder,
            validation=self.folder.parts["fit"],
            settings=wanted.make_recipe(self.settings.seed),
            progress=self.reporter.update,
        )
        self.reporter.say(
            f"error on held-out patterns {result.validation_ratio:.2f} of the mean patch's "
            f"(the additive fit without training: {result.additive_ratio:.2f})"
        )

    def _observe(self) -> None:
        from aplens.correctness import observe
        from aplens.scenarios import Scenarios

        wanted = self.settings.observe
        keep: list[Keep] = ["statistics"]
        keep += ["surprise"] if wanted.surprise else []
        observe(
            self.model,
            Scenarios(s for part in self.folder.observed_parts for s in self.folder.parts[part]),
            self.folder.mae,
            self.folder.path / "observations",
            batch_size=wanted.batch_size,
            shard_size=wanted.shard_size,
            keep=keep,
            precision=_dtype(wanted.precision),
            progress=self.reporter.update,
        )

    def _rank(self) -> None:
        from aplens.correctness import HeadClusters, evaluate_predictors, rank_by_predictor
        from aplens.correctness.evaluation import usual_features
        from aplens.ranking import rank_heads

        wanted, seed, tell = self.settings.rank, self.settings.seed, self.reporter.update
        some = self.folder.ranked
        self.reporter.say(f"effects on {len(some)} scenarios, the first heads measured")
        ranking = rank_heads(self.model, some, verify=wanted.verify, progress=tell)
        ranking.save(self.folder.path / "ranking.json")
        fit, held_out = self.folder.observed_part("fit"), self.folder.observed_part("rank")
        self.reporter.say(f"predictors of correctness, {wanted.folds} folds by source file")
        clusters = HeadClusters(wanted.reducer, seed=seed)
        features = wanted.compare or usual_features(self.folder.observations)
        table = evaluate_predictors(
            self.folder.observations,
            features=features,
            n_folds=wanted.folds,
            seed=seed,
            progress=self._weigh_fits(features),
            folder=self.folder.path / "predictions",
            clusters=clusters,
        )
        self.reporter.say(f"SHAP of {wanted.features} on {len(held_out)} scenarios")
        shap = rank_by_predictor(
            fit, held_out, features=wanted.features, clusters=clusters, seed=seed
        )
        shap.save(self.folder.path / "shap.json")
        with atomic_write(self.folder.path / "predictors.parquet") as temporary:
            table.to_parquet(temporary, index=False)

    def _weigh_fits(self, features: Sequence[str]) -> Callable[[int, int], object]:
        """Tells the reporter of predictors fitted, those on clusters counted as what they take."""
        wanted = self.settings.rank
        per_head = _FIT_UMAP if wanted.reducer == "umap" else _FIT_PCA
        slow = max(1, round(per_head * len(self.folder.observations.heads)))
        weights = [slow if "clusters" in split_features(one) else 1 for one in features]
        done = [0, *accumulate(weights * wanted.folds)]
        return lambda fitted, total: self.reporter.update(done[fitted], done[-1])

    def _ablate(self) -> None:
        from aplens.interventions import SweepPlan, sweep_ablations

        wanted, ranking, shap = self.settings.ablate, self.folder.ranking, self.folder.shap
        sweep_ablations(
            self.model,
            self.folder.swept,
            {
                EFFECTS: ranking,
                SHAP_INCORRECT: shap.top(len(shap), by="toward_incorrect"),
                SHAP_CORRECT: shap.top(len(shap), by="toward_correct"),
            },
            SweepPlan(
                sizes=wanted.sizes,
                random_seeds=wanted.random_seeds,
                balance=wanted.balance,
                seed=self.settings.seed,
            ),
            method=wanted.method,
            reference=self.folder.parts["fit"].tokens()[:_REFERENCE_PROMPTS],
            batch_size=wanted.batch_size,
            precision=_dtype(wanted.precision),
            folder=self.folder.path / "ablations",
            progress=self.reporter.update,
        )

    def _report(self) -> None:
        from aplens.study.report import write_report

        write_report(self.folder, self.model, self.command)

    def summary(self) -> str:
        """What was found in three sentences, the main tables and the report's path, as text."""
        from aplens.study.report import summarize

        return summarize(self.folder)


def of_languages(scenarios: Scenarios, languages: Sequence[str]) -> Scenarios:
    """The scenarios of these languages, of which there must be some; all when none is named."""
    there = set(scenarios.languages)
    if missing := set(languages) - there:
        raise ValueError(
            f"mae.languages names {sorted(missing)}, but the prompts to train on are of "
            f"{sorted(there)}"
        )
    wanted = languages or there
    return scenarios.select([i for i, each in enumerate(scenarios.languages) if each in wanted])


def _dtype(name: str | None) -> torch.dtype | None:
    """The format that torch calls so; None for no name. The settings know the names."""
    import torch

    return getattr(torch, name) if name else None
