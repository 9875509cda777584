"""From a study's results to its report, and to the few lines that end a run."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from aplens.heads import Head
from aplens.mae import BASELINES, compare_reconstruction
from aplens.study.saved import read_corpora
from aplens.study.stages import StageRecord

if TYPE_CHECKING:
    import pandas as pd

    from aplens.mae import Reconstruction
    from aplens.study.run import Study
    from aplens.viz import ReportData, SampleScenario

_PACKAGES = ("aplens", "transformer-lens", "transformers", "torch", "timm", "scikit-learn", "shap")
_SHOWN_HEADS = 4
_RECONSTRUCTION_PROMPTS = 12
_N_SAMPLES = 6


def gather_report(study: Study) -> ReportData:
    """Everything the report shows, read from the study's folder.

    Runs the model on a few prompts, for the patterns shown and the reconstruction error.
    """
    from aplens.viz import ReportData

    observations = study.observations
    shown = study.ranking.top(_SHOWN_HEADS)
    return ReportData(
        title=study.settings.title,
        facts=_facts(study),
        notes=_notes(study),
        task_accuracy=task_accuracy(observations.table),
        reconstruction=_reconstruct(study, shown),
        reconstruction_labels=[str(head) for head in shown],
        reconstruction_error=_reconstruction_error(study),
        reconstruction_baselines=BASELINES,
        predictors=study.predictors,
        ranking=study.ranking,
        sweep=study.sweep,
        timings=StageRecord(study.folder).seconds,
        samples=_samples(study),
    )


def task_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """The model's accuracy on each task, with 95 % intervals that resample source files."""
    import pandas as pd

    from aplens.intervals import FileBootstrap

    rows: list[dict[str, Any]] = []
    for task, group in [("all", table), *table.groupby("task", sort=True)]:
        estimate = FileBootstrap(list(group["file"])).mean(group["correct"].to_numpy(dtype=float))
        rows.append(
            {
                "task": task,
                "n": len(group),
                "accuracy": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
            }
        )
    return pd.DataFrame(rows)


def _facts(study: Study) -> dict[str, str]:
    from aplens.models import describe_model

    settings, info = study.settings, describe_model(study.model)
    corpora = read_corpora(study.folder / "corpus.json")
    return {
        "Model": f"{info.name}, {info.n_layers} layers × {info.n_heads} heads, as {info.kind}",
        "Corpus": "; ".join(dict.fromkeys(corpus["name"] for corpus in corpora)),
        "Scenarios": f"{len(study.scenarios)} of {len(study.scenarios.counts())} tasks, "
        f"{settings.context_length} tokens each, from "
        f"{len(set(study.scenarios.files))} files",
        "Split by file": ", ".join(f"{name} {len(part)}" for name, part in study.parts.items()),
        "AP-MAE": settings.mae.pretrained
        or f"{settings.mae.preset}, trained here on the part 'autoencoder'",
        "Ranked by": f"SHAP of the predictor on {settings.rank.features}, on the part 'rank'",
        "Seed": str(settings.seed),
        "Command": study.command,
        "Versions": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "Python": platform.python_version(),
        "Date": datetime.date.today().isoformat(),
    }


def _notes(study: Study) -> list[str]:
    corpora = read_corpora(study.folder / "corpus.json")
    notes = [
        "Prompts, and every figure below, come from source files. Nothing from one file stands on "
        "both sides of any split; intervals (95 %) resample files."
    ]
    if study.settings.mae.pretrained:
        notes.append(
            f"{study.settings.mae.pretrained} was trained before, perhaps on some of these files. "
            "That may flatter its reconstruction here; whether the model is right is nothing that "
            "an AP-MAE is trained on."
        )
    return notes + [corpus["note"] for corpus in corpora if corpus["note"]]


def _reconstruct(study: Study, heads: Sequence[Head]) -> Reconstruction:
    from aplens.patterns import collect_patterns

    prompt = study.parts["rank"].tokens()[:1]
    patterns = collect_patterns(study.model, prompt, heads)
    return study.mae.reconstruct(patterns.values[0], seed=study.settings.seed)


def _reconstruction_error(study: Study) -> pd.DataFrame:
    reference, held_out = (
        part.select(range(min(len(part), _RECONSTRUCTION_PROMPTS)))
        for part in (study.parts["fit"], study.parts["rank"])
    )
    return compare_reconstruction(study.model, study.mae, reference, held_out, study.settings.seed)


def _samples(study: Study) -> list[SampleScenario]:
    """A few observed scenarios, half of them right and half wrong, spread over the tasks."""
    from aplens.scenarios import Scenarios
    from aplens.viz import SampleScenario
    from aplens.viz.tokens import readable_text

    tokenizer = study.model.tokenizer
    observed = Scenarios(s for part in study.observed_parts for s in study.parts[part])
    table = study.observations.table.reset_index(drop=True)
    order = np.random.default_rng(study.settings.seed).permutation(len(table))
    drawn = table.iloc[order].drop_duplicates(["task", "correct"])
    chosen = [
        row
        for correct in (False, True)
        for row in drawn[drawn["correct"] == correct].index[: _N_SAMPLES // 2]
    ]
    return [
        SampleScenario(
            task=observed[row].task,
            file=observed[row].file,
            line=observed[row].line,
            prompt=readable_text(tokenizer, observed[row].prompt),
            target=_text_after(tokenizer, observed[row].prompt, observed[row].target),
            predicted=_text_after(
                tokenizer, observed[row].prompt, int(table.loc[row, "predicted"])
            ),
            confidence=float(table.loc[row, "top_probability"]),
            correct=bool(table.loc[row, "correct"]),
        )
        for row in chosen
    ]


def _text_after(tokenizer: Any, prompt: Sequence[int], token: int) -> str:
    """The text of a token that may hold the rest of a character that the prompt begins."""
    from aplens.viz.tokens import token_texts

    return token_texts(tokenizer, [*prompt, token])[-1]


def summarize(study: Study) -> str:
    """The ranking's first heads, the ablation table and the report's path, as plain text."""
    ranking, sweep = study.ranking, study.sweep
    auc, confidence = (ranking.metadata[key] for key in ("auc", "confidence_auc"))
    heads = ranking.to_frame().head(10)[
        ["importance", "mean", "toward_incorrect", "toward_correct"]
    ]
    columns = ["choice", "size", "n_seeds", "accuracy", "low", "high"]
    columns += ["incorrect_to_correct", "correct_to_incorrect", "change"]
    table = sweep.summary()[columns]
    return "\n".join(
        [
            "",
            f"Top heads of {ranking.model.name} (mean SHAP, log-odds of an incorrect prediction)",
            heads.round(4).to_string(),
            "",
            f"The ranking's predictor on held-out files: AUC {_interval(auc)}; "
            f"the model's own confidence: {_interval(confidence)}",
            "",
            f"Heads ablated ({sweep.setup['method']}) on {len(sweep.clean)} held-out scenarios; "
            f"nothing ablated: accuracy {sweep.clean_accuracy:.3f}",
            table.round(3).to_string(index=False),
            *[f"skipped: {reason}" for reason in sweep.skipped],
            "",
            f"Report: {study.folder / 'report.html'}",
        ]
    )


def _interval(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
