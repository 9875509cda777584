"""What an ablation sweep found: every setting's outcome, its tables and its file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from aplens._io import read_json, write_json
from aplens.heads import Head, parse_heads
from aplens.scoring.intervals import FileBootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Choice: TypeAlias = Literal["toward_incorrect", "toward_correct", "neutral", "random"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

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
    """How some heads were chosen. `seed` is that of the draw, None unless the choice is random."""

    choice: Choice
    size: int
    seed: int | None


@dataclass(frozen=True)
class SettingResult:
    """One setting's heads, and for each scenario whether the ablated model was correct."""

    setting: Setting
    heads: tuple[Head, ...]
    correct: NDArray[np.bool_]


@dataclass
class AblationSweep:
    """What a sweep found. Scenarios stand in the same order everywhere.

    Attributes:
        index: Which of the scenarios given to the sweep were used (balanced, or all).
        files: The source file of each of them; intervals resample files.
        clean: Whether the model, nothing ablated, was correct on each.
        results: One entry a setting that was run.
        skipped: Settings that could not be run, and why, in words.
        setup: What was swept: model, method, seeds, fingerprints of the inputs.
    """

    index: NDArray[np.int64]
    files: list[str]
    clean: NDArray[np.bool_]
    results: list[SettingResult] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)

    _FORMAT = "aplens.ablation_sweep"

    @property
    def clean_accuracy(self) -> float:
        """The share of the scenarios that the unchanged model gets right (0.5 when balanced)."""
        return float(self.clean.mean())

    def to_frame(self) -> pd.DataFrame:
        """One row a setting.

        Columns: `choice`, `size`, `seed` (of the random draw; missing otherwise), `heads`, `n`
        (scenarios), `accuracy` with its 95 % interval `low`, `high`, `incorrect_to_correct`,
        `correct_to_incorrect` (counts), and `change`, the accuracy less that of the unchanged model
        on the same scenarios, with `change_low`, `change_high`.
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
        groups: dict[tuple[Choice, int], list[NDArray[np.bool_]]] = {}
        for result in self._ordered():
            key = (result.setting.choice, result.setting.size)
            groups.setdefault(key, []).append(result.correct)
        means = {key: np.mean(outcomes, axis=0) for key, outcomes in groups.items()}
        rows = []
        for (choice, size), correct in means.items():
            row: dict[str, Any] = {"choice": choice, "size": size}
            row |= {"n_seeds": len(groups[choice, size]), **self._measures(correct, bootstrap)}
            if choice != "random" and ("random", size) in means:
                over_random = bootstrap.mean(correct - means["random", size])
                row |= dict(zip(_OVER_RANDOM, over_random, strict=True))
            rows.append(row)
        frame = pd.DataFrame(rows, columns=["choice", "size", "n_seeds", *_MEASURES, *_OVER_RANDOM])
        return frame.astype(dict.fromkeys(_OVER_RANDOM, float))

    def plot(self) -> Figure:
        """Accuracy against the number of ablated heads, one line a choice."""
        from aplens.viz import plot_ablation_curve

        return plot_ablation_curve(self.summary(), clean_accuracy=self.clean_accuracy)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sweep as JSON."""
        write_json(
            path,
            {
                "format": self._FORMAT,
                "version": 1,
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
            ValueError: When the file is not an ablation sweep; the message names the file.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != cls._FORMAT:
            raise ValueError(f"{path} is not an ablation sweep saved by aplens")
        try:
            return cls(
                index=np.array(data["index"], dtype=np.int64),
                files=data["files"],
                clean=read_bits(data["clean"]),
                results=[
                    SettingResult(
                        Setting(entry["choice"], entry["size"], entry["seed"]),
                        parse_heads(entry["heads"]),
                        read_bits(entry["correct"]),
                    )
                    for entry in data["results"]
                ],
                skipped=data["skipped"],
                setup=data["setup"],
            )
        except KeyError as error:
            raise ValueError(f"{path} is a damaged ablation sweep: {error} is missing") from error

    def _ordered(self) -> list[SettingResult]:
        """Results by choice, size and seed, in whatever order they were run."""

        def place(result: SettingResult) -> tuple[int, int, int]:
            setting = result.setting
            return CHOICES.index(setting.choice), setting.size, setting.seed or 0

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
            "change": change.value,
            "change_low": change.low,
            "change_high": change.high,
        }


def write_bits(values: NDArray[np.bool_]) -> str:
    """Outcomes as a string of 0 and 1."""
    return "".join("1" if value else "0" for value in values)


def read_bits(text: str) -> NDArray[np.bool_]:
    """What `write_bits` wrote."""
    return np.array([character == "1" for character in text], dtype=np.bool_)
