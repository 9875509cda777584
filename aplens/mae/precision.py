"""Which number format an AP-MAE computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def default_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        # A CPU without these instructions emulates bfloat16, several times slower than float32.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def autocast(
    device: torch.device, precision: torch.dtype | None = None
) -> AbstractContextManager[object]:
    """Compute in `precision` inside the block; None takes the device's default.

    Weights stay as they are; only matrix products run in the lower precision.
    """
    precision = precision or default_precision(device)
    if precision not in (torch.float32, torch.bfloat16):
        raise ValueError(f"precision must be torch.float32 or torch.bfloat16, got {precision}")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
