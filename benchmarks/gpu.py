"""Everything once on a GPU: is it exact, how fast is it, does memory grow? At most six minutes.

    python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --device cpu --quick --output cpu.json

Needs no network: models have the shapes of SmolLM2-135M and of one of 1.5 billion parameters, with
seeded random weights, and the prompts are random tokens. The AP-MAE is `aplens-base`. Prints as it
goes; the JSON file is written after every part, and a part that fails is noted there with its
error. Ends with 1 when a comparison is outside its tolerance or a part failed.

Tolerances: a thousandth of the largest value in float32, where a GPU adds up in another order; in
bfloat16 a twentieth, since 8 bits of every value are kept and errors add up over 30 layers.

`benchmarks/gpu_wheels.txt` lists what a machine that has torch, timm and transformers lacks, and
the command that installs it without a network.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import aplens
from aplens.correctness import observe
from aplens.mae import APMAEConfig, TrainingSettings, train_apmae
from aplens.models import last_token_logits
from aplens.patterns import log_normalize
from aplens.scenarios import Scenario, Scenarios

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
VOCABULARY = 49152
SMALL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3,
}  # fmt: skip
LARGE = {
    "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": False,
}  # fmt: skip
QUICK = {**SMALL, "num_hidden_layers": 4}


@dataclass
class Report:
    """What was found so far, and where it is written."""

    path: Path
    found: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def add(self, part: str, name: str, value: float, unit: str = "") -> None:
        """Note one number, and write the file."""
        self.found.setdefault(part, {})[name] = {"value": value, "unit": unit}
        print(f"  {name}: {value:.4g} {unit}", flush=True)
        self._write()

    def compare(self, part: str, name: str, got: Tensor, expected: Tensor, most: float) -> None:
        """Note by how much two results differ, as a share of the largest value."""
        got, expected = got.detach().float().cpu(), expected.detach().float().cpu()
        share = float((got - expected).abs().max() / expected.abs().max())
        self.add(part, name, share, f"of the largest value (at most {most:g})")
        if not share <= most:
            self.failed.append(f"{part}: {name} differs by {share:.3g}, at most {most:g} expected")

    @contextmanager
    def part(self, name: str) -> Iterator[str]:
        """One part of the run; what it raises is noted, and the next part goes on."""
        print(name, flush=True)
        started = time.perf_counter()
        try:
            yield name
        except Exception as error:  # whatever a device raises
            self.failed.append(f"{name}: {type(error).__name__}: {error}")
            traceback.print_exc()
        self.add("seconds", name, time.perf_counter() - started, "s")

    def _write(self) -> None:
        text = json.dumps({"found": self.found, "failed": self.failed}, indent=2)
        self.path.write_text(text + "\n", encoding="utf-8")


def save_random_model(folder: Path, shape: dict[str, Any], dtype: torch.dtype) -> Path:
    """A Llama of this shape with seeded random weights, as a Hugging Face folder."""
    torch.manual_seed(0)
    options = {
        "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "bos_token_id": 0,
        "eos_token_id": 0, "tie_word_embeddings": True, "initializer_range": 0.04,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**{**options, **shape})).to(dtype).save_pretrained(folder)
    return folder


def load(folder: Path, device: str, dtype: torch.dtype) -> Any:
    return aplens.load_model(folder, "bridge", device=device, dtype=dtype, verify=False)


def random_scenarios(n: int, n_tokens: int, seed: int = 0) -> Scenarios:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, VOCABULARY, (n, n_tokens + 2), generator=generator).tolist()
    return Scenarios(
        Scenario("random", "tokens", f"{seed}/{i}", 1, "", tuple(prompt), target, "own", wrong)
        for i, (*prompt, target, wrong) in enumerate(ids)
    )


def measure_everything(model: Any, mae: aplens.APMAE, scenarios: Scenarios) -> dict[str, Tensor]:
    """One of each: what has to be the same on every device."""
    prompts = scenarios.prompts()
    patterns = aplens.collect_patterns(model, prompts)
    heads = patterns.heads[:: len(patterns.heads) // 6][:6]
    with torch.no_grad(), aplens.ablate_heads(model, heads):
        ablated = last_token_logits(model, scenarios.tokens().to(mae.device))
    turned = scenarios.tokens().flip(0).tolist()
    metric = aplens.logit_difference(scenarios)
    quiet = {"progress": False}
    patched = aplens.path_patch(model, prompts, turned, heads[:2], "logits", metric=metric, **quiet)
    exact = {"precision": torch.float32}
    return {
        "patterns": patterns.values,
        "embeddings": mae.encode(patterns, **exact),
        "fingerprints": mae.fingerprint(patterns, **exact),
        "habits": mae.expect(patterns, **exact),
        "ablated logits": ablated,
        "effects": torch.as_tensor(aplens.measure_effects(model, scenarios, heads, **quiet).values),
        "estimated effects": torch.as_tensor(
            aplens.estimate_effects(model, scenarios, **quiet).values
        ),
        "path patching": torch.as_tensor(patched.to_frame().select_dtypes("float").to_numpy()),
    }


def check_exactness(
    report: Report, part: str, folder: Path, device: str, dtype: torch.dtype, n_tokens: int
) -> None:
    """The device against the CPU."""
    scenarios = random_scenarios(4, n_tokens)
    found = []
    for place in ("cpu", device):
        mae = aplens.APMAE.from_pretrained("aplens-base").to(place)
        found.append(measure_everything(load(folder, place, dtype), mae, scenarios))
    for name, expected in found[0].items():
        report.compare(part, name, found[1][name], expected, TOLERANCE[dtype])


def seconds_of(run: Callable[[], object], device: str, repeats: int = 3) -> float:
    """The fastest of some runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def measure_limits(report: Report, part: str, device: str, size: int) -> None:
    """What the device multiplies and moves at best."""
    for dtype in TOLERANCE:
        a = torch.randn(size, size, device=device).to(dtype)
        seconds = seconds_of(lambda a=a: a @ a, device)
        report.add(part, f"matrix product, {dtype}", 2 * size**3 / seconds / 1e12, "TFLOP/s")
    long = torch.empty(size * size * 4, device=device)
    seconds = seconds_of(lambda: long.clone(), device)
    report.add(part, "memory, read and written", 2 * 4 * long.numel() / seconds / 1e9, "GB/s")


