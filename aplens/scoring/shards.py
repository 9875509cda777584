"""A folder of shards: arrays and a table for every few scenarios, each written whole or not at all.

manifest.json              what was observed by what, and the shards with their checksums
shard-00000.safetensors    embeddings float16 [scenario, head, d_embed], statistics float32
shard-00000.parquet        one row a scenario: where it is from, what the model predicted
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from aplens._io import atomic_write, read_json, sha256_of_file, write_json

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "aplens.observations"
_VERSION = 1
_MANIFEST = "manifest.json"


class ShardFolder:
    """The shards of one run.

    Args:
        path: The folder.
        run: Facts that tell this run from others; `n_scenarios` and `shard_size` among them.
        checksums: SHA-256 of each finished shard's files, by shard and suffix.
    """

    def __init__(
        self, path: Path, run: Mapping[str, Any], checksums: dict[str, dict[str, str]]
    ) -> None:
        self.path = path
        self.run = run
        self._checksums = checksums

    @classmethod
    def open(cls, path: Path) -> ShardFolder:
        """Open a folder that has a manifest.

        Raises:
            FileNotFoundError: When it has none.
            ValueError: When the manifest is damaged, or of something else.
        """
        file = path / _MANIFEST
        if not file.is_file():
            raise FileNotFoundError(f"there are no observations in {path}: {_MANIFEST} is missing")
        manifest = read_json(file)
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise ValueError(f"{file} is no manifest of aplens observations")
        if manifest.get("version") != _VERSION:
            raise ValueError(
                f"{file} has format version {manifest.get('version')}, this aplens reads {_VERSION}"
            )
        return cls(path, manifest["run"], manifest["shards"])

    @classmethod
    def resume(cls, path: Path, run: Mapping[str, Any]) -> ShardFolder:
        """Start a run, or go on with the same one.

        Raises:
            ValueError: When the folder holds another run; what differs is named.
        """
        if not (path / _MANIFEST).is_file():
            folder = cls(path, run, {})
            folder._write_manifest()
            return folder
        folder = cls.open(path)
        differences = [
            f"{key} was {folder.run.get(key)!r} and is now {value!r}"
            for key, value in run.items()
            if folder.run.get(key) != value
        ]
        if differences:
            raise ValueError(
                f"{path} holds observations of another run, which cannot be mixed with this one: "
                f"{'; '.join(differences)}. Use another folder."
            )
        return folder

    def shards(self) -> Iterator[tuple[str, slice]]:
        """Every shard's name and its scenarios, written or not."""
        n, size = self.run["n_scenarios"], self.run["shard_size"]
        for number, start in enumerate(range(0, n, size)):
            yield f"shard-{number:05d}", slice(start, min(start + size, n))

    def is_written(self, name: str) -> bool:
        """Whether a shard was finished, sound or not."""
        return name in self._checksums

    def find_damage(self, name: str) -> str | None:
        """What is wrong with a finished shard's files, or None."""
        for suffix, expected in self._checksums[name].items():
            file = self._file(name, suffix)
            if not file.is_file():
                return f"{file} is missing"
            if sha256_of_file(file) != expected:
                return f"{file} is damaged: its checksum is not the one in {_MANIFEST}"
        return None

    def require_complete(self) -> None:
        """Refuse a run that has unfinished or damaged shards.

        Raises:
            ValueError: With the first such shard.
        """
        names = [name for name, _ in self.shards()]
        missing = [name for name in names if not self.is_written(name)]
        if missing:
            raise ValueError(
                f"{self.path} is unfinished: {len(missing)} of {len(names)} shards are missing, "
                f"first {missing[0]}; run observe again to finish it"
            )
        for name in names:
            problem = self.find_damage(name)
            if problem is not None:
                raise ValueError(f"{problem}; run observe again to repair it")

    def write(self, name: str, arrays: dict[str, Tensor], table: pd.DataFrame) -> None:
        """Write a shard's two files, then note it as finished."""
        from safetensors.torch import save_file

        with atomic_write(self._file(name, "safetensors")) as temporary:
            save_file(arrays, temporary)
        with atomic_write(self._file(name, "parquet")) as temporary:
            table.to_parquet(temporary, index=False)
        self._checksums[name] = {
            suffix: sha256_of_file(self._file(name, suffix))
            for suffix in ("safetensors", "parquet")
        }
        self._write_manifest()

    def read_table(self) -> pd.DataFrame:
        """All shards' rows."""
        import pandas as pd

        parts = [pd.read_parquet(self._file(name, "parquet")) for name, _ in self.shards()]
        return pd.concat(parts, ignore_index=True)

    def read_array(self, key: str) -> np.ndarray:
        """One array over all shards, along the scenarios."""
        from safetensors import safe_open

        joined = np.empty(0)
        for name, rows in self.shards():
            with safe_open(self._file(name, "safetensors"), framework="np") as shard:
                values = shard.get_tensor(key)  # the file is mapped: no other array is read
            if rows.start == 0:  # filled in place: parts and whole would need the memory twice
                joined = np.empty((self.run["n_scenarios"], *values.shape[1:]), values.dtype)
            joined[rows] = values
        return joined

    def _file(self, name: str, suffix: str) -> Path:
        return self.path / f"{name}.{suffix}"

    def _write_manifest(self) -> None:
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "run": dict(self.run),
            "shards": self._checksums,
        }
        write_json(self.path / _MANIFEST, manifest)
