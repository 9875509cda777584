"""Does a map of heads find those that were trained? Fine-tune some layers, and look.

A model is trained for a few steps on the code of one Python package, all parameters frozen but
those of some layers' blocks. Then heads are listed by how far they moved, on other prompts, and the
list is judged by whether the free layers' heads come first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor

import aplens
from aplens.scenarios import open_corpus, prose_and_code

_CHARACTERS_A_TOKEN = 8  # at most, nearly always


@dataclass(frozen=True)
class ChangeSettings:
    """One trial: the layers whose blocks AdamW trains, and the installed package it trains on.

    Heads are compared on `prompts`. The learning rate is reached after a tenth of the steps.
    """

    layers: tuple[int, ...]
    package: str = "sympy"
    steps: int = 20
    batch_size: int = 2
    n_tokens: int = 64
    learning_rate: float = 1e-3
    prompts: int = 8
    seed: int = 0


def try_change(
    model: Any,
    mae: aplens.APMAE,
    settings: ChangeSettings,
    say: Callable[[str], object] = print,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Map a model's heads, train some layers in place, map again.

    Returns:
        The heads as `list_changes` has them, with `attention`, the mean total variation distance
        between a query's attention before and after, and `free`, whether their layer was trained;
        and how well each number finds the free layers' heads among those of the first free layer
        and after: one row a number, `auc` (0.5 is chance), `found`, which share of as many first
        heads as are free is free, and `chance`.
    """
    n_characters = _CHARACTERS_A_TOKEN * mae.config.n_ctx
    texts = prose_and_code(settings.prompts, n_characters, settings.seed)
    prompts = aplens.read_prompts(model, texts).first_tokens(mae.config.n_ctx)
    before = aplens.map_heads({"before": model}, prompts, mae=mae, seed=settings.seed)
    attention = _collect(model, prompts)
    losses = train_layers(model, settings)
    say(f"loss {np.mean(losses[:5]):.2f} at first, {np.mean(losses[-5:]):.2f} in the end (nats)")
    after = aplens.map_heads({"after": model}, prompts, mae=mae, seed=settings.seed)
    frame = list_changes(aplens.HeadMap.join([before, after]))
    frame["attention"] = pd.Series(
        _distances(attention, _collect(model, prompts)),
        index=[str(head) for head in before.models[0].heads],
    )
    frame["free"] = frame["layer"].isin(settings.layers)
    return frame, judge(frame)


def list_changes(heads: aplens.HeadMap) -> pd.DataFrame:
    """Heads by how far they moved between two checkpoints of one model, the farthest first.

    Args:
        heads: A map of both, the one before training first, made on two prompts or more.

    Returns:
        One row a head, its name as index: `layer`, `head`; `moved`, 1 - the similarity of the two,
        from 0 to 2; `between_halves`, how far either moves between the halves of the prompts, on
        average: what is no more than that may be chance.
    """
    table = heads.to_frame()
    one, other = (table[table["model"] == name] for name in heads.names)
    frame = one[["layer", "head"]].copy()
    before, after = heads.directions.chunk(2)
    frame["moved"] = (1 - (before * after).sum(-1)).numpy()
    frame["between_halves"] = (one["between_halves"] + other["between_halves"]) / 2
    return frame.sort_values("moved", ascending=False, kind="stable")


def judge(frame: pd.DataFrame) -> pd.DataFrame:
    """How well each number finds the heads of the free layers.

    Heads before the first of these layers are left out: nothing about them can change, so that any
    number would tell them from the others.
    """
    frame = frame[frame["layer"] >= frame["layer"][frame["free"]].min()]
    free = frame["free"].to_numpy()
    numbers = {
        "moved": frame["moved"],
        "moved, in distances between halves": frame["moved"] / frame["between_halves"],
        "attention changed": frame["attention"],
    }
    rows = []
    for name, values in numbers.items():
        first = np.argsort(-values.to_numpy(), kind="stable")[: free.sum()]
        rows.append((name, roc_auc_score(free, values), free[first].mean(), free.mean()))
    return pd.DataFrame(rows, columns=["number", "auc", "found", "chance"])


def train_layers(model: Any, settings: ChangeSettings) -> list[float]:
    """Train the blocks of some layers in place; all else is frozen, and set free again after.

    Returns:
        The loss at each step, in nats a token.

    Raises:
        ValueError: When a layer is not the model's, or the package has too little code.
    """
    free = _parameters_of(model, settings.layers)
    every = list(model.parameters())
    asked = [parameter.requires_grad for parameter in every]
    for parameter in every:
        parameter.requires_grad_(any(parameter is one for one in free))
    optimizer = torch.optim.AdamW(free, lr=settings.learning_rate)
    losses = []
    try:
        with torch.enable_grad():
            for step, tokens in enumerate(_batches(model, settings)):
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * min(1, 10 * (step + 1) / settings.steps)
                loss = model(tokens, return_type="loss")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    finally:
        for parameter, was in zip(every, asked, strict=True):
            parameter.requires_grad_(was)
            parameter.grad = None
    return losses


def _parameters_of(model: Any, layers: Sequence[int]) -> list[torch.nn.Parameter]:
    """The parameters of some layers' blocks, each once."""
    if not layers or not 0 <= min(layers) <= max(layers) < model.cfg.n_layers:
        raise ValueError(f"layers must be 0 to {model.cfg.n_layers - 1}, got {list(layers)}")
    found = [p for layer in layers for p in model.blocks[layer].parameters()]
    return list({id(parameter): parameter for parameter in found}.values())


def _batches(model: Any, settings: ChangeSettings) -> Iterator[Int[Tensor, "prompt pos"]]:
    """Passages of the package's files, in a random order, over and over."""
    spec = importlib.util.find_spec(settings.package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"there is no installed package {settings.package!r}")
    corpus = open_corpus(Path(spec.submodule_search_locations[0]), "python")
    n = settings.n_tokens
    rows: list[Tensor] = []
    for file in corpus.files(settings.seed):
        ids = aplens.read_prompts(model, file.text[: 4 * _CHARACTERS_A_TOKEN * n]).tokens[0]
        rows += list(ids[: len(ids) // n * n].view(-1, n))
        if len(rows) >= settings.steps * settings.batch_size:
            break
    else:
        raise ValueError(f"{settings.package} has only {len(rows)} passages of {n} tokens")
    order = np.random.default_rng(settings.seed).permutation(len(rows))
    for step in range(settings.steps):
        chosen = order[step * settings.batch_size : (step + 1) * settings.batch_size]
        yield torch.stack([rows[place] for place in chosen])


def _collect(model: Any, prompts: aplens.prompts.Prompts) -> list[Float[Tensor, "head query key"]]:
    """Every head's pattern on each prompt, in half precision."""
    return [
        aplens.collect_patterns(model, prompts[place : place + 1]).prompt(0).half()
        for place in range(len(prompts))
    ]


def _distances(
    before: Sequence[Float[Tensor, "head query key"]],
    after: Sequence[Float[Tensor, "head query key"]],
) -> Float[np.ndarray, " head"]:
    """The mean total variation distance between queries' attention, of each head."""
    changes = [
        (one.float() - other.float()).abs().sum(-1).mean(-1) / 2
        for one, other in zip(before, after, strict=True)
    ]
    return torch.stack(changes).mean(0).numpy()
