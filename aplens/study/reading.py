"""Settings as dataclasses: read from a TOML file, every value checked against its field's type.

A field's type says what it takes: `Literal[...]` one of some words, `Count`, `Seed` and the like
(`Annotated[int, least, most]`) a number in a range, `... | None` a key that may be left out.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from aplens._documents import check
from aplens._words import shorten

Kind = TypeVar("Kind")

#: A number of things, as the tables and tensors count them.
Count = Annotated[int, 1, 2**31 - 1]
#: A seed that every library takes.
Seed = Annotated[int, 0, 2**32 - 1]


def read_settings(
    kind: type[Kind], path: str | os.PathLike[str], changes: Iterable[str] = ()
) -> Kind:
    """Read a settings dataclass from a TOML file.

    Args:
        kind: The dataclass; its fields may be dataclasses themselves, one or several.
        path: The file.
        changes: Settings that replace the file's, each a line of TOML, such as
            'mae.config.base = "none"'. A word that is no TOML value stands for itself; "" for a key
            that may be left out leaves it out. A key of a table that the file has several times
            is replaced in all of them.

    Raises:
        FileNotFoundError: When there is no such file.
        OSError: When it cannot be read.
        ValueError: When it is not TOML, or a key is unknown, of the wrong type or refused; the
            message names the file and the key.
    """
    try:
        # Editors that put a byte order mark before UTF-8 are the TOML reader's only surprise.
        table = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # covers TOMLDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not valid TOML: it is nested too deeply") from error
    for change in changes:
        _merge(table, _read_change(change))
    try:
        settings: Kind = _read(kind, table, "")
        check_fields(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return settings


def check_fields(settings: Any, where: str = "") -> None:
    """Refuse numbers out of their field's range and words that are none of its choices.

    Dataclasses inside are checked as well; `where` stands before the fields' names in a message.
    """
    for key, hint in get_type_hints(type(settings), include_extras=True).items():
        _check_value(hint, getattr(settings, key), where + key)


def _check_value(hint: Any, value: Any, where: str) -> None:
    kind, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(value):
        check_fields(value, f"{where}.")
    elif type(None) in args:
        if value is not None:
            _check_value(args[0], value, where)
    elif kind is tuple:
        alone = len(value) == 1 and dataclasses.is_dataclass(value[0])
        for i, item in enumerate(value):
            _check_value(args[0], item, where if alone else f"{where}[{i}]")
    elif kind is Literal and value not in args:
        raise ValueError(f"{where} must be one of {list(args)}, got {shorten(value)}")
    elif kind is Annotated and not args[1] <= value <= args[2]:
        raise ValueError(f"{where} must be {args[1]} to {args[2]}, got {shorten(value)}")


def _read_change(line: str) -> dict[str, Any]:
    key, _, value = line.partition("=")
    for attempt in (line, f"{key} = '{value.strip()}'"):
        # A ValueError is more than a TOMLDecodeError: an impossible date, a number without end.
        with suppress(ValueError, RecursionError):
            if change := tomllib.loads(attempt):
                return change
    raise ValueError(f"expected a setting such as mae.config.base=none, got {shorten(line)}")


def _merge(table: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        before = table.get(key)
        several = before if isinstance(before, list) else [before]
        tables = [one for one in several if isinstance(one, dict)]
        if isinstance(value, dict) and tables:
            for one in tables:
                _merge(one, value)
        else:
            table[key] = value


def _read(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """Fill a settings dataclass from a TOML table, refusing what it does not know."""
    hints = get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise ValueError(f"unknown key {where}{shorten(unknown[0])}; known here: {sorted(hints)}")
    return kind(
        **{key: _convert(hints[key], value, f"{where}{key}") for key, value in table.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    if type(None) in get_args(hint):  # what may be left out; "" says so, since TOML has no null
        if value == "":
            return None
        hint = get_args(hint)[0]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, got {shorten(value)}")
        return _read(hint, value, f"{where}.")
    if get_origin(hint) is tuple:
        item_hint = get_args(hint)[0]
        if not isinstance(value, list):
            return (_convert(item_hint, value, where),)
        return tuple(_convert(item_hint, item, f"{where}[{i}]") for i, item in enumerate(value))
    expected = str if get_origin(hint) is Literal else get_origin(hint) or hint
    if expected is float and type(value) in (int, float):
        return check(value, float, where)
    if type(value) is not expected:  # not isinstance: true is no whole number
        raise ValueError(f"{where} must be of type {expected.__name__}, got {shorten(value)}")
    if expected is str and "\0" in value:  # no file or model has such a name
        raise ValueError(f"{where} must not have a NUL character, got {shorten(value)}")
    return value
