"""AP-MAEs on disk, bundled with aplens, or on the hub: `config.json` and `model.safetensors`.

Folders come in two formats, told apart by `model_type`: aplens's own, which is the one written, and
that of the paper's released checkpoints (`aplens.mae.released`). No pickle is ever written or read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aplens._io import atomic_write, read_json, write_json
from aplens._words import shorten
from aplens.mae import released
from aplens.mae.config import APMAEConfig

if TYPE_CHECKING:
    from aplens.mae.model import APMAE

MODEL_TYPE = "aplens_apmae"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

#: What fields stand for in a configuration that was written before there were such.
_ADDED = {"fingerprint_dim": 0, "identity_weight": 0.0}

_BUNDLED = Path(__file__).parent / "weights"
_LISTED = 10
_FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FEW, _FAR = 100_000, 4


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another kind of model."""


def list_pretrained() -> list[str]:
    """Names of the AP-MAEs that come with aplens."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{CONFIG_FILE}"))


def save_pretrained(
    mae: APMAE, folder: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> None:
    """Write an AP-MAE's configuration and weights; `APMAE.save_pretrained` says how."""
    folder = Path(folder)
    weights = {
        name: value.to("cpu", dtype).contiguous() for name, value in mae.state_dict().items()
    }
    with atomic_write(folder / WEIGHTS_FILE) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    write_json(
        folder / CONFIG_FILE,
        {"model_type": MODEL_TYPE, "format_version": FORMAT_VERSION, **mae.config.to_dict()},
    )


def load_pretrained(
    build: Callable[[APMAEConfig], APMAE],
    name_or_folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
) -> APMAE:
    """Load an AP-MAE; `APMAE.from_pretrained` says how."""
    folder = _find(name_or_folder, revision)
    config, is_released = _load_config(folder / CONFIG_FILE)
    weights = read_tensors(folder / WEIGHTS_FILE)
    _refuse_far_larger(config, weights, folder)
    mae = build(config)
    names = None
    if is_released:
        released.bypass_absent_projections(mae)
        names = released.stored_names(mae)
    load_weights(mae, weights, source=folder / WEIGHTS_FILE, names=names)
    return mae.eval()


def _refuse_far_larger(config: APMAEConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Build nothing of sizes that the weights cannot have: a slip of a digit could fill the memory.

    Sizes that differ by less get as far as `load_weights`, which names each weight.
    """
    stored = sum(value.numel() for value in weights.values())
    if config.fewest_weights > _FEW + _FAR * stored:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes a model of {shorten(config.fewest_weights)} weights "
            f"or more, but {WEIGHTS_FILE} has {stored}"
        )


def load_weights(
    mae: APMAE,
    weights: Mapping[str, Tensor],
    source: object,
    names: Mapping[str, str] | None = None,
) -> None:
    """Copy weights into an AP-MAE once it is sure that they fit.

    Args:
        mae: The AP-MAE to fill.
        weights: What to copy, as float16, bfloat16, float32 or float64.
        source: Where they come from, for the error.
        names: What `weights` calls those of `mae.state_dict()`; one that is left out keeps its
            value (default: all, by their own names).

    Raises:
        CheckpointError: When names are missing or unexpected, shapes differ, or a weight is of
            another type or not finite. The message uses the names in `weights`.
    """
    state = mae.state_dict()
    if names is None:
        names = {name: name for name in state}
    expected = {stored: state[name] for name, stored in names.items()}
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of the wrong shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & weights.keys())
            if weights[name].shape != expected[name].shape
        ],
        "of the wrong type": [
            f"{name} {str(value.dtype).removeprefix('torch.')}"
            for name, value in sorted(weights.items())
            if value.dtype not in _FORMATS
        ],
        "not finite": sorted(
            name
            for name, value in weights.items()
            if value.dtype in _FORMATS and not torch.isfinite(value.float()).all()
        ),
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {_enumerate(them)}" for what, them in problems.items() if them)
        raise CheckpointError(f"{source} does not fit its configuration; {listed}")
    for stored, tensor in expected.items():  # the model's own memory, seen through its state_dict
        tensor.copy_(weights[stored])


def _enumerate(names: Sequence[str]) -> str:
    """A file of another model misses and has hundreds of names; the first ones tell which."""
    listed = ", ".join(names[:_LISTED])
    return f"{listed} and {len(names) - _LISTED} more" if len(names) > _LISTED else listed


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a safetensors file")
    try:
        return load_file(path)
    except FileNotFoundError as error:
        found = ", ".join(sorted(entry.name for entry in path.parent.iterdir()))
        raise CheckpointError(
            f"{path} is missing; the folder holds {found}. Weights must be in that one file: "
            "merge sharded ones, and convert pickled ones (.bin, .pt), which aplens never reads"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def _find(name_or_folder: str | os.PathLike[str], revision: str | None) -> Path:
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    name = os.fspath(name_or_folder)
    if name in list_pretrained():
        return _BUNDLED / name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name, revision)
    bundled = ", ".join(list_pretrained()) or "none in this version"
    raise CheckpointError(
        f"there is no AP-MAE {name!r}: no such folder, nor a hub id such as 'user/name', and not "
        f"bundled with aplens (bundled: {bundled})"
    )


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"there is no folder {hub_id!r}, and the Hugging Face hub did not provide it: {error}"
        ) from error
    return Path(folder)


def _load_config(path: Path) -> tuple[APMAEConfig, bool]:
    """The configuration, and whether it is that of a released checkpoint."""
    try:
        values = read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    model_type = values.pop("model_type", None) if isinstance(values, dict) else None
    if model_type not in (MODEL_TYPE, released.MODEL_TYPE):
        raise CheckpointError(
            f"{path}: expected model_type {MODEL_TYPE!r}, or {released.MODEL_TYPE!r} as the "
            f"paper's released checkpoints have, got {shorten(model_type)}"
        )
    is_released = model_type == released.MODEL_TYPE
    try:
        return (released.read_config(values) if is_released else _read_config(values)), is_released
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_config(values: dict[str, Any]) -> APMAEConfig:
    version = values.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"this aplens reads format_version {FORMAT_VERSION}, got {shorten(version)}"
        )
    return APMAEConfig.from_dict({**_ADDED, **values})