def encode_in_parts(mae: aplens.APMAE, scaled: Tensor, patches: Any, dtype: torch.dtype) -> None:
    for rows in scaled.split(512):
        mae.encode_patches(rows, patches, precision=dtype)


@torch.no_grad()
def measure_encoding(report: Report, part: str, device: str, n: int) -> None:
    """Patterns a second, as the released code encodes and as we do, two sizes."""
    attention = torch.rand(n, 256, 256, device=device).tril()
    attention /= attention.sum(-1, keepdim=True)
    maes = {
        "aplens-base": aplens.APMAE.from_pretrained("aplens-base"),
        "the paper's size": aplens.APMAE(APMAEConfig(decoder_context="cls")).eval(),
    }
    for name, mae in maes.items():
        mae = mae.to(device)
        scaled = log_normalize(mae.grid.patchify(attention))
        ways = {"all patches, float32": ("all", torch.float32)}
        ways |= {f"lower patches, {dtype}": ("lower", dtype) for dtype in TOLERANCE}
        for way, (patches, dtype) in ways.items():
            run = partial(encode_in_parts, mae, scaled, patches, dtype)
            report.add(part, f"{name}, {way}", n / seconds_of(run, device), "patterns/s")
        report.add(
            part,
            f"{name}, from attention",
            n / seconds_of(lambda mae=mae: mae.encode(attention), device),
            "patterns/s",
        )


