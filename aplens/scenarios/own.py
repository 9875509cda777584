"""Scenarios from a user's own prompts and answers."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from aplens._words import is_whole
from aplens.models import last_token_logits
from aplens.prompts import (
    Column,
    Prompts,
    PromptsLike,
    as_list,
    name_unfit,
    read_prompts,
)
from aplens.scenarios.answers import require_logits
from aplens.scenarios.scenario import Scenario, ScenarioError, Scenarios

_AT_ONCE = 16  # prompts a forward pass


def make_scenarios(
    model: Any,
    prompts: PromptsLike,
    answers: Sequence[str | int] | Column,
    wrong_answers: Sequence[str | int] | Column | None = None,
    *,
    groups: Sequence[str] | Column | None = None,
    task: str = "own",
    prepend_bos: bool | None = None,
) -> Scenarios:
    """Make scenarios of prompts whose answers are known: what `rank_heads` and `observe` take.

    An answer counts by its first token. That of a text is the token which continues the prompt when
    both are tokenized together.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: Text, token ids, or a tokenizer's output, of any lengths; see
            `aplens.prompts.read_prompts`.
        answers: What is correct, one a prompt: text, with the blank before it where there is one
            (" Mary"), or a token id. A list, an array or a pandas Series, whose index counts for
            nothing; `wrong_answers` and `groups` likewise.
        wrong_answers: What would be wrong, for logit differences.
        groups: What belongs together and is never split, such as the template a prompt was made
            from (default: each prompt on its own, equal prompts together).
        task: Name of the task.
        prepend_bos: Whether texts begin with BOS (default: as the model does).

    Warns:
        UserWarning: An answer seems to lack the blank before it: with one it begins with another
            token.

    Raises:
        ScenarioError: When there are not as many answers as prompts, an answer is missing, has no
            token, does not begin with a token of its own, or is the wrong answer too; or when the
            task is no plain file name.
        ValueError: When prompts are empty, too long, or not the model's.

    Example:
        >>> aplens.make_scenarios(
        ...     model,
        ...     ["When Mary and John went out, John gave a drink to"],
        ...     answers=[" Mary"],
        ...     wrong_answers=[" John"],
        ... )
        Scenarios(1: own 1)
    """
    read = read_prompts(model, prompts, prepend_bos=prepend_bos)
    ids = [tuple(read.ids(index)) for index in range(len(read))]
    texts: Sequence[str | None] = _texts(prompts) or [None] * len(ids)
    answers = _read_values("answers", answers, read)
    targets = _first_tokens(model, texts, ids, answers, prepend_bos)
    wrong: Sequence[int | None] = [None] * len(ids)
    if wrong_answers is not None:
        wrong_answers = _read_values("wrong_answers", wrong_answers, read)
        wrong = _first_tokens(model, texts, ids, wrong_answers, prepend_bos)
        for index, (target, rival) in enumerate(zip(targets, wrong, strict=True)):
            if target == rival:
                raise ScenarioError(
                    f"prompt {index}: {answers[index]!r} and {wrong_answers[index]!r} begin with "
                    f"the same token, {target}"
                )
    given: list[tuple[str | None, str | int, int | None]] = [
        *zip(texts, answers, targets, strict=True)
    ]
    if wrong_answers is not None:
        given += zip(texts, wrong_answers, wrong, strict=True)
    _warn_of_missing_blanks(model, given, prepend_bos)
    names = [f"prompt-{ids.index(prompt)}" for prompt in ids]
    if groups is not None:
        names = [str(group) for group in _read_values("groups", groups, read)]
    return Scenarios(
        Scenario(
            task=task,
            language="text",
            file=name,
            line=1,
            span=str(answer),
            prompt=prompt,
            target=target,
            style="own",
            wrong=rival,
        )
        for name, answer, prompt, target, rival in zip(
            names, answers, ids, targets, wrong, strict=True
        )
    )


def _warn_of_missing_blanks(
    model: Any, given: Sequence[tuple[str | None, str | int, int | None]], prepend_bos: bool | None
) -> None:
    """Warn the caller's caller of the first answer that another token stands for with a blank."""
    for text, answer, token in given:
        if not text or not isinstance(answer, str) or not _joins_words(text, answer):
            continue
        prompt = tuple(read_prompts(model, text, prepend_bos=prepend_bos).ids(0))
        together = tuple(read_prompts(model, f"{text} {answer}", prepend_bos=prepend_bos).ids(0))
        if together[: len(prompt)] == prompt and together[len(prompt)] != token:
            warnings.warn(
                f"the answer {answer!r} stands without a blank after {text[-30:]!r}, as one word: "
                f"it counts as token {token}. If a blank belongs between them, write "
                f"{' ' + answer!r}, which counts as token {together[len(prompt)]}",
                stacklevel=3,
            )
            return


