"""Files written whole or not at all: an interrupt never leaves half a file under its final name."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from aplens._words import shorten

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VARIABLE = "APLENS_CACHE"

#: What the name of a file that is being written begins with.
_PARTIAL = ".partial-"
_LOCK = ".lock"


class FolderInUseError(RuntimeError):
    """Another run is writing into the folder."""


@contextmanager
def own_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Keep every other run out of a folder, and clear away what a killed one left half-written.

    The folder is made when missing. The operating system lets go of the lock when the process ends,
    however it ends.

    Raises:
        FolderInUseError: When another run has the folder.
        OSError: When the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(
            f"another run is working in {path}: wait until it ends, or choose another folder"
        ) from None
    try:
        for abandoned in path.glob(f"{_PARTIAL}*"):
            abandoned.unlink(missing_ok=True)
        yield path
    finally:
        lock.release()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there replaces `path` on success.

    The folder is made when missing. On an exception the temporary file is removed and `path` stays
    as it was.

    Raises:
        OSError: When the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f"{_PARTIAL}{target.name}.", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused: JSON has no such number."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file. NaN, infinity and numbers too large for a float are refused.

    Raises:
        FileNotFoundError: When there is no such file.
        OSError: When it cannot be read.
        ValueError: When the file is not JSON; the message names the file.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # covers UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def parse_json(text: str) -> Any:
    """The value that JSON text stands for, with finite numbers only.

    Raises:
        ValueError: When it is not JSON, or nested too deeply to read.
    """
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
    """Every leaf in which two nested dictionaries differ, in words that name it."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in sorted(saved.keys() | wanted.keys()):
            inner = f"{name}.{key}".lstrip(".")
            yield from describe_differences(saved.get(key), wanted.get(key), inner)
    elif saved != wanted:
        yield f"{name} was {shorten(saved)}, is {shorten(wanted)}"


def cache_folder() -> Path:
    """Where fetched and converted models are kept: `$APLENS_CACHE`, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("aplens"))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
