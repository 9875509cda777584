"""Telling a head by its patterns on other prompts: the contrastive loss, and what it compares.

A batch holds the same heads on two prompts. Each head is to be found among all of them by its
fingerprint on the other prompt (InfoNCE, van den Oord et al., 2018). All share a prompt, so that
nothing about the prompt helps; what is left is what the head does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

#: What similarities are divided by. Lower ones push near-duplicates apart, which costs the
#: likeness of heads of a kind in different models.
TEMPERATURE = 0.1


def identity_loss(
    first: Float[Tensor, "head d"], second: Float[Tensor, "head d"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of finding each head on the other prompt, in both directions.

    Args:
        first: Fingerprints of heads on one prompt, of length 1.
        second: Those of the same heads, in the same order, on another prompt.
    """
    similarity = first @ second.T / TEMPERATURE
    heads = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(similarity, heads) + F.cross_entropy(similarity.T, heads)) / 2


def retrieval(fingerprints: Float[Tensor, "prompt head d"]) -> float:
    """How often a head's fingerprint on one prompt is nearest to its own on another, of all heads.

    From the first half of the prompts to the second, prompt by prompt; an odd last one is left out.
    """
    first, second = fingerprints[: len(fingerprints) // 2 * 2].chunk(2)
    nearest = (first @ second.mT).argmax(-1)
    return (nearest == torch.arange(nearest.shape[1], device=nearest.device)).float().mean().item()


def pair_batches(
    n_prompts: int, n_heads: int, batch_size: int, generator: torch.Generator
) -> list[Int[Tensor, " pattern"]]:
    """One pass over a round's patterns, as batches of the same heads on two prompts.

    Args:
        n_prompts: Prompts in the round, two or more; of an odd number, one is left out.
        n_heads: Heads in the round; pattern `prompt * n_heads + head` is a head's on a prompt.
        batch_size: Patterns in a batch, about; at most all heads on the two prompts.
        generator: Draws pairs, heads and order.

    Returns:
        Batches in random order: the first half are patterns of one prompt, the second half those of
        the same heads on the other.
    """
    prompts = torch.randperm(n_prompts, generator=generator)
    n_parts = max(1, round(2 * n_heads / batch_size))
    batches = []
    for first, second in prompts[: n_prompts // 2 * 2].view(-1, 2).tolist():
        for heads in torch.randperm(n_heads, generator=generator).tensor_split(n_parts):
            batches.append(torch.cat([first * n_heads + heads, second * n_heads + heads]))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
