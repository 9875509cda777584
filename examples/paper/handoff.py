"""Is handing a ranking's heads to patching worth it? Recall of the heads that matter, against cost.

The truth: every head is switched off by itself on some prompts (its output replaced by zeros, or by
its mean), and the heads with the largest mean effect on the metric are those that matter. Each
method then ranks all heads from other prompts of the task, drawn anew for every seed, and is scored
by how many of the heads that matter are among its first. Its cost is counted in prompts run
forward; a backward pass counts as two.

What is finished is kept in the folder, and the same command goes on.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import aplens
from aplens.correctness import DEFAULT_FEATURES, observe, rank_by_predictor, split_by_file
from aplens.heads import Head
from aplens.interventions import measure_effects
from aplens.models import describe_model
from aplens.patterns import DETECTED, stream_patterns, template_scores
from aplens.scenarios import Scenarios
from aplens.study import Reporter
from aplens.style import CORRECT, GREY, INK, WIDTH, new_figure, tidy
from aplens.tables import Table
from paper.distance import output_norms, pattern_distances
from paper.files import write_text
from paper.handoff_tasks import TASKS, Task, load_task

#: What stands in for an ablated head's output when the truth is measured.
TRUTHS = ("zero", "mean")

#: Prompts of the cheap measurement.
FEW_PROMPTS = 4


class Choice(NamedTuple):
    """All heads in the order in which a method would look at them, and what the order cost."""

    order: tuple[Head, ...]
    cost: int


class Run(NamedTuple):
    """What a method chooses heads from."""

    model: Any
    mae: aplens.APMAE
    task: Task
    prompts: Scenarios  # that heads are chosen on
    seed: int
    folder: Path  # for what can be kept between seeds

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every head of the model."""
        return describe_model(self.model).heads


# --- the methods ---------------------------------------------------------------------------------


def by_score(heads: tuple[Head, ...], scores: np.ndarray) -> tuple[Head, ...]:
    """Highest first; among equals the order of the layers. NaN last."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return tuple(heads[index] for index in order)


def by_number(numbers: Mapping[Head, float]) -> tuple[Head, ...]:
    """`by_score`, from one number a head."""
    return by_score(tuple(numbers), np.array(list(numbers.values())))


def choose_random(run: Run) -> Choice:
    """Any order."""
    order = np.random.default_rng(run.seed).permutation(len(run.heads))
    return Choice(tuple(run.heads[index] for index in order), 0)


def detect(kind: str) -> Callable[[Run], Choice]:
    """TransformerLens `detect_head`, which `template_scores` computes for all heads at once."""

    def choose(run: Run) -> Choice:
        total = np.zeros(len(run.heads))
        for rows, patterns, _ in stream_patterns(run.model, run.prompts):
            for index, prompt in enumerate(run.prompts[rows]):
                tokens = torch.tensor(prompt.prompt)
                scores = template_scores(patterns.prompt(index), tokens)
                total += scores[:, DETECTED.index(kind)].cpu().numpy()
        return Choice(by_score(run.heads, total), len(run.prompts))

    return choose


def choose_by_distance(run: Run) -> Choice:
    """By how far patterns are from those on prose."""
    distances = pattern_distances(run.model, run.prompts, run.task.reference, mae=run.mae)
    return Choice(by_number(distances), len(run.prompts) + len(run.task.reference))


def choose_by_norm(run: Run) -> Choice:
    """By how much a head writes at the last position."""
    return Choice(by_number(output_norms(run.model, run.prompts)), len(run.prompts))


def choose_by_weighed_distance(run: Run) -> Choice:
    """By their product."""
    distances = pattern_distances(run.model, run.prompts, run.task.reference, mae=run.mae)
    norms = output_norms(run.model, run.prompts)
    weighed = {head: distance * norms[head] for head, distance in distances.items()}
    return Choice(by_number(weighed), 2 * len(run.prompts) + len(run.task.reference))


def by_effects(ablation: str, verify: int) -> Callable[[Run], Choice]:
    """`rank_heads`: effects estimated, and those of the first heads measured."""

    def choose(run: Run) -> Choice:
        usual = run.task.usual if ablation == "mean" else None
        ranking = aplens.rank_heads(
            run.model, run.prompts, metric=run.task.metric, reference=usual, verify=verify
        )
        n_measured = len(ranking.measured)
        measuring = n_measured + 1 if n_measured else 0
        return Choice(tuple(ranking), (3 + measuring) * len(run.prompts))

    return choose


def choose_by_few_ablations(run: Run) -> Choice:
    """By every head's ablation on a few prompts."""
    few = run.prompts[:FEW_PROMPTS]
    effects = measure_effects(run.model, few, metric=run.task.metric)
    return Choice(tuple(effects.to_ranking()), effects.n_forward_passes * len(few))


