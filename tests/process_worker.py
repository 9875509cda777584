"""What each process of a test runs: `process_worker.py observe|train FOLDER [DIES_AT]`.

With DIES_AT, the second process kills itself when it has come that far.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace

import torch
from conftest import make_tiny_bridge
from mae_helpers import tiny_config
from scoring_helpers import make_mae, make_scenarios

import aplens
from aplens.mae import TrainingSettings, train_apmae

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


def main(what: str, folder: str, dies_at: int) -> None:
    def die(done: int) -> None:
        if dies_at and os.environ["RANK"] == "1" and done >= dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model = make_tiny_bridge()
    if what == "observe":
        options = {"shard_size": 3, "batch_size": 2, "progress": lambda done, _: die(done)}
        aplens.observe(model, make_scenarios(20), make_mae(), folder, **options)
    else:
        prompts = [
            torch.randint(0, 101, (n, 32), generator=torch.Generator().manual_seed(n))
            for n in (7, 4)
        ]
        train_apmae(
            model,
            prompts[0],
            CONFIG,
            folder,
            validation=prompts[1],
            settings=SETTINGS,
            progress=lambda progress: die(progress.patterns),
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
