"""Training an AP-MAE's fingerprint on files that no evaluation uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import aplens
from aplens.mae import TrainingProgress, TrainingResult, TrainingSettings
from aplens.scenarios import Scenario, Scenarios
from aplens.study import Reporter
from paper.held_out import DOMAINS, draw_prompts

#: Beside the reconstruction error in units of the patterns' variance.
IDENTITY_WEIGHT = 1.0

#: One prompt in so many is for validation; each prompt is from a file of its own.
_VALIDATION = 8


def train(
    start: str,
    models: list[str],
    n_prompts: int,
    seconds: float,
    folder: Path,
    reporter: Reporter,
    load: Callable[[str, str], Any] = aplens.load_model,
    *,
    seed: int = 0,
) -> TrainingResult:
    """Train an AP-MAE on, for so long, and save it in float16; an interrupted run goes on.

    It learns to tell apart the heads of all models on as many prompts of each domain; the first
    model validates.
    """
    before = aplens.APMAE.from_pretrained(start)
    config = dataclasses.replace(before.config, identity_weight=IDENTITY_WEIGHT)
    loaded = [load(name, "bridge") for name in models]
    parts = [_draw(model, n_prompts, config.n_ctx) for model in loaded]
    validation = parts[0][1]
    training = [_without_files_of(validation, drawn) for drawn, _ in parts]
    reporter.start("train-fingerprint", f"{start} on heads of {', '.join(models)}")
    result = aplens.train_apmae(
        loaded,
        training,
        config,
        folder,
        validation=validation,
        start=start,
        settings=TrainingSettings(
            patterns=10**9,
            max_seconds=seconds,
            batch_size=128,
            learning_rate=1e-3,
            prompts_per_round=64,
            passes=2,
            crop_share=0.3,
            virtual_heads=4,
            validations=6,
            seed=seed,
        ),
        progress=lambda progress: _show(reporter, progress, seconds),
    )
    result.mae.save_pretrained(folder / "float16", torch.float16)
    found = result.history[-1]["retrieval"]
    reporter.say(
        f"error {result.validation_ratio:.3f} of the mean patch's, heads found {found:.2f}"
    )
    return result


def _draw(model: Any, n_prompts: int, n_tokens: int) -> tuple[Scenarios, Scenarios]:
    """Prompts to train on and to validate on."""
    training: list[Scenario] = []
    validation: list[Scenario] = []
    for domain in DOMAINS:
        drawn = draw_prompts(model, domain, n_prompts, n_tokens, held_out=False)
        for i, scenario in enumerate(drawn):
            (training if i % _VALIDATION else validation).append(scenario)
    return Scenarios(training), Scenarios(validation)


def _without_files_of(validation: Scenarios, drawn: Scenarios) -> Scenarios:
    """Another model's prompts may be of files that the first one validates on."""
    files = set(validation.files)
    return drawn.select([i for i, file in enumerate(drawn.files) if file not in files])


def _show(reporter: Reporter, progress: TrainingProgress, seconds: float) -> None:
    left = progress.seconds_left
    note = f"{progress.patterns:,} patterns, {progress.patterns_per_second:.0f} a second"
    reporter.update(round(seconds - (seconds if left is None else left)), round(seconds), note)
