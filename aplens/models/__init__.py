"""What aplens needs of a hooked model: facts, hooks, forward passes, and a way to load one."""

from aplens.models.classes import own_tokenizer
from aplens.models.hooks import (
    attach_hooks,
    compute_in,
    last_token_logits,
    pattern_hook_name,
    run_model,
    run_until,
    z_hook_name,
)
from aplens.models.info import ModelInfo, UnsupportedModelError, describe_model, sketch_weights
from aplens.models.loading import load_model
from aplens.models.resuming import Residuals, can_start_midway, keep_residuals, start_at
from aplens.models.writing import require_acting

__all__ = [
    "ModelInfo",
    "Residuals",
    "UnsupportedModelError",
    "attach_hooks",
    "can_start_midway",
    "compute_in",
    "describe_model",
    "keep_residuals",
    "last_token_logits",
    "load_model",
    "own_tokenizer",
    "pattern_hook_name",
    "require_acting",
    "run_model",
    "run_until",
    "sketch_weights",
    "start_at",
    "z_hook_name",
]
