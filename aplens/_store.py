"""Results kept as they are made: an interrupt costs only the one that was being made.

manifest.json    what every result in the folder depends on
KEY.json         a result, or what belongs to it, and the SHA-256 of its files; written last
KEY.SUFFIX       its files, where it has any

A result is there when its JSON is. Results have only the manifest in common, so that several
processes can write them, each its own keys.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aplens._documents import read_document, read_sealed, write_sealed
from aplens._io import atomic_write, describe_differences, sha256_of_file

_MANIFEST = "manifest.json"
_VERSION = 3  # older versions of aplens kept observations and predictions each in its own way


class Store:
    """A folder of results that depend on one setup, each under a key that can name a file.

    Args:
        folder: The folder; made when missing, gone on with when it holds the same.
        holds: What the results are, such as "observations".
        setup: All that they depend on, JSON-able.

    Attributes:
        setup: As it comes back from JSON: tuples are lists there.

    Raises:
        ValueError: When the folder holds something else, results of another setup (what differs is
            named), those of an older aplens, or its manifest is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], holds: str, setup: Any) -> None:
        self.folder = Path(folder)
        self.setup = json.loads(json.dumps(setup))
        path = self.folder / _MANIFEST
        if path.is_file():
            require_same(self.folder, holds, _read_manifest(path, holds), self.setup)
        elif self.folder.is_file():
            raise ValueError(f"{self.folder} is a file, expected a folder to keep {holds} in")
        else:
            facts = {"format": _format(holds), "version": _VERSION, "setup": self.setup}
            write_sealed(path, facts)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], holds: str) -> Store:
        """Open a folder for whatever setup it has."""
        path = Path(folder) / _MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"there are no {holds} in {folder}: {_MANIFEST} is missing")
        store = cls.__new__(cls)
        store.folder, store.setup = path.parent, _read_manifest(path, holds)
        return store

    def __iter__(self) -> Iterator[str]:
        """All keys under which there is a result, sound or not."""
        names = sorted(path.stem for path in self.folder.glob("*.json"))
        return (name for name in names if name != Path(_MANIFEST).stem)

    def __contains__(self, key: str) -> bool:
        return self.file(key).is_file()

    def file(self, key: str, suffix: str = "json") -> Path:
        """Where a result's file is, or would be."""
        return self.folder / f"{key}.{suffix}"

    def write(
        self,
        key: str,
        value: Any = None,
        files: Mapping[str, Callable[[Path], object]] | None = None,
    ) -> None:
        """Keep a result, in place of what was under its key.

        `files` has for each suffix what writes the file, given its path.
        """
        sums = {}
        for suffix, write in (files or {}).items():
            path = self.file(key, suffix)
            with atomic_write(path) as temporary:
                write(temporary)
            sums[suffix] = sha256_of_file(path)
        write_sealed(self.file(key), {"value": value, "files": sums})

    def read(self, key: str) -> Any:
        """A result's value; a ValueError names a file of it that is damaged or missing."""
        note = read_sealed(self.file(key))
        for suffix, expected in note["files"].items():
            path = self.file(key, suffix)
            if not path.is_file():
                raise ValueError(f"{path} is missing")
            if sha256_of_file(path) != expected:
                raise ValueError(f"{path} is damaged: its checksum is not the one in {key}.json")
        return note["value"]

    def is_sound(self, key: str) -> bool:
        """Whether there is a result, and all of it is what was written.

        Warns:
            UserWarning: It is there and damaged; whoever asks makes it again.
        """
        return bool(self._find(key))

    def recall(self, key: str, make: Callable[[], Any]) -> Any:
        """A result's value, made and kept now where there is none or a damaged one.

        Warns:
            UserWarning: As `is_sound`.
        """
        if found := self._find(key):
            return found[0]
        self.write(key, make())
        return self.read(key)

    def _find(self, key: str) -> tuple[Any] | None:
        """The value of a sound result; None when it has to be made (again, with a warning)."""
        if key not in self:
            return None
        try:
            return (self.read(key),)
        except ValueError as error:
            warnings.warn(f"{error}: {key} is done again", stacklevel=4)
            return None

    def discard(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder)


def require_same(place: Path, holds: str, saved: Any, wanted: Any) -> None:
    """Refuse results of another setup; what differs is named."""
    if differences := list(describe_differences(saved, wanted)):
        raise ValueError(
            f"{place} holds {holds} of something else ({'; '.join(differences)}): choose another "
            "folder, or delete this one"
        )


def _format(holds: str) -> str:
    return f"aplens.{holds.replace(' ', '_')}"


def _read_manifest(path: Path, holds: str) -> Any:
    try:
        read_document(path, holds, _format(holds), _VERSION)
        return read_sealed(path)["setup"]
    except ValueError as error:
        raise ValueError(f"{error}; choose another folder, or delete {path.parent}") from error
