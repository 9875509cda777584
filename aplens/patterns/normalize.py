"""From attention probabilities to the image that AP-MAE sees."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Half-precision softmax may overshoot 1 by this much.
_ROUNDING = 1e-2


def log_normalize(
    attention: Float[Tensor, "*pattern query key"],
    smallest: Float[Tensor, "*pattern 1 1"] | None = None,
) -> Float[Tensor, "*pattern query key"]:
    """Scale attention probabilities to [0, 1] on a log axis, each pattern on its own.

    With x = ln a and m the smallest finite x of the pattern, the result is (x - m) / -m: 1 is
    attention 1, 0 is the pattern's smallest attention. Zero attention (above the diagonal, outside
    a sliding window, padding) also becomes 0. A pattern whose every query attends to a single key
    (m = 0) keeps its ones, and a pattern of zeros stays zero (docs/method.md, step 3).

    Args:
        attention: Probabilities. Any layout will do in which the last two dimensions span one
            pattern, such as patches `[..., patch, pixel]`: the result depends on no position.
        smallest: What `smallest_log` gives of it, where that is known already.

    Returns:
        The scaled patterns in float32, same shape.

    Raises:
        ValueError: When there is NaN, or a value outside [0, 1].
    """
    values = attention.float()
    if values.numel() == 0:
        return values
    low, high = (bound.item() for bound in values.aminmax())
    if low != low or high != high:
        raise ValueError(
            "attention contains NaN: the model's forward pass is broken for this input"
        )
    if low < 0 or high > 1 + _ROUNDING:
        raise ValueError(
            f"attention must be probabilities in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "pass hook_pattern (after the softmax), not attention scores"
        )
    floor = smallest_log(values) if smallest is None else smallest
    # (x - m) / -m = 1 - x / m; raising -inf to m makes it 0, and half precision may overshoot 1.
    log = values.log()
    log = torch.maximum(log, floor, out=log).clamp_(max=0)
    return log.div_(-floor).add_(1)


def smallest_log(
    attention: Float[Tensor, "*pattern query key"],
) -> Float[Tensor, "*pattern 1 1"]:
    """The natural logarithm of each pattern's smallest attention, the zeros left out.

    -1 where there is none below 1: `log_normalize` then leaves ones and zeros as they are.
    """
    values = attention.float()
    smallest = values.masked_fill(values <= 0, 1).amin((-2, -1), keepdim=True).log()
    return torch.where(smallest < 0, smallest, -1.0)
