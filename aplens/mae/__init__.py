"""AP-MAE: its configuration, model and training, weights on disk, and the fits it starts from."""

from aplens.mae.additive import additive_fit
from aplens.mae.config import APMAEConfig
from aplens.mae.low_rank import low_rank_fit
from aplens.mae.masking import random_masks
from aplens.mae.model import APMAE, DEFAULT_POOL, APMAEOutput, Reconstruction
from aplens.mae.precision import default_precision
from aplens.mae.pretrained import CheckpointError, list_pretrained
from aplens.mae.settings import TrainingSettings
from aplens.mae.training import (
    TrainingError,
    TrainingProgress,
    TrainingResult,
    train_apmae,
)

__all__ = [
    "APMAE",
    "DEFAULT_POOL",
    "APMAEConfig",
    "APMAEOutput",
    "CheckpointError",
    "Reconstruction",
    "TrainingError",
    "TrainingProgress",
    "TrainingResult",
    "TrainingSettings",
    "additive_fit",
    "default_precision",
    "list_pretrained",
    "low_rank_fit",
    "random_masks",
    "train_apmae",
]
