"""Activation patching of chosen heads."""

from __future__ import annotations

from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from aplens._documents import require_choice
from aplens._progress import Progress, show_progress
from aplens._tokens import label_tokens
from aplens.circuits.metrics import CountedMetric, Metric
from aplens.circuits.runs import (
    CorruptedRun,
    HeadActivation,
    hook_name,
    patch_heads,
    read_pair,
    require_evaluation_mode,
    require_query_heads,
    run_with_cache,
)
from aplens.circuits.table import PatchingTable, make_table
from aplens.heads import HeadsLike
from aplens.models import require_acting
from aplens.patterns.collect import select_heads
from aplens.prompts import PromptsLike


@torch.no_grad()
def activation_patch(
    model: Any,
    clean: PromptsLike,
    corrupted: PromptsLike,
    heads: HeadsLike,
    *,
    metric: Metric,
    activation: HeadActivation = "z",
    by_position: bool = False,
    progress: bool | Progress = True,
) -> PatchingTable:
    """Put each chosen head's activation from the clean run into the corrupted run, one at a time.

    The heads go to `transformer_lens.patching.generic_activation_patch`. Each patch costs one
    forward pass of the whole batch, besides two for the clean and the corrupted run: all 270 heads
    of SmolLM2 cost 272, by position times the prompts' tokens. A patched pass begins at the head's
    layer.

    Args:
        model: A HookedTransformer or TransformerBridge.
        clean: Prompts on which the model does the task: anything `read_prompts` takes.
        corrupted: The same number of prompts, each as long as its clean one.
        heads: The heads: anything `parse_heads` takes, a `HeadRanking` among it.
        metric: From logits of the whole batch to a scalar, such as `logit_difference(scenarios)`.
            Prompts that differ in length are padded on the right.
        activation: What is patched: `z` (a head's output before the output projection), `q`, `k`,
            `v` or `pattern` (attention probabilities).
        by_position: Patch one position at a time (of a pattern: one query) instead of all at once.
        progress: A bar (the default), nothing (False), or a function called with (runs done, runs
            in all).

    Raises:
        ValueError: When a head is out of range, the prompts differ in shape, `activation` is
            unknown, `k` or `v` is asked for where query heads share keys and values, the metric is
            not a finite scalar, or a bridge is in training mode.
        UnsupportedModelError: When the model does not take up what a hook returns for
            `activation`, as the bridges of OPT, GPT-J, GPT-Neo, XGLM, Llama 4 and Gemma 4 do
            with patterns.

    Warns:
        UserWarning: When clean and corrupted give the same metric, so that no share is defined; and
            once for a model whose layers need more of earlier ones than the residual stream: every
            pass then runs all of it.
    """
    import pandas as pd

    require_choice("activation", activation, get_args(HeadActivation))
    require_evaluation_mode(model)
    chosen = select_heads(model, heads)
    clean_tokens, corrupted_tokens = read_pair(model, clean, corrupted)
    positions = list(range(clean_tokens.shape[1]))
    rows = [(head, at) for head in chosen for at in (positions if by_position else [None])]
    if activation != "z":
        require_acting(model, activation, {head.layer for head in chosen})
    measured = CountedMetric(
        metric, total=len(rows) + 2, tell=show_progress(progress, "Patching activations")
    )

    names = {hook_name(activation, head.layer) for head in chosen}
    clean_logits, cache = run_with_cache(model, clean_tokens, names)
    require_query_heads(model, cache)
    clean_value = float(measured(clean_logits))
    run = CorruptedRun(model, corrupted_tokens, {head.layer for head in chosen})
    corrupted_value = float(measured(run.logits))
    values = patch_heads(run, cache, measured, activation, rows)

    frame = pd.DataFrame(
        {
            "name": [str(head) for head, _ in rows],
            "layer": [head.layer for head, _ in rows],
            "head": [head.head for head, _ in rows],
            "activation": activation,
        }
        | (_position_columns(model, clean_tokens, positions * len(chosen)) if by_position else {})
    )
    return make_table(frame, values, clean_value, corrupted_value)


def _position_columns(
    model: Any, clean: Int[Tensor, "batch pos"], positions: list[int]
) -> dict[str, list[Any]]:
    """Each row's position and its token, the first clean prompt's, marked if others differ."""
    texts = label_tokens(model, clean[0].tolist())
    same = (clean == clean[0]).all(0).tolist()
    tokens = [text if is_same else f"{text}, …" for text, is_same in zip(texts, same, strict=True)]
    return {"position": positions, "token": [tokens[position] for position in positions]}
