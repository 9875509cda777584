"""Making one catalogue of templates from a study's corpora, on one model or several."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aplens.mae import APMAE
from aplens.study import Reporter, Study, StudySettings, atomic_write
from aplens.tables import Table, code
from paper.catalogue import (
    PatternSample,
    TemplateCatalogue,
    check_names,
    compare_with_scores,
    describe_samples,
    describe_switching,
    measure_stability,
    plot_catalogue,
    sample_patterns,
)
from paper.evaluation.study import studies_of
from paper.files import write_table, write_text

if TYPE_CHECKING:
    import pandas as pd


def catalogue_study(
    settings: StudySettings,
    folder: str | os.PathLike[str],
    *,
    models: Sequence[str],
    prompts: int,
    n_clusters: int,
    reporter: Reporter,
    command: str,
) -> str:
    """Catalogue the templates of a study's corpora, and check the names.

    Writes into `catalogue/` below the folder: `catalogue.safetensors`; tables as Parquet
    (`clusters`, `templates`: how often each occurs, `switching`, `agreement`, `names`, `stability`,
    and with several models `transfer`: a catalogue of one applied to the others); all of them in
    `catalogue.md`; and `templates.png`, each template's typical pattern.
    Prompts are mined where they are missing.
    """
    if not settings.mae.pretrained:
        raise ValueError("a catalogue needs a pretrained AP-MAE: set mae.pretrained")
    mae = APMAE.from_pretrained(settings.mae.pretrained)
    started = time.monotonic()
    by_model: dict[str, list[PatternSample]] = {}
    for name, study in studies_of(settings, Path(folder), models, reporter):
        study.run("mine")
        reporter.start("catalogue", f"the patterns of {name}")
        by_model[name] = _sample_languages(study, name, mae, prompts)
    samples = [sample for group in by_model.values() for sample in group]
    catalogue = TemplateCatalogue.fit(samples, n_clusters=n_clusters, seed=settings.seed)
    tables = _tables(catalogue, by_model)
    wrote = _write(catalogue, tables, Path(folder) / "catalogue", command)
    reporter.finish("catalogue", time.monotonic() - started, wrote)
    return wrote[0].read_text(encoding="utf-8")


def _sample_languages(study: Study, name: str, mae: APMAE, n: int) -> list[PatternSample]:
    samples = []
    for language in sorted(set(study.folder.scenarios.languages)):
        places = _first_of_files(study, language, n)
        samples.append(
            sample_patterns(
                study.model,
                study.folder.scenarios.select(places),
                mae,
                f"{name}, {language}",
                progress=study.reporter.update,
            )
        )
    return samples


def _first_of_files(study: Study, language: str, n: int) -> list[int]:
    """Places of n prompts of a language, one of each file before a second of any."""
    rounds: dict[str, int] = {}
    order = []
    scenarios = study.folder.scenarios
    for place, (file, each) in enumerate(zip(scenarios.files, scenarios.languages, strict=True)):
        if each == language:
            order.append((rounds.setdefault(file, 0), place))
            rounds[file] += 1
    return sorted(place for _, place in sorted(order)[:n])


def _tables(
    catalogue: TemplateCatalogue, by_model: dict[str, list[PatternSample]]
) -> dict[str, pd.DataFrame]:
    import pandas as pd

    samples = [sample for group in by_model.values() for sample in group]
    tables = {
        "clusters": catalogue.to_frame(),
        "templates": describe_samples(catalogue, samples),
        "switching": describe_switching(catalogue, samples),
        "agreement": compare_with_scores(catalogue, samples),
        "names": check_names(
            samples, n_clusters=len(catalogue.centres), seed=catalogue.metadata["seed"]
        ),
        "stability": measure_stability(catalogue, samples),
    }
    if len(by_model) > 1:
        transferred = []
        for name, group in by_model.items():
            alone = TemplateCatalogue.fit(
                group, n_clusters=len(catalogue.centres), seed=catalogue.metadata["seed"]
            )
            others = [s for other, some in by_model.items() if other != name for s in some]
            table = compare_with_scores(alone, others)
            transferred.append(table.assign(made_on=name))
        tables["transfer"] = pd.concat(transferred, ignore_index=True)
    return tables


def _write(
    catalogue: TemplateCatalogue, tables: dict[str, pd.DataFrame], folder: Path, command: str
) -> list[Path]:
    text = f"Made by {code(command)}.\n"
    for name, table in tables.items():
        text += f"\n{Table.from_frame(table, caption=name).to_markdown()}\n"
    paths = [folder / "catalogue.md", folder / "catalogue.safetensors", folder / "templates.png"]
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table)
    write_text(paths[0], text)
    catalogue.save(paths[1])
    with atomic_write(paths[2]) as temporary:
        plot_catalogue(catalogue).savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    return paths
