"""Outcomes of a sweep that is not done yet, kept so that an interrupt costs one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aplens._store import Store
from aplens.interventions.outcomes import Setting, read_bits, write_bits

_KEY = "outcomes"


class PartialOutcomes:
    """Whether the model was correct on the first scenarios, for each setting; `Store` keeps it.

    Without a folder nothing is kept. What is damaged is warned of, and the sweep begins again.
    """

    def __init__(self, folder: Path | None, setup: dict[str, Any]) -> None:
        self._store = None if folder is None else Store(folder, "outcomes of a sweep", setup)
        self._bits: dict[str, str] = {} if self._store is None else self._store.recall(_KEY, dict)

    def count(self, setting: Setting) -> int:
        """Scenarios whose outcome is known."""
        return len(self._bits.get(_name(setting), ""))

    def of(self, setting: Setting) -> NDArray[np.bool_]:
        """The outcomes known."""
        return read_bits(self._bits[_name(setting)], _name(setting))

    def put(self, setting: Setting, start: int, correct: NDArray[np.bool_]) -> None:
        """Note the outcomes of scenarios from `start` on."""
        before = self._bits.get(_name(setting), "")[:start]
        self._bits[_name(setting)] = before + write_bits(correct)

    def save(self) -> None:
        """Keep what is known."""
        if self._store is not None:
            self._store.write(_KEY, self._bits)

    def discard(self) -> None:
        """Remove what was kept: the sweep is done."""
        if self._store is not None:
            self._store.discard()


def _name(setting: Setting) -> str:
    seed = "" if setting.seed is None else f", seed {setting.seed}"
    return f"{setting.choice}, {setting.size} heads{seed}"
