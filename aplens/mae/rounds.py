"""Training patterns from a live model, round by round: none of them is ever stored on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens.heads import Head
from aplens.models import describe_model
from aplens.patterns import PatchGrid, log_normalize, stream_patterns


def seeded(*keys: int) -> torch.Generator:
    """A generator of its own for every combination of keys, such as (seed, purpose, round)."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class PatternRounds:
    """Patches of a model's patterns; what a round holds depends on the seed and its number alone.

    Args:
        model: A HookedTransformer or TransformerBridge.
        tokens: Prompts of one length.
        grid: How patterns are cut.
        prompts_per_round: Prompts a round runs. Every prompt is used once before any is used again.
        heads_fraction: Share of each layer's heads that a round looks at, drawn anew for every
            round (docs/method.md, step 6: the paper takes a quarter).
        batch_size: Prompts a forward pass.
        seed: Of prompts and heads.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "prompt pos"],
        grid: PatchGrid,
        *,
        prompts_per_round: int,
        heads_fraction: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.grid = grid
        self.prompts_per_round = min(prompts_per_round, len(tokens))
        self.heads_fraction = heads_fraction
        self.batch_size = batch_size
        self.seed = seed
        self._held: tuple[int, Float[Tensor, "pattern patch pixel"]] | None = None

    def patches(self, number: int) -> Float[Tensor, "pattern patch pixel"]:
        """Log-normalized patches of round `number`, in float16; one round is held at a time."""
        if self._held is None or self._held[0] != number:
            self._held = None
            tokens, heads = self.tokens[self._prompts(number)], self._heads(number)
            chunks = stream_patches(self.model, tokens, self.grid, heads, self.batch_size)
            self._held = number, torch.cat([chunk.half() for chunk in chunks])
        return self._held[1]

    def _prompts(self, number: int) -> Int[Tensor, " prompt"]:
        first = number * self.prompts_per_round
        wanted = range(first, first + self.prompts_per_round)
        n = len(self.tokens)
        orders = {
            epoch: torch.randperm(n, generator=seeded(self.seed, 0, epoch))
            for epoch in {index // n for index in wanted}
        }
        return torch.stack([orders[index // n][index % n] for index in wanted])

    def _heads(self, number: int) -> tuple[Head, ...]:
        info = describe_model(self.model)
        n_chosen = max(1, round(self.heads_fraction * info.n_heads))
        generator = seeded(self.seed, 1, number)
        return tuple(
            Head(layer, head)
            for layer in info.attention_layers
            for head in sorted(
                torch.randperm(info.n_heads, generator=generator)[:n_chosen].tolist()
            )
        )


def sample_patches(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    grid: PatchGrid,
    n_patterns: int,
    *,
    batch_size: int,
    generator: torch.Generator,
) -> Float[Tensor, "pattern patch pixel"]:
    """Patches of about `n_patterns` patterns, spread evenly over the prompts and over all heads."""
    each = -(-n_patterns // len(tokens))
    return torch.cat(
        [
            chunk[torch.randperm(len(chunk), generator=generator)[:each]].half()
            for chunk in stream_patches(model, tokens, grid, None, batch_size)
        ]
    )


def stream_patches(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    grid: PatchGrid,
    heads: tuple[Head, ...] | None,
    batch_size: int,
) -> Iterator[Float[Tensor, "head patch pixel"]]:
    """Log-normalized patches, prompt by prompt."""
    for _, patterns, _ in stream_patterns(model, tokens, heads, batch_size):
        for attention in patterns.values:
            yield log_normalize(grid.patchify(attention))
