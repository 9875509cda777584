"""English prose that every Python has: its language reference, and the READMEs of its packages."""

from __future__ import annotations

import re
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distributions

from aplens.scenarios.corpus import SkipFile, TextCorpus

MIN_README = 2000
"""Characters of prose in the shortest README that is read."""

MAX_README = 200_000
"""Characters of the longest. What is longer is no README, and unclosed markup takes its square."""


def english_prose() -> TextCorpus:
    """Python's language reference and the READMEs of the installed distributions.

    The reference is what `help()` shows, a text a topic, named "pydoc_data/topics/<topic>". The
    READMEs are the distributions' long descriptions without markup, code and tables (see
    `strip_markup`), named "<distribution>/README"; short ones are left out.

    What there is depends on the installation. `Scenario.file` has the names of the texts that were
    used, and so a study's scenarios record them.
    """
    from pydoc_data.topics import topics

    texts = {f"pydoc_data/topics/{topic}": partial(topics.__getitem__, topic) for topic in topics}
    readmes = {
        f"{name}/README": partial(_read_readme, distribution)
        # Of a distribution installed twice, the one that is imported is found first, and stays.
        for distribution in reversed(list(distributions()))
        if (name := _name(distribution))
    }
    return TextCorpus(texts | readmes, "English texts")


def _name(distribution: Distribution) -> str | None:
    """Its name; none where an installation was interrupted and left no metadata, or rubbish."""
    try:
        return distribution.metadata["Name"]
    except (PackageNotFoundError, KeyError, OSError, UnicodeDecodeError):
        return None


def _read_readme(distribution: Distribution) -> str:
    try:
        described = str(distribution.metadata.json.get("description", ""))
    except (PackageNotFoundError, KeyError, OSError, ValueError) as error:
        raise SkipFile("unreadable") from error
    if len(described) > MAX_README:
        raise SkipFile("too large")
    text = strip_markup(described)
    if len(text) < MIN_README:
        raise SkipFile("too short")
    return text


def strip_markup(text: str) -> str:
    """The paragraphs of a Markdown or reStructuredText file that are prose.

    Fenced code, HTML tags, images (and so badges) and link targets go; then every paragraph that is
    indented (a literal block), a directive, or mostly something other than words (a table, a rule,
    a list of links).
    """
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return "\n\n".join(filter(_is_prose, _BLANK_LINES.split(text)))


# What may be left open has a longest length, or ends with the text: else every beginning is sought
# an end to, through all that follows, which takes the square of the text.
_NAME, _TARGET = r"[^\]]{0,1000}", r"(\([^)]{0,10000}\)|\[[^\]]{0,1000}\])"
_MARKUP = (
    (re.compile(r"^[ \t]*(```+|~~~+).*?^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL), ""),
    (
        re.compile(r"<!--.*?(?:-->|\Z)|<pre\b.*?(?:</pre>|\Z)|</?[a-zA-Z][^<>]*>", re.DOTALL),
        "",
    ),
    (re.compile(rf"!\[{_NAME}\]{_TARGET}"), ""),  # images, and then links around nothing
    (re.compile(rf"\[\s{{0,1000}}\]{_TARGET}"), ""),
    (
        re.compile(r"\[([^\]]{1,1000})\](\([^)\s]{0,10000}\)|\[[^\]]{0,1000}\])"),
        r"\1",
    ),  # links keep their text
    (re.compile(r"^[ \t]*\[[^\]]{1,1000}\]:.*$", re.MULTILINE), ""),
)
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_MIN_WORDS = 0.85  # share of a paragraph's characters


def _is_prose(paragraph: str) -> bool:
    if all(line[:1].isspace() for line in paragraph.splitlines()) or paragraph.startswith(".. "):
        return False
    return sum(c.isalpha() or c.isspace() for c in paragraph) > _MIN_WORDS * len(paragraph)
