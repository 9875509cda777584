"""Which prompts an evaluation runs, and their patterns, prompt by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens.patterns import log_normalize, stream_patterns
from aplens.scenarios import Scenarios

_BATCH_SIZE = 4  # 270 heads on 256 tokens take 71 MB a prompt


class SeenPrompt(NamedTuple):
    """What one prompt's forward pass gave.

    Attributes:
        place: The prompt's place among those streamed.
        attention: Every head's pattern.
        scaled: The same, log-normalized.
        logits: After the last token.
    """

    place: int
    attention: Float[Tensor, "head query key"]
    scaled: Float[Tensor, "head query key"]
    logits: Float[Tensor, " d_vocab"]


def stream_prompts(model: Any, tokens: Int[Tensor, "prompt pos"]) -> Iterator[SeenPrompt]:
    """Run prompts of one length; memory does not grow with their number."""
    for rows, patterns, logits in stream_patterns(model, tokens, batch_size=_BATCH_SIZE):
        for place, attention, after in zip(
            range(rows.start, rows.stop), patterns.values, logits, strict=True
        ):
            yield SeenPrompt(place, attention, log_normalize(attention), after)


def sample_prompts(scenarios: Scenarios, n: int, seed: int = 0) -> Scenarios:
    """At most `n` scenarios, spread evenly over languages and, within one, over source files.

    The sample of a smaller `n` is the beginning of that of a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(scenarios))
    for names in (scenarios.files, scenarios.languages):
        # The first prompt of each file, then of each domain, comes before the second of any.
        seen: Counter[str] = Counter()
        turns = []
        for index in order:
            turns.append(seen[names[index]])
            seen[names[index]] += 1
        order = order[np.argsort(turns, kind="stable")]
    return scenarios.select(order[:n])


def first_tokens(scenarios: Scenarios, n_tokens: int) -> Scenarios:
    """The scenarios with their prompts cut short; their targets no longer continue them.

    Raises:
        ValueError: When a prompt has fewer tokens.
    """
    shortest = min(len(scenario.prompt) for scenario in scenarios)
    if shortest < n_tokens:
        raise ValueError(f"cannot take the first {n_tokens} tokens of a prompt of {shortest}")
    return Scenarios(replace(each, prompt=each.prompt[:n_tokens]) for each in scenarios)


def repeated_prompts(
    tokens: Int[Tensor, "prompt pos"], n: int, seed: int = 0
) -> Int[Tensor, "repeated pos"]:
    """Random tokens whose second half repeats the first: what induction heads respond to.

    Args:
        tokens: Real prompts; theirs are the tokens drawn from, and the length.
        n: How many to make.
        seed: Of the draws.
    """
    vocabulary, length = tokens.unique(), tokens.shape[1]
    half = -(-length // 2)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(vocabulary), (n, half), generator=generator)
    return vocabulary[chosen].repeat(1, 2)[:, :length]
