"""Observing: running a model on scenarios and keeping what its heads looked like."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, Shaped
from torch import Tensor

from aplens._io import fingerprint, hash_tensors
from aplens._parts import in_parts
from aplens._processes import join_processes
from aplens._progress import Progress, show_progress
from aplens.correctness.observations import COLUMNS, HEAD_NUMBERS, Keep, Observations
from aplens.correctness.regions import attention_by_region
from aplens.correctness.shards import ShardFolder
from aplens.correctness.statistics import patch_statistics
from aplens.correctness.surprise import patch_surprise
from aplens.heads import Head, ModelShape
from aplens.models import compute_in, describe_model, sketch_weights
from aplens.patterns import AttentionPatterns, log_normalize, read_layers, smallest_log
from aplens.prompts import read_prompts
from aplens.scenarios.answers import require_answers, require_logits

if TYPE_CHECKING:
    import pandas as pd

    from aplens.mae import APMAE
    from aplens.scenarios import Scenarios

Arrays: TypeAlias = "dict[str, Shaped[Tensor, 'head scenario *values']]"


def observe(
    model: Any,
    scenarios: Scenarios,
    mae: APMAE,
    folder: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 8,
    shard_size: int = 64,
    keep: Sequence[Keep] = ("statistics",),
    precision: torch.dtype | None = None,
    progress: bool | Progress = True,
) -> Observations:
    """Run the model on every scenario and keep each head's embedding and the outcome.

    One forward pass a batch; each layer's patterns are encoded while the model has them and never
    kept. Without a folder what was observed is in memory, half a kilobyte a head and scenario with
    `aplens-base`. With one, memory grows neither with the number of scenarios nor with that of
    layers; run again after an interrupt, only the shards that are missing or damaged are done, and
    the result is the same as without the interrupt. Started by `accelerate launch`, each process
    does its share of the shards; the result does not depend on how many there are.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: Prompts of any lengths with their targets.
        mae: The AP-MAE that encodes the patterns.
        folder: Where shards are kept; made when missing (default: nowhere).
        batch_size: Prompts a forward pass.
        shard_size: Scenarios a shard.
        keep: What to keep as well. "statistics": the hand-made numbers, the predictors' baselines
            (`aplens.correctness.statistics`, `aplens.correctness.regions`). "surprise": how far the
            last query's attention departs from what the AP-MAE fills in for it
            (`aplens.correctness.surprise`); observing takes about twice as long.
        precision: torch.bfloat16 lets the model compute its matrix products in bfloat16 (default:
            as it is). Faster where the hardware is; a few predictions may change.
        progress: A bar (the default), nothing (False), or a function called with (scenarios done,
            scenarios in all), of this process.

    Warns:
        UserWarning: A shard on disk is damaged and is done again.

    Raises:
        ValueError: When the folder holds observations of something else (the difference is named),
            an embedding overflows float16, the prompts are longer than the AP-MAE takes or too
            short for "surprise", an answer is none of the model's tokens, an argument is out of
            range, or the model is broken: its logits contain NaN or infinity, or its patterns are
            no attention.
        FolderInUseError: When another run is writing into the folder.
        UnsupportedModelError: When the model has no causal attention patterns.
    """
    if isinstance(keep, str) or any(name not in get_args(Keep) for name in keep):
        raise ValueError(f"keep must be a list of some of {list(get_args(Keep))}, got {keep!r}")
    options = ObserveOptions(batch_size, shard_size, frozenset(keep), precision)
    for name in ("batch_size", "shard_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(options, name)}")
    require_answers(model, scenarios)
    prompts = scenarios.prompts()
    mae.grid.n_rows_for(prompts.n_tokens)  # refuses prompts that are too long for it
    if "surprise" in keep:
        from aplens.mae.habit import require_visible

        require_visible(mae, int(prompts.lengths.min()))
    tell = show_progress(progress, "Observing")
    run = _describe_run(model, scenarios, mae, options)
    if folder is None:
        everything = slice(0, len(scenarios))
        told = _tell_after(tell, 0, len(scenarios))
        return _hold(*_observe_rows(model, scenarios, everything, mae, options, told), run)
    processes = join_processes()
    with processes.own(folder) as path:
        shards = ShardFolder.resume(path, run) if processes.is_main else None
        processes.wait()
        shards = shards or ShardFolder.resume(path, run)
        mine = processes.share(shards.shards())
        done, total = 0, sum(rows.stop - rows.start for _, rows in mine)
        for name, rows in mine:
            if shards.store.is_sound(name):
                done += rows.stop - rows.start
                tell(done, total)
                continue
            told = _tell_after(tell, done, total)
            shards.write(name, *_observe_rows(model, scenarios, rows, mae, options, told))
            done += rows.stop - rows.start
    return Observations.of_shards(shards)


class ObserveOptions(NamedTuple):
    """What `observe` is told beside its inputs."""

    batch_size: int
    shard_size: int
    keep: frozenset[Keep]
    precision: torch.dtype | None


def _tell_after(tell: Progress, before: int, total: int) -> Callable[[int], object]:
    """Told how many of some scenarios are done, others having been done before."""
    return lambda done: tell(before + done, total)


def _observe_rows(
    model: Any,
    scenarios: Scenarios,
    rows: slice,
    mae: APMAE,
    options: ObserveOptions,
    tell: Callable[[int], object],
) -> tuple[Arrays, pd.DataFrame]:
    """Some scenarios' arrays, and their rows with their outcomes."""
    import pandas as pd

    some = scenarios[rows]
    targets, wrong = some.targets(), [scenario.wrong for scenario in some]
    read, arrays, outcomes = _LayerReader(mae, options), [], []
    start = 0
    for batch in read_prompts(model, some).split(options.batch_size):
        places = slice(start, start := start + len(batch))
        with compute_in(model, options.precision):
            layers, logits = read_layers(model, batch, read)
        arrays.append({key: torch.cat([layer[key] for layer in layers]) for key in layers[0]})
        outcomes.append(describe_outcomes(logits, targets[places], wrong[places]))
        tell(start)
    table = some.to_frame()
    table["scenario"] = range(rows.start, rows.stop)
    table = table.join(pd.concat(outcomes, ignore_index=True))[list(COLUMNS)]
    return {key: torch.cat([part[key] for part in arrays], dim=1) for key in arrays[0]}, table


