"""Gates: one number a head, which multiplies its output or is an exponent of its pattern.

Zeroing a head is a gate of 0. A few hundred numbers between 0 and 2 say more than a choice of heads
to zero, and are found by following the gradient of the answer's log-probability (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from aplens.heads import all_heads
from aplens.interventions import HeadEffects
from aplens.models import ModelInfo

if TYPE_CHECKING:
    import pandas as pd

#: What a head's number acts on: what it writes (`scale_heads`) or where it looks (`sharpen_heads`).
ActsOn: TypeAlias = Literal["output", "pattern"]

#: Between which numbers gates are kept: switched off, and twice as loud.
LIMITS = (0.0, 2.0)


def check_acts_on(acts_on: str) -> None:
    """Refuse what no number of a head acts on."""
    if acts_on not in get_args(ActsOn):
        raise ValueError(f"acts_on must be one of {list(get_args(ActsOn))}, got {acts_on!r}")


@dataclass(frozen=True)
class HeadGates:
    """One gate for every head of a model.

    Attributes:
        values: `Float[ndarray, "layer head"]`; 1 leaves a head as it is. What `scale_heads` takes,
            or, where the gates act on patterns, `sharpen_heads`.
        model_name: The model.
        metadata: JSON-able facts about how they were made.
        acts_on: "output" or "pattern".
    """

    values: Float[np.ndarray, "layer head"]
    model_name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    acts_on: ActsOn = "output"

    def __post_init__(self) -> None:
        """Refuse what are no gates."""
        if self.values.ndim != 2 or self.values.size == 0:
            raise ValueError(f"gates must be [layer, head], got shape {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise ValueError("gates must be finite; found NaN or infinity")
        check_acts_on(self.acts_on)

    @classmethod
    def from_effects(
        cls,
        effects: HeadEffects,
        model: ModelInfo,
        *,
        step: float = 2.0,
    ) -> HeadGates:
        """One step along the gradient: 1 + step × g, where g is the metric's by the head's gate.

        An estimate of zeroing (`estimate_effects` with method "zero") is minus that gradient. Heads
        without an estimate keep 1.
        """
        if not effects.estimated or effects.method != "zero":
            raise ValueError(
                "gates need estimates of zeroing, estimate_effects(method='zero'); got "
                f"{'estimated' if effects.estimated else 'measured'} effects of {effects.method!r}"
            )
        values = np.ones((model.n_layers, model.n_heads))
        for head, effect in zip(effects.heads, effects.values.mean(axis=1), strict=True):
            values[head] = np.clip(1 - step * effect, *LIMITS)
        facts = {"method": "gradient", "step": step, "metric": effects.metric}
        return cls(values, model.name, {**facts, "n_prompts": effects.values.shape[1]})

    def shuffled(self, seed: int) -> HeadGates:
        """The same numbers dealt out to the heads at random: what the choice of heads is worth."""
        drawn = np.random.default_rng(seed).permutation(self.values.ravel())
        facts = {**self.metadata, "shuffled": seed}
        return HeadGates(drawn.reshape(self.values.shape), self.model_name, facts, self.acts_on)

    def to_frame(self) -> pd.DataFrame:
        """One row a head with `layer`, `head` and `gate`, those furthest from 1 first."""
        import pandas as pd

        heads = all_heads(*self.values.shape)
        frame = pd.DataFrame(heads, columns=["layer", "head"])
        frame["gate"] = self.values.ravel()
        frame.index = pd.Index([str(head) for head in heads], name="name")
        return frame.iloc[(-(frame["gate"] - 1).abs()).argsort(kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able tables; `from_dict` reads them."""
        return {
            "model_name": self.model_name,
            "acts_on": self.acts_on,
            "values": self.values.tolist(),
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadGates:
        """What `to_dict` gave."""
        return cls(**{**data, "values": np.array(data["values"], dtype=float)})
