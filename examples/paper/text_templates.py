"""Templates that need the text of the tokens: delimiters, starts of lines, the enclosing bracket.

They go beyond `aplens.patterns.TEMPLATES`, which token ids alone decide.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: What a query attends to.
TEXT_TEMPLATES = (
    "delimiter",  # tokens of punctuation alone, and line breaks
    "line_start",  # the first token of any line
    "scope",  # the bracket that encloses it: the innermost one still open
)

#: As of `aplens.patterns.template_strengths`: below it a query or two decide.
_LEAST_RANGE = 0.1

_OPENING = {"(": ")", "[": "]", "{": "}"}
_CLOSING = {closing: opening for opening, closing in _OPENING.items()}


def text_template_strengths(
    attention: Float[Tensor, "*pattern query key"], texts: Sequence[str]
) -> Float[Tensor, "*pattern template"]:
    """How much patterns follow each of `TEXT_TEMPLATES`, as `template_strengths` measures it.

    (share - chance) / (most - chance): 0 is what uniform causal attention has, 1 a pattern that
    follows the template wherever the prompt lets it. The first token is no key of any of them,
    since attention to it is a sink.

    Returns:
        Strengths of at most 1; NaN where hardly a query can follow the template.
    """
    n = len(texts)
    if attention.ndim < 2 or attention.shape[-2:] != (n, n):
        raise ValueError(
            f"expected patterns (..., query, key) of {n} tokens, got {tuple(attention.shape)}"
        )
    keys = template_keys(texts).to(attention.device)
    values = attention.float()
    shares = torch.einsum("...qk,tqk->...t", values, keys.to(values)) / n
    uniform = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    chance = (uniform.to(values) * keys).sum((-2, -1)) / n
    most = keys.any(-1).float().mean(-1)
    telling = most - chance >= _LEAST_RANGE
    return torch.where(telling, (shares - chance) / (most - chance), torch.nan)


def template_keys(texts: Sequence[str]) -> Bool[Tensor, "template query key"]:
    """Which keys belong to each template.

    Args:
        texts: The tokens, each as text.
    """
    n = len(texts)
    delimiters = torch.tensor([_is_delimiter(text) for text in texts])
    starts = torch.tensor([False, *("\n" in text for text in texts[:-1])][:n])
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    scope = torch.zeros(n, n, dtype=torch.bool)
    for query, key in enumerate(_enclosing(texts)):
        if key is not None:
            scope[query, key] = True
    keys = torch.stack([delimiters & causal, starts & causal, scope])
    keys[:, :, 0] = False
    return keys


def _is_delimiter(text: str) -> bool:
    stripped = text.strip()
    if not stripped:
        return "\n" in text
    return all(character in string.punctuation for character in stripped)


def _enclosing(texts: Sequence[str]) -> list[int | None]:
    """For each token the place of the innermost bracket that is open before it."""
    stack: list[tuple[str, int]] = []
    places: list[int | None] = []
    for place, text in enumerate(texts):
        places.append(stack[-1][1] if stack else None)
        for character in text:
            if character in _OPENING:
                stack.append((character, place))
            elif stack and _CLOSING.get(character) == stack[-1][0]:
                stack.pop()
    return places
