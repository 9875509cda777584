"""Peak memory of observing, by number of scenarios: it should not grow with them.

    python benchmarks/memory.py --counts 32 128 512 --tokens 64

Each count runs in a process of its own, so that one's peak does not hide another's.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import sys
import tempfile

import torch

import aplens
from aplens.mae import APMAEConfig
from aplens.scenarios import Scenario, Scenarios


def peak_after_observing(count: int, n_tokens: int) -> float:
    """Peak resident memory in MB of this process after observing random prompts."""
    model = aplens.load_model("smollm2-135m", "bridge")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(100, model.cfg.d_vocab, (count, n_tokens), generator=generator)
    scenarios = Scenarios(
        Scenario("random", "java", f"{index}.java", 1, "", tuple(prompt), 100, "left_to_right")
        for index, prompt in enumerate(tokens.tolist())
    )
    config = dataclasses.replace(APMAEConfig.small(), n_ctx=n_tokens, patch_size=n_tokens // 4)
    with tempfile.TemporaryDirectory() as folder:
        aplens.observe(model, scenarios, aplens.APMAE(config), folder)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(f"{peak_after_observing(options.alone, options.tokens):.0f}")
        return
    print(f"{'scenarios':>9}  {'peak MB':>8}")
    for count in options.counts:
        command = [sys.executable, __file__, "--alone", str(count), "--tokens", str(options.tokens)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{count:9}  {result.stdout.split()[-1]:>8}", flush=True)


if __name__ == "__main__":
    main()
