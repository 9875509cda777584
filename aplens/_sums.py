"""Noting what files hold, to see later whether they still do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from aplens._documents import check, take
from aplens._io import sha256_of_file

#: Size, time and SHA-256 of files, by their paths below a folder.
Sums: TypeAlias = dict[str, dict[str, Any]]

#: Bytes at either end of a file of weights that are looked at to tell it from another.
_SKETCHED = 1 << 20


def sum_files(folder: Path, below: Iterable[Path]) -> Sums:
    """Note files, and those in folders and all folders below them; hidden ones are left out."""
    files = [file for path in below for file in ([path] if path.is_file() else path.rglob("*"))]
    names = sorted(str(file.relative_to(folder)) for file in files if file.is_file())
    return {
        name: {**_facts(folder / name), "sha256": sha256_of_file(folder / name)}
        for name in names
        if not Path(name).name.startswith(".")
    }


def changed_files(folder: Path, sums: Sums) -> tuple[list[str], bool]:
    """The files that hold something else than was noted, and whether others were only touched.

    Size and time are looked at first; the sum is taken only where they changed. Files that were
    touched and hold the same are noted anew in `sums`. Missing files are none that changed.
    """
    changed, touched = [], False
    for name, noted in sums.items():
        path = folder / name
        sha256 = take(check(noted, dict, name), "sha256", str, f"{name}.")
        if not path.is_file() or _facts(path).items() <= noted.items():
            continue
        if sha256_of_file(path) == sha256:
            noted.update(_facts(path))
            touched = True
        else:
            changed.append(name)
    return changed, touched


def sketch_files(path: str) -> str:
    """A short hash of a model's file, or of a folder's weights: of their sizes, starts and ends.

    Whoever trains on changes every weight, so that this tells, without reading gigabytes. Empty
    for a name that is no path.
    """
    place = Path(path).expanduser()
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            start = stream.read(_SKETCHED)
            stream.seek(max(0, size - _SKETCHED))
            digest.update(f"{size} ".encode() + start + stream.read())
    return digest.hexdigest()[:16] if files else ""


def _facts(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