def choose_by_predictor(features: str) -> Callable[[Run], Choice]:
    """By SHAP; the scenarios are the same for every seed, their split is not."""

    def choose(run: Run) -> Choice:
        assert run.task.fit is not None
        observed = observe(
            run.model,
            run.task.fit,
            run.mae,
            run.folder / "observations",
            keep=("statistics", "surprise"),
        )
        fit, held_out = split_by_file(observed, 0.4, run.seed)
        # Clusters after PCA, not the paper's UMAP, which would take minutes a seed.
        ranking = rank_by_predictor(fit, held_out, features=features, seed=run.seed)
        return Choice(tuple(ranking), len(run.task.fit))

    return choose


METHODS: dict[str, Callable[[Run], Choice]] = {
    "random": choose_random,
    **{f"detect_head: {kind.replace('_', ' ')}": detect(kind) for kind in DETECTED},
    "output norm": choose_by_norm,
    "AP-MAE: distance from prose": choose_by_distance,
    "AP-MAE: distance × output norm": choose_by_weighed_distance,
    "AP-MAE: predictor, clusters": choose_by_predictor("clusters"),
    "AP-MAE: predictor, surprise": choose_by_predictor(DEFAULT_FEATURES),
    "effects, zeros: estimated": by_effects("zero", 0),
    "effects, means: estimated": by_effects("mean", 0),
    "effects, zeros: first measured": by_effects("zero", 40),
    "effects, means: first measured": by_effects("mean", 40),
    f"every head ablated on {FEW_PROMPTS} prompts": choose_by_few_ablations,
}


# --- running and scoring -------------------------------------------------------------------------


class Setup(NamedTuple):
    """What a task's results depend on."""

    model: str
    kind: str
    mae: str
    n_truth: int
    n_choice: int
    seeds: int
    n_matter: int


def run_task(name: str, folder: Path, setup: Setup, reporter: Reporter) -> None:
    """Measure the truth and run every method; what the folder holds is not done again."""
    path = folder / f"{name}.json"
    results = (
        read_results(path)
        if path.exists()
        else {
            "setup": setup._asdict(),
            "truths": {},
            "choices": {},
        }
    )
    if results["setup"] != setup._asdict():
        raise ValueError(f"{path} was made with {results['setup']}, not {setup._asdict()}")
    reporter.start(name, "the truth: every head ablated by itself")
    before_all = time.perf_counter()
    model = aplens.load_model(setup.model, setup.kind)
    mae = aplens.APMAE.from_pretrained(setup.mae)
    task = load_task(
        name, model, n_truth=setup.n_truth, n_choice=setup.n_choice, n_seeds=setup.seeds
    )
    for ablation in TRUTHS:
        if ablation in results["truths"]:
            continue
        started = time.perf_counter()
        effects = measure_effects(
            model,
            task.truth,
            metric=task.metric,
            method=ablation,
            reference=task.usual if ablation == "mean" else None,
            progress=reporter.update,
        )
        results["truths"][ablation] = {
            "heads": [list(head) for head in effects.heads],
            "effects": effects.values.round(5).tolist(),
            "clean": effects.clean.tolist(),
            "metric": task.metric,
            "seconds": time.perf_counter() - started,
        }
        _write_results(path, results)
    for method, choose in METHODS.items():
        if "predictor" in method and task.fit is None:
            continue
        for seed, prompts in enumerate(task.choice):
            key = f"{method}|{seed}"
            if key in results["choices"]:
                continue
            started = time.perf_counter()
            choice = choose(Run(model, mae, task, prompts, seed, folder / name))
            results["choices"][key] = {
                "order": [list(head) for head in choice.order],
                "cost": choice.cost,
                "seconds": time.perf_counter() - started,
            }
            _write_results(path, results)
            reporter.say(f"{key} {time.perf_counter() - started:.0f} s")
    reporter.finish(name, time.perf_counter() - before_all, [path])


