"""What tells a group of scenarios from all others, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

#: In standard deviations, of the larger mean, and in itself; less tells nothing apart.
_LEAST_SPREADS, _LEAST_SHARE, _LEAST = 0.5, 0.15, 0.05


def tell_apart(
    facts: Mapping[str, Float[np.ndarray, " scenario"]], inside: Bool[np.ndarray, " scenario"]
) -> list[str]:
    """The two facts in which the means of a group and of all others are furthest apart.

    A fact goes by how a mean of it is written: "first token {:.2f}" gives "first token 0.83 (others
    0.31)". One whose means are less than half a standard deviation apart, less than 15 % of the
    larger, or less than 0.05, is left out.
    """
    if inside.all() or not inside.any():
        return []
    told: list[tuple[float, str]] = []
    for written, values in facts.items():
        here, others, spread = values[inside].mean(), values[~inside].mean(), values.std()
        apart = abs(here - others)
        larger = max(abs(here), abs(others))
        least = max(_LEAST_SPREADS * spread, _LEAST_SHARE * larger, _LEAST)
        if spread > 0 and apart >= least:
            text, rest = written.format(here), _number_of(written).format(others)
            told.append((apart / spread, f"{text} (others {rest})"))
    return [text for _, text in sorted(told, key=lambda each: -each[0])[:2]]


def count_tasks(tasks: Sequence[str]) -> dict[str, Float[np.ndarray, " scenario"]]:
    """Facts for `tell_apart`: which scenarios are of each task, where there are several."""
    names = sorted(set(tasks) - {""})
    if len(names) < 2:
        return {}
    written = {name: name.replace("{", "{{").replace("}", "}}") for name in names}
    return {
        f"{written[name]} {{:.0%}}": np.array([task == name for task in tasks], dtype=float)
        for name in names
    }


def _number_of(written: str) -> str:
    return written[written.rindex("{:") : written.rindex("}") + 1]
