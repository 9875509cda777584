"""Values of a study that no stage could use, found before the first of them runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from aplens._io import require_file_name
from aplens._words import shorten

if TYPE_CHECKING:
    from aplens.study.config import MAESettings, ScenarioSettings, SplitSettings, StudySettings

_PRESETS = ("small", "paper", "paper_tiny")
_MOST = 2**31 - 1  # what the tables and tensors count with
_LAST_SEED = 2**32 - 1  # the largest that every library takes


def check_values(settings: StudySettings) -> None:
    """Refuse numbers out of range and unknown choices.

    Raises:
        ValueError: The message names the key, what it has and what was expected.
    """
    from aplens.scoring.clusters import HeadClusters, Reducer
    from aplens.scoring.features import make_features
    from aplens.scoring.observations import HEAD_NUMBERS

    _require_range("seed", settings.seed, 0, _LAST_SEED)
    several = len(settings.scenarios) > 1
    for i, table in enumerate(settings.scenarios):
        _check_scenarios(table, f"scenarios[{i}]." if several else "scenarios.")
    _check_split(settings.split)
    _check_mae(settings.mae)
    _require_choice("model.dtype", settings.model.dtype, ("float32", "bfloat16", "float16"))
    _require_range("model.n_devices", settings.model.n_devices)
    for name, precision in (
        ("observe.precision", settings.observe.precision),
        ("ablate.precision", settings.ablate.precision),
    ):
        _require_choice(name, precision, ("", "bfloat16"))
    _require_range("observe.batch_size", settings.observe.batch_size)
    _require_range("observe.shard_size", settings.observe.shard_size)
    _require_range("rank.folds", settings.rank.folds, 2)
    _require_choice("rank.reducer", settings.rank.reducer, get_args(Reducer))
    for features in (settings.rank.features, *settings.rank.compare):
        make_features(features, HeadClusters("pca"))
        if not settings.observe.surprise and any(
            HEAD_NUMBERS.get(part) == "surprise" for part in features.split("+")
        ):
            raise ValueError(f"features {shorten(features)} need observe.surprise = true")
    _check_ablate(settings)


def _check_scenarios(table: ScenarioSettings, where: str) -> None:
    from aplens.scenarios import list_tasks

    if not table.corpus or not all(table.corpus):
        raise ValueError(f"{where}corpus must name at least one corpus, got {list(table.corpus)}")
    list_tasks(table.language)
    for i, task in enumerate(table.tasks):
        require_file_name(task, f"{where}tasks[{i}]")
    for name in ("per_task", "per_file", "context_length"):
        _require_range(where + name, getattr(table, name))
    _require_choice(f"{where}style", table.style, ("auto", "left_to_right", "fim"))


def _check_split(split: SplitSettings) -> None:
    shares = dataclasses.asdict(split)
    if not all(share >= 0 for share in shares.values()) or not math.isclose(
        sum(shares.values()), 1, rel_tol=1e-5
    ):
        raise ValueError(f"split must have shares of 0 or more that sum to 1, got {shares}")


def _check_mae(mae: MAESettings) -> None:
    from aplens.mae import APMAEConfig, TrainingSettings

    _require_choice("mae.preset", mae.preset, _PRESETS)
    for key, kind in (("config", APMAEConfig), ("training", TrainingSettings)):
        changes, known = getattr(mae, key), [field.name for field in dataclasses.fields(kind)]
        if unknown := sorted(changes.keys() - set(known)):
            raise ValueError(f"unknown key mae.{key}.{unknown[0]!r}; known here: {sorted(known)}")
    try:
        dataclasses.replace(getattr(APMAEConfig, mae.preset)(), **mae.config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"mae.config: {error}") from error
    try:
        TrainingSettings(**mae.training)
    except (TypeError, ValueError) as error:
        raise ValueError(f"mae.training: {error}") from error


def _check_ablate(settings: StudySettings) -> None:
    from aplens.interventions import AblationMethod
    from aplens.interventions.outcomes import CHOICES

    ablate = settings.ablate
    _require_choice("ablate.method", ablate.method, get_args(AblationMethod))
    _require_range("ablate.batch_size", ablate.batch_size)
    _require_range("ablate.per_task", ablate.per_task, 0)
    for key in ("sizes", "choices"):
        if not getattr(ablate, key):
            raise ValueError(f"ablate.{key} must not be empty")
    for i, size in enumerate(ablate.sizes):
        _require_range(f"ablate.sizes[{i}]", size)
    for i, choice in enumerate(ablate.choices):
        _require_choice(f"ablate.choices[{i}]", choice, CHOICES)
    for i, seed in enumerate(ablate.random_seeds):
        _require_range(f"ablate.random_seeds[{i}]", seed, 0, _LAST_SEED)


def _require_range(name: str, value: int, least: int = 1, most: int = _MOST) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} must be {least} to {most}, got {shorten(value)}")


def _require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {shorten(value)}")
