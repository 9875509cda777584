"""Switching heads off: one choice of heads, or a sweep over many with its baselines."""

from aplens.interventions.ablation import AblationMethod, ablate_heads
from aplens.interventions.results import (
    CHOICES,
    AblationSweep,
    Choice,
    Setting,
    SettingResult,
)
from aplens.interventions.sweep import PAPER_SIZES, sweep_ablations

__all__ = [
    "CHOICES",
    "PAPER_SIZES",
    "AblationMethod",
    "AblationSweep",
    "Choice",
    "Setting",
    "SettingResult",
    "ablate_heads",
    "sweep_ablations",
]
