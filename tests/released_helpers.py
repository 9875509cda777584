"""Checkpoints in the paper's released format, with weights that anyone can make again.

The golden file keeps no weights and no inputs, only what the released code computed from them. Both
are drawn from `numpy.random.RandomState`, whose streams numpy has promised never to change.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "data" / "released_golden.safetensors"


def read_golden() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Every checkpoint's configuration and shapes of weights, and the released code's results."""
    with safe_open(GOLDEN, framework="pt") as file:
        return json.loads(file.metadata()["checkpoints"]), load_file(GOLDEN)


def make_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights seeded by their names; nothing is zero, so that nothing can go unnoticed."""
    return {name: torch.from_numpy(_make_weight(name, shape)) for name, shape in shapes.items()}


def _make_weight(name: str, shape: list[int]) -> np.ndarray:
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 2:
        draw *= 1.5 / np.sqrt(shape[1])
    elif name.endswith(".weight"):  # of a LayerNorm
        draw = 1 + 0.3 * draw
    else:
        draw *= 0.5
    return draw.astype(np.float32)


def make_patterns(n: int, n_tokens: int) -> torch.Tensor:
    """Causal attention; the first pattern slides a window, so it has zeros below the diagonal."""
    scores = 2 * np.random.RandomState(n_tokens).standard_normal((n, n_tokens, n_tokens))
    query, key = np.indices((n_tokens, n_tokens))
    seen = np.broadcast_to(key <= query, scores.shape).copy()
    seen[0] &= query - key < n_tokens // 2
    weights = np.where(seen, np.exp(scores), 0)
    return torch.from_numpy((weights / weights.sum(-1, keepdims=True)).astype(np.float32))


def write_checkpoint(folder: Path, checkpoint: dict[str, Any]) -> Path:
    """Write a folder as the released code's `save_pretrained` does."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(checkpoint["config"], indent=2, sort_keys=True))
    save_file(
        make_weights(checkpoint["shapes"]), folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder
