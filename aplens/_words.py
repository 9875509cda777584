"""How errors show a value that came from outside, and names made of several."""

from __future__ import annotations

import reprlib
from typing import Any


def shorten(value: Any) -> str:
    """A value in an error: a glimpse of what is long, deep, or a number too large to print."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return f"a {type(value).__name__} with a number of thousands of digits"


def split_features(name: str) -> list[str]:
    """The kinds of features that a name such as "surprise+confidence" joins."""
    return name.split("+")


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = 10
