"""Interrupting training and going on: weights, optimizer and position in one file.

The file is safetensors, with the rest as JSON in its header, and is replaced as a whole: an
interrupt at any moment leaves a checkpoint in which everything belongs together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from safetensors import safe_open
from safetensors.torch import save_file
from torch import optim

from aplens._io import (
    atomic_write,
    describe_differences,
    fingerprint,
    hash_tensors,
    parse_json,
)
from aplens.mae.model import APMAE
from aplens.mae.pretrained import CheckpointError, load_weights, read_tensors

STATE_FILE = "training.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW knows of a parameter


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

    `batch` is the next one of the round under way; `seconds` and `patterns` count earlier runs too.
    `variance` is the mean squared deviation of the first round's patches from their mean; the other
    errors are on held-out patterns. Losses since the last entry of `history` are added up.
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
    header["checksum"] = fingerprint(header)
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
    checksum = header.pop("checksum", None)
    if checksum != fingerprint(header) or header.get("tensors") != hash_tensors(tensors):
        raise CheckpointError(
            f"{path} is damaged, or no training checkpoint of this aplens: it is not what was "
            "saved; delete it to start over"
        )
    try:
        state = TrainingState(**parse_json(header["state"]))
        saved = parse_json(header["identity"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no training checkpoint of this aplens: {error}"
        ) from error
    differences = list(describe_differences(saved, json.loads(json.dumps(identity))))
    if differences:
        raise CheckpointError(
            f"{folder} holds a training run that differs from this one; choose another folder, or "
            f"delete {STATE_FILE} to start over: {'; '.join(differences)}"
        )
    weights = {
        name.removeprefix("model."): value
        for name, value in tensors.items()
        if name.startswith("model.")
    }
    load_weights(mae, weights, source=path)
    for name, parameter in mae.named_parameters():
        moments = {key: tensors.get(f"optimizer.{key}.{name}") for key in _MOMENTS}
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device)
            for key, value in moments.items()
            if value is not None  # there are none before the first step
        }
    return state
