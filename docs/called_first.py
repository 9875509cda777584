"""The reference's order: what people call, what they get, constants; public names first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from hooks import public_names

_PLACES = {name: place for place, (name, _) in enumerate(public_names())}


def _place(name: str) -> tuple[bool, int, int]:
    kind = 0 if name[0].islower() else 2 if name.isupper() else 1
    return name not in _PLACES, kind, _PLACES.get(name, 0)


class CalledFirst(griffe.Extension):
    """Sorts each module's `__all__`, which mkdocstrings follows."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Sort the package's names, and those of the modules in it."""
        modules = [pkg]
        while modules:
            module = modules.pop()
            modules += module.modules.values()
            if module.exports:
                module.exports = sorted(map(str, module.exports), key=_place)
