"""aplens: rank, draw and switch off attention heads with AP-MAE. A TransformerLens plugin.

Names are imported on first use, so `import aplens` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from aplens.circuits import PatchingTable, activation_patch, logit_difference, path_patch
    from aplens.heads import Head, HeadRanking, parse_heads
    from aplens.interventions import (
        AblationSweep,
        ablate_heads,
        estimate_effects,
        measure_effects,
        scale_heads,
        sweep_ablations,
    )
    from aplens.mae import APMAE, APMAEConfig, train_apmae
    from aplens.models import UnsupportedModelError, load_model
    from aplens.patterns import AttentionPatterns, PatternCollector, collect_patterns, log_normalize
    from aplens.prompts import Prompts, read_prompts
    from aplens.ranking import rank_heads
    from aplens.scenarios import Scenario, Scenarios, make_scenarios, mine_scenarios
    from aplens.scoring import (
        HeadScorer,
        Observations,
        observe,
        pattern_distances,
        score_heads,
    )
    from aplens.viz import View, show_clusters, show_heads, show_reconstruction

_HOME = {
    "PatchingTable": "aplens.circuits",
    "activation_patch": "aplens.circuits",
    "logit_difference": "aplens.circuits",
    "path_patch": "aplens.circuits",
    "Head": "aplens.heads",
    "HeadRanking": "aplens.heads",
    "parse_heads": "aplens.heads",
    "AblationSweep": "aplens.interventions",
    "ablate_heads": "aplens.interventions",
    "scale_heads": "aplens.interventions",
    "estimate_effects": "aplens.interventions",
    "measure_effects": "aplens.interventions",
    "sweep_ablations": "aplens.interventions",
    "APMAE": "aplens.mae",
    "APMAEConfig": "aplens.mae",
    "train_apmae": "aplens.mae",
    "UnsupportedModelError": "aplens.models",
    "load_model": "aplens.models",
    "AttentionPatterns": "aplens.patterns",
    "PatternCollector": "aplens.patterns",
    "collect_patterns": "aplens.patterns",
    "log_normalize": "aplens.patterns",
    "Scenario": "aplens.scenarios",
    "Scenarios": "aplens.scenarios",
    "make_scenarios": "aplens.scenarios",
    "mine_scenarios": "aplens.scenarios",
    "Prompts": "aplens.prompts",
    "read_prompts": "aplens.prompts",
    "HeadScorer": "aplens.scoring",
    "Observations": "aplens.scoring",
    "observe": "aplens.scoring",
    "pattern_distances": "aplens.scoring",
    "score_heads": "aplens.scoring",
    "View": "aplens.viz",
    "show_clusters": "aplens.viz",
    "show_heads": "aplens.viz",
    "show_reconstruction": "aplens.viz",
    "rank_heads": "aplens.ranking",
}

__all__ = [  # noqa: RUF022 - in the order a user meets them
    "load_model",
    "UnsupportedModelError",
    "Prompts",
    "read_prompts",
    "make_scenarios",
    "mine_scenarios",
    "Scenario",
    "Scenarios",
    "collect_patterns",
    "PatternCollector",
    "AttentionPatterns",
    "log_normalize",
    "APMAE",
    "APMAEConfig",
    "train_apmae",
    "observe",
    "Observations",
    "HeadScorer",
    "rank_heads",
    "score_heads",
    "pattern_distances",
    "Head",
    "HeadRanking",
    "parse_heads",
    "ablate_heads",
    "scale_heads",
    "measure_effects",
    "estimate_effects",
    "sweep_ablations",
    "AblationSweep",
    "activation_patch",
    "path_patch",
    "logit_difference",
    "PatchingTable",
    "show_heads",
    "show_reconstruction",
    "show_clusters",
    "View",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'aplens' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
