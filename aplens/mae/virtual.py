"""Heads that no model has, for training to tell apart: variety for models that it never sees."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Attention is raised to powers from the one to the other: flatter, or sharper.
_POWERS = (0.5, 1.5)


def virtual_heads(
    attention: Float[Tensor, "batch head query key"], n: int, generator: torch.Generator
) -> Float[Tensor, "batch n query key"]:
    """Mixtures of two heads' attention on the same prompt, then made flatter or sharper.

    The same generator gives the same pairs, shares and powers on every prompt, so that a virtual
    head is as consistent as those it is made of.
    """
    pairs = torch.randint(attention.shape[1], (2, n), generator=generator)
    shares = torch.rand(n, generator=generator)
    low, high = _POWERS
    powers = low + (high - low) * torch.rand(n, generator=generator)
    shares, powers = (one.to(attention.device)[:, None, None] for one in (shares, powers))
    first, second = attention[:, pairs[0]].float(), attention[:, pairs[1]].float()
    mixed = (shares * first + (1 - shares) * second).pow(powers)
    return mixed / mixed.sum(-1, keepdim=True)
