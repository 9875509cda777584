"""Descriptions of heads' patterns that fingerprints are compared with, kept in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import aplens
from aplens.correctness import pattern_statistics
from aplens.mae import FINGERPRINT_POOL, linear_metric
from aplens.patterns import DETECTED, log_normalize, stream_patterns, template_scores
from aplens.study import atomic_write
from paper.evaluation.probes import downsample

_SIDES = (16, 32)

#: Prompts of random tokens that templates are scored on.
_REPEATED = 8

#: The rows of every table, and what is read for each.
ROWS = {
    "raw pattern, 16 × 16": "raw16",
    "raw pattern, 32 × 32": "raw32",
    "log-normalized, 16 × 16": "log16",
    "log-normalized, 32 × 32": "log32",
    "pattern statistics": "statistics",
    "linear metric on log-normalized 16 × 16": "log16",
    "AP-MAE: CLS": "embedding",
    "AP-MAE: CLS + last query + mean": "embedding",
    "fingerprint": "fingerprint",
}

#: One description of patterns, as the rows of a table take it.
Describe = Callable[[dict[str, Tensor]], Float[Tensor, "prompt head d"]]


@torch.no_grad()
def sample(
    path: Path,
    model: Any,
    mae: aplens.APMAE | None,
    tokens: Int[Tensor, "prompt pos"],
    progress: Callable[[int, int], object],
) -> dict[str, Float[Tensor, "prompt head number"]]:
    """Describe every head's pattern on every prompt; what the file holds is not done again."""
    if path.exists():
        return {name: values.float() for name, values in load_file(path).items()}
    parts: dict[str, list[Tensor]] = {}
    for rows, patterns, _ in stream_patterns(model, tokens, batch_size=4):
        for place, prompt in enumerate(range(rows.start, rows.stop)):
            described = _describe(patterns.prompt(place), tokens[prompt], mae)
            for name, values in described.items():
                parts.setdefault(name, []).append(values.cpu())
        progress(rows.stop, len(tokens))
    stacked = {name: torch.stack(values).contiguous() for name, values in parts.items()}
    with atomic_write(path) as temporary:
        save_file(stacked, temporary)
    return {name: values.float() for name, values in stacked.items()}


def _describe(
    attention: Float[Tensor, "head query key"],
    tokens: Int[Tensor, " pos"],
    mae: aplens.APMAE | None,
) -> dict[str, Float[Tensor, "head number"]]:
    scaled = log_normalize(attention)
    found = {f"raw{side}": downsample(attention.float(), side).half() for side in _SIDES}
    found |= {f"log{side}": downsample(scaled, side).half() for side in _SIDES}
    found["statistics"] = pattern_statistics(attention)
    found["scores"] = template_scores(attention, tokens)[:, : len(DETECTED)]
    if mae is not None:
        embedding = mae.encode(attention, pool=FINGERPRINT_POOL)
        found["embedding"] = embedding.half()
        found["fingerprint"] = mae.read_fingerprint(embedding)
    return found


def repeated_like(prompts: Int[Tensor, "prompt pos"]) -> Int[Tensor, "repeated pos"]:
    """Random ones of the prompts' tokens and the same again, after the token that all begin with.

    Templates are scored on them.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary, n_tokens = prompts.unique(), prompts.shape[1]
    half = (n_tokens - 1) // 2
    drawn = vocabulary[torch.randint(len(vocabulary), (_REPEATED, half), generator=generator)]
    again = torch.cat([prompts[:1, :1].expand(_REPEATED, 1), drawn, drawn, drawn[:, :2]], dim=1)
    return again[:, :n_tokens]


def describers(fitted: list[dict[str, Tensor]], dim: int) -> dict[str, Describe]:
    """What turns a sample into the rows of a table, none of them of length 1 yet.

    Args:
        fitted: Samples of one model on files that are not evaluated, each of other prompts: the
            statistics are standardized by them, the metric of patterns without an AP-MAE is
            fitted on them.
        dim: Numbers that this metric keeps: as many as the fingerprint has.
    """
    statistics = torch.cat([part["statistics"] for part in fitted]).flatten(0, 1)
    mean, spread = statistics.mean(0), statistics.std(0)
    weight, bias = linear_metric(torch.cat([part["log16"] for part in fitted]), dim)

    def describe(row: str) -> Describe:
        name = ROWS[row]
        if row == "pattern statistics":
            return lambda found: (found[name] - mean) / spread
        if row.startswith("linear metric"):
            return lambda found: found[name] @ weight.T + bias
        if row == "AP-MAE: CLS":
            return lambda found: found[name][..., : found[name].shape[-1] // len(FINGERPRINT_POOL)]
        return lambda found: found[name]

    return {row: describe(row) for row in ROWS}


def unit(values: Float[Tensor, "*some d"]) -> Float[Tensor, "*some d"]:
    """Vectors of length 1; zeros stay."""
    return F.normalize(values, dim=-1)
