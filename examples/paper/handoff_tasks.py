"""The three tasks of the hand-off study, as scenarios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aplens.interventions import AnswerMetric
from aplens.scenarios import (
    Scenarios,
    english_prose,
    find_jdk_source,
    make_scenarios,
    mine_scenarios,
)

TASKS = ("ioi", "induction", "java")

NAMES = (
    "Mary", "John", "Anna", "Peter", "James", "Susan", "Tom", "Sarah", "Paul", "Laura", "David",
    "Emma", "Mark", "Alice", "Robert", "Kate", "George", "Lucy", "Daniel", "Jane",
)  # fmt: skip
PLACES = ("store", "park", "school", "office", "station", "garden", "museum", "library")
THINGS = ("drink", "book", "ring", "letter", "ball", "map", "key", "flower")

#: {0} is the indirect object, the answer; {1} the subject, named twice. Both orders of the names.
TEMPLATES = (
    "When {0} and {1} went to the {place}, {1} gave a {thing} to",
    "When {1} and {0} went to the {place}, {1} gave a {thing} to",
    "After {0} and {1} left the {place}, {1} handed a {thing} to",
    "After {1} and {0} left the {place}, {1} handed a {thing} to",
    "Yesterday {0} and {1} were at the {place}. Then {1} decided to give a {thing} to",
    "Yesterday {1} and {0} were at the {place}. Then {1} decided to give a {thing} to",
)

#: Tokens of a random sequence before it is repeated.
PERIOD = 24
JAVA_TOKENS = 48


@dataclass(frozen=True)
class Task:
    """Prompts to take the truth from, others to choose heads on, and what to measure.

    Attributes:
        name: One of `TASKS`.
        metric: What an ablation is measured by.
        truth: Prompts that the truth is measured on.
        choice: For each seed the prompts that heads are chosen on; none is among `truth`.
        usual: Further prompts of the task: over them a head's output is averaged for mean ablation.
        reference: Ordinary prompts, no shorter, for the distance of patterns from the usual.
        fit: Scenarios enough to train a predictor on; None where the task has none to mine.
    """

    name: str
    metric: AnswerMetric
    truth: Scenarios
    choice: tuple[Scenarios, ...]
    usual: Scenarios
    reference: Scenarios
    fit: Scenarios | None


def load_task(name: str, model: Any, *, n_truth: int, n_choice: int, n_seeds: int) -> Task:
    """Make a task's prompts; the same for the same numbers."""
    reference = mine_scenarios(
        model, english_prose(), language="prose", tasks=["random"], per_task=n_choice,
        per_file=1, context_length=JAVA_TOKENS, seed=0,
    )  # fmt: skip
    if name == "java":
        return _java(model, reference, n_truth, n_choice, n_seeds)
    make = {"ioi": indirect_objects, "induction": repeated_tokens}[name]
    # One draw, cut in parts: no prompt stands in two of them.
    drawn = make(model, n_truth + n_choice * (n_seeds + 1), seed=0)
    choice = [drawn[n_truth + n_choice * i :][:n_choice] for i in range(n_seeds + 1)]
    return Task(
        name, "logit_diff", drawn[:n_truth], tuple(choice[:-1]), choice[-1], reference, None
    )


def indirect_objects(model: Any, n: int, seed: int) -> Scenarios:
    """Indirect object identification (Wang et al. 2023): which of two names comes next."""
    rng = np.random.default_rng(seed)
    texts: dict[str, tuple[str, str]] = {}
    while len(texts) < n:
        first, second = rng.choice(NAMES, 2, replace=False)
        text = rng.choice(TEMPLATES).format(
            first, second, place=rng.choice(PLACES), thing=rng.choice(THINGS)
        )
        texts[text] = (f" {first}", f" {second}")
    answers, wrong = zip(*texts.values(), strict=True)
    return make_scenarios(model, list(texts), answers, wrong, task="ioi")


def repeated_tokens(model: Any, n: int, seed: int) -> Scenarios:
    """A random sequence, and again its beginning: the answer followed the last token before.

    The wrong answer is another token of the sequence.
    """
    rng = np.random.default_rng(seed)
    prompts, answers, wrong = [], [], []
    for _ in range(n):
        sequence = rng.choice(np.arange(1000, 40000), PERIOD, replace=False).tolist()
        n_again = int(rng.integers(PERIOD // 2, PERIOD - 1))
        prompts.append(sequence + sequence[:n_again])
        answers.append(sequence[n_again])
        wrong.append(sequence[(n_again + PERIOD // 2) % PERIOD])
    return make_scenarios(model, prompts, answers, wrong, task="induction")


def _java(model: Any, reference: Scenarios, n_truth: int, n_choice: int, n_seeds: int) -> Task:
    source = find_jdk_source()
    if source is None:
        raise ValueError("the Java task needs a JDK with sources (lib/src.zip)")
    n_fit = 300
    total = n_truth + n_choice * (n_seeds + 1) + n_fit
    mined = mine_scenarios(
        model, source, tasks=["identifiers"], per_task=total, per_file=1,
        context_length=JAVA_TOKENS, seed=0,
    )  # fmt: skip
    choice = [mined[n_truth + n_choice * i :][:n_choice] for i in range(n_seeds + 1)]
    return Task(
        "java",
        "log_prob",
        mined[:n_truth],
        tuple(choice[:-1]),
        choice[-1],
        reference,
        mined[-n_fit:],
    )
