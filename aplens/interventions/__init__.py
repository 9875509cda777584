"""Switching heads off: one choice, each head by itself, or a sweep with its baselines."""

from aplens.interventions.ablation import AblationMethod, ablate_heads
from aplens.interventions.effects import HeadEffects, Metric, estimate_effects, measure_effects
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
    "HeadEffects",
    "Metric",
    "Setting",
    "SettingResult",
    "ablate_heads",
    "estimate_effects",
    "measure_effects",
    "sweep_ablations",
]
