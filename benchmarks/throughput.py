"""Where the time of one observation goes: seconds a prompt, and ratios to the plain forward pass.

    python benchmarks/throughput.py --kind bridge --tokens 128

Medians over repeats, all in one run on the same prompts: compare the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

import aplens
from aplens.mae import APMAEConfig
from aplens.models import last_token_logits
from aplens.patterns import PatchGrid, log_normalize, stream_patterns


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kind", default="bridge", choices=["hooked", "bridge"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    model = aplens.load_model(options.model, options.kind)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        100, model.cfg.d_vocab, (options.prompts, options.tokens), generator=generator
    )
    config = dataclasses.replace(
        APMAEConfig.small(), n_ctx=options.tokens, patch_size=options.tokens // 8
    )
    mae = aplens.APMAE(config)
    grid = PatchGrid(config.n_ctx, config.patch_size)
    ((_, patterns, _),) = stream_patterns(model, tokens, batch_size=options.prompts)
    scaled = log_normalize(grid.patchify(patterns.values))

    @torch.no_grad()
    def forward() -> None:
        last_token_logits(model, tokens)

    @torch.no_grad()
    def encode() -> None:
        for prompt in scaled:
            for part in prompt.split(64):
                mae.encode_patches(part)

    steps: dict[str, Callable[[], object]] = {
        "forward pass": forward,
        "forward pass + collecting": lambda: list(stream_patterns(model, tokens, None, 8)),
        "patches + log-normalizing": lambda: log_normalize(grid.patchify(patterns.values)),
        "encoding": encode,
    }
    seconds = {
        name: median_seconds(run, options.repeats) / options.prompts for name, run in steps.items()
    }
    n_heads = len(patterns.heads)
    print(f"{options.model} ({options.kind}), {options.tokens} tokens, {n_heads} heads a prompt")
    for name, value in seconds.items():
        print(f"{name:28} {value:7.3f} s a prompt  {value / seconds['forward pass']:5.2f} ×")
    print(f"{'encoding':28} {n_heads / seconds['encoding']:7.0f} patterns/s")


if __name__ == "__main__":
    main()
