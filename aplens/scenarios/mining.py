"""Mining: scenarios taken from a corpus, balanced over tasks."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from aplens._progress import Progress, show_progress
from aplens.models import describe_model, own_tokenizer
from aplens.scenarios.corpus import Corpus, SkipFile, SourceFile, check_file, open_corpus
from aplens.scenarios.cutting import PromptBuilder, TokenizedFile
from aplens.scenarios.scenario import Scenario, ScenarioError, Scenarios
from aplens.scenarios.tasks import (
    RANDOM_TASK,
    SourceText,
    SourceTree,
    Span,
    list_tasks,
    overlap,
    parse,
)

RANDOM_SPAN_TOKENS = (3, 10)
"""Fewest and most tokens of a span of the task `random`."""


def mine_scenarios(
    model_or_tokenizer: Any,
    corpus: str | Path | Corpus,
    *,
    language: str = "java",
    tasks: Sequence[str] | None = None,
    per_task: int = 500,
    per_file: int = 4,
    context_length: int = 256,
    style: Literal["auto", "left_to_right", "fim"] = "auto",
    seed: int = 0,
    progress: bool | Progress = True,
) -> Scenarios:
    """Take completion scenarios from source files (docs/method.md, step 1).

    Files are visited in random order, and in each the tasks with the fewest scenarios so far are
    served first, until every task has `per_task`. No two scenarios of a file stop at the same
    token, and a prompt that came before is not taken again, nor a file with the same text.

    Statements that cannot be parsed are left out (see `SourceTree.unparsed`), and the whole file
    where they are more than half of it. What was left out is counted in the warning and in errors.

    Args:
        model_or_tokenizer: A hooked model, whose tokenizer is taken as its own files define it, so
            that prompts begin with BOS where the model was trained so; or a fast tokenizer.
        corpus: A folder, a zip archive such as a JDK's `src.zip` (read in place), or a corpus.
        language: Language of the files.
        tasks: Tasks to mine, of `list_tasks(language)`; all of them when None.
        per_task: Scenarios wanted of each task.
        per_file: Most scenarios taken from one file, over all tasks.
        context_length: Number of tokens in a prompt.
        style: How prompts are built; see `PromptBuilder`.
        seed: Decides the order of the files and the spans chosen in them.
        progress: A bar (the default), nothing (False), or a function called with the number of
            scenarios found and wanted, as they are found.

    Warns:
        UserWarning: The corpus ended before every task was full.
        DeprecationWarning: The corpus stands before the model, as it did before version 0.1. The
            next version refuses that.

    Raises:
        ScenarioError: An argument does not fit, the corpus cannot be read or is empty or has what
            is no text, or no scenario was found for a task.
    """
    if _is_source(model_or_tokenizer) and not _is_source(corpus):
        warnings.warn(
            "mine_scenarios takes the model first, then the corpus: the next version refuses the "
            "old order",
            DeprecationWarning,
            stacklevel=2,
        )
        model_or_tokenizer, corpus = corpus, model_or_tokenizer
    tokenizer = _tokenizer_of(model_or_tokenizer, context_length)
    wanted = _check_tasks(tasks, language)
    for name, value in {"per_task": per_task, "per_file": per_file}.items():
        if value < 1:
            raise ScenarioError(f"{name} must be at least 1, got {value}")
    miner = _Miner(
        PromptBuilder(tokenizer, context_length, style), language, wanted, per_task, per_file, seed
    )
    source = open_corpus(corpus, language)
    tell = show_progress(progress, "Mining scenarios")
    for file in source.files(seed):
        if miner.mine(file):
            tell(len(miner.scenarios), per_task * len(wanted))
        if miner.is_full:
            break
    miner.check_yield(source)
    return Scenarios(miner.scenarios)


def _is_source(value: Any) -> bool:
    return isinstance(value, (str, Path, Corpus))


def _tokenizer_of(model_or_tokenizer: Any, context_length: int) -> Any:
    if not isinstance(model_or_tokenizer, torch.nn.Module):
        return model_or_tokenizer
    n_ctx = describe_model(model_or_tokenizer).n_ctx
    if context_length > n_ctx:
        raise ScenarioError(
            f"context_length {context_length} is longer than the model's context of {n_ctx} tokens"
        )
    tokenizer = own_tokenizer(model_or_tokenizer)
    if tokenizer is None:
        raise ScenarioError("the model has no tokenizer; pass a tokenizer instead of the model")
    return tokenizer


def _check_tasks(tasks: Sequence[str] | None, language: str) -> tuple[str, ...]:
    known = list_tasks(language)
    if tasks is None:
        return known
    wanted = (tasks,) if isinstance(tasks, str) else tuple(dict.fromkeys(tasks))
    if not wanted or not set(wanted) <= set(known):
        raise ScenarioError(f"expected tasks of {language}, which are {known}; got {tasks!r}")
    return wanted


class _Miner:
    """What was found so far, and what is still wanted."""

    def __init__(
        self,
        builder: PromptBuilder,
        language: str,
        tasks: tuple[str, ...],
        per_task: int,
        per_file: int,
        seed: int,
    ) -> None:
        self.scenarios: list[Scenario] = []
        self._builder = builder
        self._language = language
        self._per_task = per_task
        self._per_file = per_file
        self._rng = np.random.default_rng(seed)
        self._counts = dict.fromkeys(tasks, 0)
        self._prompts: set[tuple[int, ...]] = set()
        self._texts: set[bytes] = set()
        self._n_files = 0
        self._skipped: Counter[str] = Counter()
        self._n_in_part = 0

    @property
    def is_full(self) -> bool:
        return not self._open_tasks()

    def _open_tasks(self) -> list[str]:
        return [task for task, count in self._counts.items() if count < self._per_task]

    def mine(self, yielded: SourceFile) -> bool:
        """Take what is wanted from a file and say whether that was anything."""
        self._n_files += 1
        try:
            source = check_file(yielded)
            parsed, file = self._parse(source.text)
        except SkipFile as reason:
            self._skipped[str(reason)] += 1
            return False
        candidates = {task: self._candidates(task, parsed, file) for task in self._open_tasks()}
        used: set[int] = set()
        n_taken = 0
        while candidates and n_taken < self._per_file:
            task = min(candidates, key=self._counts.__getitem__)
            scenario = self._next_scenario(task, candidates[task], used, source.path, file)
            if scenario is not None:
                self.scenarios.append(scenario)
                self._counts[task] += 1
                n_taken += 1
            if scenario is None or self._counts[task] == self._per_task:
                del candidates[task]
        return n_taken > 0

    def _parse(self, text: str) -> tuple[SourceText | SourceTree, TokenizedFile]:
        if "\0" in text:  # what UTF-16 looks like to who takes it for UTF-8
            raise SkipFile("no text")
        digest = hashlib.sha256(text.encode()).digest()
        if digest in self._texts:
            raise SkipFile("seen before")
        self._texts.add(digest)
        file = self._builder.tokenize(text)
        if not self._builder.is_long_enough(file):
            raise SkipFile("too short")
        parsed = parse(text, self._language)
        if 2 * sum(end - start for start, end in parsed.unparsed) > len(text):
            raise SkipFile("not parsed")  # more likely something else than code of the language
        if parsed.is_too_deep:
            raise SkipFile("nested too deeply")
        if parsed.unparsed:
            self._n_in_part += 1
        return parsed, file

    def _candidates(
        self, task: str, parsed: SourceText | SourceTree, file: TokenizedFile
    ) -> Iterator[tuple[Span, range]]:
        """A task's spans with their token positions, in random order, found when first asked."""
        if task == RANDOM_TASK:
            places = _random_spans(file, self._rng)
            yield from (place for place in places if not overlap(parsed.unparsed, *place[0]))
            return
        spans = parsed.spans(task)
        for index in self._rng.permutation(len(spans)):
            tokens = file.tokens_of(spans[index])
            if tokens is not None:
                yield spans[index], tokens

    def _next_scenario(
        self,
        task: str,
        candidates: Iterator[tuple[Span, range]],
        used: set[int],
        path: str,
        file: TokenizedFile,
    ) -> Scenario | None:
        for span, tokens in candidates:
            if tokens.start in used:
                continue
            prompt = self._builder.build(file, tokens)
            if prompt is None or prompt in self._prompts:
                continue
            used.add(tokens.start)
            self._prompts.add(prompt)
            return Scenario(
                task=task,
                language=self._language,
                file=path,
                line=file.text.count("\n", 0, span.start) + 1,
                span=file.text[span.start : span.end],
                prompt=prompt,
                target=file.ids[tokens.start],
                style=self._builder.style,
            )
        return None

    def check_yield(self, corpus: Corpus) -> None:
        """Refuse an empty task, and warn of one that is not full."""
        skipped = ", ".join(
            f"{count} {reason}" for reason, count in (corpus.skipped + self._skipped).items()
        )
        in_part = f"; {self._n_in_part} parsed in part" if self._n_in_part else ""
        where = f"in {self._n_files} files of {corpus} (skipped: {skipped or 'none'}{in_part})"
        if missing := [task for task, count in self._counts.items() if count == 0]:
            raise ScenarioError(f"no scenario of {', '.join(missing)} was found {where}")
        if not self.is_full:
            found = ", ".join(f"{task} {self._counts[task]}" for task in self._open_tasks())
            warnings.warn(
                f"fewer than {self._per_task} scenarios were found of {found} {where}",
                stacklevel=3,
            )


def _random_spans(file: TokenizedFile, rng: np.random.Generator) -> Iterator[tuple[Span, range]]:
    """Runs of tokens that start and end between characters, in random order."""
    fewest, most = RANDOM_SPAN_TOKENS
    for start in rng.permutation(max(len(file.ids) - most, 0)).tolist():
        tokens = range(start, start + int(rng.integers(fewest, most, endpoint=True)))
        span = Span(int(file.starts[tokens.start]), int(file.ends[tokens.stop - 1]))
        if file.tokens_of(span) == tokens:
            yield span, tokens
