"""Observations and scenarios whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from aplens.correctness import Observations
from aplens.heads import ModelShape, all_heads
from aplens.mae import APMAE, APMAEConfig
from aplens.scenarios import Scenario, Scenarios

#: Numbers a head of what `observe` keeps as "surprise".
_SURPRISE = {"surprise": 4, "unexpected": 6}


def make_observations(
    *,
    n=240,
    n_layers=2,
    n_heads=3,
    d_embed=12,
    per_file=3,
    planted=None,
    clumps=True,
    confidence=0.0,
    statistics=True,
    seed=0,
):
    """Random observations; `planted` names the one head whose pattern decides correctness.

    With `clumps`, every head has two clearly separate kinds of patterns, independent of all else
    except for the planted head, whose second kind means *incorrect* nine times out of ten.
    """
    rng = np.random.default_rng(seed)
    heads = all_heads(n_layers, n_heads)
    incorrect = rng.random(n) < 0.5
    kind = rng.random((n, len(heads))) < 0.5
    if planted is not None:
        kind[:, heads.index(planted)] = np.where(rng.random(n) < 0.9, incorrect, ~incorrect)
    embeddings = rng.normal(size=(n, len(heads), d_embed))
    if clumps:
        embeddings *= 0.05
        embeddings[..., 0] += np.where(kind, 1.0, 0.0)
        embeddings[..., 1] += np.where(kind, 0.0, 1.0)
    values = rng.normal(size=(n, len(heads), 8))
    values[..., 0] += kind
    sure = rng.random(n) * (1 - confidence) + confidence * ~incorrect
    table = pd.DataFrame(
        {
            "scenario": range(n),
            "task": np.where(rng.random(n) < 0.5, "identifiers", "eol"),
            "file": [f"File{i // per_file}.java" for i in range(n)],
            "line": rng.integers(1, 100, n),
            "target": 1,
            "predicted": np.where(incorrect, 2, 1),
            "correct": ~incorrect,
            "top_probability": sure,
            "entropy": 3 * (1 - sure) + 0.1 * rng.random(n),
            "target_log_probability": -rng.random(n),
            "logit_difference": np.where(incorrect, -1.0, 1.0) + 0.1 * rng.random(n),
        }
    )
    numbers = {"statistics": values}
    numbers |= {name: rng.normal(size=(n, len(heads), k)) for name, k in _SURPRISE.items()}
    return Observations(
        table,
        heads,
        embeddings.astype(np.float16),
        {name: of.astype(np.float32) for name, of in numbers.items()} if statistics else None,
        model=ModelShape("planted", n_layers, n_heads),
    )


def make_scenarios(n=10, *, n_tokens=20, seed=0, per_file=2):
    rng = np.random.default_rng(seed)
    return Scenarios(
        Scenario(
            task="identifiers" if i % 2 else "eol",
            language="java",
            file=f"a/File{i // per_file}.java",
            line=i + 1,
            span="x",
            prompt=tuple(rng.integers(0, 101, n_tokens).tolist()),
            target=int(rng.integers(0, 101)),
            style="left_to_right",
        )
        for i in range(n)
    )


def make_mae(seed=0, **changes):
    sizes = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("dim", 16), ("depth", 1), ("heads", 2), ("d_head", 8), ("d_mlp", 16))
    }
    return APMAE(APMAEConfig(**{"n_ctx": 32, "patch_size": 8} | sizes | changes), seed=seed).eval()


def are_answered(model, scenarios, scales=None, **options):
    """Whether the model, heads scaled, predicts each target."""
    from paper.trials import scaled_logits

    logits = scaled_logits(model, scenarios, scales, **options)
    return (logits.argmax(dim=-1) == scenarios.targets()).numpy()
