"""Scenarios from a user's own prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aplens.prompts import Prompts, PromptsLike, read_prompts
from aplens.scenarios.scenario import Scenario, ScenarioError, Scenarios


def make_scenarios(
    model: Any,
    prompts: PromptsLike,
    answers: Sequence[str | int],
    wrong_answers: Sequence[str | int] | None = None,
    *,
    groups: Sequence[str] | None = None,
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
            (" Mary"), or a token id.
        wrong_answers: What would be wrong, for logit differences.
        groups: What belongs together and is never split, such as the template a prompt was made
            from (default: each prompt on its own, equal prompts together).
        task: Name of the task.
        prepend_bos: Whether texts begin with BOS (default: as the model does).

    Raises:
        ScenarioError: When there are not as many answers as prompts, an answer has no token, or
            does not begin with a token of its own, or is the wrong answer too.
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
    texts = _texts(prompts)
    read = read_prompts(model, prompts, prepend_bos=prepend_bos)
    ids = [tuple(read.ids(index)) for index in range(len(read))]
    _check_number("answers", answers, read)
    targets = _first_tokens(model, texts, ids, answers, prepend_bos)
    wrong: Sequence[int | None] = [None] * len(ids)
    if wrong_answers is not None:
        _check_number("wrong_answers", wrong_answers, read)
        wrong = _first_tokens(model, texts, ids, wrong_answers, prepend_bos)
        for index, (target, rival) in enumerate(zip(targets, wrong, strict=True)):
            if target == rival:
                raise ScenarioError(
                    f"prompt {index}: {answers[index]!r} and {wrong_answers[index]!r} begin with "
                    f"the same token, {target}"
                )
    if groups is not None:
        _check_number("groups", groups, read)
    names = [f"prompt-{ids.index(prompt)}" for prompt in ids] if groups is None else groups
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


def _texts(prompts: Any) -> list[str] | None:
    """The prompts as text, where they are."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Sequence) and all(isinstance(prompt, str) for prompt in prompts):
        return list(prompts)
    return None


def _check_number(name: str, values: Sequence[Any], prompts: Prompts) -> None:
    if isinstance(values, str) or len(values) != len(prompts):
        got = repr(values) if isinstance(values, str) else len(values)
        raise ScenarioError(f"expected {name} for each of {len(prompts)} prompts, got {got}")


def _first_tokens(
    model: Any,
    texts: list[str] | None,
    ids: Sequence[tuple[int, ...]],
    answers: Sequence[str | int],
    prepend_bos: bool | None,
) -> list[int]:
    return [
        _first_token(model, None if texts is None else texts[index], prompt, answer, prepend_bos)
        for index, (prompt, answer) in enumerate(zip(ids, answers, strict=True))
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
