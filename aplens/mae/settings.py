"""How an AP-MAE is trained."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch

from aplens._documents import check, require_choice
from aplens._words import shorten

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]

_MOST = 2**63


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train. Defaults: the paper's recipe (docs/method.md, step 6), but for two of them.

    Patterns are fewer; and a round looks at all heads, the paper's at a quarter of each layer's.

    Attributes:
        patterns: Budget: patterns to train on, each use of a pattern counted.
        max_seconds: Stop after this time even if patterns are left; the schedule follows whichever
            runs out first. Counted from the first step, the model's passes included. Where it stops
            depends on the machine, so the result cannot be reproduced to the bit. None: no limit.
        batch_size: Patterns an optimizer step.
        learning_rate: Peak learning rate; None: 1.5e-4 × batch_size / 50, as in the paper.
        warmup: Share of the budget over which the learning rate rises; then it falls as a cosine.
        weight_decay: Of the weight matrices; biases, norms, positions and tokens have none.
        prompts_per_round: Prompts of a model whose patterns are held and shuffled at a time.
        passes: Times that a round's patterns are used, under other masks each time. More than one
            pays when the model is slower than the AP-MAE.
        crop_share: Share of the batches that are cropped to a shorter prompt, of any length down to
            a patch and one token, so that shorter prompts are known too.
        heads_fraction: Share of each layer's heads that a round looks at (the paper: 0.25).
        virtual_heads: Heads that no model has, mixtures of two heads made sharper or flatter, that
            each layer adds to a round (`aplens.mae.virtual`): more to tell apart.
        model_batch_size: Prompts a forward pass of the model.
        validation_prompts: Held-out prompts used, at most.
        validation_patterns: Patterns used, spread over those prompts.
        validations: How often to validate, spread evenly over the budget.
        checkpoint_seconds: Time between checkpoints.
        precision: "auto" (what the device is good at), "float32" or "bfloat16".
        seed: Of weights, prompts, heads, order and masks.
    """

    patterns: int = 100_000
    max_seconds: float | None = None
    batch_size: int = 64
    learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.05
    prompts_per_round: int = 8
    passes: int = 1
    crop_share: float = 0.0
    heads_fraction: float = 1.0
    virtual_heads: int = 0
    model_batch_size: int = 4
    validation_prompts: int = 16
    validation_patterns: int = 512
    validations: int = 10
    checkpoint_seconds: float = 60.0
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot train.

        Raises:
            ValueError: When a field has the wrong type or is out of range.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind: Any = float if field.default is None else type(field.default)
            if value is not field.default:
                check(value, kind, field.name)
        for name in _COUNTS:
            if not 1 <= getattr(self, name) < _MOST:
                raise ValueError(f"{name} must be 1 or more, got {shorten(getattr(self, name))}")
        for name in ("max_seconds", "learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {shorten(value)}")
        for name in ("weight_decay", "checkpoint_seconds", "seed", "virtual_heads"):
            if not 0 <= getattr(self, name) < _MOST:
                raise ValueError(f"{name} must not be negative, got {shorten(getattr(self, name))}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be at least 0 and below 1, got {self.warmup}")
        if not 0 <= self.crop_share <= 1:
            raise ValueError(f"crop_share must lie between 0 and 1, got {self.crop_share}")
        if not 0 < self.heads_fraction <= 1:
            raise ValueError(f"heads_fraction must lie in (0, 1], got {self.heads_fraction}")
        require_choice("precision", self.precision, get_args(Precision))

    @classmethod
    def small(cls, **changes: Any) -> TrainingSettings:
        """What trains `APMAEConfig.small()` best in a minute or two on a CPU.

        Args:
            changes: Fields to set otherwise.
        """
        quick: dict[str, Any] = {
            "patterns": 40_000,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "warmup": 0.08,
            "prompts_per_round": 4,
            "passes": 2,
            "validation_patterns": 256,
            "validation_prompts": 4,
            "validations": 4,
        }
        return cls(**{**quick, **changes})

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of the warm-up."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.5e-4 * self.batch_size / 50

    @property
    def dtype(self) -> torch.dtype | None:
        """`precision` as torch names it; None leaves it to the device."""
        return None if self.precision == "auto" else getattr(torch, self.precision)

    def learning_rate_at(self, fraction: float) -> float:
        """The learning rate at this share of the budget: a linear warm-up, then a cosine."""
        if fraction < self.warmup:
            return self.peak_learning_rate * fraction / self.warmup
        rest = min((fraction - self.warmup) / (1 - self.warmup), 1.0)
        return self.peak_learning_rate * (1 + math.cos(math.pi * rest)) / 2


_COUNTS = (
    "patterns",
    "batch_size",
    "prompts_per_round",
    "passes",
    "model_batch_size",
    "validation_prompts",
    "validation_patterns",
    "validations",
)
