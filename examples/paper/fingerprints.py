"""What fingerprints are good for: heads told apart, kin found across models, errors foretold.

Every row of the tables is one way to describe a pattern by numbers, compared by cosine; several
prompts are the mean of vectors of length 1. All evaluated prompts are from files that nothing is
fitted on (`paper.held_out`). What is finished is kept in the folder, and the same command goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import aplens
from aplens.intervals import Estimate
from aplens.models import describe_model
from aplens.patterns import DETECTED
from aplens.study import Reporter
from aplens.tables import Table
from paper.evaluation.probes import LAYER, evaluate_probe
from paper.files import open_store, write_text
from paper.fingerprint_errors import observe_errors, predict_errors
from paper.fingerprint_measures import chance_of_kin, found_again, kin, stability
from paper.fingerprint_samples import ROWS, Describe, describers, repeated_like, sample, unit
from paper.held_out import draw_prompts

RESULTS = "results.json"

#: Heads of a prompt that probes are fitted on.
_PROBED = 45


class Setup(NamedTuple):
    """What results depend on.

    Attributes:
        mae: An AP-MAE with a fingerprint.
        models: The model that fits are made on, and one that nothing has seen.
        kind: As `load_model` takes it.
        prompts: Of each domain.
        errors: Scenarios that errors are foretold on; 0: none.
    """

    mae: str
    models: tuple[str, str] = ("smollm2-135m", "gemma3-270m")
    kind: str = "bridge"
    prompts: int = 24
    errors: int = 240


class Samples(NamedTuple):
    """One model's samples by what they are of, and the layer of each head."""

    by_name: dict[str, dict[str, Tensor]]
    layers: np.ndarray


def measure(
    setup: Setup,
    folder: Path,
    reporter: Reporter,
    load: Callable[[str, str], Any] = aplens.load_model,
) -> dict[str, Any]:
    """Collect and measure what the folder does not hold yet."""
    mae = aplens.APMAE.from_pretrained(setup.mae)
    apart = {"errors": 0, "weights": _hash_weights(mae)}  # a name may get other weights
    open_store(folder, {**setup._asdict(), **apart})
    if not mae.has_fingerprint:
        raise ValueError(f"{setup.mae} has no fingerprint: python -m paper fit-fingerprint")
    path = folder / RESULTS
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "n_heads" not in results:
        own, other = (_collect(setup, name, mae, folder, reporter, load) for name in setup.models)
        fitted = [own.by_name[name] for name in own.by_name if name.startswith("fit")]
        rows = describers(fitted, mae.config.fingerprint_dim)
        for row in ROWS:
            if row not in results:
                started = time.perf_counter()
                results[row] = _measure_row(rows[row], own, other)
                write_text(path, json.dumps(results, indent=2))
                reporter.say(f"{row}: {time.perf_counter() - started:.0f} s")
        results["n_heads"] = [len(own.layers), len(other.layers)]
        write_text(path, json.dumps(results, indent=2))
    if setup.errors and results.get("errors", {}).get("asked") != setup.errors:
        results["errors"] = _measure_errors(setup, mae, folder, reporter, load)
        write_text(path, json.dumps(results, indent=2))
    return results


