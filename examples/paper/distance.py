"""How far heads' patterns on some prompts are from their usual ones, and how much heads write.

Neither needs an answer, and neither finds the heads that matter (docs/results/handoff.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from aplens.heads import Head
from aplens.mae import APMAE
from aplens.models import attach_hooks, describe_model, run_until, z_hook_name
from aplens.patterns import AttentionPatterns, stream_patterns
from aplens.prompts import Prompts, PromptsLike, read_prompts

#: How many of the nearest reference embeddings count.
_N_NEIGHBORS = 5

#: Unit vectors that are nearer by cosine are the same but for rounding.
_ALIKE = 1e-6


def pattern_distances(
    model: Any,
    prompts: PromptsLike,
    reference: PromptsLike,
    *,
    mae: APMAE,
    batch_size: int = 8,
) -> dict[Head, float]:
    """How far each head's patterns on these prompts are from those on reference prompts.

    A pattern's distance is the mean cosine distance of its embedding to the five nearest reference
    embeddings of the same head. It is divided by the mean distance of that head's reference
    patterns from each other, each measured in the same way with itself left out. So 1 is as usual,
    and 3 is three times as far as usual; the result is the mean over prompts. One prompt is enough.

    An embedding depends on the prompt's length. Patterns are therefore compared at the prompt's own
    length, with the first tokens of all reference prompts that are long enough: no token of a
    causal model sees later ones. Each prompt is run once; the reference is encoded again for every
    length among the prompts. Memory holds embeddings, and the patterns of one batch.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: What is looked at, in any form that `read_prompts` takes.
        reference: What is usual: other prompts, such as ordinary text, a few dozen or more.
        mae: The AP-MAE that encodes patterns.
        batch_size: Prompts a forward pass.

    Returns:
        The distance of each head of the model.

    Raises:
        ValueError: When there are fewer than 6 reference prompts as long as the longest prompt, or
            prompts are longer than the AP-MAE takes.
    """
    asked, usual = read_prompts(model, prompts), read_prompts(model, reference)
    _check(asked, usual, mae)
    beginnings = usual.first_tokens(asked.n_tokens)

    streamed = stream_patterns(model, asked, batch_size=batch_size)
    ours = torch.cat([_embed(mae, patterns) for _, patterns, _ in streamed])
    theirs: dict[int, list[Tensor]] = {length: [] for length in asked.lengths.unique().tolist()}
    for _, patterns, _ in stream_patterns(model, beginnings, batch_size=batch_size):
        for length, embeddings in theirs.items():
            long = patterns.lengths >= length
            if long.any():
                embeddings.append(_embed(mae, patterns.select(long).crop(length)))

    heads = describe_model(model).heads
    total = torch.zeros(len(heads), dtype=torch.float64)
    for length, embeddings in theirs.items():
        here = ours[(asked.lengths == length).to(ours.device)].transpose(0, 1)
        others = torch.cat(embeddings).transpose(0, 1)
        far = _nearest_distances(here, others)
        usually = _nearest_distances(others, others, leave_out_self=True).mean(dim=1)
        ratios = far.clamp(min=_ALIKE) / usually.clamp(min=_ALIKE)[:, None]
        total += ratios.sum(dim=1).double().cpu()
    return dict(zip(heads, (total / len(asked)).tolist(), strict=True))


def output_norms(model: Any, prompts: PromptsLike, *, batch_size: int = 8) -> dict[Head, float]:
    """How much each head writes at the last position of a prompt: the mean norm of z @ W_O.

    One pass over the prompts. In families that normalize heads' outputs before they are added
    (Gemma, OLMo 2), the norm is that before it.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: In any form that `read_prompts` takes.
        batch_size: Prompts a forward pass.

    Returns:
        The norm of each head of the model.
    """
    heads = describe_model(model).heads
    read = read_prompts(model, prompts)
    totals: dict[Head, float] = dict.fromkeys(heads, 0.0)
    by_layer = {head.layer: [h for h in heads if h.layer == head.layer] for head in heads}
    last = read.lengths[:0]

    def adding(members: list[Head]) -> Callable[..., None]:
        def add(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> None:
            at_last = z[torch.arange(len(z), device=z.device), last.to(z.device)]
            for head in members:
                weight = model.blocks[head.layer].attn.W_O[head.head].detach()
                norms = (at_last[:, head.head] @ weight.to(at_last)).float().norm(dim=-1)
                totals[head] += float(norms.sum())

        return add

    hooks = [(z_hook_name(layer), adding(members)) for layer, members in by_layer.items()]
    with torch.no_grad(), attach_hooks(model, hooks):
        for batch in read.split(batch_size):
            last = batch.lengths - 1
            run_until(model, batch.tokens, max(by_layer))
    return {head: total / len(read) for head, total in totals.items()}


def _check(prompts: Prompts, reference: Prompts, mae: APMAE) -> None:
    mae.grid.n_rows_for(prompts.n_tokens)  # refuses prompts that are too long for it
    n_long = int((reference.lengths >= prompts.n_tokens).sum())
    if n_long <= _N_NEIGHBORS:
        raise ValueError(
            f"comparing needs at least {_N_NEIGHBORS + 1} reference prompts as long as the longest "
            f"prompt, {prompts.n_tokens} tokens: {n_long} of {len(reference)} are"
        )


def _embed(mae: APMAE, patterns: AttentionPatterns) -> Float[Tensor, "prompt head d_embed"]:
    """Embeddings scaled to length 1, since they are compared by direction; zeros stay."""
    return torch.nn.functional.normalize(mae.encode(patterns), dim=-1)


def _nearest_distances(
    rows: Float[Tensor, "head row d_embed"],
    others: Float[Tensor, "head other d_embed"],
    *,
    leave_out_self: bool = False,
) -> Float[Tensor, "head row"]:
    """Mean cosine distance of unit vectors to the nearest of others; a row may be among these."""
    distances = (1 - rows @ others.transpose(1, 2)).clamp(min=0)
    if leave_out_self:
        distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return distances.topk(_N_NEIGHBORS, dim=-1, largest=False).values.mean(dim=-1)
