"""Shards of observations: arrays and a table for every few scenarios, in a store.

A shard's files are `safetensors`, arrays [head, scenario, …] in which a head lies in one piece, and
`parquet`, one row a scenario: where it is from, what the model predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from aplens._store import Store

if TYPE_CHECKING:
    import pandas as pd

_HOLDS = "observations"


class ShardFolder:
    """The shards of one run; the store's setup says what was observed by what."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.run: Mapping[str, Any] = store.setup
        self._opened: dict[str, Any] = {}

    @classmethod
    def open(cls, path: Path) -> ShardFolder:
        """Open a folder in which all shards are finished and sound, as `Observations.open` does."""
        shards = cls(Store.open(path, _HOLDS))
        names = [name for name, _ in shards.shards()]
        missing = [name for name in names if name not in shards.store]
        if missing:
            raise ValueError(
                f"{path} is unfinished: {len(missing)} of {len(names)} shards are missing, "
                f"first {missing[0]}; run observe again to finish it"
            )
        for name in names:
            try:
                shards.store.read(name)
            except ValueError as error:
                raise ValueError(f"{error}; run observe again to repair it") from error
        return shards

    @classmethod
    def resume(cls, path: Path, run: Mapping[str, Any]) -> ShardFolder:
        """Start a run, or go on with the same one; another one is refused."""
        return cls(Store(path, _HOLDS, run))

    def shards(self) -> list[tuple[str, slice]]:
        """Every shard's name and its scenarios, written or not."""
        n, size = self.run["n_scenarios"], self.run["shard_size"]
        return [
            (f"shard-{number:05d}", slice(start, min(start + size, n)))
            for number, start in enumerate(range(0, n, size))
        ]

    def write(self, name: str, arrays: dict[str, Tensor], table: pd.DataFrame) -> None:
        """Keep a shard."""
        from safetensors.torch import save_file

        self.store.write(
            name,
            files={
                "safetensors": lambda path: save_file(arrays, path),
                "parquet": lambda path: table.to_parquet(path, index=False),
            },
        )

    def read_table(self) -> pd.DataFrame:
        """All shards' rows."""
        import pandas as pd

        parts = [pd.read_parquet(self.store.file(name, "parquet")) for name, _ in self.shards()]
        return pd.concat(parts, ignore_index=True)

    def read_head(self, key: str, head: int) -> np.ndarray:
        """One head's part of an array, `[scenario, …]`; nothing but this head is read."""
        names = [name for name, _ in self.shards()]
        return np.concatenate([self._open(name).get_slice(key)[head] for name in names])

    def _open(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._opened:
            self._opened[name] = safe_open(self.store.file(name, "safetensors"), framework="np")
        return self._opened[name]
