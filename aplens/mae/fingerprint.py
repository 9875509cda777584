"""Fitting a fingerprint: the linear map of embeddings under which heads are told apart best.

Most of what varies in embeddings is the prompt, not the head. Whitening them by how much the same
head varies over prompts makes every such direction count alike; then those are kept along which
heads differ most (linear discriminant analysis, a class a head), each weighted by how much of what
varies along it is the head's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from aplens.mae.model import APMAE, FINGERPRINT_POOL, make_fingerprint_layer
from aplens.patterns import stream_patterns
from aplens.prompts import read_prompts

if TYPE_CHECKING:
    from aplens.prompts import PromptsLike

#: Numbers in a fingerprint, unless told otherwise.
FINGERPRINT_DIM = 64

#: How much of the mean variance is added to that of every direction before it is whitened.
SHRINKAGE = 0.01

#: The same head is to be alike on these shares of a prompt as well: a crop is another prompt.
_SHARES = (1.0, 0.75, 0.5)


def fit_fingerprint(
    mae: APMAE,
    model: Any,
    prompts: PromptsLike,
    *,
    dim: int | None = None,
    batch_size: int = 4,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Give an AP-MAE a fingerprint, or another one, in place; its other weights stay as they are.

    Prompts of the kinds that heads will be compared on are best, such as code and prose: the
    fingerprint then learns to look past that difference. A few dozen are enough. Every prompt also
    counts cut to three quarters and to half of its tokens.

    Args:
        mae: The AP-MAE; `APMAE.save_pretrained` keeps the fingerprint.
        model: A HookedTransformer or TransformerBridge.
        prompts: In any form that `read_prompts` takes, of up to the AP-MAE's context.
        dim: Numbers in a fingerprint (default: as configured, or 64 where none are). Those beyond
            the numbers in an embedding, three times `encoder_dim`, are 0.
        batch_size: Prompts a forward pass.
        progress: Called with (prompts done, prompts in all).

    Raises:
        ValueError: When prompts are empty, too long or not the model's, or `dim` is not positive.
    """
    read = read_prompts(model, prompts)
    dim = mae.config.fingerprint_dim or FINGERPRINT_DIM if dim is None else dim
    if dim < 1:
        raise ValueError(f"dim must be 1 or more, got {dim}")
    mae.grid.n_rows_for(read.n_tokens)  # refuses prompts that are too long for it
    embeddings = []
    for rows, patterns, _ in stream_patterns(model, read, batch_size=batch_size):
        for place in range(len(patterns)):
            attention = patterns.prompt(place)
            for share in _SHARES:
                n = max(1, round(share * attention.shape[-1]))
                embeddings.append(mae.encode(attention[:, :n, :n], pool=FINGERPRINT_POOL).cpu())
        if progress is not None:
            progress(rows.stop, len(read))
    if mae.to_fingerprint is None or dim != mae.config.fingerprint_dim:
        mae.config = replace(mae.config, fingerprint_dim=dim)
        layer = make_fingerprint_layer(mae.config)
        assert layer is not None  # of one number or more
        mae.to_fingerprint = layer.to(mae.device)
    weight, bias = linear_metric(torch.stack(embeddings), dim)
    with torch.no_grad():
        mae.to_fingerprint.weight.copy_(weight)  # in place: an optimizer may hold it
        mae.to_fingerprint.bias.copy_(bias)


def linear_metric(
    embeddings: Float[Tensor, "sample head d_embed"], dim: int
) -> tuple[Float[Tensor, "dim d_embed"], Float[Tensor, " dim"]]:
    """Fit the map under which the same head is alike over samples, and heads differ most.

    Args:
        embeddings: Of the heads of a model, on the same prompts for all of them.
        dim: Directions to keep; rows beyond `d_embed` are 0.

    Returns:
        Weight and bias: `embedding @ weight.T + bias`, centred on the mean over heads. Scaled so
        that the mean squared length of a head's mean is 1.
    """
    mean = embeddings.double().mean(0)
    within = (embeddings.double() - mean).flatten(0, 1) / len(embeddings) ** 0.5
    covariance = within.T @ within / len(mean)
    covariance += SHRINKAGE * covariance.trace() / len(covariance) * torch.eye(len(covariance))
    variances, axes = torch.linalg.eigh(covariance)
    whiten = axes / variances.sqrt()
    heads = (mean - mean.mean(0)) @ whiten
    between, directions = torch.linalg.eigh(heads.T @ heads / len(mean))
    best = between.argsort(descending=True)[:dim]
    between = between[best].clamp(min=0)
    share = between / (between + 1)  # of the variance along a direction; within heads it is 1
    weight = (whiten @ directions[:, best] * share.sqrt()).T / (between * share).sum().sqrt()
    weight = F.pad(weight, (0, 0, 0, dim - len(weight)))
    bias = -weight @ mean.mean(0)
    return weight.float(), bias.float()
