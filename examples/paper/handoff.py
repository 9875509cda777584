"""Is handing a ranking's heads to patching worth it? Recall of the heads that matter, against cost.

The truth: every head is switched off by itself on some prompts, and the heads with the largest mean
effect on the metric are those that matter. Each method then ranks all heads from other prompts of
the task, drawn anew for every seed, and is scored by how many of the heads that matter are among
its first. Its cost is counted in prompts run forward; a backward pass counts as two.

What is finished is kept in the folder, and the same command goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import aplens
from aplens.heads import Head
from aplens.interventions import HeadEffects, estimate_effects, measure_effects
from aplens.models import describe_model
from aplens.patterns import DETECTED, stream_patterns, template_scores
from aplens.scenarios import Scenarios
from aplens.scoring import (
    HeadClusters,
    HeadScorer,
    pattern_distances,
    score_heads,
    split_by_file,
)
from aplens.study import Reporter
from aplens.style import CORRECT, GREY, INK, WIDTH, new_figure, tidy
from aplens.tables import Table
from paper.files import write_text
from paper.handoff_tasks import TASKS, Task, load_task

N_HEADS, N_HEADS_THAT_MATTER = 270, 20
BUDGETS = (10, 20, 40, 80)

#: Prompts of the cheap measurements, and heads that a shortlist hands to them.
FEW_PROMPTS = 4
SHORTLIST = 60


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
    before: dict[str, Choice]  # of the methods run before, on the same prompts

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every head of the model."""
        return describe_model(self.model).heads


# --- the methods ---------------------------------------------------------------------------------


def by_score(heads: tuple[Head, ...], scores: np.ndarray) -> tuple[Head, ...]:
    """Highest first; among equals the order of the layers. NaN last."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return tuple(heads[index] for index in order)


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


def unsupervised(column: str) -> Callable[[Run], Choice]:
    """By a column of `score_heads`."""

    def choose(run: Run) -> Choice:
        frame = score_heads(run.model, run.prompts, mae=run.mae)
        return Choice(by_score(run.heads, frame[column].to_numpy()), len(run.prompts))

    return choose


def choose_by_distance(run: Run) -> Choice:
    """By how far patterns are from those on prose."""
    scores = pattern_distances(run.model, run.prompts, run.task.reference, mae=run.mae)
    order = by_score(run.heads, np.array([scores[head] for head in run.heads]))
    return Choice(order, len(run.prompts) + len(run.task.reference))


def choose_by_attribution(run: Run) -> Choice:
    """By the gradient's estimate of every ablation."""
    effects = estimate_effects(run.model, run.prompts, metric=run.task.metric)
    return Choice(_by_effect(effects), 3 * len(run.prompts))


def choose_by_few_ablations(run: Run) -> Choice:
    """By every head's ablation on a few prompts."""
    few = run.prompts[:FEW_PROMPTS]
    effects = measure_effects(run.model, few, metric=run.task.metric)
    return Choice(_by_effect(effects), effects.n_forward_passes * len(few))


def shortlisted(first: str) -> Callable[[Run], Choice]:
    """The best heads of a cheap method, ordered by ablating them on a few prompts."""

    def choose(run: Run) -> Choice:
        cheap, few = run.before[first], run.prompts[:FEW_PROMPTS]
        short = cheap.order[:SHORTLIST]
        effects = measure_effects(run.model, few, short, metric=run.task.metric)
        cost = cheap.cost + effects.n_forward_passes * len(few)
        return Choice(_by_effect(effects) + cheap.order[SHORTLIST:], cost)

    return choose


def choose_by_predictor(features: str) -> Callable[[Run], Choice]:
    """The paper's way; the scenarios are the same for every seed, their split is not."""

    def choose(run: Run) -> Choice:
        assert run.task.fit is not None
        # PCA before clustering, not the paper's UMAP, which would take minutes a seed.
        scorer = HeadScorer(run.mae, features=features, clusters=HeadClusters("pca"), seed=run.seed)
        observed = scorer.observe(run.model, run.task.fit, run.folder / "observations")
        fit, held_out = split_by_file(observed, 0.4, run.seed)
        return Choice(tuple(scorer.fit(fit).rank(held_out)), len(run.task.fit))

    return choose