def _hold(arrays: Arrays, table: pd.DataFrame, run: Mapping[str, Any]) -> Observations:
    """Observations in memory."""
    by_scenario = {key: values.transpose(0, 1).numpy() for key, values in arrays.items()}
    return Observations(
        table,
        [Head(*head) for head in run["heads"]],
        by_scenario.pop("embeddings"),
        by_scenario,
        model=ModelShape(run["model_name"], run["n_layers"], run["n_heads"]),
        mae=run["mae"],
    )


class _LayerReader:
    """What is kept of one layer's patterns: head by head, scenario by scenario."""

    def __init__(self, mae: APMAE, options: ObserveOptions) -> None:
        self._mae = mae
        self._options = options

    def __call__(self, patterns: AttentionPatterns) -> Arrays:
        arrays: Arrays = {}
        for rows, alike in patterns.by_length():
            for key, values in self._read(alike).items():
                shape = (len(patterns), *values.shape[1:])
                arrays.setdefault(key, values.new_zeros(shape))[rows] = values
        return {key: values.transpose(0, 1).contiguous() for key, values in arrays.items()}

    def _read(self, patterns: AttentionPatterns) -> dict[str, Shaped[Tensor, "batch head *values"]]:
        attention = patterns.values.to(self._mae.device)
        parts = [self._describe(part) for (part,) in in_parts(attention.flatten(0, 1))]
        kept = {
            key: torch.cat([part[key] for part in parts]).unflatten(0, attention.shape[:2])
            for key in parts[0]
        }
        by_head = to_float16(kept["embeddings"].transpose(0, 1), patterns.heads)
        return {**kept, "embeddings": by_head.transpose(0, 1)}

    def _describe(self, attention: Float[Tensor, "pattern query key"]) -> dict[str, Tensor]:
        """Everything that is kept of patterns of one length, pattern by pattern, on the CPU."""
        mae, keep = self._mae, self._options.keep
        patches = mae.grid.patchify(attention)
        smallest = smallest_log(patches)
        scaled = log_normalize(patches, smallest)
        kept = {"embeddings": mae.encode_patches(scaled, n_tokens=attention.shape[-1])}
        if "statistics" in keep:
            kept["statistics"] = patch_statistics(scaled, attention, mae.grid)
            kept["regions"] = attention_by_region(attention[:, -1])
        if "surprise" in keep:
            kept |= patch_surprise(mae, scaled, attention, smallest)
        return {key: values.cpu() for key, values in kept.items()}


def fingerprint_mae(mae: APMAE) -> str:
    """Of its configuration and weights: embeddings of AP-MAEs that differ do not compare."""
    return fingerprint([asdict(mae.config), hash_tensors(mae.state_dict())])


def to_float16(
    embeddings: Float[Tensor, "head *some d_embed"], heads: Sequence[Head]
) -> Float16[Tensor, "head *some d_embed"]:
    """Embeddings as they are kept; one that overflows is refused by its head's name."""
    half = embeddings.cpu().half()
    broken = ~half.isfinite().flatten(1).all(dim=-1)
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
        ValueError: When the logits contain NaN or infinity.
    """
    import pandas as pd

    log_probabilities = require_logits(logits).float().log_softmax(dim=-1).cpu()
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
    model: Any, scenarios: Scenarios, mae: APMAE, options: ObserveOptions
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
        "model_weights": sketch_weights(model),
        "heads": [list(head) for head in info.heads],
        "mae": fingerprint_mae(mae),
        "pool": list(DEFAULT_POOL),
        "n_scenarios": len(scenarios),
        "scenarios": fingerprint(scenarios.to_frame().to_dict(orient="list")),
        "d_embed": mae.embedding_size(),
        "shard_size": options.shard_size,
        "numbers": [name for name, kept_by in HEAD_NUMBERS.items() if kept_by in options.keep],
        "precision": None if options.precision is None else str(options.precision),
    }
