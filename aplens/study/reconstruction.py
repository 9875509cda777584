"""How well an AP-MAE fills in hidden patches of a model's patterns, beside what needs no AP-MAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from aplens.mae import APMAE, additive_fit, random_masks
from aplens.patterns import log_normalize, stream_patterns
from aplens.scenarios import Scenarios

if TYPE_CHECKING:
    import pandas as pd

OWN = "AP-MAE"
BASELINES = ("mean patch", "head's mean", "additive fit")


@torch.no_grad()
def compare_reconstruction(
    model: Any, mae: APMAE, reference: Scenarios, held_out: Scenarios, seed: int = 0
) -> pd.DataFrame:
    """Mean squared error on hidden patches, of AP-MAE and of baselines, on the same masks.

    The baselines are the mean patch of each position, the mean pattern of each head (both over the
    reference prompts), and the row + column + diagonal fit of each pattern's visible patches.

    Args:
        model: The hooked model.
        mae: The AP-MAE.
        reference: Prompts that the means are taken over.
        held_out: Prompts whose patterns are filled in; from other files than the reference.
        seed: Of the masks.

    Returns:
        Columns `predictor`, `error`, `low`, `high` (95 %, resampling source files), `ratio` (to the
        mean patch's error), all in log-normalized units squared but the last.
    """
    import pandas as pd

    from aplens.scoring.intervals import FileBootstrap

    head_means = _head_means(model, mae, reference)
    errors = _errors(model, mae, held_out, head_means, torch.Generator().manual_seed(seed))
    bootstrap = FileBootstrap(held_out.files, seed=seed)
    rows: list[dict[str, Any]] = []
    for name in (OWN, *BASELINES):
        estimate = bootstrap.mean(errors[name])
        rows.append({"predictor": name, **estimate._asdict()})
    frame = pd.DataFrame(rows).rename(columns={"value": "error"})
    mean_patch = frame.loc[frame.predictor == BASELINES[0], "error"].item()
    return frame.assign(ratio=frame.error / mean_patch)


def _head_means(model: Any, mae: APMAE, reference: Scenarios) -> Float[Tensor, "head patch pixel"]:
    """The mean pattern of each head, as patches."""
    total, count = torch.tensor(0.0), 0
    for _, patterns, _ in stream_patterns(model, reference.tokens(), batch_size=4):
        scaled = log_normalize(mae.grid.patchify(patterns.values))
        total = total + scaled.sum(0)
        count += len(scaled)
    return total / count


def _errors(
    model: Any,
    mae: APMAE,
    held_out: Scenarios,
    head_means: Float[Tensor, "head patch pixel"],
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """Each predictor's mean error on each prompt."""
    mean = head_means.mean(0)
    errors: dict[str, list[float]] = {name: [] for name in (OWN, *BASELINES)}
    for _, patterns, _ in stream_patterns(model, held_out.tokens(), batch_size=1):
        scaled = log_normalize(mae.grid.patchify(patterns.values))[0]
        mask = random_masks(len(scaled), scaled.shape[1], mae.config.mask_ratio, generator).to(
            scaled.device
        )
        predictions = {
            OWN: mae.fill_in(scaled, mask),
            BASELINES[0]: mean.expand_as(scaled),
            BASELINES[1]: head_means,
            BASELINES[2]: additive_fit(scaled, mask, mean, mae.grid),
        }
        for name, predicted in predictions.items():
            errors[name].append((predicted - scaled)[mask].square().mean().item())
    return {name: np.array(values) for name, values in errors.items()}
