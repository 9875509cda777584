"""Outcomes of a sweep that is not done yet, kept so that an interrupt costs one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aplens._documents import read_document
from aplens._io import describe_differences, write_json
from aplens.interventions.results import Setting, read_bits, write_bits

_FORMAT = "aplens.unfinished_sweep"


class PartialOutcomes:
    """Whether the model was correct on the first scenarios, for each setting.

    Args:
        path: The file, JSON; None keeps nothing.
        setup: What the outcomes depend on; those of another setup are refused.

    Raises:
        ValueError: When the file is damaged, or belongs to another sweep.
    """

    def __init__(self, path: Path | None, setup: dict[str, Any]) -> None:
        self._path = path
        self._setup = setup
        self._bits: dict[str, str] = {}
        if path is not None and path.exists():
            self._bits = _read(path, setup)

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
        """Write the file, whole or not at all."""
        if self._path is not None:
            content = {
                "format": _FORMAT,
                "version": 1,
                "setup": self._setup,
                "outcomes": self._bits,
            }
            write_json(self._path, content)

    def discard(self) -> None:
        """Remove the file: the sweep is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _name(setting: Setting) -> str:
    seed = "" if setting.seed is None else f", seed {setting.seed}"
    return f"{setting.choice}, {setting.size} heads{seed}"


def _read(path: Path, setup: dict[str, Any]) -> dict[str, str]:
    content = read_document(path, "an unfinished sweep", _FORMAT, 1)
    if differences := list(describe_differences(content.get("setup"), setup)):
        raise ValueError(
            f"{path} holds another sweep ({'; '.join(differences)}): choose another folder, or "
            "delete it"
        )
    outcomes = content.get("outcomes")
    if not isinstance(outcomes, dict) or not all(
        isinstance(bits, str) and set(bits) <= {"0", "1"} for bits in outcomes.values()
    ):
        raise ValueError(f"{path} is damaged: its outcomes are no strings of 0 and 1")
    return outcomes
