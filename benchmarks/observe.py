"""Observing, per scenario: keeping every pattern and encoding after, against aplens; and storage.

    python benchmarks/observe.py
    python benchmarks/observe.py --mae paper --scenarios 8

The baseline is what people write today, step by step as the paper's released code does it: one
prompt at a time through `run_with_cache`, every pattern kept in float32 and written to HDF5, one
dataset a head; then, head by head, read back, log-normalized over the whole square, all 64 patches
encoded in float32, 250 patterns at once, CLS and mean written to HDF5. Ours is `aplens.observe`.
Same model, weights, scenarios, AP-MAE and threads; they take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import h5py
import torch
from common import describe_machine, print_table, real_scenarios, seconds_of

import aplens
from aplens.mae import APMAEConfig
from aplens.models import compute_in, last_token_logits
from aplens.patterns import log_normalize
from aplens.prompts import read_prompts
from aplens.scenarios import Scenarios


class Baseline:
    """Keep every pattern, write it, read it, encode it, write that."""

    def __init__(self, model: Any, mae: aplens.APMAE, scenarios: Scenarios, path: Path) -> None:
        self.model, self.mae, self.scenarios, self.path = model, mae, scenarios, path

    @torch.no_grad()
    def run(self) -> None:
        n = self.scenarios.tokens().shape[1]
        with h5py.File(self.path, "w") as file:
            for index, scenario in enumerate(self.scenarios):
                tokens = torch.tensor([scenario.prompt])
                wanted = lambda name: name.endswith("hook_pattern")  # noqa: E731
                logits, cache = self.model.run_with_cache(tokens, names_filter=wanted)
                assert logits[0, -1].argmax() >= 0  # the outcome
                for layer in range(self.model.cfg.n_layers):
                    patterns = cache[f"blocks.{layer}.attn.hook_pattern"][0]
                    for head, pattern in enumerate(patterns):
                        name = f"{layer}/{head}/raw"
                        if name not in file:
                            shape = (len(self.scenarios), n, n)
                            file.create_dataset(name, shape, "f4", chunks=(1, n, n))
                        file[name][index] = pattern.numpy()
            for layer in range(self.model.cfg.n_layers):
                for head in range(self.model.cfg.n_heads):
                    self._encode(file, f"{layer}/{head}")

    def _encode(self, file: h5py.File, name: str) -> None:
        attention = torch.from_numpy(file[f"{name}/raw"][:])
        for start in range(0, len(attention), 250):
            patches = self.mae.grid.patchify(log_normalize(attention[start : start + 250]))
            embeddings = self.mae.encode_patches(
                patches, "all", ("cls", "mean"), precision=torch.float32
            )
        file.create_dataset(f"{name}/embedding", data=embeddings.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mae", default="aplens-base", help="an AP-MAE's name, or paper")
    parser.add_argument("--kind", default="hooked,bridge")
    parser.add_argument("--scenarios", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    mae = (
        aplens.APMAE(APMAEConfig(decoder_context="cls")).eval()
        if options.mae == "paper"
        else aplens.APMAE.from_pretrained(options.mae)
    )
    for kind in options.kind.split(","):
        measure(kind, mae, options)


def measure(kind: str, mae: aplens.APMAE, options: argparse.Namespace) -> None:
    model = aplens.load_model("smollm2-135m", kind)  # type: ignore[arg-type]
    scenarios = real_scenarios(model, options.scenarios, options.tokens)
    prompts = read_prompts(model, scenarios)

    @torch.no_grad()
    def forward(precision: torch.dtype | None = None) -> None:
        for batch in prompts.split(8):
            with compute_in(model, precision):
                last_token_logits(model, batch.tokens, batch.lengths)

    @torch.no_grad()
    def collect() -> None:
        from aplens.patterns import read_layers

        for batch in prompts.split(8):
            read_layers(model, batch, lambda patterns: float(patterns.values[0, 0, -1, -1]))

    times: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for turn in range(options.repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            baseline = Baseline(model, mae, scenarios, place / "baseline.h5")
            ways = {
                "keep, write, read, encode (baseline)": baseline.run,
                "ours": lambda: aplens.observe(model, scenarios, mae, place / "ours"),  # noqa: B023
                "ours, model in bfloat16": lambda: aplens.observe(
                    model,
                    scenarios,
                    mae,
                    place / "bfloat16",  # noqa: B023
                    precision=torch.bfloat16,
                ),
                "ours, with surprise": lambda: aplens.observe(
                    model,
                    scenarios,
                    mae,
                    place / "surprise",  # noqa: B023
                    keep=["statistics", "surprise"],
                ),
                "forward pass alone": forward,
                "forward pass, patterns looked at": collect,
                "forward pass in bfloat16": lambda: forward(torch.bfloat16),
            }
            for name, run in ways.items():
                times.setdefault(name, []).extend([seconds_of(run)] * (turn > 0))
            if turn == options.repeats:
                sizes = measure_storage(model, scenarios, mae, place)
    n = len(scenarios)
    medians = {name: sorted(values)[len(values) // 2] / n for name, values in times.items()}
    theirs = medians["keep, write, read, encode (baseline)"]
    print(f"{kind}, {options.mae}, {n} × {options.tokens} tokens, {describe_machine()}")
    rows = [[name, f"{s:.3f}", f"{theirs / s:.2f}"] for name, s in medians.items()]
    print_table(["way", "s a scenario", "times the baseline"], rows)
    alone = medians["forward pass alone"]
    print(f"collecting adds {medians['forward pass, patterns looked at'] / alone - 1:+.1%}")
    rows = []
    for name, size in sizes.items():
        kind_of_data = "embeddings" if name.startswith("embeddings") else "patterns"
        share = size / sizes[f"{kind_of_data}, float32"]
        rows.append([name, f"{size / n / 1e6:.3f}", f"{share:.3f}"])
    print_table(["kept (MB a scenario are GB for 1,000)", "MB a scenario", "of float32"], rows)


def measure_storage(
    model: Any, scenarios: Scenarios, mae: aplens.APMAE, folder: Path
) -> dict[str, int]:
    """Bytes on disk of each way to keep what was seen."""
    n_patterns = len(scenarios) * model.cfg.n_layers * model.cfg.n_heads
    n_tokens = scenarios.tokens().shape[1]

    def bytes_of(name: str, **options: Any) -> int:
        aplens.observe(model, scenarios, mae, folder / name, **options)
        return sum(file.stat().st_size for file in (folder / name).iterdir())

    exact = bytes_of("exact", keep=[])
    return {
        "patterns, float32": n_patterns * n_tokens**2 * 4,
        "baseline's HDF5, patterns and embeddings": (folder / "baseline.h5").stat().st_size,
        "embeddings, float32": n_patterns * mae.embedding_size() * 4,
        "embeddings and outcomes, ours, float16": exact,
    }


if __name__ == "__main__":
    main()