def _joins_words(text: str, answer: str) -> bool:
    """Whether a blank is likely to be missing: between letters of a script that writes blanks, or
    after the punctuation of prose.
    """
    before, after = unicodedata.category(text[-1]), unicodedata.category(answer[0])
    return (before in ("Ll", "Lu") or text[-1] in ".,;:!?") and after in ("Ll", "Lu", "Nd")


@torch.no_grad()
def predicted_scenarios(model: Any, prompts: PromptsLike) -> Scenarios:
    """Scenarios whose answer is the model's own prediction, and its second choice the wrong one.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: In any form that `read_prompts` takes.

    Raises:
        ValueError: When prompts are empty, too long, or not the model's, or the model's logits
            contain NaN or infinity.
    """
    read = read_prompts(model, prompts)
    logits = [last_token_logits(model, some.tokens, some.lengths) for some in read.split(_AT_ONCE)]
    first, second = require_logits(torch.cat(logits)).topk(2).indices.T.tolist()
    return make_scenarios(model, read, first, second, task="prediction")


def _texts(prompts: Any) -> Sequence[str] | None:
    """The prompts as text, where they are."""
    texts = as_list(prompts)
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts):
        return list(texts)
    return None


def _read_values(name: str, values: Any, prompts: Prompts) -> list[str | int]:
    """One text or whole number a prompt."""
    read = as_list(values)
    if isinstance(read, str) or len(read) != len(prompts):
        got = repr(read) if isinstance(read, str) else len(read)
        raise ScenarioError(f"expected {name} for each of {len(prompts)} prompts, got {got}")
    if unfit := name_unfit(values, lambda value: isinstance(value, str) or is_whole(value)):
        raise ScenarioError(f"expected {name} as texts or whole numbers, got {unfit}")
    return [as_list(value) for value in read]


def _first_tokens(
    model: Any,
    texts: Sequence[str | None],
    ids: Sequence[tuple[int, ...]],
    answers: Sequence[str | int],
    prepend_bos: bool | None,
) -> list[int]:
    return [
        _first_token(model, text, prompt, answer, prepend_bos)
        for text, prompt, answer in zip(texts, ids, answers, strict=True)
    ]


def _first_token(
    model: Any,
    text: str | None,
    prompt: tuple[int, ...],
    answer: str | int,
    prepend_bos: bool | None,
) -> int:
    if not isinstance(answer, str):
        return read_prompts(model, [[int(answer)]]).ids(0)[0]  # refuses what is no token id
    if answer == "":
        raise ScenarioError("an answer is the empty text: it has no token to predict")
    if text is None:
        return read_prompts(model, answer, prepend_bos=False).ids(0)[0]
    together = tuple(read_prompts(model, text + answer, prepend_bos=prepend_bos).ids(0))
    if len(together) <= len(prompt) or together[: len(prompt)] != prompt:
        raise ScenarioError(
            f"{text[-30:]!r} and its answer {answer!r} share a token: let the prompt end where a "
            "token ends (a blank belongs to the answer), or give the answer as a token id"
        )
    return together[len(prompt)]