def measure_rates(
    report: Report, part: str, folder: Path, device: str, dtype: torch.dtype, n: int, n_tokens: int
) -> None:
    """Prompts a second beside the model's own forward pass."""
    model, scenarios = load(folder, device, dtype), random_scenarios(n, n_tokens)
    mae = aplens.APMAE.from_pretrained("aplens-base").to(device)
    tokens = scenarios.tokens().to(device)
    few = scenarios[: max(2, n // 8)]

    @torch.no_grad()
    def forward() -> None:
        for rows in tokens.split(32):
            last_token_logits(model, rows)

    heads = [aplens.Head(layer, 0) for layer in range(model.cfg.n_layers)]
    plan = aplens.SweepPlan(sizes=(1, 4), random_seeds=(0,), balance=False)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "forward pass": (n, forward),
        "observe": (n, lambda: observe(model, scenarios, mae, batch_size=32, progress=False)),
        "observe with surprise": (
            n,
            lambda: observe(
                model, scenarios, mae, batch_size=32, keep=("surprise",), progress=False
            ),
        ),
        "effects of all heads, estimated": (
            n,
            lambda: aplens.estimate_effects(model, scenarios, progress=False),
        ),
        "effects of all heads, measured": (
            len(few),
            lambda: aplens.measure_effects(model, few, batch_size=64, progress=False),
        ),
        "sweep of five settings": (
            n,
            lambda: aplens.sweep_ablations(
                model, scenarios, {"first": heads}, plan, progress=False
            ),
        ),
    }
    base = None
    for name, (count, run) in ways.items():
        each = seconds_of(run, device, repeats=1) / count
        base = base or each
        report.add(part, name, 1 / each, "prompts/s")
        report.add(part, f"{name}, in forward passes", each / base, "×")


def measure_training(report: Report, part: str, folder: Path, device: str, n: int) -> None:
    """Patterns a second in training, the model's passes included."""
    model = load(folder, device, torch.float32)
    settings = TrainingSettings.small(patterns=n, batch_size=64)
    with tempfile.TemporaryDirectory() as out:
        result = train_apmae(
            model, random_scenarios(16, 256), APMAEConfig.small(), out,
            validation=random_scenarios(4, 256, seed=1), settings=settings, progress=False,
        )  # fmt: skip
    report.add(part, "small configuration", result.patterns / result.seconds, "patterns/s")


def measure_memory(
    report: Report, part: str, folder: Path, device: str, counts: tuple[int, int]
) -> None:
    """The most memory while observing few and many prompts."""
    model = load(folder, device, torch.float32)
    mae = aplens.APMAE.from_pretrained("aplens-base").to(device)
    peaks = []
    for n in counts:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as out:
            kept = Path(out) / "kept"
            observe(model, random_scenarios(n, 128), mae, kept, batch_size=16, progress=False)
        peaks.append(_peak_megabytes(device))
        report.add(part, f"peak with {n} prompts", peaks[-1], "MB")
    if peaks[1] > 1.1 * peaks[0]:
        report.failed.append(f"{part}: grew from {peaks[0]:.0f} to {peaks[1]:.0f} MB")


def _peak_megabytes(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models, few prompts")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    device, quick = options.device, options.quick
    report = Report(options.output)
    with tempfile.TemporaryDirectory() as scratch:
        small = save_random_model(Path(scratch, "small"), QUICK if quick else SMALL, torch.float32)
        with report.part("limits") as part:
            measure_limits(report, part, device, 1024 if quick else 8192)
        for dtype in TOLERANCE:
            with report.part(f"exactness, {dtype}") as part:
                check_exactness(report, part, small, device, dtype, 64 if quick else 128)
        with report.part("encoding") as part:
            measure_encoding(report, part, device, 8 if quick else 4096)
        for dtype in TOLERANCE:
            with report.part(f"rates, {dtype}") as part:
                sizes = (4, 64) if quick else (64, 256)
                measure_rates(report, part, small, device, dtype, *sizes)
        with report.part("training") as part:
            measure_training(report, part, small, device, 128 if quick else 40_000)
        with report.part("memory") as part:
            measure_memory(report, part, small, device, (16, 32) if quick else (64, 512))
        large = save_random_model(Path(scratch, "large"), QUICK if quick else LARGE, torch.bfloat16)
        with report.part("1.5 billion parameters, exactness") as part:
            check_exactness(report, part, large, device, torch.bfloat16, 64)
        with report.part("1.5 billion parameters, rates") as part:
            measure_rates(
                report, part, large, device, torch.bfloat16, *((4, 64) if quick else (32, 256))
            )
    report._write()
    for line in report.failed:
        print(f"FAILED {line}")
    raise SystemExit(bool(report.failed))


if __name__ == "__main__":
    main()
