"""Training an AP-MAE's fingerprint on files that no evaluation uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import aplens
from aplens.mae import TrainingResult, TrainingSettings
from aplens.scenarios import Scenario, Scenarios
from aplens.study import Reporter
from paper.held_out import DOMAINS, draw_prompts

#: One prompt in so many is for validation; each prompt is from a file of its own.
_VALIDATION = 8


class Recipe(NamedTuple):
    """What a fingerprint is trained on, and how.

    Attributes:
        models: Whose heads to tell apart; the first one validates.
        prompts: Of each domain.
        seconds: How long to train at most; None: as long as it takes.
        patterns: How many to train on at most.
        identity_weight: Beside the reconstruction error in units of the patterns' variance.
        seed: Of the order, heads and masks.
    """

    models: tuple[str, ...] = ("smollm2-135m",)
    prompts: int = 96
    seconds: float | None = None
    patterns: int = 10**9
    identity_weight: float = 1.0
    seed: int = 0


def draw_training(model: Any, n_prompts: int, n_tokens: int) -> tuple[Scenarios, Scenarios]:
    """Prompts to train on and to validate on."""
    training: list[Scenario] = []
    validation: list[Scenario] = []
    for domain in DOMAINS:
        drawn = draw_prompts(model, domain, n_prompts, n_tokens, held_out=False)
        for i, scenario in enumerate(drawn):
            (training if i % _VALIDATION else validation).append(scenario)
    return Scenarios(training), Scenarios(validation)


def train(
    start: str,
    recipe: Recipe,
    folder: Path,
    reporter: Reporter,
    load: Callable[[str, str], Any] = aplens.load_model,
    draw: Callable[[Any, int, int], tuple[Scenarios, Scenarios]] = draw_training,
) -> TrainingResult:
    """Train an AP-MAE on, and save it in float16; an interrupted run goes on."""
    before = aplens.APMAE.from_pretrained(start)
    config = dataclasses.replace(before.config, identity_weight=recipe.identity_weight)
    loaded = [load(name, "bridge") for name in recipe.models]
    parts = [draw(model, recipe.prompts, config.n_ctx) for model in loaded]
    validation = parts[0][1]
    training = [_without_files_of(validation, drawn) for drawn, _ in parts]
    reporter.start("train-fingerprint", f"{start} on heads of {', '.join(recipe.models)}")
    result = aplens.train_apmae(
        loaded,
        training,
        config,
        folder,
        validation=validation,
        start=start,
        settings=TrainingSettings(
            patterns=recipe.patterns,
            max_seconds=recipe.seconds,
            batch_size=128,
            learning_rate=1e-3,
            prompts_per_round=64,
            passes=2,
            crop_share=0.3,
            virtual_heads=4,
            validations=6,
            seed=recipe.seed,
        ),
        progress=reporter.update,
    )
    result.mae.save_pretrained(folder / "float16", torch.float16)
    found = result.history[-1]["retrieval"]
    reporter.say(
        f"error {result.validation_ratio:.3f} of the mean patch's, heads found {found:.2f}"
    )
    return result


def _without_files_of(validation: Scenarios, drawn: Scenarios) -> Scenarios:
    """Another model's prompts may be of files that the first one validates on."""
    files = set(validation.files)
    return drawn.select([i for i, file in enumerate(drawn.files) if file not in files])
