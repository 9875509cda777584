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
from aplens.mae.settings import TrainingSettings
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
    """Patches of models' patterns; what a round holds depends on the seed and its number alone.

    A round has a part of every model, numbered on from round to round: of two models, parts 0 and 1
    are round 0. One round is held at a time.

    Args:
        sources: HookedTransformers or TransformerBridges, each with its prompts, all of one length.
        grid: How patterns are cut.
        settings: Prompts a part, of which every one is used once before any is used again; the
            share of each layer's heads that a part looks at and the virtual heads beside them,
            drawn anew for every part; prompts a forward pass; and the seed.
        processes: Those that share the rounds: each holds the patterns of its own prompts.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Any, Int[Tensor, "prompt pos"]]],
        grid: PatchGrid,
        settings: TrainingSettings,
        processes: Processes = ALONE,
    ) -> None:
        self.sources = tuple(sources)
        self.grid = grid
        self.settings = settings
        self.processes = processes
        self._held: dict[int, Float16[Tensor, "mine patch pixel"]] = {}

    def parts(self, round_number: int) -> range:
        """The numbers of a round's parts, one a model."""
        n = len(self.sources)
        return range(round_number * n, (round_number + 1) * n)

    def patches(self, number: int) -> Float16[Tensor, "mine patch pixel"]:
        """This process's patterns of part `number`, log-normalized, in float16.

        Prompt by prompt, head by head.
        """
        if number not in self._held:
            # Before the next round takes as much memory.
            same_round = self.parts(number // len(self.sources))
            self._held = {part: held for part, held in self._held.items() if part in same_round}
            model, tokens, turn = self._turn(number)
            mine = self.processes.share(self._prompts(number))
            look = partial(self._with_virtual, turn)
            heads, batch_size = self._heads(number), self.settings.model_batch_size
            chunks = stream_patches(model, tokens[mine], self.grid, heads, batch_size, look)
            n_patches = self.grid.n_patches_for(tokens.shape[1])
            none = torch.empty(0, n_patches, self.grid.n_pixels, dtype=torch.float16)
            self._held[number] = torch.cat([none.to(describe_model(model).device), *chunks])
        return self._held[number]

    def shape(self, number: int) -> tuple[int, int]:
        """Prompts and heads of part `number`; their product is its patterns, of all processes."""
        heads = self._heads(number)
        n_layers = len({head.layer for head in heads})
        return self._n_prompts(number), len(heads) + self.settings.virtual_heads * n_layers

    def places(
        self, number: int, patterns: Int[Tensor, " pattern"]
    ) -> tuple[Bool[Tensor, " pattern"], Int[Tensor, " mine"]]:
        """Which of a part's patterns are this process's, and where they lie in `patches`."""
        (_, n_heads), count = self.shape(number), self.processes.count
        prompt, head = patterns // n_heads, patterns % n_heads
        mine = prompt % count == self.processes.index
        return mine, (prompt[mine] // count) * n_heads + head[mine]

    def _turn(self, number: int) -> tuple[Any, Int[Tensor, "prompt pos"], int]:
        """The model of part `number`, its prompts, and which of that model's parts this is."""
        n = len(self.sources)
        return *self.sources[number % n], number // n

    def _n_prompts(self, number: int) -> int:
        return min(self.settings.prompts_per_round, len(self._turn(number)[1]))

    def _prompts(self, number: int) -> Int[Tensor, " prompt"]:
        _, tokens, turn = self._turn(number)
        each, n = self._n_prompts(number), len(tokens)
        wanted = range(turn * each, (turn + 1) * each)
        orders = {
            epoch: torch.randperm(n, generator=seeded(self.settings.seed, 0, epoch))
            for epoch in {index // n for index in wanted}
        }
        return torch.stack([orders[index // n][index % n] for index in wanted])

    def _with_virtual(
        self, turn: int, patterns: AttentionPatterns
    ) -> Float[Tensor, "batch head query key"]:
        """A layer's patterns with those of its virtual heads."""
        n_virtual = self.settings.virtual_heads
        if not n_virtual:
            return patterns.values
        generator = seeded(self.settings.seed, _VIRTUAL, turn, patterns.heads[0].layer)
        virtual = virtual_heads(patterns.values, n_virtual, generator)
        return torch.cat([patterns.values, virtual], dim=1)

    def _heads(self, number: int) -> tuple[Head, ...]:
        model, _, turn = self._turn(number)
        info = describe_model(model)
        n_chosen = max(1, round(self.settings.heads_fraction * info.n_heads))
        generator = seeded(self.settings.seed, 1, turn)
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
