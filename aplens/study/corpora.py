"""Which corpus a study mines: the first of its choices that this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from aplens.scenarios import (
    Corpus,
    ScenarioError,
    ZipCorpus,
    find_jdk_source,
    open_corpus,
    python_standard_library,
)
from aplens.study.config import ScenarioSettings


class StudyCorpus(NamedTuple):
    """A corpus, the language of its files, its name for readers, and why it is not another one."""

    corpus: Corpus
    language: str
    name: str
    note: str = ""

    def describe(self) -> dict[str, str]:
        """What a report says of it."""
        return {"name": self.name, "language": self.language, "note": self.note}


def find_corpus(settings: ScenarioSettings) -> StudyCorpus:
    """Open the first corpus that is there; its note says so when it is not the first choice.

    Raises:
        ScenarioError: When none is there, or the one that is cannot be read.
    """
    missing: list[str] = []
    for choice in settings.corpus:
        found = _open(choice, settings)
        if found is not None:
            note = f"{', '.join(missing)}: using {found.name} instead" if missing else ""
            return found._replace(note=note)
        missing.append(_absence(choice))
    raise ScenarioError(f"no corpus of {list(settings.corpus)} is there: {', '.join(missing)}")


def _open(choice: str, settings: ScenarioSettings) -> StudyCorpus | None:
    if choice == "jdk":
        source = find_jdk_source()
        if source is None:
            return None
        name = f"the JDK's Java sources ({source})"
        return StudyCorpus(ZipCorpus(source, "java", prefix=settings.prefix), "java", name)
    if choice == "python":
        return StudyCorpus(python_standard_library(), "python", "Python's standard library")
    path = Path(choice).expanduser()
    if not path.exists():
        return None
    corpus = open_corpus(path, settings.language, prefix=settings.prefix)
    return StudyCorpus(corpus, settings.language, str(path))


def _absence(choice: str) -> str:
    return (
        "no JDK with sources (lib/src.zip) was found"
        if choice == "jdk"
        else f"there is no {choice}"
    )
