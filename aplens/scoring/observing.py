"""Observing: running a model on scenarios and keeping what its heads looked like."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from aplens._io import fingerprint
from aplens.heads import Head
from aplens.models import describe_model
from aplens.patterns import log_normalize, stream_patterns
from aplens.scoring.observations import COLUMNS, Observations
from aplens.scoring.shards import ShardFolder
from aplens.scoring.statistics import pattern_statistics

if TYPE_CHECKING:
    import pandas as pd

    from aplens.mae import APMAE
    from aplens.scenarios import Scenarios

Progress: TypeAlias = Callable[[int, int], object]

#: Patterns the AP-MAE encodes at once.
_PATTERNS_AT_ONCE = 64


def observe(
    model: Any,
    scenarios: Scenarios,
    mae: APMAE,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    shard_size: int = 64,
    statistics: bool = True,
    progress: Progress | None = None,
) -> Observations:
    """Run the model on every scenario and keep each head's embedding and the outcome.

    One forward pass a batch; patterns are encoded and let go, so memory does not grow with the
    number of scenarios. Run again after an interrupt, it does only the shards that are missing or
    damaged, and the result is the same as without the interrupt.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: Prompts of any lengths with their targets.
        mae: The AP-MAE that encodes the patterns.
        folder: Where shards are written; made when missing.
        batch_size: Prompts a forward pass. 8 prompts of 256 tokens on 270 heads hold 0.6 GB of
            patterns.
        shard_size: Scenarios a shard.
        statistics: Whether to compute the hand-made statistics as well, the predictors' baseline.
        progress: Called with (scenarios done, scenarios in all).

    Warns:
        UserWarning: A shard on disk is damaged and is done again.

    Raises:
        ValueError: When the folder holds observations of something else (the difference is named),
            an embedding overflows float16, or the prompts are longer than the AP-MAE takes.
        UnsupportedModelError: When the model has no causal attention patterns.
    """
    for name, size in (("batch_size", batch_size), ("shard_size", shard_size)):
        if size < 1:
            raise ValueError(f"{name} must be 1 or more, got {size}")
    mae.grid.n_rows_for(scenarios.prompts().n_tokens)  # refuses prompts that are too long for it
    run = _describe_run(model, scenarios, mae, shard_size, statistics)
    shards = ShardFolder.resume(Path(folder), run)
    tell = progress or (lambda done, total: None)
    for name, rows in shards.shards():
        if _is_sound(shards, name):
            tell(rows.stop, len(scenarios))
            continue
        done, batches = rows.start, []
        for batch in _observe_batches(model, scenarios[rows], mae, batch_size, statistics):
            batches.append(batch)
            done += len(batch.outcomes)
            tell(done, len(scenarios))
        shards.write(name, _join_arrays(batches), _join_tables(batches, scenarios, rows))
    return Observations.open(folder)


class _Batch(NamedTuple):
    arrays: dict[str, Float[Tensor, "scenario head width"]]
    outcomes: pd.DataFrame


def _is_sound(shards: ShardFolder, name: str) -> bool:
    """Whether a shard is finished and still what was written; says so when it is not."""
    if not shards.is_written(name):
        return False
    problem = shards.find_damage(name)
    if problem is not None:
        warnings.warn(f"{problem}: {name} is done again", stacklevel=3)
    return problem is None


def _observe_batches(
    model: Any, scenarios: Scenarios, mae: APMAE, batch_size: int, statistics: bool
) -> Iterator[_Batch]:
    targets, wrong = scenarios.targets(), [scenario.wrong for scenario in scenarios]
    for rows, patterns, logits in stream_patterns(model, scenarios, batch_size=batch_size):
        embeddings, features = [], []
        for index in range(len(patterns)):  # one prompt at a time: a batch is large already
            attention = patterns.prompt(index)
            scaled = log_normalize(attention)
            embeddings.append(to_float16(_encode(mae, scaled), patterns.heads))
            if statistics:
                features.append(pattern_statistics(attention, scaled).cpu())
        arrays = {"embeddings": torch.stack(embeddings)}
        if statistics:
            arrays["statistics"] = torch.stack(features)
        yield _Batch(arrays, describe_outcomes(logits, targets[rows], wrong[rows]))


def _join_arrays(batches: Sequence[_Batch]) -> dict[str, Tensor]:
    return {key: torch.cat([batch.arrays[key] for batch in batches]) for key in batches[0].arrays}


def _join_tables(batches: Sequence[_Batch], scenarios: Scenarios, rows: slice) -> pd.DataFrame:
    """The scenarios' rows with their outcomes."""
    import pandas as pd

    table = scenarios[rows].to_frame()
    table["scenario"] = range(rows.start, rows.stop)
    outcomes = pd.concat([batch.outcomes for batch in batches], ignore_index=True)
    return table.join(outcomes)[list(COLUMNS)]