def _hash_weights(mae: aplens.APMAE) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(mae.state_dict().items()):
        digest.update(name.encode() + values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _collect(
    setup: Setup,
    name: str,
    mae: aplens.APMAE,
    folder: Path,
    reporter: Reporter,
    load: Callable[[str, str], Any],
) -> Samples:
    """Every sample of one model: prompts, halves of them, random tokens, and files to fit on."""
    n, whole = setup.prompts, mae.config.n_ctx
    model = load(name, setup.kind)
    java, prose = (
        draw_prompts(model, domain, n, whole, held_out=True).tokens()
        for domain in ("java", "prose")
    )
    tokens = {"java": java, "prose": prose, "java, half": java[:, : whole // 2]}
    tokens["repeated"] = repeated_like(torch.cat([java, prose]))
    if name == setup.models[0]:
        for domain in ("java", "prose"):
            fit = draw_prompts(model, domain, max(2, n // 2), whole, held_out=False)
            tokens[f"fit, {domain}"] = fit.tokens()
            tokens[f"fit, {domain}, half"] = fit.tokens()[:, : whole // 2]
    by_name = {}
    for what, prompts in tokens.items():
        reporter.start("fingerprints", f"{name}: {what}, {len(prompts)} prompts")
        path = folder / f"{name}: {what}.safetensors".replace(": ", "-").replace(", ", "-")
        encoder = None if what.startswith("fit") else mae
        by_name[what] = sample(path, model, encoder, prompts, reporter.update)
    return Samples(by_name, np.array([head.layer for head in describe_model(model).heads]))


def _measure_row(describe: Describe, own: Samples, other: Samples) -> dict[str, Any]:
    """Every figure of one row, for both models."""
    found: dict[str, Any] = {}
    units: list[Tensor] = []
    for place, samples in enumerate((own, other)):
        vectors = {
            name: unit(describe(part))
            for name, part in samples.by_name.items()
            if not name.startswith("fit")
        }
        java, prose, half = (vectors[name] for name in ("java", "prose", "java, half"))
        for n in (1, 4, 24):
            found[f"{place}, {n}"] = found_again(java, prose, min(n, len(java)))
        found[f"{place}, half, same"] = found_again(half, java, 1)
        found[f"{place}, half, other"] = found_again(half, java.roll(1, 0), 1)
        units.append(torch.cat([java, prose]))
    scores = [samples.by_name["repeated"]["scores"].mean(0) for samples in (own, other)]
    for centred in (False, True):
        near, hits = kin(*units, *scores, centred=centred)
        for name in DETECTED:
            found[f"kin, {name}" + (", centred" if centred else "")] = near[name]
            if not centred:
                found[f"hits, {name}"] = hits[name]
    some = units[0][::2]  # clustering takes long
    found |= {f"stability, {what}": value for what, value in stability(some).items()}
    return found | _probe(describe, own)


def _probe(describe: Describe, samples: Samples) -> dict[str, Estimate]:
    """What ridge regression reads off a pattern's numbers, on files it was not fitted on."""
    values, scores, layers, prompt, files, domains = [], [], [], [], [], []
    rng = np.random.default_rng(0)
    for domain in ("java", "prose", "repeated"):
        part = samples.by_name[domain]
        vectors = describe(part)
        for place in range(len(vectors)):
            heads = np.sort(rng.permutation(vectors.shape[1])[:_PROBED])
            values.append(vectors[place, heads].numpy())
            scores.append(part["scores"][place, heads].numpy())
            layers.append(samples.layers[heads])
            prompt.append(np.full(len(heads), len(files)))
            files.append(f"{domain} {place}")
            domains.append(domain)
    joined = (np.concatenate(each) for each in (values, scores, layers, prompt))
    frame = evaluate_probe(*joined, files, domains)
    frame = frame[frame["domain"] == "all"].set_index("target")
    return {
        f"probe, {name}": Estimate(*map(float, frame.loc[name, ["value", "low", "high"]]))
        for name in (*DETECTED, LAYER)
    }


def _measure_errors(
    setup: Setup,
    mae: aplens.APMAE,
    folder: Path,
    reporter: Reporter,
    load: Callable[[str, str], Any],
) -> dict[str, Any]:
    model = load(setup.models[0], setup.kind)
    n_tokens = mae.config.n_ctx
    scenarios = draw_prompts(model, "java", setup.errors, n_tokens, held_out=True, seed=1)
    reporter.start("fingerprints", f"errors: {len(scenarios)} Java scenarios")
    path = folder / f"errors-{setup.errors}.safetensors"
    found = observe_errors(path, model, mae, scenarios, reporter.update)
    predicted = predict_errors(found, scenarios.files)
    n = {"asked": setup.errors, "n": len(scenarios)}
    return {**n, "n_correct": int(found["correct"].sum()), "auc": predicted}


# --- tables --------------------------------------------------------------------------------------

#: The rows of the tables on the page; the file of all figures has every row.
_ROWS_ON_PAGE = (
    "raw pattern, 16 × 16",
    "log-normalized, 16 × 16",
    "linear metric on log-normalized 16 × 16",
    "AP-MAE: CLS",
    "AP-MAE: CLS + last query + mean",
    "fingerprint",
)


def tables(folder: Path, n_tokens: int) -> str:
    """The main figures that the folder holds, in Markdown."""
    results = _read(folder)
    own, other = results["n_heads"]
    columns = {
        "0, 1": f"1 of {own} heads, 1 prompt",
        "1, 1": f"unseen, 1 of {other}, 1 prompt",
        "1, 4": "unseen, 4 prompts",
        "1, half, other": f"unseen, {n_tokens // 2} against {n_tokens} tokens",
    }
    chance = {key: 1 / results["n_heads"][int(key[0])] for key in columns}
    text = _table(results, "Told apart: Java looked up in prose, top 1", columns, chance)
    columns = {f"kin, {name}": name.replace("_", " ") for name in DETECTED}
    text += _table(results, "Kin across models: correlation of template scores", columns, {})
    return text + _error_table(results.get("errors"))


def all_figures(folder: Path) -> pd.DataFrame:
    """Every figure that the folder holds: one line a row of the tables and measure.

    Columns: `row`, `measure`, `value`, and its 95 % interval `low`, `high` where it has one. In the
    name of a measure 0 is the model fitted on and 1 the unseen one.
    """
    results = _read(folder)
    own, _ = results["n_heads"]
    lines = [
        (row, measure, *_spread(figure))
        for row in ROWS
        for measure, figure in results.get(row, {}).items()
    ]
    lines += [
        ("chance", f"{place}, told apart", 1 / n, None, None)
        for place, n in enumerate(results["n_heads"])
    ]
    lines.append(("chance", "hits", chance_of_kin(own), None, None))
    errors = results.get("errors") or {"auc": {}}
    for name, figures in errors["auc"].items():
        for measure, figure in zip(("errors: AUC", "over confidence"), figures, strict=True):
            lines.append((name, measure, *_spread(figure)))
    return pd.DataFrame(lines, columns=["row", "measure", "value", "low", "high"])


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULTS).read_text(encoding="utf-8"))


def _table(
    results: dict[str, Any], title: str, columns: dict[str, str], chance: dict[str, float]
) -> str:
    rows = [
        [row, *(_cell(results[row][key]) for key in columns)]
        for row in _ROWS_ON_PAGE
        if row in results
    ]
    if chance:
        rows.append(["chance", *(f"{chance[key]:.3f}" for key in columns)])
    return _titled(title, Table(["", *columns.values()], rows))


def _error_table(errors: dict[str, Any] | None) -> str:
    if errors is None:
        return ""
    title = f"Errors foretold: AUC on {errors['n']} Java scenarios, {errors['n_correct']} correct"
    rows = [[name, *map(_cell, figures)] for name, figures in errors["auc"].items()]
    return _titled(title, Table(["", "AUC", "over confidence"], rows))


def _titled(title: str, table: Table) -> str:
    return f"### {title}\n\n{table.to_markdown()}\n\n"


def write_into(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between the comments `<!-- name -->` and `<!-- end -->`."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"{page} has no <!-- {name} --> that ends with <!-- end -->")
    write_text(page, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def _spread(figure: float | list[float]) -> tuple[float, ...]:
    """A figure, alone or with its interval, to four digits."""
    numbers = figure if isinstance(figure, list) else [figure, math.nan, math.nan]
    return tuple(round(number, 4) for number in numbers)


def _cell(figure: float | Iterable[float]) -> str:
    """A figure, alone or with its interval; JSON keeps an estimate as a list."""
    return f"{figure:.2f}" if isinstance(figure, float) else format(Estimate(*figure), ".2f")
