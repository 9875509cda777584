"""Where the commands keep what is finished, in the plugin's store, and how they write files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplens.study import Store, atomic_write

if TYPE_CHECKING:
    import pandas as pd


def open_store(folder: Path, setup: Any) -> Store:
    """The results in a folder, which depend on a setup; those of another one are refused."""
    if (folder / "setup.json").exists():
        raise ValueError(f"{folder} is of an older version: delete it, or choose another with -o")
    return Store(folder, "results", setup)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet."""
    with atomic_write(path) as temporary:
        table.to_parquet(temporary, index=False)
