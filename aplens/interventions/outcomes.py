"""What an ablation sweep found: every setting's outcome, its tables and its file."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aplens._documents import read_document, read_sealed, write_sealed
from aplens.heads import Head, parse_heads
from aplens.intervals import FileBootstrap
from aplens.tables import Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: The name under which random heads stand beside the orders.
RANDOM = "random"

_MEASURES = [
    "n",
    "accuracy",
    "low",
    "high",
    "incorrect_to_correct",
    "correct_to_incorrect",
    "change",
    "change_low",
    "change_high",
]
_OVER_RANDOM = ["over_random", "over_random_low", "over_random_high"]


class Setting(NamedTuple):
    """How some heads were chosen: by which order, or "random" with the `seed` of the draw."""

    choice: str
    size: int
    seed: int | None


@dataclass(frozen=True)
class SettingResult:
    """One setting's heads, and for each scenario whether the ablated model was correct."""

    setting: Setting
    heads: tuple[Head, ...]
    correct: NDArray[np.bool_]


@dataclass(repr=False)
class AblationSweep(Shown):
    """What a sweep found. Scenarios stand in the same order everywhere.

    Attributes:
        index: Which of the scenarios given to the sweep were used (balanced, or all).
        files: The source file of each of them; intervals resample files.
        clean: Whether the model, nothing ablated, was correct on each.
        results: One entry a setting that was run.
        skipped: Settings that were asked for and could not be run, and why, in words.
        setup: What was swept: model, method, seeds, fingerprints of the inputs.

    Raises:
        ValueError: When these have not one entry for each scenario.
    """

    index: NDArray[np.int64]
    files: list[str]
    clean: NDArray[np.bool_]
    results: list[SettingResult] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)

    _FORMAT = "aplens.ablation_sweep"
    _VERSION = 2  # the first had no checksum

    def __post_init__(self) -> None:
        found = {len(self.index), len(self.files), len(self.clean)}
        found |= {len(result.correct) for result in self.results}
        if len(found) > 1:
            raise ValueError(
                "index, files, clean and every result must have one entry for each scenario, got "
                f"{' and '.join(map(str, sorted(found)))} entries"
            )

    def __repr__(self) -> str:
        choices = dict.fromkeys(result.setting.choice for result in self._ordered())
        return (
            f"AblationSweep({len(self.results)} settings of {', '.join(choices) or 'nothing'} × "
            f"{len(self.index)} scenarios, {self.clean_accuracy:.1%} correct with nothing ablated)"
        )

    def _shown_rows(self) -> pd.DataFrame:
        frame = self.summary().rename(columns={"low": "accuracy_low", "high": "accuracy_high"})
        return frame.drop(columns=["incorrect_to_correct", "correct_to_incorrect"])

    @property
    def clean_accuracy(self) -> float:
        """The share of the scenarios that the unchanged model gets right (0.5 when balanced)."""
        return float(self.clean.mean())

    def to_frame(self) -> pd.DataFrame:
        """One row a setting.

        Columns: `choice` (the order's name, or "random"), `size`, `seed` (of the random draw;
        missing otherwise), `heads`, `n` (scenarios), `accuracy` with its 95 % interval `low`,
        `high`, `incorrect_to_correct`, `correct_to_incorrect` (counts), and `change`, the accuracy
        less that of the unchanged model on the same scenarios, with `change_low`, `change_high`.
        """
        import pandas as pd

        bootstrap = FileBootstrap(self.files)
        rows = [
            {
                **result.setting._asdict(),
                "heads": ", ".join(str(head) for head in result.heads),
                **self._measures(result.correct.astype(float), bootstrap),
            }
            for result in self._ordered()
        ]
        frame = pd.DataFrame(rows, columns=["choice", "size", "seed", "heads", *_MEASURES])
        counts = ["incorrect_to_correct", "correct_to_incorrect"]
        return frame.astype({"seed": "Int64", **dict.fromkeys(counts, int)})

    def summary(self) -> pd.DataFrame:
        """One row for each choice and size, random draws averaged over their seeds.

        Columns as in `to_frame`, with `n_seeds` for `seed` and `heads`; counts are means over
        seeds. `over_random`, with `over_random_low` and `over_random_high`, is the accuracy less
        that of random heads of the same size on the same scenarios: what choosing heads is worth.
        """
        import pandas as pd

        bootstrap = FileBootstrap(self.files)
        means = self.mean_outcomes()
        draws = Counter((result.setting.choice, result.setting.size) for result in self.results)
        rows = []
        for (choice, size), correct in means.items():
            row: dict[str, Any] = {"choice": choice, "size": size}
            row |= {"n_seeds": draws[choice, size], **self._measures(correct, bootstrap)}
            if choice != RANDOM and (RANDOM, size) in means:
                row |= bootstrap.mean(correct - means[RANDOM, size]).columns("over_random")
            rows.append(row)
        frame = pd.DataFrame(rows, columns=["choice", "size", "n_seeds", *_MEASURES, *_OVER_RANDOM])
        return frame.astype(dict.fromkeys(_OVER_RANDOM, float))

    def mean_outcomes(self) -> dict[tuple[str, int], NDArray[np.float64]]:
        """For each choice and size, how often the model is correct over the draws."""
        groups: dict[tuple[str, int], list[NDArray[np.bool_]]] = {}
        for result in self._ordered():
            key = (result.setting.choice, result.setting.size)
            groups.setdefault(key, []).append(result.correct)
        return {key: np.mean(outcomes, axis=0) for key, outcomes in groups.items()}

    def plot(self) -> Figure:
        """Accuracy against the number of ablated heads, one line an order."""
        from aplens.plots import plot_ablation_curve

        return plot_ablation_curve(self.summary(), clean_accuracy=self.clean_accuracy)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sweep as JSON, with a checksum."""
        write_sealed(
            path,
            {
                "format": self._FORMAT,
                "version": self._VERSION,
                "setup": self.setup,
                "index": self.index.tolist(),
                "files": self.files,
                "clean": write_bits(self.clean),
                "results": [
                    {
                        **result.setting._asdict(),
                        "heads": [str(head) for head in result.heads],
                        "correct": write_bits(result.correct),
                    }
                    for result in self.results
                ],
                "skipped": self.skipped,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AblationSweep:
        """Read what `save` wrote.

        Raises:
            OSError: When the file cannot be read.
            ValueError: When the file is not an ablation sweep, one of another version, or damaged;
                the message names the file.
        """
        read_document(path, "an ablation sweep", cls._FORMAT, cls._VERSION)
        saved = read_sealed(path)
        results = [
            SettingResult(
                Setting(entry["choice"], entry["size"], entry["seed"]),
                parse_heads(entry["heads"]),
                read_bits(entry["correct"]),
            )
            for entry in saved["results"]
        ]
        index, clean = np.array(saved["index"], dtype=np.int64), read_bits(saved["clean"])
        return cls(index, saved["files"], clean, results, saved["skipped"], saved["setup"])

    def _ordered(self) -> list[SettingResult]:
        """Results by choice (random ones last), size and seed, in whatever order they were run."""
        choices = list(dict.fromkeys(result.setting.choice for result in self.results))

        def place(result: SettingResult) -> tuple[bool, int, int, int]:
            choice, size, seed = result.setting
            return choice == RANDOM, choices.index(choice), size, seed or 0

        return sorted(self.results, key=place)

    def _measures(
        self, correct: NDArray[np.float64], bootstrap: FileBootstrap
    ) -> dict[str, float | int]:
        """Accuracy and what became of each prediction; `correct` may be a mean over seeds."""
        differences = correct - self.clean
        accuracy, change = bootstrap.mean(correct), bootstrap.mean(differences)
        return {
            "n": len(correct),
            "accuracy": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "incorrect_to_correct": differences[~self.clean].sum(),
            "correct_to_incorrect": (self.clean - correct)[self.clean].sum(),
            **change.columns("change"),
        }


def write_bits(values: NDArray[np.bool_]) -> str:
    """Outcomes as a string of 0 and 1."""
    return "".join("1" if value else "0" for value in values)


def read_bits(text: str) -> NDArray[np.bool_]:
    """What `write_bits` wrote."""
    return np.array([character == "1" for character in text], dtype=np.bool_)
