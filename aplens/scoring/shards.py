"""A folder of shards: arrays and a table for every few scenarios, each written whole or not at all.

manifest.json              what was observed by what, and a checksum of that
shard-00000.safetensors    arrays [head, scenario, …]: a head lies in one piece
shard-00000.parquet        one row a scenario: where it is from, what the model predicted
shard-00000.json           the checksums of these two, written last: the shard is finished

Shards have nothing in common but the manifest, so that several processes can write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from aplens._documents import check, take
from aplens._io import (
    atomic_write,
    describe_differences,
    fingerprint,
    read_json,
    sha256_of_file,
    write_json,
)
from aplens._words import shorten

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "aplens.observations"
_VERSION = 2
_MANIFEST = "manifest.json"
_SUFFIXES = ("safetensors", "parquet")

#: What is read of a run's facts, texts and whole numbers of at least 1.
_TEXTS = ("model_name", "mae")
_SIZES: tuple[str, ...] = ("n_layers", "n_heads", "n_scenarios", "shard_size", "d_embed")
_SIZES += ("n_ctx", "patch_size", "n_tokens")


class ShardFolder:
    """The shards of one run.

    Args:
        path: The folder.
        run: Facts that tell this run from others; `n_scenarios` and `shard_size` among them.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.run = run
        self._opened: dict[str, Any] = {}

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
        run = manifest.get("run")
        if not isinstance(run, dict) or manifest.get("checksum") != fingerprint(run):
            raise ValueError(f"{file} is damaged: what was observed does not match its checksum")
        try:
            _check_run(run)
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        return cls(path, run)

    @classmethod
    def resume(cls, path: Path, run: Mapping[str, Any]) -> ShardFolder:
        """Start a run, or go on with the same one.

        Raises:
            ValueError: When the folder holds another run; what differs is named.
        """
        if not (path / _MANIFEST).is_file():
            manifest = {"format": _FORMAT, "version": _VERSION, "run": dict(run)}
            write_json(path / _MANIFEST, manifest | {"checksum": fingerprint(manifest["run"])})
            return cls(path, run)
        folder = cls.open(path)
        if differences := list(describe_differences(dict(folder.run), dict(run))):
            raise ValueError(
                f"{path} holds observations of another run, which cannot be mixed with this one: "
                f"{'; '.join(differences)}. Use another folder."
            )
        return folder

    def shards(self) -> list[tuple[str, slice]]:
        """Every shard's name and its scenarios, written or not."""
        n, size = self.run["n_scenarios"], self.run["shard_size"]
        return [
            (f"shard-{number:05d}", slice(start, min(start + size, n)))
            for number, start in enumerate(range(0, n, size))
        ]

    def is_written(self, name: str) -> bool:
        """Whether a shard was finished, sound or not."""
        return self._file(name, "json").is_file()

    def find_damage(self, name: str) -> str | None:
        """What is wrong with a finished shard's files, or None."""
        note = self._file(name, "json")
        try:
            checksums = read_json(note)
        except ValueError as error:
            return str(error)
        if not isinstance(checksums, dict) or set(checksums) != set(_SUFFIXES):
            return f"{note} is damaged: it does not hold the checksums of {name}"
        for suffix, expected in checksums.items():
            file = self._file(name, suffix)
            if not file.is_file():
                return f"{file} is missing"
            if sha256_of_file(file) != expected:
                return f"{file} is damaged: its checksum is not the one in {note.name}"
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
        write_json(
            self._file(name, "json"),
            {suffix: sha256_of_file(self._file(name, suffix)) for suffix in _SUFFIXES},
        )

    def read_table(self) -> pd.DataFrame:
        """All shards' rows."""
        import pandas as pd

        parts = [pd.read_parquet(self._file(name, "parquet")) for name, _ in self.shards()]
        return pd.concat(parts, ignore_index=True)

    def read_head(self, key: str, head: int) -> Iterator[np.ndarray]:
        """One head's part of an array, `[scenario, …]`, shard by shard.

        The files are mapped into memory: nothing but this head is read.
        """
        for name, _ in self.shards():
            yield self._open(name).get_slice(key)[head]

    def read_scenarios(
        self, key: str, scenarios: Int[np.ndarray, " scenario"]
    ) -> Iterator[tuple[Int[np.ndarray, " some"], np.ndarray]]:
        """Some scenarios' part of an array: where they stand in `scenarios`, `[head, some, …]`."""
        for name, rows in self.shards():
            places = np.flatnonzero((scenarios >= rows.start) & (scenarios < rows.stop))
            if len(places):
                within = scenarios[places] - rows.start
                yield places, self._open(name).get_tensor(key)[:, within]

    def _open(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._opened:
            self._opened[name] = safe_open(self._file(name, "safetensors"), framework="np")
        return self._opened[name]

    def _file(self, name: str, suffix: str) -> Path:
        return self.path / f"{name}.{suffix}"


class HeldShards:
    """What a folder of shards holds, in memory.

    Args:
        run: Facts of the run.
        arrays: By name, `Shaped[Tensor, "head scenario *values"]`.
        table: One row a scenario.
    """

    def __init__(
        self, run: Mapping[str, Any], arrays: Mapping[str, Tensor], table: pd.DataFrame
    ) -> None:
        self.run = run
        self._arrays = {key: values.numpy() for key, values in arrays.items()}
        self._table = table

    def read_table(self) -> pd.DataFrame:
        """All rows."""
        return self._table

    def read_head(self, key: str, head: int) -> Iterator[np.ndarray]:
        """One head's part of an array, `[scenario, …]`, in one piece."""
        yield self._arrays[key][head]

    def read_scenarios(
        self, key: str, scenarios: Int[np.ndarray, " scenario"]
    ) -> Iterator[tuple[Int[np.ndarray, " some"], np.ndarray]]:
        """Some scenarios' part of an array, `[head, some, …]`, in one piece."""
        yield np.arange(len(scenarios)), self._arrays[key][:, scenarios]


def _check_run(run: Mapping[str, Any]) -> None:
    """Refuse facts of a run of which one is missing or of another kind: a checksum shows no such.

    Raises:
        ValueError: The message names it.
    """
    for key in _TEXTS:
        take(run, key, str, "run.")
    for key in _SIZES:
        if take(run, key, int, "run.") < 1:
            raise ValueError(f"run.{key} must be 1 or more, got {shorten(run[key])}")
    take(run, "patterns", bool, "run.")
    if run.get("storage", "float16") != "float16":  # as an older aplens could keep embeddings
        raise ValueError(f"run.storage is {shorten(run['storage'])}, which this aplens cannot read")
    for i, head in enumerate(take(run, "heads", list, "run.")):
        if len(check(head, list, f"run.heads[{i}]")) != 2:
            raise ValueError(f"run.heads[{i}] must be a layer and a head, got {shorten(head)}")
        for number in head:
            check(number, int, f"run.heads[{i}]")