def _by_effect(effects: HeadEffects) -> tuple[Head, ...]:
    return by_score(effects.heads, np.abs(effects.values.mean(axis=1)))


METHODS: dict[str, Callable[[Run], Choice]] = {
    "random": choose_random,
    **{f"detect_head: {kind.replace('_', ' ')}": detect(kind) for kind in DETECTED},
    "AP-MAE: reconstruction error": unsupervised("error"),
    "AP-MAE: variation": unsupervised("variation"),
    "AP-MAE: distance from prose": choose_by_distance,
    "AP-MAE: predictor, clusters": choose_by_predictor("clusters"),
    "AP-MAE: predictor, embeddings": choose_by_predictor("embeddings"),
    "attribution": choose_by_attribution,
    f"AP-MAE: distance, then {FEW_PROMPTS} ablated": shortlisted("AP-MAE: distance from prose"),
    f"attribution, then {FEW_PROMPTS} ablated": shortlisted("attribution"),
    f"ablation on {FEW_PROMPTS} prompts": choose_by_few_ablations,
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


def run_task(name: str, folder: Path, setup: Setup, reporter: Reporter) -> None:
    """Measure the truth and run every method; what the folder holds is not done again.

    Raises:
        ValueError: When it holds results of another set-up.
    """
    path = folder / f"{name}.json"
    results = read_results(path) if path.exists() else {"setup": setup._asdict(), "choices": {}}
    if results["setup"] != setup._asdict():
        raise ValueError(f"{path} was made with {results['setup']}, not {setup._asdict()}")
    reporter.start(name, "the truth: every head ablated by itself")
    before_all = time.perf_counter()
    model = aplens.load_model(setup.model, setup.kind)
    mae = aplens.APMAE.from_pretrained(setup.mae)
    task = load_task(
        name, model, n_truth=setup.n_truth, n_choice=setup.n_choice, n_seeds=setup.seeds
    )
    if "truth" not in results:
        started = time.perf_counter()
        effects = measure_effects(model, task.truth, metric=task.metric, progress=reporter.update)
        results["truth"] = {
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
            before = {
                other: read_choice(results["choices"][f"{other}|{seed}"])
                for other in METHODS
                if f"{other}|{seed}" in results["choices"]
            }
            choice = choose(Run(model, mae, task, prompts, seed, folder / name, before))
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
    """Recall of the heads that matter among the first 10, 20, 40, 80 of each method.

    Means over seeds; the 95 % interval resamples seeds and the truth's prompts together.
    """
    heads = [Head(*head) for head in results["truth"]["heads"]]
    effects = np.array(results["truth"]["effects"])
    rng = np.random.default_rng(0)
    n_prompts = effects.shape[1]
    draws = [np.arange(n_prompts), *rng.integers(0, n_prompts, (n_resamples, n_prompts))]
    truths = [_most_important(heads, effects[:, rows]) for rows in draws]
    methods: dict[str, list[dict[str, Any]]] = {}
    for key, choice in results["choices"].items():
        methods.setdefault(key.rpartition("|")[0], []).append(choice)
    rows = [_split_half(heads, effects, rng)]
    for method, choices in methods.items():
        orders = [read_choice(choice).order for choice in choices]
        row: dict[str, Any] = {"method": method, "cost": np.mean([c["cost"] for c in choices])}
        for budget in BUDGETS:
            recall = np.array(
                [[len(truth & set(order[:budget])) / len(truth) for order in orders]
                 for truth in truths]
            )  # fmt: skip
            # The same draws for every method, whatever the order they were run in.
            seeds = np.random.default_rng(budget).integers(
                0, len(orders), (n_resamples, len(orders))
            )
            resampled = np.take_along_axis(recall[1:], seeds, axis=1).mean(axis=1)
            low, high = np.quantile(resampled, [0.025, 0.975])
            row |= {f"at_{budget}": recall[0].mean(), f"low_{budget}": low, f"high_{budget}": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _split_half(
    heads: list[Head], effects: np.ndarray, rng: np.random.Generator, n_splits: int = 200
) -> dict[str, Any]:
    """How well one half of the truth's prompts finds what the other half says: a ceiling."""
    half = effects.shape[1] // 2
    recalls: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for _ in range(n_splits):
        order = rng.permutation(effects.shape[1])
        truth = _most_important(heads, effects[:, order[:half]])
        found = by_score(tuple(heads), np.abs(effects[:, order[half:]].mean(axis=1)))
        for budget, values in recalls.items():
            values.append(len(truth & set(found[:budget])) / len(truth))
    row: dict[str, Any] = {"method": "every head ablated (split half)"}
    row["cost"] = (len(heads) + 1) * half
    for budget, values in recalls.items():
        low, high = np.quantile(values, [0.025, 0.975])
        row |= {f"at_{budget}": np.mean(values), f"low_{budget}": low, f"high_{budget}": high}
    return row


def _most_important(heads: list[Head], effects: np.ndarray) -> set[Head]:
    return set(by_score(tuple(heads), np.abs(effects.mean(axis=1)))[:N_HEADS_THAT_MATTER])


def to_markdown(frame: pd.DataFrame) -> str:
    """The table of `tabulate`, cheapest method first."""
    ends = {
        f"{kind}_{budget}": f"at_{budget}_{kind}" for budget in BUDGETS for kind in ("low", "high")
    }
    ordered = frame.sort_values("cost", kind="stable").rename(columns=ends)
    columns = {"method": "method", "cost": "prompts run"}
    columns |= {f"at_{budget}": f"first {budget}" for budget in BUDGETS}
    formats = dict.fromkeys(columns, ".2f") | {"cost": ",.0f"}
    return Table.from_frame(ordered, columns, formats=formats).to_markdown()


def tables(folder: Path) -> str:
    """What the folder holds, a table a task."""
    text = ""
    for name in TASKS:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        results = read_results(path)
        truth = results["truth"]
        effects = np.array(truth["effects"]).mean(axis=1)
        order = np.argsort(-np.abs(effects))[:8]
        largest = ", ".join(
            f"{Head(*truth['heads'][index])} {effects[index]:+.2f}" for index in order
        )
        text += f"\n## {name}\n\n{truth['metric']} of the unchanged model "
        text += f"{np.mean(truth['clean']):.2f}; largest effects: {largest}\n\n"
        text += to_markdown(tabulate(results)) + "\n"
    return text


def draw(folder: Path, path: Path, budget: int = 20) -> None:
    """Recall among each method's first heads, a panel a task, cheapest method on top."""
    tables = {
        name: tabulate(read_results(folder / f"{name}.json")).set_index("method")
        for name in TASKS
        if (folder / f"{name}.json").exists()
    }
    methods = list(dict.fromkeys(name for table in tables.values() for name in table.index))
    costs = pd.concat([table["cost"] for table in tables.values()]).groupby(level=0).mean()
    methods.sort(key=lambda name: -costs[name])
    figure = new_figure(WIDTH + 2.5, 0.9 + 0.3 * len(methods))
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (task, table) in zip(panels, tables.items(), strict=True):
        for place, method in enumerate(methods):
            if method not in table.index:
                continue
            row = table.loc[method]
            value = row[f"at_{budget}"]
            bars = [[max(value - row[f"low_{budget}"], 0)], [max(row[f"high_{budget}"] - value, 0)]]
            color = CORRECT if "AP-MAE" in method else GREY
            axes.errorbar(value, place, xerr=bars, fmt="o", color=color, capsize=3)
        axes.axvline(budget / N_HEADS, color=INK, linewidth=1, linestyle=":")
        axes.set_title(task, fontsize=10)
        axes.set_xlim(-0.02, 1.02)
        tidy(axes, grid="x")
    panels[0].set_yticks(range(len(methods)), methods)
    figure.supxlabel(
        f"share of the {N_HEADS_THAT_MATTER} heads that matter among the first {budget} "
        "(dotted: chance; blue: AP-MAE)",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
