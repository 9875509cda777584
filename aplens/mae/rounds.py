"""Training patterns from a live model, round by round: none of them is ever stored on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor

from aplens._processes import ALONE, Processes
from aplens.heads import Head
from aplens.mae.virtual import virtual_heads
from aplens.models import describe_model
from aplens.patterns import AttentionPatterns, PatchGrid, log_normalize, read_layers
from aplens.prompts import read_prompts

_VIRTUAL = 7  # what the seed is used for; `aplens.mae.training` has the other uses


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
        virtual: Virtual heads to add to each layer's, drawn anew for every round.
        processes: Those that share the rounds: each holds the patterns of its own prompts.
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
        virtual: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.grid = grid
        self.prompts_per_round = min(prompts_per_round, len(tokens))
        self.heads_fraction = heads_fraction
        self.batch_size = batch_size
        self.seed = seed
        self.virtual = virtual
        self.processes = processes
        self._held: tuple[int, Float16[Tensor, "mine patch pixel"]] | None = None

    def patches(self, number: int) -> Float16[Tensor, "mine patch pixel"]:
        """This process's patterns of round `number`, log-normalized, in float16.

        Prompt by prompt, head by head. One round is held at a time.
        """
        if self._held is None or self._held[0] != number:
            self.forget()
            mine = self.processes.share(self._prompts(number))
            tokens, heads = self.tokens[mine], self._heads(number)
            look = partial(self._with_virtual, number)
            chunks = stream_patches(self.model, tokens, self.grid, heads, self.batch_size, look)
            none = torch.empty(0, self.n_patches, self.grid.n_pixels, dtype=torch.float16)
            self._held = number, torch.cat([none.to(describe_model(self.model).device), *chunks])
        return self._held[1]

    @property
    def n_patches(self) -> int:
        """Patches of a pattern."""
        return self.grid.n_patches_for(self.tokens.shape[1])

    def forget(self) -> None:
        """Hold no round until the next one is asked for."""
        self._held = None

    def shape(self, number: int) -> tuple[int, int]:
        """Prompts and heads of round `number`; their product is its patterns, of all processes."""
        heads = self._heads(number)
        n_layers = len({head.layer for head in heads})
        return self.prompts_per_round, len(heads) + self.virtual * n_layers

    def places(
        self, number: int, patterns: Int[Tensor, " pattern"]
    ) -> tuple[Bool[Tensor, " pattern"], Int[Tensor, " mine"]]:
        """Which of a round's patterns are this process's, and where they lie in `patches`."""
        (_, n_heads), count = self.shape(number), self.processes.count
        prompt, head = patterns // n_heads, patterns % n_heads
        mine = prompt % count == self.processes.index
        return mine, (prompt[mine] // count) * n_heads + head[mine]

    def _prompts(self, number: int) -> Int[Tensor, " prompt"]:
        first = number * self.prompts_per_round
        wanted = range(first, first + self.prompts_per_round)
        n = len(self.tokens)
        orders = {
            epoch: torch.randperm(n, generator=seeded(self.seed, 0, epoch))
            for epoch in {index // n for index in wanted}
        }
        return torch.stack([orders[index // n][index % n] for index in wanted])

    def _with_virtual(
        self, number: int, patterns: AttentionPatterns
    ) -> Float[Tensor, "batch head query key"]:
        """A layer's patterns with those of its virtual heads."""
        if not self.virtual:
            return patterns.values
        generator = seeded(self.seed, _VIRTUAL, number, patterns.heads[0].layer)
        return torch.cat(
            [patterns.values, virtual_heads(patterns.values, self.virtual, generator)], dim=1
        )

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


class RoundsInTurn:
    """Rounds of several models, which take turns; one round is held at a time.

    Args:
        rounds: Those of each model, on prompts of one length.
    """

    def __init__(self, rounds: Sequence[PatternRounds]) -> None:
        self.each = tuple(rounds)

    def _of(self, number: int) -> tuple[PatternRounds, int]:
        return self.each[number % len(self.each)], number // len(self.each)

    def patches(self, number: int) -> Float16[Tensor, "mine patch pixel"]:
        """As `PatternRounds.patches`."""
        rounds, own = self._of(number)
        for other in self.each:
            if other is not rounds:
                other.forget()
        return rounds.patches(own)

    def shape(self, number: int) -> tuple[int, int]:
        """As `PatternRounds.shape`."""
        rounds, own = self._of(number)
        return rounds.shape(own)

    def places(
        self, number: int, patterns: Int[Tensor, " pattern"]
    ) -> tuple[Bool[Tensor, " pattern"], Int[Tensor, " mine"]]:
        """As `PatternRounds.places`."""
        rounds, own = self._of(number)
        return rounds.places(own, patterns)


def sample_patches(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    grid: PatchGrid,
    n_patterns: int,
    *,
    batch_size: int,
    generator: torch.Generator,
    processes: Processes = ALONE,
) -> tuple[Float16[Tensor, "mine patch pixel"], Int[Tensor, " mine"], int]:
    """Patches of about `n_patterns` patterns, spread evenly over the prompts and over all heads.

    Returns:
        This process's patterns, which of all they are, and how many there are in all.
    """
    n_heads = len(describe_model(model).heads)
    each = min(-(-n_patterns // len(tokens)), n_heads)
    drawn = [torch.randperm(n_heads, generator=generator)[:each] for _ in tokens]
    mine = processes.share(torch.arange(len(tokens)))
    patches = [torch.empty(0, grid.n_patches_for(tokens.shape[1]), grid.n_pixels).half()]
    prompts = stream_patches(model, tokens[mine], grid, None, batch_size)
    for prompt, chunk in zip(mine.tolist(), prompts, strict=True):
        patches.append(chunk[drawn[prompt]])
    places = (mine[:, None] * each + torch.arange(each)).flatten()
    return torch.cat([part.to(patches[-1].device) for part in patches]), places, each * len(tokens)


def stream_patches(
    model: Any,
    tokens: Int[Tensor, "prompt pos"],
    grid: PatchGrid,
    heads: tuple[Head, ...] | None,
    batch_size: int,
    look: Callable[[AttentionPatterns], Tensor] = attrgetter("values"),
) -> Iterator[Float16[Tensor, "head patch pixel"]]:
    """Log-normalized patches in float16, prompt by prompt; `look` makes attention of a layer's."""

    device = describe_model(model).device

    def read(patterns: AttentionPatterns) -> Float16[Tensor, "batch head patch pixel"]:
        patches = log_normalize(grid.patchify(look(patterns))).half()
        return patches.to(device)  # the model may be spread over several

    if len(tokens) == 0:
        return
    for batch in read_prompts(model, tokens).split(batch_size):
        layers, _ = read_layers(model, batch, read, heads)
        yield from torch.cat(layers, dim=1)
