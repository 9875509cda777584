"""An evaluation as Markdown tables, each of which says what it is over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aplens.patterns import DETECTED
from aplens.tables import Table, code, escape
from paper.evaluation.measure import REPEATED, Evaluation, EvaluationSettings
from paper.evaluation.probes import LAYER
from paper.evaluation.reconstruction import ALL, LAYER_THIRDS

if TYPE_CHECKING:
    import pandas as pd

_INTERVAL = "Brackets: 95 % intervals that resample source files."


def evaluation_to_markdown(
    evaluation: Evaluation, settings: EvaluationSettings, command: str
) -> str:
    """Every table, model by model.

    Args:
        evaluation: The tables, each with a column `model`.
        settings: How much was measured.
        command: What made them, for readers who want to make them again.
    """
    lines = ["# Evaluation of AP-MAEs", "", f"Command: {code(command)}, seed {settings.seed}.", ""]
    for model, frame in evaluation.reconstruction.groupby("model", sort=False):
        for (patch_size, ratio), group in frame.groupby(["patch_size", "mask_ratio"], sort=False):
            lines += [
                f"## {escape(str(model))}: reconstruction, patches of {patch_size}, "
                f"{ratio:.0%} hidden",
                "",
                *_reconstruction_by(group, "domain", [ALL, *_others(group["domain"], ALL)]),
                *_reconstruction_by(group, "layers", [ALL, *LAYER_THIRDS]),
            ]
    for model, frame in evaluation.probes.groupby("model", sort=False):
        lines += [f"## {escape(str(model))}: linear probes of one pattern", "", *_probes(frame)]
    if len(evaluation.correctness):
        for model, frame in evaluation.correctness.groupby("model", sort=False):
            lines += [
                f"## {escape(str(model))}: is the prediction correct?",
                "",
                *_correctness(frame),
            ]
    return "\n".join(lines)


def _reconstruction_by(frame: pd.DataFrame, by: str, names: Sequence[str]) -> Iterator[str]:
    """Ratios to the mean patch, one column a domain or a group of layers."""
    other = "layers" if by == "domain" else "domain"
    frame = frame[frame[other] == ALL]
    names = [name for name in names if name in set(frame[by])]
    whole = frame[frame[by] == ALL].set_index("predictor")
    ratios = frame.set_index(["predictor", by])
    first = whole.iloc[0]
    yield (
        f"Masked-patch squared error, {_over(first)}, {first['n_seeds']} mask seeds (± their "
        "standard deviation), in log-normalized units; then, by "
        f"{'domain' if by == 'domain' else 'layer'}, its ratio to the mean patch's. {_INTERVAL}"
    )
    yield ""
    yield from _lines(
        ["predictor", "error × 1000", *names],
        (
            [
                str(predictor),
                _error(row),
                *(_interval(ratios.loc[(str(predictor), name)], "ratio") for name in names),
            ]
            for predictor, row in whole.sort_values("error", ascending=False).iterrows()
        ),
    )


def _probes(frame: pd.DataFrame) -> Iterator[str]:
    for domain in [ALL, *_others(frame["domain"], ALL, REPEATED), REPEATED]:
        part = frame[frame["domain"] == domain]
        first = part.iloc[0]
        yield (
            f"Domain {escape(domain)}: fitted on {first['n_train']} patterns (of all domains), "
            f"tested on {_over(first)}. R² of TransformerLens's detection scores, and the accuracy "
            f"in telling the layer. {_INTERVAL}"
        )
        yield ""
        targets = part.set_index(["input", "target"])
        yield from _lines(
            ["input", "dims", *(name.replace("_", " ") for name in (*DETECTED, LAYER))],
            (
                [
                    name,
                    str(targets.loc[(name, LAYER), "dims"]),
                    *(_interval(targets.loc[(name, target)]) for target in (*DETECTED, LAYER)),
                ]
                for name in part["input"].unique()
            ),
        )


def _correctness(frame: pd.DataFrame) -> Iterator[str]:
    first = frame.iloc[0]
    yield (
        f"{first['n_scenarios']} prompts from {first['n_files']} files, grouped 5-fold by file, "
        f"logistic regression over all heads. {_INTERVAL}"
    )
    yield ""
    yield from _lines(
        ["input", "AUC", "accuracy"],
        (
            [row["input"], _interval(row, "auc"), _interval(row, "accuracy")]
            for _, row in frame.iterrows()
        ),
    )


def _lines(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield from (Table(headers, list(rows)).to_markdown(), "")


def _interval(row: Any, name: str = "value") -> str:
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    return f"{row[name]:.3f} [{row[low]:.3f}, {row[high]:.3f}]"


def _error(row: Any) -> str:
    """The error in thousandths, and its spread where there are several mask seeds."""
    error = f"{1000 * row['error']:.3f}"
    return error if row["n_seeds"] == 1 else f"{error} ± {1000 * row['seed_spread']:.3f}"


def _over(row: Any) -> str:
    """How much data a figure is over."""
    return f"{row['n_patterns']} patterns of {row['n_prompts']} prompts from {row['n_files']} files"


def _others(values: Iterable[str], *known: str) -> list[str]:
    return sorted(set(values) - set(known))
