"""Some of a study's scenarios: the first of each task, those of some languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios


def first_of_each(tasks: Sequence[str], n: int) -> list[int]:
    """The places of the first n of each task."""
    seen: Counter[str] = Counter()
    places = []
    for place, task in enumerate(tasks):
        seen[task] += 1
        if seen[task] <= n:
            places.append(place)
    return places


def of_languages(scenarios: Scenarios, languages: Sequence[str]) -> Scenarios:
    """The scenarios of these languages; all when none is named.

    Raises:
        ValueError: When there are no scenarios of a language.
    """
    missing = set(languages) - set(scenarios.languages)
    if missing:
        raise ValueError(
            f"mae.languages names {sorted(missing)}, but the prompts to train on are of "
            f"{sorted(set(scenarios.languages))}"
        )
    wanted = languages or set(scenarios.languages)
    return scenarios.select([i for i, each in enumerate(scenarios.languages) if each in wanted])
