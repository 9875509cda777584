"""How text and values that came from outside are shown, and what they are."""

from __future__ import annotations

import reprlib
import unicodedata
from numbers import Integral
from typing import Any

#: General categories that show nothing, reorder text, or are no characters at all.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}

#: Invisible characters that emoji and several scripts are made with: joiners, tags of flags.
_JOINING = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}


def shorten(value: Any) -> str:
    """A value in an error: a glimpse of what is long, deep, or a number too large to print."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return f"a {type(value).__name__} with a number of thousands of digits"


def is_whole(value: Any) -> bool:
    """Whether this is a whole number, NumPy's among them; to Python True is one as well."""
    # The first question is the quick one, for the millions of token ids that come as lists.
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def split_features(name: str) -> list[str]:
    """The kinds of features that a name such as "surprise+confidence" joins."""
    return name.split("+")


def displayable(text: str, keep: str = "") -> str:
    """Text in which every character can be seen and stands where it was written.

    Control characters but those to `keep`, marks that reorder text, unusual blanks and what is no
    character at all are written as their numbers. Emoji and all scripts stay as they are.
    """
    return "".join(c if c in keep else _show_character(c) for c in text)


def _show_character(character: str) -> str:
    hidden = character != " " and unicodedata.category(character) in _UNSEEN
    is_shown = not hidden or character in _JOINING
    return character if is_shown else f"\\u{{{ord(character):04X}}}"


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = 10
