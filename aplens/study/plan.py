"""What a study will cost: counted from its settings, timed on a few prompts on this machine."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aplens._words import split_features
from aplens.mae import APMAE, random_masks
from aplens.models import ModelInfo, describe_model, last_token_logits
from aplens.ranking import ALWAYS_MEASURED_LAYERS, VERIFY_PROMPTS
from aplens.study.corpora import StudyCorpus, find_corpus
from aplens.tables import Table

if TYPE_CHECKING:
    from aplens.study.config import StudySettings

#: Forward passes that a forward and backward pass takes the time of.
_WITH_GRADIENT = 3

#: Seconds that UMAP takes a head and fold.
_UMAP_SECONDS = 1.0

#: Orders of heads that a study ablates, beside random ones.
_ORDERS = 3

#: Bytes a head and scenario: half floats of the embedding; floats of statistics and of surprise.
_HALF, _FLOAT, _STATISTICS, _SURPRISES = 2, 4, 14, 10


@dataclass(frozen=True)
class StagePlan:
    """What one stage does: prompts it looks at, passes of the model over single ones.

    No `seconds`: nothing is known of it. No `bytes`: it writes less than a few megabytes.
    """

    stage: str
    prompts: int
    passes: int
    seconds: float | None
    bytes: float | None = None


@dataclass(frozen=True)
class StudyPlan:
    """What a study will cost, stage by stage, and what the numbers are of, in sentences."""

    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]

    def to_table(self) -> Table:
        """A row a stage, and one for all."""
        rows = [
            [
                one.stage,
                f"{one.prompts:,}",
                f"{one.passes:,}",
                "not estimated" if one.seconds is None else _minutes(one.seconds),
                "" if one.bytes is None else f"{one.bytes / 1e6:,.0f} MB",
            ]
            for one in self.stages
        ]
        passes = sum(one.passes for one in self.stages)
        seconds = sum(one.seconds or 0.0 for one in self.stages)
        written = sum(one.bytes or 0.0 for one in self.stages)
        rows.append(["all", "", f"{passes:,}", _minutes(seconds), f"{written / 1e6:,.0f} MB"])
        return Table(["stage", "prompts", "passes of a prompt", "time, about", "writes"], rows)

    def to_text(self) -> str:
        """The table and the notes, for a terminal."""
        return "\n".join([self.to_table().to_text(), "", *self.notes])


def plan_study(settings: StudySettings, model: Any) -> StudyPlan:
    """Count a study's work, and time it: model and AP-MAE run on a batch of random tokens."""
    corpora = [find_corpus(table) for table in settings.scenarios]
    info, mae = describe_model(model), _load_mae(settings)
    costs = _Costs.measure(settings, model, info, mae)
    counted = _Counts.of(settings, corpora)
    stages = (
        StagePlan("mine", counted.scenarios, 0, None),
        _plan_training(settings, counted, costs, info, mae),
        _plan_observing(settings, counted, costs, info, mae),
        _plan_ranking(settings, counted, costs, info),
        _plan_ablating(settings, counted, costs, info),
        StagePlan("report", counted.ranked, 0, None),
    )
    names = " and ".join(dict.fromkeys(corpus.name for corpus in corpora))
    return StudyPlan(
        stages,
        (
            f"{info.name}, {len(info.heads)} heads. Corpus: {names}, at least "
            f"{counted.files:,} source files for {counted.scenarios:,} scenarios.",
            f"Memory: {_describe_memory(info)}.",
            f"Timed just now: {costs.prompt:.3g} s a prompt of {settings.context_length} tokens "
            f"for the model, {costs.encoding:.3g} s to encode its patterns. Passes of an ablated "
            "model that share their first layers take less; fits of predictors, and the stages "
            "without an estimate, come on top.",
        ),
    )


@dataclass(frozen=True)
class _Counts:
    """How many scenarios are asked for; a corpus may hold fewer."""

    scenarios: int
    files: int
    tasks: int
    ranked: int

    @classmethod
    def of(cls, settings: StudySettings, corpora: list[StudyCorpus]) -> _Counts:
        from aplens.scenarios import list_tasks

        tasks = [
            len(set(table.tasks or list_tasks(found.language)))
            for table, found in zip(settings.scenarios, corpora, strict=True)
        ]
        wanted = [n * table.per_task for n, table in zip(tasks, settings.scenarios, strict=True)]
        files = sum(
            math.ceil(n / table.per_file)
            for n, table in zip(wanted, settings.scenarios, strict=True)
        )
        ranked = min(settings.rank.prompts, int(sum(wanted) * settings.split.rank))
        return cls(sum(wanted), files, sum(tasks), ranked)


