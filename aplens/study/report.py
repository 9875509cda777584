"""A study's results, written: the page, the same tables in Markdown, and as a run's last lines."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from aplens._io import atomic_write
from aplens._tokens import readable_text, token_texts
from aplens.mae import compare_reconstruction
from aplens.study import sections
from aplens.study.findings import describe_study
from aplens.study.sections import Section
from aplens.tables import code, escape
from aplens.views.embed import render_template

if TYPE_CHECKING:
    from aplens.study.folder import StudyFolder

_PACKAGES = ("aplens", "transformer-lens", "transformers", "torch", "timm", "scikit-learn", "shap")
_SHOWN_HEADS = 4
_RECONSTRUCTION_PROMPTS = 12
_CARD_PROMPTS = 12
_N_SAMPLES = 6


def write_report(folder: StudyFolder, model: Any, command: str) -> None:
    """Write `report.html`, one page that needs nothing else, and `results.md` into the folder.

    The model is run on a few prompts, for the patterns shown and the reconstruction error.
    """
    page = render_template(
        "report.html.j2",
        title=folder.settings.title,
        found=describe_study(folder),
        facts=_facts(folder, model, command),
        notes=_notes(folder),
        sections=_sections(folder, model),
        samples=_samples(folder, model.tokenizer),
    )
    for name, text in (("results.md", _to_markdown(folder, command)), ("report.html", page)):
        with atomic_write(folder.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def summarize(folder: StudyFolder) -> str:
    """What was found, the main tables, and the report's path, as plain text."""
    tables = [table.to_text() for table in sections.main_tables(folder)]
    skipped = [f"Not run: {reason}" for reason in folder.sweep.skipped]
    return "\n\n".join(
        [
            "",
            *describe_study(folder),
            *tables,
            *skipped,
            f"Report: {folder.path / 'report.html'}",
        ]
    )


def _to_markdown(folder: StudyFolder, command: str) -> str:
    """What was found, the main tables, and what they are over."""
    settings = folder.settings
    lines = [
        f"# {escape(settings.title)}",
        *(f"- {escape(sentence)}" for sentence in describe_study(folder)),
        f"Command: {code(command)}, seed {settings.seed}.",
        f"Scenarios by part, no source file in two: {_sizes(folder)}.",
        "Brackets: 95 % intervals that resample source files.",
    ]
    tables = [table.to_markdown() for table in sections.main_tables(folder)]
    return "\n\n".join([*lines, *tables]) + "\n"


def _sizes(folder: StudyFolder) -> str:
    return ", ".join(f"{name} {len(part)}" for name, part in folder.parts.items())


def _facts(folder: StudyFolder, model: Any, command: str) -> dict[str, str]:
    from aplens.models import describe_model

    settings, info, scenarios = folder.settings, describe_model(model), folder.scenarios
    return {
        "Model": f"{info.name}, {info.n_layers} layers × {info.n_heads} heads, as {info.kind}",
        "Corpus": "; ".join(dict.fromkeys(corpus["name"] for corpus in folder.corpora)),
        "Scenarios": f"{len(scenarios)} of {len(scenarios.counts())} tasks, "
        f"{settings.context_length} tokens each, from {len(set(scenarios.files))} files",
        "Split by file": _sizes(folder),
        "AP-MAE": settings.mae.pretrained
        or f"{settings.mae.preset}, trained here on the part 'autoencoder'",
        "Ranked by": f"effects on {len(folder.ranked)} scenarios of the part 'rank'; beside it "
        f"SHAP of a predictor on {settings.rank.features}, on all of that part",
        "Seed": str(settings.seed),
        "Command": command,
        "Versions": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "Python": platform.python_version(),
        "Date": datetime.date.today().isoformat(),
    }


def _notes(folder: StudyFolder) -> list[str]:
    notes = [
        "Prompts, and every figure below, come from source files. Nothing from one file stands on "
        "both sides of any split; intervals (95 %) resample files."
    ]
    if pretrained := folder.settings.mae.pretrained:
        notes.append(
            f"{pretrained} was trained before, perhaps on some of these files. That may flatter "
            "its reconstruction here; whether the model is right is nothing that an AP-MAE is "
            "trained on."
        )
    return notes + [corpus["note"] for corpus in folder.corpora if corpus["note"]]


def _sections(folder: StudyFolder, model: Any) -> list[Section]:
    from aplens.patterns import collect_patterns

    seed, shown = folder.settings.seed, folder.ranking.top(_SHOWN_HEADS)
    fit, rank = (folder.parts[name] for name in ("fit", "rank"))
    patterns = collect_patterns(model, rank.tokens()[:1], shown)
    few = [part.select(range(min(len(part), _RECONSTRUCTION_PROMPTS))) for part in (fit, rank)]
    return [
        *_head_sections(folder, model),
        sections.show_sweep(folder.sweep),
        sections.show_predictors(folder.predictors),
        sections.show_tasks(sections.task_accuracy(folder.observations.table)),
        sections.show_reconstruction(
            folder.mae.reconstruct(patterns.values[0], seed=seed),
            [str(head) for head in shown],
            compare_reconstruction(model, folder.mae, few[0], few[1], seed),
        ),
        sections.show_times(folder.seconds),
    ]


def _head_sections(folder: StudyFolder, model: Any) -> list[Section]:
    """Which heads matter, what they do, and the paper's choice."""
    from aplens.views import describe_heads

    ranked, shap = sections.show_ranking(folder.ranking), sections.show_shap(folder.shap)
    if folder.settings.context_length <= folder.mae.grid.patch_size:
        return [ranked, shap]  # prompts of one patch have no habit
    prompts = folder.ranked.select(range(min(len(folder.ranked), _CARD_PROMPTS)))
    cards = describe_heads(model, prompts, folder.ranking, mae=folder.mae, progress=False)
    return [ranked, sections.show_cards(cards), shap]


def _samples(folder: StudyFolder, tokenizer: Any) -> list[dict[str, Any]]:
    """A few observed scenarios, half of them right and half wrong, spread over the tasks."""
    observed = [scenario for part in folder.observed_parts for scenario in folder.parts[part]]
    table = folder.observations.table.assign(place=range(len(observed)))
    order = np.random.default_rng(folder.settings.seed).permutation(len(table))
    drawn = table.iloc[order].drop_duplicates(["task", "correct"])
    samples = []
    for correct in (False, True):
        for _, row in drawn[drawn["correct"] == correct].head(_N_SAMPLES // 2).iterrows():
            scenario = observed[row["place"]]
            prompt = list(scenario.prompt)
            # A token may hold the rest of a character that the prompt begins.
            target, predicted = (
                token_texts(tokenizer, [*prompt, int(token)])[-1]
                for token in (scenario.target, row["predicted"])
            )
            samples.append(
                sections.show_sample(
                    scenario.task,
                    f"{scenario.file}:{scenario.line}",
                    readable_text(tokenizer, prompt),
                    (target, predicted),
                    float(row["top_probability"]),
                    correct,
                )
            )
    return samples
