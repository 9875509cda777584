"""Some of a study's scenarios: those of a task, the first of each, those of some languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios
    from aplens.scoring import Observations


def of_task(scenarios: Scenarios, task: str) -> Scenarios:
    """The scenarios of one task."""
    return scenarios.select([i for i, each in enumerate(scenarios.tasks) if each == task])


def observed_of(observations: Observations, task: str) -> Observations:
    """The observed scenarios of one task."""
    return observations.select((observations.table["task"] == task).to_numpy(dtype=bool))


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
