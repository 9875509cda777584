"""The error on hidden patches: of an AP-MAE, and beside it of predictors that need no training.

What a partial last patch holds beyond the prompt is padding, no part of the pattern, and counts for
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from aplens.intervals import FileBootstrap
from aplens.mae.additive import additive_fit
from aplens.mae.low_rank import low_rank_fit
from aplens.mae.masking import random_masks
from aplens.mae.rounds import seeded
from aplens.patterns import PatchGrid, log_normalize, stream_patterns

if TYPE_CHECKING:
    import pandas as pd

    from aplens.mae.model import APMAE
    from aplens.scenarios import Scenarios

#: What `compare_reconstruction` shows beside the AP-MAE.
BASELINES = ("mean patch", "head's mean", "additive fit", "low-rank fit")

_PROMPTS_AT_ONCE = 4  # 270 heads on 256 tokens take 71 MB a prompt
_MASKS = 2  # what the seed is used for, as in `examples/paper`, whose masks these are


def squared_errors(
    predicted: Float[Tensor, "pattern patch pixel"],
    patches: Float[Tensor, "pattern patch pixel"],
    inside: Float[Tensor, "patch pixel"],
) -> Float[Tensor, "pattern patch pixel"]:
    """The squared error of every value, 0 in the padding (`PatchGrid.inside`)."""
    return (predicted - patches).square() * inside


def hidden_errors(
    predicted: Float[Tensor, "pattern patch pixel"],
    patches: Float[Tensor, "pattern patch pixel"],
    mask: Bool[Tensor, "pattern patch"],
    inside: Float[Tensor, "patch pixel"],
) -> Float[Tensor, " pattern"]:
    """Each pattern's mean squared error over its hidden patches, in log-normalized units.

    Args:
        predicted: What fills the patches in.
        patches: Log-normalized lower-triangular patches.
        mask: True where a patch is hidden.
        inside: 1 inside the prompt, 0 in the padding of the last patches (`PatchGrid.inside`).
    """
    squared = squared_errors(predicted, patches, inside).sum(-1)
    return (squared * mask).sum(1) / (inside.sum(-1) * mask).sum(1)


@torch.no_grad()
def compare_reconstruction(
    model: Any, mae: APMAE, reference: Scenarios, held_out: Scenarios, seed: int = 0
) -> pd.DataFrame:
    """Mean squared error on hidden patches, of an AP-MAE and of `BASELINES`, on the same masks.

    The mean patch of every position and the mean pattern of that very head come from `reference`;
    the fits see the visible patches of each pattern alone.

    Args:
        model: The hooked model.
        mae: The AP-MAE.
        reference: Prompts that the means are taken from.
        held_out: Prompts, of as many tokens, whose patterns are filled in; from other files than
            the reference.
        seed: Of the masks.

    Returns:
        Columns `predictor`, `error`, `low`, `high` (95 %, resampling source files), `ratio` (to the
        mean patch's error), all in log-normalized units squared but the last.

    Raises:
        ValueError: When the prompts are too long for the AP-MAE, or fit in one patch.
    """
    import numpy as np
    import pandas as pd

    n_tokens, size = held_out.tokens().shape[1], mae.grid.patch_size
    grid = PatchGrid(mae.grid.n_rows_for(n_tokens) * size, size)
    total = None
    for patches in _stream_patches(model, reference, grid):
        total = patches if total is None else total + patches
    assert total is not None  # tokens() refuses no prompts at all
    head_means = total / len(reference)
    mean = head_means.mean(0)
    inside = grid.inside(n_tokens, mean.device)
    predictors: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "AP-MAE": lambda patches, mask: mae.fill_in(patches, mask, n_tokens=n_tokens),
        "mean patch": lambda patches, mask: mean.expand_as(patches),
        "head's mean": lambda patches, mask: head_means,
        "additive fit": lambda patches, mask: additive_fit(patches, mask, mean, grid),
        "low-rank fit": lambda patches, mask: low_rank_fit(patches, mask, mean, grid),
    }
    by_prompt: dict[str, list[float]] = {name: [] for name in predictors}
    for place, patches in enumerate(_stream_patches(model, held_out, grid)):
        generator = seeded(seed, _MASKS, place)
        n, k = patches.shape[:2]
        mask = random_masks(n, k, mae.config.mask_ratio, generator).to(patches.device)
        for name, predict in predictors.items():
            errors = hidden_errors(predict(patches, mask), patches, mask, inside)
            by_prompt[name].append(errors.double().sum().item())
    bootstrap = FileBootstrap(held_out.files, seed=seed)
    n_heads = np.full(len(held_out), len(head_means))
    mean_patch = np.array(by_prompt["mean patch"])
    rows = [
        (name, *bootstrap.ratio(sums, n_heads), bootstrap.ratio(sums, mean_patch).value)
        for name, sums in ((name, np.array(sums)) for name, sums in by_prompt.items())
    ]
    return pd.DataFrame(rows, columns=["predictor", "error", "low", "high", "ratio"])


def _stream_patches(
    model: Any, prompts: Scenarios, grid: PatchGrid
) -> Iterator[Float[Tensor, "head patch pixel"]]:
    """Every head's log-normalized patches, prompt by prompt."""
    for _, patterns, _ in stream_patterns(model, prompts.tokens(), batch_size=_PROMPTS_AT_ONCE):
        for attention in patterns.values:
            yield grid.patchify(log_normalize(attention))
