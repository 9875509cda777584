"""Scale attention heads' outputs while a block of code runs: one gate a head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from aplens.interventions.head_numbers import ScalesLike, change_heads


@contextmanager
def scale_heads(
    model: Any,
    scales: ScalesLike | None = None,
    *,
    per_prompt: Sequence[ScalesLike] | Float[Tensor, "prompt layer head"] | None = None,
) -> Iterator[None]:
    """Multiply the output of heads by a number, at every position, inside the `with` block.

    1 leaves a head as it is, 0 is `ablate_heads`, 2 doubles what it writes, and a negative number
    turns it round. The hook sits on `hook_z`, before the output projection, so that a bias of the
    projection stays. It comes off when the block ends, also by an exception; hooks of others stay.
    Blocks nest: scales multiply. Acts under `model.generate` on the prompt and every new token.

    Gradients flow through to everything before the heads, and, where `scales` is a tensor that
    asks for one, to the scales.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scales: For every prompt alike: a table from heads, as `parse_heads` names them, to numbers,
            where a key may name several heads and heads that are not named keep 1; or one number
            for every head, `[layer, head]`.
        per_prompt: Instead of `scales`: one of these for each prompt of the batch, or a tensor
            `[prompt, layer, head]`.

    Raises:
        ValueError: On entry: a head is out of range or named twice, a number is not finite, an
            array is not `[layer, head]` of this model, or both or neither of `scales` and
            `per_prompt` are given. In the forward pass: the batch is not the size of `per_prompt`.
        TypeError: On entry: something is no table of numbers.
    """
    with change_heads(model, "z", _scale, scales, per_prompt):
        yield


def _scale(
    z: Float[Tensor, "batch pos head d_head"], scales: Float[Tensor, "prompt head"]
) -> Tensor:
    if z.ndim != 4 or z.shape[2] != scales.shape[1]:
        raise ValueError(
            f"expected head outputs [batch, pos, {scales.shape[1]} heads, d_head], "
            f"got shape {tuple(z.shape)}"
        )
    return z * scales[:, None, :, None].to(z)
