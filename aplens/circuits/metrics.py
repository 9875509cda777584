"""Metrics that patching is measured by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from aplens._progress import Progress
from aplens.scenarios import Scenarios

Metric: TypeAlias = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, ""]]


def logit_difference(scenarios: Scenarios) -> Metric:
    """A metric: how much higher the answer's logit is than the wrong one's, mean over prompts.

    It reads the last token of each prompt, the one that predicts the answer, also where prompts
    differ in length and so are padded on the right.

    Args:
        scenarios: The clean prompts with their answers and wrong answers, as
            `make_scenarios(model, clean, answers, wrong_answers)` makes them.

    Raises:
        TypeError: When these are no scenarios.
        ScenarioError: When there are none, or one has no wrong answer.
        ValueError: When an answer is its own wrong answer, or no token id. In the metric: when the
            logits are of other prompts (not as many, or not as long), or the vocabulary does not
            have an answer.
    """
    if not isinstance(scenarios, Scenarios):
        raise TypeError(
            "expected scenarios, such as make_scenarios(model, clean, answers, wrong_answers), "
            f"got {type(scenarios).__name__}"
        )
    right, wrong = scenarios.targets(), scenarios.wrong_targets()
    prompts = scenarios.prompts()
    same = (right == wrong).nonzero().flatten().tolist()
    if same:
        raise ValueError(f"prompt {same[0]} has token {int(right[same[0]])} as right and as wrong")
    answers = torch.cat([right, wrong])
    if int(answers.min()) < 0:
        raise ValueError(f"token ids must be 0 or more, got {int(answers.min())}")
    largest = int(answers.max())

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        if logits.shape[:2] != prompts.tokens.shape:
            raise ValueError(
                f"expected logits of {len(prompts)} prompts, the longest of {prompts.n_tokens} "
                f"tokens, got {len(logits)} of {logits.shape[1]}"
            )
        if largest >= logits.shape[-1]:
            raise ValueError(f"token id {largest} is not in a vocabulary of {logits.shape[-1]}")
        rows = torch.arange(len(logits))
        final = logits[rows, prompts.lengths - 1].float().cpu()
        return (final[rows, right] - final[rows, wrong]).mean()

    return metric


class CountedMetric:
    """A metric that must be a finite scalar, and counts the runs it was asked about."""

    def __init__(self, metric: Metric, total: int, tell: Progress) -> None:
        self.metric, self.total, self.tell = metric, total, tell
        self.calls = 0

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        """The metric of a run."""
        value = torch.as_tensor(self.metric(logits))
        if value.ndim != 0:
            raise ValueError(f"the metric must be a scalar, got shape {tuple(value.shape)}")
        if not torch.isfinite(value):
            raise ValueError(f"the metric must be finite, got {value.item()}")
        self.calls += 1
        self.tell(self.calls, self.total)
        return value
