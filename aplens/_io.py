"""Files written whole or not at all: an interrupt never leaves half a file under its final name."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from aplens._words import shorten

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VARIABLE = "APLENS_CACHE"

#: What the name of a folder begins with in which a file is being written.
_PARTIAL = ".partial-"
_LOCK = ".lock"

#: A disk that is full, over a quota, read-only or broken, and a file over the size limit.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
#: How libraries written in Rust, such as safetensors, tell an error of the system.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

#: Names that lead elsewhere as a part of a path: empty, this folder, the one above, a drive, or
#: with a separator, of any system.
_NO_FILE_NAME = re.compile(r"\.{0,2}|[A-Za-z]:.*|.*[/\\\0].*", re.DOTALL)
#: Bytes of the longest name that is taken from data: file systems allow 255, with the ending.
_LONGEST_NAME = 240


class FolderInUseError(RuntimeError):
    """Another run is writing into the folder."""


@contextmanager
def own_folder(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[Path]:
    """Keep every other run out of a folder, and clear away what a killed one left half-written.

    The folder is made when missing. The operating system lets go of the lock when the process ends,
    however it ends.

    Raises:
        FolderInUseError: When another run has the folder, and this one does not wait.
        OSError: When the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / _LOCK, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(
            f"another run is working in {path}: wait until it ends, or choose another folder"
        ) from None
    try:
        _remove(path.glob(f"{_PARTIAL}*"))
        yield path
    finally:
        lock.release()


def clear_abandoned(folder: Path) -> None:
    """Clear away what killed runs left half-written in a folder and all folders below it.

    Only for folders into which nobody else can be writing.
    """
    _remove(folder.rglob(f"{_PARTIAL}*"))


def _remove(paths: Iterator[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path of the same name; what is written there replaces `path` on success.

    A file, or a folder where there is none yet. The folder around it is made when missing. On an
    exception what was written is removed and `path` stays as it was. The temporary path lies in a
    folder of its own beside `path`, so that what libraries write beside their target is cleared
    away with it.

    Raises:
        OSError: When the folder cannot be written, or the disk is full; it names `path`, whatever
            the library that was writing raised.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _disk_errors_of(target):
        folder = tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent)
        try:
            temporary = Path(folder, target.name)
            yield temporary
            # Some libraries make files for their owner only.
            temporary.chmod((0o777 if temporary.is_dir() else 0o666) & ~_umask())
            temporary.replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk_errors_of(target: Path) -> Iterator[None]:
    """Raise what a disk refused as an OSError of the file that was to be written."""
    try:
        yield
    except Exception as error:
        number = _disk_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(target)) from error


def _disk_error(error: Exception) -> int | None:
    """The system's number of the error that kept a file from being written; None for another.

    Errors that name another file, such as one that was to be read, are none.
    """
    if isinstance(error, OSError):
        if isinstance(error.filename, str):
            return error.errno if _PARTIAL in error.filename else None
        number = error.errno
    else:
        found = _OS_ERROR.search(str(error))
        number = int(found[1]) if found else None
    return number if number in _DISK_ERRORS else None


def require_file_name(name: str, what: str) -> None:
    """Refuse a name out of data that is no plain file name: files are named after it."""
    if not isinstance(name, str) or _NO_FILE_NAME.fullmatch(name):
        raise ValueError(
            f"{what} must be a plain file name (no / or \\, no drive, not .. or empty), since "
            f"files are named after it, got {shorten(name)}"
        )
    if len(name.encode(errors="surrogatepass")) > _LONGEST_NAME:
        raise ValueError(f"{what} must be at most {_LONGEST_NAME} bytes, got {shorten(name)}")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused: JSON has no such number."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file. NaN, infinity and numbers too large for a float are refused."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # covers UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def parse_json(text: str) -> Any:
    """The value that JSON text stands for, with finite numbers only."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {number[:40]}")
    return value


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as lower-case hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """A short stable hash of a JSON-able value, for telling two set-ups apart."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def hash_tokens(*tensors: Tensor) -> str:
    """A short stable hash of tensors of token ids, shapes included."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A short stable hash of named tensors, on whatever device, to the bit."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # Bytes, because NumPy knows no bfloat16.
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()[:16]


def describe_differences(saved: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Every leaf in which two nested dictionaries differ, in words that name it.

    Tables in lists are compared one by one, by their places.
    """
    saved, wanted = (_number_tables(value) for value in (saved, wanted))
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in sorted(saved.keys() | wanted.keys()):
            inner = f"{name}{key}" if key.startswith("[") else f"{name}.{key}".lstrip(".")
            yield from describe_differences(saved.get(key), wanted.get(key), inner)
    elif saved != wanted:
        yield f"{name} was {shorten(saved)}, is {shorten(wanted)}"


def _number_tables(value: Any) -> Any:
    """A list of tables as one table of them by their places; anything else as it is."""
    if not isinstance(value, list | tuple) or not any(isinstance(item, dict) for item in value):
        return value
    return {f"[{place}]": item for place, item in enumerate(value)}


def cache_folder() -> Path:
    """Where fetched and converted models are kept: `$APLENS_CACHE`, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("aplens"))


@cache
def _umask() -> int:
    """Asked for once: it can only be read by setting it, for all threads, for a moment."""
    current = os.umask(0)
    os.umask(current)
    return current
