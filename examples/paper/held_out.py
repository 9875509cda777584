"""Which files are for evaluation alone, and prompts drawn from them or from the others.

The rule looks at a file's name only, so that it holds for every corpus, however it was mined.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from aplens.scenarios import (
    Corpus,
    Scenarios,
    SourceFile,
    english_prose,
    find_jdk_source,
    mine_scenarios,
    open_corpus,
    python_standard_library,
)

#: Kinds of text that prompts are drawn from.
DOMAINS = ("java", "python", "prose")


def is_held_out(path: str) -> bool:
    """Whether a file is for evaluation, as three in ten are; nothing is trained or fitted on it."""
    return hashlib.sha256(path.encode()).digest()[0] % 10 < 3


class PartOfCorpus:
    """The files of a corpus that are held out, or the others.

    Args:
        corpus: All files.
        held_out: Which part.
    """

    def __init__(self, corpus: Corpus, held_out: bool) -> None:
        self._corpus, self._held_out = corpus, held_out

    @property
    def skipped(self) -> Counter[str]:
        """How many files of the whole corpus the latest pass left out, by reason."""
        return self._corpus.skipped

    def files(self, seed: int = 0) -> Iterator[SourceFile]:
        """The part's files, in random order."""
        return (
            file for file in self._corpus.files(seed) if is_held_out(file.path) == self._held_out
        )


def draw_prompts(
    model: Any, domain: str, n: int, n_tokens: int, *, held_out: bool, seed: int = 0
) -> Scenarios:
    """Prompts of one domain, each from a file of its own."""
    return mine_scenarios(
        model,
        PartOfCorpus(_open(domain), held_out),
        language=domain,
        tasks=["random"],
        per_task=n,
        per_file=1,
        context_length=n_tokens,
        style="left_to_right",
        seed=seed,
    )


def _open(domain: str) -> Corpus:
    if domain == "python":
        return python_standard_library()
    if domain == "prose":
        return english_prose()
    source = find_jdk_source()
    if source is None:
        raise ValueError("Java prompts need a JDK with sources (lib/src.zip)")
    return open_corpus(source, "java", prefix="java.base/")
