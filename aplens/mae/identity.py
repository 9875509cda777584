"""Telling a head by any of its patterns: the loss that trains a fingerprint on.

A head's prototype is its mean fingerprint over the prompts of a round, by the AP-MAE that training
started from. Every pattern is to be found, by its own fingerprint, among the prototypes of all
heads of its model. So one prompt learns to tell what many prompts tell, and heads that are alike
stay so: their prototypes lie close together, and do not move. Comparing a head's patterns with each
other (InfoNCE) tells heads apart as well, but pushes those of a kind apart: kin in other models are
then no longer found.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aplens._parts import in_parts
from aplens.mae.model import APMAE, FINGERPRINT_POOL

#: What similarities are divided by.
TEMPERATURE = 0.1


@torch.no_grad()
def fingerprint_heads(
    mae: APMAE,
    patches: Float[Tensor, "head patch pixel"],
    n_tokens: int,
    precision: torch.dtype | None,
) -> Float[Tensor, "head d"]:
    """Each head's fingerprint on one prompt, from its log-normalized patches."""
    embeddings = [
        mae.encode_patches(
            part.to(mae.device).float(),
            pool=FINGERPRINT_POOL,
            n_tokens=n_tokens,
            precision=precision,
        )
        for (part,) in in_parts(patches)
    ]
    return mae.read_fingerprint(torch.cat(embeddings))


def identity_loss(
    fingerprints: Float[Tensor, "pattern d"],
    prototypes: Float[Tensor, "head d"],
    heads: Int[Tensor, " pattern"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of finding each pattern's head among all prototypes."""
    return F.cross_entropy(fingerprints @ prototypes.T / TEMPERATURE, heads)


def retrieval(fingerprints: Float[Tensor, "prompt head d"]) -> float:
    """How often a head's fingerprint on one prompt is nearest to its own on another, of all heads.

    From the first half of the prompts to the second, prompt by prompt; an odd last one is left out.
    """
    first, second = fingerprints[: len(fingerprints) // 2 * 2].chunk(2)
    nearest = (first @ second.mT).argmax(-1)
    return (nearest == torch.arange(nearest.shape[1], device=nearest.device)).float().mean().item()
