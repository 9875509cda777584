"""Metrics that patching is measured by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens._progress import Progress
from aplens.prompts import as_list

Metric: TypeAlias = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, ""]]


def logit_difference(
    answers: Int[Tensor, " batch"] | Sequence[int],
    wrong_answers: Int[Tensor, " batch"] | Sequence[int],
    lengths: Int[Tensor, " batch"] | Sequence[int] | None = None,
) -> Metric:
    """A metric: how much higher the answer's logit is than the wrong one's, mean over prompts.

    It reads the position that predicts the answer, the last of each prompt.

    Args:
        answers: The right token id of each prompt.
        wrong_answers: The wrong token id of each prompt.
        lengths: Tokens of each prompt; give them when prompts differ in length and so are padded on
            the right (default: all are as long as the batch).

    Raises:
        ValueError: When these are not one whole number a prompt, an id or length is out of range,
            or an answer is its own wrong answer. In the metric: when the batch or the vocabulary
            does not fit.
    """
    right = _read_numbers("answers", answers, lowest=0)
    wrong = _read_numbers("wrong_answers", wrong_answers, lowest=0)
    last = None if lengths is None else _read_numbers("lengths", lengths, lowest=1) - 1
    if len(right) != len(wrong) or (last is not None and len(last) != len(right)):
        given = f"{len(right)} answers and {len(wrong)} wrong answers"
        given += "" if last is None else f", {len(last)} lengths"
        raise ValueError(f"expected one answer and one wrong answer a prompt, got {given}")
    same = (right == wrong).nonzero().flatten().tolist()
    if same:
        raise ValueError(f"prompt {same[0]} has token {int(right[same[0]])} as right and as wrong")
    largest = int(torch.cat([right, wrong]).max())

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        if len(logits) != len(right):
            raise ValueError(f"expected logits of {len(right)} prompts, got {len(logits)}")
        if largest >= logits.shape[-1]:
            raise ValueError(f"token id {largest} is not in a vocabulary of {logits.shape[-1]}")
        rows = torch.arange(len(logits))
        at = logits.shape[1] - 1 if last is None else last
        final = logits[rows, at].float().cpu()
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


def _read_numbers(name: str, values: Any, lowest: int) -> Int[Tensor, " batch"]:
    numbers = torch.as_tensor(as_list(values)).cpu()
    if numbers.ndim != 1 or len(numbers) == 0 or numbers.is_floating_point():
        raise ValueError(
            f"{name} must be one whole number a prompt, got {numbers.dtype} of shape "
            f"{tuple(numbers.shape)}"
        )
    if int(numbers.min()) < lowest:
        raise ValueError(f"{name} must be {lowest} or more, got {int(numbers.min())}")
    return numbers.long()
