"""Where a head's surprise falls: on which keys its attention exceeds its habit.

Habit is what AP-MAE expects of a query (`APMAE.expect`). The positive part of attention less habit
is what the head adds of its own on this prompt. It is summed over queries, by what the key is to
the query and by the key's token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from aplens.patterns.templates import TEMPLATES, template_keys

#: What a key is to a query. A key counts once, as the first of these that it is. Four of them and
#: "first_token" are keys of the template of that name (`aplens.patterns.templates`).
KEY_KINDS = (
    "self",  # the query's own token
    "duplicate_token",  # an earlier copy of it
    "induction",  # what followed an earlier copy
    "previous_token",
    "answer",  # the token that the prompt's answer is
    "wrong_answer",  # that of its wrong answer: in indirect object identification, the subject
    "first_token",
    "delimiter",  # punctuation, brackets, blanks and line ends
    "other",
)


class Answers(NamedTuple):
    """Token ids of a prompt's answers; None where it has none."""

    answer: int | None = None
    wrong_answer: int | None = None


def key_kinds(
    tokens: Int[Tensor, " pos"], delimiters: Bool[Tensor, " pos"], answers: Answers
) -> Int[Tensor, "query key"]:
    """What each key of a prompt is to each query, as a place in `KEY_KINDS`."""
    members = dict(zip(TEMPLATES, template_keys(tokens), strict=False))
    whole = {name: tokens == answer for name, answer in answers._asdict().items()}
    whole["delimiter"] = delimiters.cpu()
    members |= {
        name: torch.as_tensor(keys).expand(len(tokens), len(tokens)) for name, keys in whole.items()
    }
    kinds = torch.full((len(tokens),) * 2, KEY_KINDS.index("other"))
    for place, name in reversed(list(enumerate(KEY_KINDS[:-1]))):
        kinds[members[name]] = place
    return kinds


class SurpriseTally:
    """Surprise added up over prompts; every query counts the same.

    `delimiters` says which token ids are some, as far as the ids that occur reach.
    """

    def __init__(self, n_heads: int, delimiters: Bool[Tensor, " token_id"]) -> None:
        self._delimiters = delimiters.cpu()
        self._by_kind = torch.zeros(n_heads, len(KEY_KINDS), dtype=torch.float64)
        self._by_token = torch.zeros(n_heads, len(delimiters), dtype=torch.float64)
        self._n_queries = 0

    def see(
        self,
        attention: Float[Tensor, "head query key"],
        habit: Float[Tensor, "head query key"],
        tokens: Int[Tensor, " pos"],
        answers: Answers = Answers(),  # noqa: B008  # cannot change
    ) -> None:
        """Add one prompt. Its first query can only attend to itself, and counts for nothing."""
        tokens = tokens.cpu()
        beyond = (attention.to(habit) - habit).clamp(min=0)[:, 1:].double().cpu()
        places = key_kinds(tokens, self._delimiters[tokens], answers)
        kinds = F.one_hot(places[1:], len(KEY_KINDS)).double()
        self._by_kind += torch.einsum("hqk,qkt->ht", beyond, kinds)
        self._by_token.index_add_(1, tokens, beyond.sum(1))
        self._n_queries += beyond.shape[1]

    def means(self) -> Float[np.ndarray, " head"]:
        """The mean total variation distance between a query's attention and its habit, 0 to 1.

        Both add up to 1, so that this is the positive part of their difference. NaN when no prompt
        had two tokens.
        """
        return (self._by_kind.sum(1) / (self._n_queries or np.nan)).numpy()

    def shares_by_kind(self) -> Float[np.ndarray, "head kind"]:
        """The share of each head's surprise that falls on each of `KEY_KINDS`; NaN without any."""
        return (self._by_kind / self._by_kind.sum(1, keepdim=True)).numpy()

    def shares_by_text(self, texts: Mapping[int, str]) -> list[dict[str, float]]:
        """For each head the share of its surprise that falls on each token text, the most first.

        Ids that read the same count together.
        """
        by_head = []
        for row in self._by_token:
            shares: dict[str, float] = defaultdict(float)
            for token in row.nonzero().flatten().tolist():
                shares[texts[token]] += float(row[token] / row.sum())
            by_head.append(dict(sorted(shares.items(), key=lambda item: -item[1])))
        return by_head
