"""Files kept in the cache: what is loaded from there is what was put there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from aplens._documents import check
from aplens._io import atomic_write, own_folder, read_json, sha256_of_file, write_json
from aplens._sums import changed_files, sum_files

_LIST = "kept.json"


def keep(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder of the cache, as it was put there; made now, by one process, where it is missing."""
    if is_kept(folder):
        check_kept(folder)
        return folder
    with own_folder(folder.parent, wait=True):
        if not is_kept(folder):  # which another process may have done while this one waited
            shutil.rmtree(folder, ignore_errors=True)  # files of which nothing is noted
            with atomic_write(folder) as temporary:
                temporary.mkdir()
                make(temporary)
                write_json(temporary / _LIST, sum_files(temporary, _files(temporary)))
    return folder


def is_kept(folder: Path) -> bool:
    """Whether a folder's files were noted."""
    return (folder / _LIST).is_file()


def check_kept(folder: Path) -> None:
    """Refuse a folder in which a file is another than was noted."""
    noted = check(read_json(folder / _LIST), dict, str(folder / _LIST))
    changed, touched = changed_files(folder, noted)
    for name in changed:
        require_sha256(folder / name, noted[name]["sha256"])
    if names := sorted({path.name for path in _files(folder)} ^ set(noted)):
        raise ValueError(f"{folder}: {', '.join(names)} missing or added. {_advice(folder)}")
    if touched:
        write_json(folder / _LIST, noted)


def require_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 is not the expected one."""
    found = sha256_of_file(path)
    if found != expected:
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {expected}: not using it. {_advice(path.parent)}"
        )


def _files(folder: Path) -> list[Path]:
    """All but hidden ones, such as locks, and the list itself."""
    return [
        path
        for path in folder.iterdir()
        if path.is_file() and path.name != _LIST and not path.name.startswith(".")
    ]


def _advice(folder: Path) -> str:
    return f"Delete {folder}, and it is made again"
