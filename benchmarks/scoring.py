"""Predicting and explaining, by surprise and by clusters: seconds, by scenarios and heads.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --reducer umap --scenarios 250 1000 --heads 72

"default" fits the default features, surprise with confidence, and attributes them to heads; what
the paper does is the three steps after it. Embeddings are drawn at random, two clumps a head, one
of them in one head telling of errors: time depends on how many there are, not on what model they
are of. They are made when they are read, head by head, as those in shards are, so that memory is
measured too.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import numpy as np
import pandas as pd
from common import print_table, seconds_of

from aplens.correctness import CorrectnessPredictor, HeadClusters, Observations, attribute_heads
from aplens.correctness.evaluation import score_table
from aplens.correctness.head_array import HeadArray
from aplens.heads import ModelShape, all_heads

WIDTH = 384
STEPS = ("default", "cluster", "fit on clusters", "SHAP", "intervals")


def make_observations(n: int, n_heads: int) -> Observations:
    rng = np.random.default_rng(0)
    incorrect = rng.random(n) < 0.5

    def read_head(head: int) -> np.ndarray:
        own = np.random.default_rng(head + 1)
        clump = own.random(n) < np.where(incorrect if head == 0 else 0.5, 0.8, 0.2)
        rows = own.normal(size=(n, WIDTH), scale=0.05).astype(np.float16)
        rows[np.arange(n), clump.astype(int)] += 1
        return rows

    layers = max(1, n_heads // 50)
    heads = all_heads(layers, -(-n_heads // layers))[:n_heads]
    sure = rng.random(n)
    table = pd.DataFrame(
        {
            "scenario": range(n),
            "task": "identifiers",
            "file": [f"{i // 3}.java" for i in range(n)],
            "line": 1,
            "target": 1,
            "predicted": np.where(incorrect, 2, 1),
            "correct": ~incorrect,
            "top_probability": sure,
            "entropy": 3 * (1 - sure),
            "target_log_probability": -sure,
            "logit_difference": 0.0,
        }
    )
    return Observations(
        table,
        heads,
        HeadArray((n, n_heads, WIDTH), np.float16, read_head),
        {
            name: rng.normal(size=(n, n_heads, width)).astype(np.float32)
            for name, width in (("surprise", 4), ("unexpected", 6))
        },
        model=ModelShape("drawn", layers, -(-n_heads // layers)),
    )


def measure(n: int, n_heads: int, reducer: str) -> list[float]:
    observations = make_observations(n, n_heads)
    clusters = HeadClusters(reducer)  # type: ignore[arg-type]
    on_clusters = CorrectnessPredictor("clusters", clusters=clusters)
    default = CorrectnessPredictor()
    scores = {"random": np.random.default_rng(0).random(n)}
    together = seconds_of(lambda: on_clusters.fit(observations))
    alone = seconds_of(lambda: clusters.fit(observations.embeddings))
    return [
        seconds_of(lambda: attribute_heads(default.fit(observations), observations)),
        alone,
        max(0.0, together - alone),
        seconds_of(lambda: attribute_heads(on_clusters, observations)),
        seconds_of(lambda: score_table(observations, scores)),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=int, nargs="+", default=[250, 1000, 4000, 10000])
    parser.add_argument("--heads", type=int, nargs="+", default=[72, 270, 2000])
    parser.add_argument("--reducer", default="pca")
    parser.add_argument("--alone", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print("measured", *measure(*options.alone, options.reducer))
        return
    pairs = [(n, options.heads[0]) for n in options.scenarios]
    pairs += [(options.scenarios[0], heads) for heads in options.heads[1:]]
    rows = []
    for n, heads in pairs:  # each in a process of its own, so that peaks do not hide each other
        command = [sys.executable, __file__, "--reducer", options.reducer]
        command += ["--alone", str(n), str(heads)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        line = next(x for x in result.stdout.splitlines() if x.startswith("measured"))
        values = [float(value) for value in line.split()[1:]]
        rows.append([n, heads, *(f"{value:.1f}" for value in values[:-1]), f"{values[-1]:.0f}"])
    print(f"seconds, {options.reducer}")
    print_table(["scenarios", "heads", *STEPS, "peak MB"], rows)


if __name__ == "__main__":
    main()
