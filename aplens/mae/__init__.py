"""AP-MAE: its configuration, model and training, weights on disk, and the fits it starts from."""

from aplens.mae.additive import additive_fit
from aplens.mae.config import APMAEConfig
from aplens.mae.error import BASELINES, compare_reconstruction, hidden_errors
from aplens.mae.fingerprint import fit_fingerprint, linear_metric
from aplens.mae.low_rank import low_rank_fit
from aplens.mae.masking import random_masks
from aplens.mae.model import (
    APMAE,
    DEFAULT_POOL,
    FINGERPRINT_POOL,
    APMAEOutput,
    Reconstruction,
)
from aplens.mae.precision import default_precision
from aplens.mae.pretrained import CheckpointError, list_pretrained
from aplens.mae.rounds import seeded
from aplens.mae.settings import TrainingSettings
from aplens.mae.training import TrainingError, TrainingResult, train_apmae

__all__ = [
    "APMAE",
    "BASELINES",
    "DEFAULT_POOL",
    "FINGERPRINT_POOL",
    "APMAEConfig",
    "APMAEOutput",
    "CheckpointError",
    "Reconstruction",
    "TrainingError",
    "TrainingResult",
    "TrainingSettings",
    "additive_fit",
    "compare_reconstruction",
    "default_precision",
    "fit_fingerprint",
    "hidden_errors",
    "linear_metric",
    "list_pretrained",
    "low_rank_fit",
    "random_masks",
    "seeded",
    "train_apmae",
]
