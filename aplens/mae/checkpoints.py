"""Interrupting training and going on: weights, optimizer and position in one file.

The file is safetensors, with the rest as JSON in its header, and is replaced as a whole: an
interrupt at any moment leaves a checkpoint in which everything belongs together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, optim

from aplens._documents import check, take
from aplens._io import atomic_write, describe_differences, hash_tensors, parse_json
from aplens._words import shorten
from aplens.mae.model import APMAE
from aplens.mae.pretrained import CheckpointError, load_weights, read_tensors

STATE_FILE = "training.safetensors"


class HistoryEntry(TypedDict):
    """One validation.

    `loss` is the mean on training patterns since the entry before; `retrieval` how often a held-out
    head is found by its fingerprint, None where the configuration trains none.
    """

    patterns: int
    seconds: float
    learning_rate: float
    loss: float | None
    validation_mse: float
    validation_ratio: float
    retrieval: float | None


@dataclass
class TrainingState:
    """Where a training run stands.

    Attributes:
        round: The round under way.
        batch: Its next batch.
        step: Optimizer steps done.
        patterns: Patterns trained on.
        seconds: Time spent, earlier runs included.
        variance: Mean squared deviation of the first round's patches from their mean.
        mean_patch_mse: Error on held-out patterns of predicting the mean patch of each position.
        additive_mse: Error on held-out patterns of the additive fit.
        loss_sum: Losses since the last entry of `history`, added up.
        loss_count: How many these are.
        history: One entry a validation.
    """

    round: int = 0
    batch: int = 0
    step: int = 0
    patterns: int = 0
    seconds: float = 0.0
    variance: float = 0.0
    mean_patch_mse: float = 0.0
    additive_mse: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    history: list[HistoryEntry] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    mae: APMAE,
    optimizer: optim.Optimizer,
    state: TrainingState,
    identity: Mapping[str, Any],
) -> None:
    """Write everything needed to go on."""
    tensors = {f"model.{name}": value for name, value in mae.state_dict().items()}
    for name, parameter in mae.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    header = {
        "state": json.dumps(asdict(state)),
        "identity": json.dumps(identity),
        "tensors": hash_tensors(tensors),
    }
    with atomic_write(folder / STATE_FILE) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, header)


def load_checkpoint(
    folder: Path, mae: APMAE, optimizer: optim.Optimizer, identity: Mapping[str, Any]
) -> TrainingState | None:
    """Fill an AP-MAE and its optimizer from a checkpoint; None when there is none.

    Raises:
        CheckpointError: When the checkpoint is damaged, or belongs to another training run; the
            message names every setting that differs.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    try:
        state = _read_state(header)
        saved = parse_json(take(header, "identity", str))
        expected = take(header, "tensors", str)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no training checkpoint of this aplens: {error}"
        ) from error
    if hash_tensors(tensors) != expected:
        raise CheckpointError(
            f"{path} is damaged: its tensors are not those that were saved; delete it to start over"
        )
    differences = list(describe_differences(saved, json.loads(json.dumps(identity))))
    if differences:
        raise CheckpointError(
            f"{folder} holds a training run that differs from this one; choose another folder, or "
            f"delete {STATE_FILE} to start over: {'; '.join(differences)}"
        )
    load_weights(mae, _with_prefix(tensors, "model."), source=path)
    moments: dict[Tensor, dict[str, Tensor]] = {
        parameter: _read_moments(tensors, name, parameter, path)
        for name, parameter in mae.named_parameters()
    }
    if state.step and not any(moments.values()):
        raise CheckpointError(f"{path} is damaged: it has no optimizer state")
    optimizer.state.update(moments)
    return state


def _read_state(header: Mapping[str, str]) -> TrainingState:
    """Where the run stands.

    Raises:
        ValueError: When something is missing, of the wrong type, or contradicts itself.
    """
    values = check(parse_json(take(header, "state", str)), dict, "state")
    known = get_type_hints(TrainingState)
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"state has the unknown key {shorten(unknown[0])}")
    history = [
        _read_entry(check(entry, dict, f"history[{i}]"), f"history[{i}].")
        for i, entry in enumerate(take(values, "history", list))
    ]
    kinds = {name: kind for name, kind in known.items() if kind in (int, float)}
    state = TrainingState(
        **{name: take(values, name, kind) for name, kind in kinds.items()}, history=history
    )
    if negative := [name for name in kinds if getattr(state, name) < 0]:
        raise ValueError(f"{negative[0]} must not be negative")
    if state.variance == 0 or state.mean_patch_mse == 0:
        raise ValueError("variance and mean_patch_mse must be positive")
    # Every step ends one batch, of at least one pattern.
    if max(state.round, state.batch, state.loss_count) > state.step or state.step > state.patterns:
        raise ValueError("round, batch, step and patterns contradict each other")
    return state


def _read_entry(values: dict[str, Any], where: str) -> HistoryEntry:
    loss, retrieval = (
        None if values.get(name) is None else take(values, name, float, where)
        for name in ("loss", "retrieval")
    )
    return HistoryEntry(
        patterns=take(values, "patterns", int, where),
        seconds=take(values, "seconds", float, where),
        learning_rate=take(values, "learning_rate", float, where),
        loss=loss,
        validation_mse=take(values, "validation_mse", float, where),
        validation_ratio=take(values, "validation_ratio", float, where),
        retrieval=retrieval,
    )


def _read_moments(
    tensors: Mapping[str, Tensor], name: str, parameter: Tensor, path: Path
) -> dict[str, Tensor]:
    """What the optimizer knows of a parameter: nothing before its first step."""
    shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    found = {key: tensors.get(f"optimizer.{key}.{name}") for key in shapes}
    if all(value is None for value in found.values()):
        return {}
    moments = {}
    for key, value in found.items():
        if value is None or value.shape != shapes[key] or not _is_usable(value):
            raise CheckpointError(f"{path} is damaged: optimizer.{key}.{name} is missing or wrong")
        moments[key] = value if key == "step" else value.to(parameter.device)
    return moments


def _is_usable(value: Tensor) -> bool:
    return value.dtype == torch.float32 and bool(torch.isfinite(value).all())


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