@dataclass(frozen=True)
class _Costs:
    """Seconds: of the model on a prompt, of encoding all its patterns, of training on a pattern."""

    prompt: float
    encoding: float
    training: float

    @classmethod
    def measure(cls, settings: StudySettings, model: Any, info: ModelInfo, mae: APMAE) -> _Costs:
        n_tokens, n_prompts = settings.context_length, settings.observe.batch_size
        generator = torch.Generator().manual_seed(0)
        shape = (n_prompts, n_tokens)
        tokens = torch.randint(0, int(model.cfg.d_vocab), shape, generator=generator)
        tokens = tokens.to(info.device)
        with torch.no_grad():
            running = _time(info.device, lambda: last_token_logits(model, tokens))
        scores = torch.rand(info.n_heads, n_tokens, n_tokens, generator=generator)
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        patterns = scores.softmax(-1).to(info.device)
        encoding = _time(info.device, lambda: mae.encode(patterns)) * len(info.attention_layers)
        training = 0.0
        if settings.mae.pretrained is None:
            from aplens.patterns import log_normalize

            scaled = log_normalize(mae.grid.patchify(patterns))
            n, k = scaled.shape[:2]
            mask = random_masks(n, k, mae.config.mask_ratio, generator)

            def learn() -> None:
                mae(scaled, mask).loss.backward()

            training = _time(info.device, learn) / len(patterns)
        return cls(running / n_prompts, encoding, training)


def _plan_training(
    settings: StudySettings, counted: _Counts, costs: _Costs, info: ModelInfo, mae: APMAE
) -> StagePlan:
    weights = float(_FLOAT * sum(value.numel() for value in mae.state_dict().values()))
    if settings.mae.pretrained:
        return StagePlan("train", 0, 0, 0.0, weights)
    recipe = settings.mae.make_recipe(settings.seed)
    a_prompt = recipe.heads_fraction * len(info.heads) * recipe.passes
    passes = math.ceil(recipe.patterns / a_prompt)
    prompts = int(counted.scenarios * settings.split.autoencoder)
    seconds = passes * costs.prompt + recipe.patterns * costs.training
    if recipe.max_seconds is not None:
        seconds = min(seconds, recipe.max_seconds)
    return StagePlan("train", min(prompts, passes), passes, seconds, weights)


def _plan_observing(
    settings: StudySettings, counted: _Counts, costs: _Costs, info: ModelInfo, mae: APMAE
) -> StagePlan:
    wanted, split = settings.observe, settings.split
    share = split.fit + split.rank + (split.ablate if wanted.held_out else 0)
    prompts = round(counted.scenarios * share)
    numbers = _STATISTICS + (_SURPRISES if wanted.surprise else 0)
    a_head = _HALF * mae.embedding_size() + _FLOAT * numbers
    encodings = 2 if wanted.surprise else 1
    return StagePlan(
        "observe",
        prompts,
        prompts,
        prompts * (costs.prompt + encodings * costs.encoding),
        float(prompts * len(info.heads) * a_head),
    )


def _plan_ranking(
    settings: StudySettings, counted: _Counts, costs: _Costs, info: ModelInfo
) -> StagePlan:
    wanted, n_heads = settings.rank, len(info.heads)
    early = info.n_heads * min(ALWAYS_MEASURED_LAYERS, len(info.attention_layers))
    measured = min(n_heads, early + wanted.verify) + 1 if wanted.verify else 0
    passes = measured * min(VERIFY_PROMPTS, counted.ranked)
    seconds = (passes + _WITH_GRADIENT * counted.ranked) * costs.prompt
    clustered = sum(
        "clusters" in split_features(features) for features in wanted.compare or ("clusters",)
    )
    clustered = clustered * wanted.folds + ("clusters" in split_features(wanted.features))
    if wanted.reducer == "umap":
        seconds += clustered * n_heads * _UMAP_SECONDS
    return StagePlan("rank", counted.ranked, passes + counted.ranked, seconds)


def _plan_ablating(
    settings: StudySettings, counted: _Counts, costs: _Costs, info: ModelInfo
) -> StagePlan:
    wanted = settings.ablate
    prompts = round(counted.scenarios * settings.split.ablate)
    if wanted.per_task is not None:
        prompts = min(prompts, counted.tasks * wanted.per_task)
    sizes = sum(size <= len(info.heads) for size in wanted.sizes)
    passes = prompts * (1 + sizes * (_ORDERS + len(wanted.random_seeds)))
    return StagePlan("ablate", prompts, passes, passes * costs.prompt)


def _load_mae(settings: StudySettings) -> APMAE:
    if settings.mae.pretrained:
        return APMAE.from_pretrained(settings.mae.pretrained)
    return APMAE(settings.mae.make_config())


def _time(device: torch.device, run: Callable[[], object]) -> float:
    """Seconds of the fastest of three runs, after one that reserves memory."""
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _describe_memory(info: ModelInfo) -> str:
    peak = _peak_memory(info)
    if peak is None:
        return "not measured on this system"
    return (
        f"{peak / 1e9:.1f} GB, the most that loading the model and a batch of prompts took just now"
    )


def _peak_memory(info: ModelInfo) -> float | None:
    """Bytes: of the GPU where there is one, else of this process; None where nobody counts them."""
    if info.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(info.device))
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
