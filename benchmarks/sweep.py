"""Ablation sweeps: the paper's loop against ours, on the same scenarios, settings and weights.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --kind bridge --tokens 64

The paper's loop takes one prompt and one setting at a time, runs the whole model and unembeds every
position. Ours is `aplens.sweep_ablations`. Heads come from a ranking drawn at random: time depends
on how many there are and where, not on what they do. The clean pass that picks the scenarios is in
both. Outcomes are compared one by one.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from common import describe_machine, print_table, real_scenarios, seconds_of

import aplens
from aplens.heads import HeadRanking, RankBy
from aplens.interventions import AblationSweep
from aplens.scenarios import Scenarios


def draw_ranking(model: Any, seed: int = 0) -> HeadRanking:
    info = aplens.models.describe_model(model)
    values = np.random.default_rng(seed).normal(size=(len(info.heads), 5))
    return HeadRanking.from_values(info.heads, values, info)


@torch.no_grad()
def paper_loop(model: Any, scenarios: Scenarios, sweep: AblationSweep) -> list[np.ndarray]:
    """Outcomes of every setting of a sweep, and before them those of the unchanged model."""

    def outcomes(heads: Any, swept: Scenarios) -> np.ndarray:
        correct = []
        for scenario in swept:
            with aplens.ablate_heads(model, heads):
                logits = model(torch.tensor([scenario.prompt]))
            correct.append(int(logits[0].argmax(dim=-1)[-1]) == scenario.target)
        return np.array(correct)

    chosen = scenarios.select(sweep.index)
    clean = outcomes([], scenarios)
    return [clean, *(outcomes(result.heads, chosen) for result in sweep.results)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="hooked,bridge")
    parser.add_argument("--scenarios", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50, 100])
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    for kind in options.kind.split(","):
        measure(kind, options)


def measure(kind: str, options: argparse.Namespace) -> None:
    model = aplens.load_model("smollm2-135m", kind)  # type: ignore[arg-type]
    scenarios = real_scenarios(model, options.scenarios, options.tokens)
    plan = aplens.SweepPlan(
        sizes=options.sizes,
        random_seeds=(0, 1),
        balance=False,
    )
    ranking = draw_ranking(model)
    ways: tuple[RankBy, ...] = ("toward_incorrect", "toward_correct")
    orders = {by: ranking.top(len(ranking), by=by) for by in ways}
    sweeps: dict[str, AblationSweep] = {}

    def run(name: str, **more: Any) -> None:
        sweeps[name] = aplens.sweep_ablations(
            model, scenarios, orders, plan, batch_size=options.batch_size, **more
        )

    run("warm-up")
    seconds = {
        "ours": seconds_of(lambda: run("ours")),
        "ours in bfloat16, checked": seconds_of(lambda: run("rounded", precision=torch.bfloat16)),
    }
    theirs: list[np.ndarray] = []
    seconds["the paper's loop"] = seconds_of(
        lambda: theirs.extend(paper_loop(model, scenarios, sweeps["ours"]))
    )
    n_settings = len(sweeps["ours"].results)
    total = (n_settings + 1) * len(scenarios)
    print(
        f"{kind}, {len(scenarios)} × {options.tokens} tokens, {n_settings} settings, "
        f"{describe_machine()}"
    )
    slowest = seconds["the paper's loop"]
    rows = [[name, f"{s / total:.3f}", f"{slowest / s:.2f}"] for name, s in seconds.items()]
    print_table(["way", "s a prompt and setting", "times the paper's loop"], rows)
    for name in ("ours", "rounded"):
        found = [sweeps[name].clean, *(result.correct for result in sweeps[name].results)]
        differ = sum(int((a != b).sum()) for a, b in zip(found, theirs, strict=True))
        print(f"{name}: {differ} of {total} outcomes differ from the paper's loop")


if __name__ == "__main__":
    main()
