"""Passages of prose and code as prompts that ask for no answer."""

from __future__ import annotations

from aplens.scenarios.corpus import Corpus, python_standard_library
from aplens.scenarios.prose import english_prose
from aplens.scenarios.scenario import ScenarioError


def draw_passages(corpus: Corpus, n: int, n_characters: int, seed: int = 0) -> list[str]:
    """A passage of each of `n` files: whole lines from a third of the file on."""
    passages: list[str] = []
    for file in corpus.files(seed):
        start = file.text.find("\n", len(file.text) // 3) + 1
        passage = file.text[start : start + n_characters] if start else ""
        if len(passage) == n_characters:
            passages.append(passage)
        if len(passages) == n:
            return passages
    raise ScenarioError(
        f"{corpus} has {len(passages)} files with {n_characters} characters in their last two "
        f"thirds, {n} are needed"
    )


def prose_and_code(n: int, n_characters: int, seed: int = 0) -> list[str]:
    """Half English prose, half Python: passages that every installation has.

    The prose is Python's language reference and the READMEs of installed packages, the code its
    standard library, prose first. What there is depends on the versions installed.

    Args:
        n: How many passages; of an odd number the larger half is prose.
        n_characters: Of each.
        seed: Decides which files.

    Raises:
        ScenarioError: When there are not as many files.
    """
    prose = draw_passages(english_prose(), n - n // 2, n_characters, seed)
    return prose + draw_passages(python_standard_library(), n // 2, n_characters, seed)
