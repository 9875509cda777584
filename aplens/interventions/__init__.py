"""Switching heads off, scaling or sharpening them: chosen, each by itself, swept, or learned."""

from aplens.interventions.ablation import AblationMethod, ablate_heads
from aplens.interventions.effects import HeadEffects, Metric, estimate_effects, measure_effects
from aplens.interventions.gates import HeadGates, learn_gates
from aplens.interventions.greedy import GreedyChoice, choose_greedily
from aplens.interventions.results import (
    CHOICES,
    AblationSweep,
    Choice,
    Setting,
    SettingResult,
)
from aplens.interventions.scaling import scale_heads
from aplens.interventions.sharpening import sharpen_heads
from aplens.interventions.sweep import PAPER_SIZES, sweep_ablations
from aplens.interventions.trials import GateTrials, try_scales

__all__ = [
    "CHOICES",
    "PAPER_SIZES",
    "AblationMethod",
    "AblationSweep",
    "Choice",
    "GateTrials",
    "GreedyChoice",
    "HeadEffects",
    "HeadGates",
    "Metric",
    "Setting",
    "SettingResult",
    "ablate_heads",
    "choose_greedily",
    "estimate_effects",
    "learn_gates",
    "measure_effects",
    "scale_heads",
    "sharpen_heads",
    "sweep_ablations",
    "try_scales",
]
