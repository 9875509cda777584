"""What each process of a test does: observe, train, sweep or rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conftest import make_tiny_bridge
from correctness_helpers import make_mae, make_observations, make_scenarios
from mae_helpers import tiny_config

import aplens
from aplens.correctness import evaluate_predictors
from aplens.heads import Head, HeadRanking
from aplens.mae import TrainingSettings, train_apmae
from aplens.models import describe_model

CONFIG = tiny_config(n_ctx=32, patch_size=8, base="additive", patch_input="centred")
CONFIG = replace(CONFIG, summary_weight=0.5)
SETTINGS = TrainingSettings(
    patterns=240,
    batch_size=10,
    learning_rate=1e-2,
    prompts_per_round=3,  # of which one process runs two and the other one
    crop_share=0.3,
    validation_prompts=3,
    validation_patterns=12,
    validations=3,
    checkpoint_seconds=0,
    precision="float32",
)


def work(what: str, folder: str, dies_at: int, **launched: str) -> None:
    """Do the job; the second process, or the only one, kills itself when it has come so far.

    What was launched with others finds them in its environment.
    """
    os.environ.update(launched)
    torch.set_num_threads(1)

    def die(done: int) -> None:
        if dies_at and os.environ.get("RANK", "1") == "1" and done >= dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    runs = {
        "observe": observe,
        "train": train,
        "train-few": train_few,
        "sweep": sweep,
        "rank": rank,
    }
    runs[what](folder, die)


def observe(folder: str, tell: Callable[[int], None]) -> None:
    aplens.observe(
        make_tiny_bridge(),
        make_scenarios(20),
        make_mae(),
        folder,
        shard_size=3,
        batch_size=2,
        progress=lambda done, _: tell(done),
    )


def train(folder: str, tell: Callable[[int], None]) -> None:
    prompts = [
        torch.randint(0, 101, (n, 32), generator=torch.Generator().manual_seed(n)) for n in (7, 4)
    ]
    train_apmae(
        make_tiny_bridge(),
        prompts[0],
        CONFIG,
        folder,
        validation=prompts[1],
        settings=SETTINGS,
        progress=lambda done, _: tell(done),
    )


def train_few(folder: str, tell: Callable[[int], None]) -> None:
    """A prompt a round: one of two processes has none; `start` lies beside the folder."""
    prompts = torch.randint(0, 101, (6, 32), generator=torch.Generator().manual_seed(1))
    train_apmae(
        make_tiny_bridge(),
        prompts[:4],
        replace(CONFIG, fingerprint_dim=8, identity_weight=0.5),
        folder,
        validation=prompts[4:],
        start=Path(folder).parent / "start",
        settings=replace(SETTINGS, patterns=60, prompts_per_round=1, validation_prompts=1),
        progress=lambda done, _: tell(done),
    )


def sweep(folder: str, tell: Callable[[int], None]) -> None:
    model = make_tiny_bridge()
    info = describe_model(model)
    values = np.random.default_rng(0).normal(size=(len(info.heads), 5))
    aplens.sweep_ablations(
        model,
        make_scenarios(20),
        HeadRanking.from_values(info.heads, values, info),
        aplens.SweepPlan(sizes=(1, 2, 3), balance=False),
        batch_size=4,
        folder=folder,
        progress=lambda done, _: tell(done),
    )


def rank(folder: str, tell: Callable[[int], None]) -> None:
    table = evaluate_predictors(
        make_observations(planted=Head(1, 2)),
        features=("confidence", "statistics", "embeddings"),
        n_folds=3,
        progress=lambda done, _: tell(done),
        folder=Path(folder) / "predictions",
    )
    table.to_parquet(Path(folder) / "table.parquet")
