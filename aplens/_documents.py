"""Checks for what comes from outside, most of it out of a file: sound, or the error names it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from aplens._io import fingerprint, read_json, write_json
from aplens._words import is_whole, shorten

#: Larger seeds fit neither a column of a table nor every generator.
_LARGEST_SEED = 2**63 - 1

Kind = TypeVar("Kind", str, int, float, bool, list, dict)

_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def read_document(path: str | os.PathLike[str], name: str, format: str, version: int) -> Any:
    """Read a JSON file that aplens wrote, as a dictionary."""
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != format:
        raise ValueError(f"{path} is not {name} saved by aplens")
    found = data.get("version")
    if type(found) is not int or found != version:
        raise ValueError(
            f"{path} holds {name} of version {shorten(found)}; this aplens reads {version}"
        )
    return data


def write_sealed(path: str | os.PathLike[str], facts: dict[str, Any]) -> None:
    """Write a JSON file with a checksum, by which `read_sealed` knows it."""
    write_json(path, facts | {"checksum": fingerprint(facts)})


def read_sealed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_sealed` wrote; anything else is refused as damaged."""
    facts = read_json(path)
    if not isinstance(facts, dict) or facts.pop("checksum", None) != fingerprint(facts):
        raise ValueError(f"{path} is damaged: it does not match its checksum")
    return facts


def take(table: Mapping[str, Any], key: str, kind: type[Kind], where: str = "") -> Kind:
    """A table's entry, of the kind that belongs there; else a ValueError that names it."""
    if key not in table:
        raise ValueError(f"{where}{key} is missing")
    return check(table[key], kind, f"{where}{key}")


def check(value: Any, kind: type[Kind], name: str) -> Kind:
    """The value, if it is of that kind; a whole number may stand for a float, True for neither."""
    if kind is float and type(value) is int:
        try:
            return float(value)  # type: ignore[return-value]
        except OverflowError:
            value = math.inf
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} must be {_NAMES[kind]}, got {shorten(value)}")
    return value


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {shorten(value)}")


def read_seed(seed: Any, name: str = "seed") -> int:
    """A seed, NumPy's among what it may come as, that NumPy, PyTorch and a file of results take."""
    if not is_whole(seed) or not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"{name} must be a whole number from 0 to 2**63 - 1, got {shorten(seed)}")
    return int(seed)
