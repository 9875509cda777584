"""Files kept in the cache: what is loaded from there is what was put there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aplens._documents import check, take
from aplens._io import read_json, sha256_of_file, write_json

_LIST = "kept.json"


def keep_files(folder: Path) -> None:
    """Note the size, time and SHA-256 of every file in a folder."""
    noted = {path.name: {**_facts(path), "sha256": sha256_of_file(path)} for path in _files(folder)}
    write_json(folder / _LIST, noted)


def is_kept(folder: Path) -> bool:
    """Whether a folder's files were noted."""
    return (folder / _LIST).is_file()


def check_kept(folder: Path) -> None:
    """Refuse a folder in which a file is another than was noted.

    Size and time are looked at first; the sum is taken only where they changed.

    Raises:
        ValueError: When a file is missing, added or has another SHA-256; the message names it.
        OSError: When a file cannot be read.
    """
    noted = check(read_json(folder / _LIST), dict, str(folder / _LIST))
    found = {path.name for path in _files(folder)}
    if found != set(noted):
        names = sorted(found ^ set(noted))
        raise ValueError(f"{folder}: {', '.join(names)} missing or added. {_advice(folder)}")
    touched = False
    for name, facts in noted.items():
        path = folder / name
        if check(facts, dict, name) | _facts(path) == facts:
            continue
        touched = True
        require_sha256(path, take(facts, "sha256", str, f"{folder / _LIST}: {name}."))
    if touched:
        keep_files(folder)


def require_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 is not the expected one.

    Raises:
        ValueError: With both sums.
    """
    found = sha256_of_file(path)
    if found != expected:
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {expected}: not using it. {_advice(path.parent)}"
        )


def _files(folder: Path) -> list[Path]:
    """All but hidden ones, such as locks, and the list itself."""
    names = sorted(path for path in folder.iterdir() if path.is_file())
    return [path for path in names if path.name != _LIST and not path.name.startswith(".")]


def _advice(folder: Path) -> str:
    return f"Delete {folder}, and it is made again"


def _facts(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