def read_results(path: Path) -> dict[str, Any]:
    """What `run_task` kept."""
    return json.loads(path.read_text(encoding="utf-8"))


def _write_results(path: Path, results: dict[str, Any]) -> None:
    write_text(path, json.dumps(results, indent=2) + "\n")


def read_choice(saved: dict[str, Any]) -> Choice:
    """One choice of these results."""
    return Choice(tuple(Head(*head) for head in saved["order"]), saved["cost"])


def tabulate(results: dict[str, Any], n_resamples: int = 1000) -> pd.DataFrame:
    """Recall of the heads that matter among the first of each method, as many and twice as many.

    One row a method and truth. Means over seeds; the 95 % interval resamples seeds and the truth's
    prompts together.
    """
    methods: dict[str, list[dict[str, Any]]] = {}
    for key, choice in results["choices"].items():
        methods.setdefault(key.rpartition("|")[0], []).append(choice)
    rows = []
    for ablation, truth in results["truths"].items():
        scored = _score(methods, truth, results["setup"]["n_matter"], n_resamples)
        rows += [{"truth": ablation, **row} for row in scored]
    return pd.DataFrame(rows)


def _score(
    methods: dict[str, list[dict[str, Any]]], truth: dict[str, Any], n: int, n_resamples: int
) -> Iterator[dict[str, Any]]:
    heads = tuple(Head(*head) for head in truth["heads"])
    effects = np.array(truth["effects"])
    rng = np.random.default_rng(0)
    n_prompts = effects.shape[1]
    draws = [np.arange(n_prompts), *rng.integers(0, n_prompts, (n_resamples, n_prompts))]
    truths = [_most_important(heads, effects[:, rows], n) for rows in draws]
    yield _split_half(heads, effects, n, rng)
    for method, choices in methods.items():
        orders = [read_choice(choice).order for choice in choices]
        row: dict[str, Any] = {"method": method, "cost": np.mean([c["cost"] for c in choices])}
        for column, budget in (("once", n), ("twice", 2 * n)):
            recall = np.array(
                [[len(matter & set(order[:budget])) / n for order in orders] for matter in truths]
            )
            # The same draws for every method, whatever the order they were run in.
            seeds = np.random.default_rng(budget).integers(
                0, len(orders), (n_resamples, len(orders))
            )
            resampled = np.take_along_axis(recall[1:], seeds, axis=1).mean(axis=1)
            low, high = np.quantile(resampled, [0.025, 0.975])
            row |= {column: recall[0].mean(), f"{column}_low": low, f"{column}_high": high}
        yield row


def _split_half(
    heads: tuple[Head, ...],
    effects: np.ndarray,
    n: int,
    rng: np.random.Generator,
    n_splits: int = 200,
) -> dict[str, Any]:
    """How well one half of the truth's prompts finds what the other half says: a ceiling."""
    half = effects.shape[1] // 2
    recalls: dict[str, list[float]] = {"once": [], "twice": []}
    for _ in range(n_splits):
        order = rng.permutation(effects.shape[1])
        matter = _most_important(heads, effects[:, order[:half]], n)
        found = by_score(heads, np.abs(effects[:, order[half:]].mean(axis=1)))
        recalls["once"].append(len(matter & set(found[:n])) / n)
        recalls["twice"].append(len(matter & set(found[: 2 * n])) / n)
    row: dict[str, Any] = {"method": "every head ablated (split half)"}
    row["cost"] = (len(heads) + 1) * half
    for column, values in recalls.items():
        low, high = np.quantile(values, [0.025, 0.975])
        row |= {column: np.mean(values), f"{column}_low": low, f"{column}_high": high}
    return row


def _most_important(heads: tuple[Head, ...], effects: np.ndarray, n: int) -> set[Head]:
    return set(by_score(heads, np.abs(effects.mean(axis=1)))[:n])


