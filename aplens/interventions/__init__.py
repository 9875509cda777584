"""Switching heads off or scaling them: chosen, each by itself, or swept."""

from aplens.interventions.ablation import AblationMethod, ablate_heads
from aplens.interventions.effects import (
    AnswerMetric,
    HeadEffects,
    estimate_effects,
    measure_effects,
)
from aplens.interventions.outcomes import (
    RANDOM,
    AblationSweep,
    Setting,
    SettingResult,
)
from aplens.interventions.scaling import ScalesLike, read_scales, scale_heads
from aplens.interventions.sweep import PAPER_SIZES, SweepPlan, sweep_ablations

__all__ = [
    "PAPER_SIZES",
    "RANDOM",
    "AblationMethod",
    "AblationSweep",
    "AnswerMetric",
    "HeadEffects",
    "ScalesLike",
    "Setting",
    "SettingResult",
    "SweepPlan",
    "ablate_heads",
    "estimate_effects",
    "measure_effects",
    "read_scales",
    "scale_heads",
    "sweep_ablations",
]
