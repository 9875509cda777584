"""Encoding patterns: the paper's way against ours, and against what matrix products allow.

    python benchmarks/encode.py

The paper's architecture (127 million parameters, random weights: the time does not depend on them)
on real patterns of SmolLM2 on Java. Its released code feeds all 64 patches in float32, 150
patterns at once; ours the 36 lower-triangular ones, in bfloat16 where the processor has it. The
limit is the time of the encoder's matrix products alone, in the same shapes and number format.
`--mae aplens-base` does the same with an AP-MAE that is trained, and compares its rankings of
heads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import describe_machine, median_seconds, print_table, real_scenarios
from scipy.stats import spearmanr
from torch.nn import functional as F

import aplens
from aplens.mae import APMAEConfig, default_precision
from aplens.patterns import log_normalize


def products(
    mae: aplens.APMAE, n_patterns: int, n_tokens: int, dtype: torch.dtype
) -> Callable[[], object]:
    """The matrix products of one pass through the encoder, and nothing else."""
    layers = [mae.encoder.patch_embedding[1]]
    for block in mae.encoder.transformer.blocks:
        layers += [block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2]
    weights = [layer.weight.detach().to(dtype) for layer in layers]
    rows = n_patterns * n_tokens
    inputs = {width: torch.randn(rows, width).to(dtype) for width in {w.shape[1] for w in weights}}
    return lambda: [F.linear(inputs[weight.shape[1]], weight) for weight in weights]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mae", default="paper", help="paper, or an AP-MAE's name")
    parser.add_argument("--patterns", type=int, default=72, help="to time")
    parser.add_argument("--prompts", type=int, default=8, help="to rank heads on")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    paper = options.mae == "paper"
    mae = (
        aplens.APMAE(APMAEConfig(decoder_context="cls")).eval()
        if paper
        else aplens.APMAE.from_pretrained(options.mae)
    )
    model = aplens.load_model("smollm2-135m", "bridge")
    scenarios = real_scenarios(model, options.prompts, mae.config.n_ctx)
    patterns = aplens.collect_patterns(model, scenarios, batch_size=4)
    attention = patterns.values.flatten(0, 1)[: options.patterns]
    scaled = log_normalize(mae.grid.patchify(attention))
    fast = default_precision(mae.device)

    def encode(patches: str, precision: torch.dtype, at_once: int) -> torch.Tensor:
        parts = scaled.split(at_once)
        return torch.cat(
            [mae.encode_patches(p, patches, "cls", precision=precision) for p in parts]  # type: ignore[arg-type]
        )

    n, k = len(scaled), mae.grid.n_patches
    ways: dict[str, Callable[[], object]] = {
        "the paper's way: 64 patches, float32": lambda: encode("all", torch.float32, 150),
        "36 patches, float32": lambda: encode("lower", torch.float32, 128),
        f"ours: 36 patches, {fast}": lambda: encode("lower", fast, 128),
        "matrix products alone, 64 patches, float32": products(mae, n, 65, torch.float32),
        f"matrix products alone, 36 patches, {fast}": products(mae, n, 1 + k, fast),
    }
    with torch.no_grad():
        seconds = median_seconds(ways, options.repeats)
    theirs, _, ours, _, limit = seconds.values()
    print(f"{options.mae}, {n} patterns, {describe_machine()}")
    rows = [[way, f"{n / s:.1f}", f"{theirs / s:.2f}"] for way, s in seconds.items()]
    print_table(["way", "patterns/s", "times the paper's way"], rows)
    print(f"ours reaches {limit / ours:.0%} of what matrix products allow")

    with torch.no_grad():
        exact, rounded = encode("lower", torch.float32, 128), encode("lower", fast, 128)
        error = ((rounded - exact).norm(dim=1) / exact.norm(dim=1)).max().item()
        print(f"CLS of the same patches differs by {error:.2g} of its length at most")
        if not paper:
            compare_rankings(mae, patterns, fast)


def compare_rankings(
    mae: aplens.APMAE, patterns: aplens.AttentionPatterns, fast: torch.dtype
) -> None:
    """Heads ranked by how much their embedding varies from prompt to prompt, in either format."""

    def variation(precision: torch.dtype) -> torch.Tensor:
        unit = F.normalize(mae.encode(patterns, precision=precision), dim=-1)
        return 1 - unit.mean(dim=0).norm(dim=-1)

    exact, rounded = variation(torch.float32), variation(fast)
    first = set(exact.topk(20).indices.tolist()) & set(rounded.topk(20).indices.tolist())
    rank = spearmanr(exact, rounded).statistic
    print(f"{len(exact)} heads ranked: correlation {rank:.4f}, {len(first)} of the first 20 alike")


if __name__ == "__main__":
    main()