#: The rows of a printed table; the file of all figures has every method.
_ROWS = (
    "random",
    "detect_head: duplicate token",
    "AP-MAE: distance from prose",
    "AP-MAE: distance × output norm",
    "AP-MAE: predictor, clusters",
    "AP-MAE: predictor, surprise",
    "effects: estimated",
    f"every head ablated on {FEW_PROMPTS} prompts",
    "effects: first measured",
    "every head ablated (split half)",
)


def all_figures(folder: Path) -> pd.DataFrame:
    """What `tabulate` makes of every task in the folder, with the column `task`."""
    found = {name: folder / f"{name}.json" for name in TASKS}
    return pd.concat(
        {name: tabulate(read_results(path)) for name, path in found.items() if path.exists()},
        names=["task", None],
    ).reset_index("task")


def to_markdown(frame: pd.DataFrame, n: int) -> str:
    """The main rows of `tabulate`, both truths beside each other.

    "Effects" are with the ablation that the truth has.
    """
    frame = frame.copy()
    for truth, word in (("zero", "zeros"), ("mean", "means")):
        own = frame["truth"] == truth
        frame.loc[own, "method"] = frame.loc[own, "method"].str.replace(f", {word}:", ":")
    wide = frame.pivot(
        index=["method", "cost"], columns="truth", values=["once", "once_low", "once_high"]
    )
    wide.columns = [re.sub(r"^once(.*)", rf"{truth}\1", name) for name, truth in wide.columns]
    rows = wide.reset_index().set_index("method")
    rows = rows.loc[[name for name in _ROWS if name in rows.index]].reset_index()
    columns = {"method": "method", "cost": "prompts run"}
    columns |= {truth: f"{truth}: first {n}" for truth in TRUTHS if truth in rows}
    formats = dict.fromkeys(columns, ".2f") | {"cost": ",.0f"}
    return Table.from_frame(rows, columns, formats=formats).to_markdown()


def tables(folder: Path) -> str:
    """What the folder holds, a table a task."""
    text = ""
    for name in TASKS:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        results = read_results(path)
        text += f"\n## {name}\n\n"
        for ablation, truth in results["truths"].items():
            effects = np.array(truth["effects"]).mean(axis=1)
            order = np.argsort(-np.abs(effects))[:8]
            largest = ", ".join(
                f"{Head(*truth['heads'][index])} {effects[index]:+.2f}" for index in order
            )
            text += f"{truth['metric']} of the unchanged model {np.mean(truth['clean']):.2f}; "
            text += f"largest effects ({ablation}): {largest}\n\n"
        text += to_markdown(tabulate(results), results["setup"]["n_matter"]) + "\n"
    return text


def draw(folder: Path, path: Path) -> None:
    """Recall among each method's first heads, a panel a task, cheapest method on top."""
    results = {
        name: read_results(folder / f"{name}.json")
        for name in TASKS
        if (folder / f"{name}.json").exists()
    }
    tables = {name: tabulate(found) for name, found in results.items()}
    costs = pd.concat(tables.values()).groupby("method")["cost"].mean()
    methods = list(costs.sort_values(ascending=False).index)
    figure = new_figure(WIDTH + 2.5, 0.9 + 0.3 * len(methods))
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (task, table) in zip(panels, tables.items(), strict=True):
        for truth, marker, shift in (("zero", "o", 0.12), ("mean", "s", -0.12)):
            rows = table[table["truth"] == truth].set_index("method")
            for method, row in rows.iterrows():
                value = row["once"]
                bars = [[max(value - row["once_low"], 0)], [max(row["once_high"] - value, 0)]]
                color = CORRECT if "AP-MAE" in str(method) else GREY
                place = methods.index(method) + shift
                axes.errorbar(value, place, xerr=bars, fmt=marker, color=color, capsize=2)
        truth_of = next(iter(results[task]["truths"].values()))
        n = results[task]["setup"]["n_matter"]
        axes.axvline(n / len(truth_of["heads"]), color=INK, linewidth=1, linestyle=":")
        axes.set_title(task, fontsize=10)
        axes.set_xlim(-0.02, 1.02)
        tidy(axes, grid="x")
    panels[0].set_yticks(range(len(methods)), methods)
    figure.supxlabel(
        "share of the heads that matter among as many of the first (circles: zero ablation, "
        "squares: mean ablation; dotted: chance; blue: AP-MAE)",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
