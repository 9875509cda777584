"""Values that come from outside: how errors show them, and what they are."""

from __future__ import annotations

import reprlib
from numbers import Integral
from typing import Any


def shorten(value: Any) -> str:
    """A value in an error: a glimpse of what is long, deep, or a number too large to print."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return f"a {type(value).__name__} with a number of thousands of digits"


def is_whole(value: Any) -> bool:
    """Whether this is a whole number, NumPy's among them; to Python True is one as well."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def split_features(name: str) -> list[str]:
    """The kinds of features that a name such as "surprise+confidence" joins."""
    return name.split("+")


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = 10
