"""Training: patterns a second, and time to a given error on held-out patterns.

    python benchmarks/train.py

The same small encoder and decoder (`APMAEConfig.small`), the same prompts of SmolLM2 on Java, with
the paper's choices and with ours, in float32 and in the processor's fast format. The error is that
on hidden patches of held-out files, as a ratio to predicting each patch position's mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile

from common import describe_machine, print_table, real_scenarios

import aplens
from aplens.mae import APMAEConfig, TrainingSettings, train_apmae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patterns", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--error", type=float, default=0.5, help="the ratio to reach")
    options = parser.parse_args()
    model = aplens.load_model("smollm2-135m", "bridge")
    scenarios = real_scenarios(model, 120, options.tokens)
    parts = scenarios.split({"train": 0.8, "validation": 0.2})
    small = dataclasses.replace(
        APMAEConfig.small(), n_ctx=options.tokens, patch_size=options.tokens // 8
    )
    paper = dataclasses.replace(
        small, patch_input="layer_norm", decoder_context="cls", base="none", summary_weight=0.0
    )
    ours = dataclasses.replace(small, base="low_rank")
    rows = []
    for name, config, precision in (
        ("the paper's choices, float32", paper, "float32"),
        ("the paper's choices", paper, "auto"),
        ("ours, float32", ours, "float32"),
        ("ours", ours, "auto"),
    ):
        settings = TrainingSettings.small(
            patterns=options.patterns, validations=12, precision=precision
        )
        with tempfile.TemporaryDirectory() as folder:
            result = train_apmae(
                model, parts["train"], config, folder,
                validation=parts["validation"], settings=settings,
            )  # fmt: skip
        reached = [e for e in result.history if e["validation_ratio"] <= options.error]
        seconds = reached[0]["seconds"] if reached else math.nan
        rate = result.patterns / result.seconds
        rows.append([name, f"{rate:.0f}", f"{seconds:.0f}", f"{result.validation_ratio:.3f}"])
    print(f"{options.patterns} patterns of {options.tokens} tokens, {describe_machine()}")
    print_table(["way", "patterns/s", f"s to {options.error}", "error at the end"], rows)


if __name__ == "__main__":
    main()
