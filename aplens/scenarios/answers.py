"""What is asked of a model and what it answers: token ids that it has, and logits that are numbers.

An argmax over NaN is some token, and a token that the model lacks is never predicted: both would
count as wrong predictions.
"""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from aplens._words import shorten
from aplens.models import describe_model

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios


def require_answers(model: Any, scenarios: Scenarios) -> None:
    """Refuse scenarios whose targets or wrong answers are no tokens of the model's."""
    size = _n_logits(model)
    for index, scenario in enumerate(scenarios):
        for name, token in (("target", scenario.target), ("wrong answer", scenario.wrong)):
            if token is None and name == "wrong answer":
                continue
            if not isinstance(token, Integral) or not 0 <= token < size:
                raise ValueError(
                    f"scenario {index} ({scenario.file}): the {name} must be a token id from 0 to "
                    f"{size - 1} for {describe_model(model).name}, got {shorten(token)}"
                )


def require_logits(
    logits: Float[Tensor, "*batch d_vocab"],
) -> Float[Tensor, "*batch d_vocab"]:
    """The logits, of which no prompt's largest is NaN or infinite."""
    largest = logits.detach().amax(dim=-1)
    if not largest.isfinite().all():
        what = "NaN" if largest.isnan().any() else "infinity"
        raise ValueError(f"the model's logits contain {what}: its forward pass is broken here")
    return logits


def _n_logits(model: Any) -> int:
    """A model of a toy task may have other tokens to answer than to read."""
    d_vocab_out = getattr(model.cfg, "d_vocab_out", None)
    return int(d_vocab_out if d_vocab_out and d_vocab_out > 0 else model.cfg.d_vocab)