def _encode(mae: APMAE, scaled: Float[Tensor, "head query key"]) -> Float[Tensor, "head d_embed"]:
    patches = mae.grid.patchify(scaled.to(mae.device))
    parts = patches.split(_PATTERNS_AT_ONCE)
    return torch.cat([mae.encode_patches(part, n_tokens=scaled.shape[-1]) for part in parts])


def to_float16(
    embeddings: Float[Tensor, "head d_embed"], heads: Sequence[Head]
) -> Float16[Tensor, "head d_embed"]:
    """Embeddings as they are kept.

    Raises:
        ValueError: When one overflows; its head is named.
    """
    half = embeddings.cpu().half()
    broken = ~half.isfinite().all(dim=-1)
    if broken.any():
        head = int(broken.nonzero()[0])
        raise ValueError(
            f"the embedding of {heads[head]} does not fit float16: its largest value is "
            f"{embeddings[head].abs().max().item():.4g}, at most 65504 can be kept"
        )
    return half


def describe_outcomes(
    logits: Float[Tensor, "batch d_vocab"],
    targets: Int[Tensor, " batch"],
    wrong: Sequence[int | None] | None = None,
) -> pd.DataFrame:
    """What the model predicts after the last token, and how sure it is.

    Args:
        logits: After the last token of each prompt.
        targets: The tokens that are correct.
        wrong: A wrong token for each prompt, for the logit difference; NaN where there is none.

    Raises:
        ValueError: When the logits contain NaN.
    """
    import pandas as pd

    log_probabilities = logits.float().log_softmax(dim=-1).cpu()
    if log_probabilities.isnan().any():
        raise ValueError("the model's logits contain NaN: its forward pass is broken here")
    top, predicted = log_probabilities.max(dim=-1)
    probabilities = log_probabilities.exp()
    of_target = log_probabilities.gather(1, targets[:, None])[:, 0].numpy()
    rivals = [None] * len(targets) if wrong is None else wrong
    of_wrong = [
        math.nan if rival is None else row[rival].item()
        for row, rival in zip(log_probabilities, rivals, strict=True)
    ]
    return pd.DataFrame(
        {
            "predicted": predicted.numpy(),
            "correct": (predicted == targets).numpy(),
            "top_probability": top.exp().numpy(),
            "entropy": torch.special.entr(probabilities).sum(dim=-1).numpy(),
            "target_log_probability": of_target,
            "logit_difference": of_target - np.array(of_wrong, dtype=np.float32),
        }
    )


def _describe_run(
    model: Any, scenarios: Scenarios, mae: APMAE, shard_size: int, statistics: bool
) -> dict[str, Any]:
    """Everything that observations depend on; two runs that differ here never share a folder."""
    from aplens.mae.model import DEFAULT_POOL

    info = describe_model(model)
    return {
        "model_name": info.name,
        "n_layers": info.n_layers,
        "n_heads": info.n_heads,
        "d_head": info.d_head,
        "model_dtype": str(info.dtype),
        "heads": [list(head) for head in info.heads],
        "mae": _hash_mae(mae),
        "pool": list(DEFAULT_POOL),
        "n_scenarios": len(scenarios),
        "scenarios": fingerprint(scenarios.to_frame().to_dict(orient="list")),
        "shard_size": shard_size,
        "statistics": statistics,
    }


def _hash_mae(mae: APMAE) -> str:
    digest = hashlib.sha256(fingerprint(mae.config.to_dict()).encode())
    for name, weight in sorted(mae.state_dict().items()):
        digest.update(name.encode())
        # Bytes, because NumPy knows no bfloat16.
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
