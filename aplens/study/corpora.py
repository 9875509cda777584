"""Which corpora a study mines: of each one's choices, the first that this machine has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aplens.scenarios import (
    Corpus,
    ScenarioError,
    Scenarios,
    english_prose,
    find_jdk_source,
    open_corpus,
    python_standard_library,
)
from aplens.study.config import READ_WHOLE, ScenarioSettings


class StudyCorpus(NamedTuple):
    """A corpus that was found; those of one name are the same. Its note: why it is not another."""

    corpus: Corpus
    language: str
    short: str
    name: str
    note: str = ""

    def describe(self) -> dict[str, str]:
        """What a report says of it."""
        return {"name": self.name, "language": self.language, "note": self.note}


def find_corpus(settings: ScenarioSettings) -> StudyCorpus:
    """Open the first corpus that is there; its note says so when it is not the first choice."""
    missing: list[str] = []
    for choice in settings.corpus:
        found = _open(choice, settings)
        if found is not None:
            note = f"{', '.join(missing)}: using {found.name} instead" if missing else ""
            if note and settings.prefix and choice in READ_WHOLE:
                note += f", all of it: no prefix {settings.prefix!r} there"
            return found._replace(note=note)
        missing.append(
            "no JDK with sources (lib/src.zip) was found"
            if choice == "jdk"
            else f"there is no {choice}"
        )
    raise ScenarioError(f"no corpus of {list(settings.corpus)} is there: {', '.join(missing)}")


def path_prefixes(corpora: Sequence[StudyCorpus]) -> list[str]:
    """What stands before each corpus's paths, so that files of different corpora differ.

    Nothing where there is only one; the same for two parts of one corpus, whose files are the same.
    """
    if len(corpora) == 1:
        return [""]
    prefixes = []
    for corpus in corpora:
        alike = dict.fromkeys(other.name for other in corpora if other.short == corpus.short)
        number = list(alike).index(corpus.name) + 1
        prefixes.append(f"{corpus.short}/" if number == 1 else f"{corpus.short}-{number}/")
    return prefixes


def interleave(groups: Sequence[Scenarios]) -> Scenarios:
    """All scenarios, each group in its order, so that every beginning has a share of each group.

    What looks at a study's first prompts only then sees every corpus.
    """
    places = [
        ((i + 0.5) / len(group), number, scenario)
        for number, group in enumerate(groups)
        for i, scenario in enumerate(group)
    ]
    return Scenarios(scenario for *_, scenario in sorted(places, key=lambda place: place[:2]))


def _open(choice: str, settings: ScenarioSettings) -> StudyCorpus | None:
    if choice == "jdk":
        source = find_jdk_source()
        if source is None:
            return None
        name = f"the JDK's Java sources ({source})"
        corpus = open_corpus(source, "java", prefix=settings.prefix)
        return StudyCorpus(corpus, "java", choice, name)
    if choice == "python":
        return StudyCorpus(python_standard_library(), "python", choice, "Python's standard library")
    if choice == "prose":
        name = "Python's language reference and the READMEs of installed packages"
        return StudyCorpus(english_prose(), "prose", choice, name)
    path = Path(choice).expanduser()
    if not path.exists():
        return None
    corpus = open_corpus(path, settings.language, prefix=settings.prefix)
    return StudyCorpus(corpus, settings.language, path.stem, str(path))
