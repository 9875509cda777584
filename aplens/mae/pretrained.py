"""AP-MAEs on disk, bundled with aplens, or on the hub: `config.json` and `model.safetensors`.

Folders come in two formats, told apart by `model_type`: aplens's own, which is the one written, and
that of the paper's released checkpoints (`aplens.mae.released`). No pickle is ever written or read.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

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
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_BUNDLED = Path(__file__).parent / "weights"
_LISTED = 10
_LINES, _WIDTH = 5, 300  # of what torch says that does not fit
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
    write_json(folder / CONFIG_FILE, {"model_type": MODEL_TYPE, **asdict(mae.config)})


def read_pretrained(
    name_or_folder: str | os.PathLike[str], revision: str | None = None
) -> tuple[APMAEConfig, dict[str, Tensor], Path]:
    """An AP-MAE's configuration, its weights by the names they have here, and their file.

    Raises:
        CheckpointError: When there is no such AP-MAE, a file is damaged, or the configuration is
            not one of an AP-MAE, or of one far larger than the weights.
    """
    folder = _find(name_or_folder, revision)
    config, is_released = _load_config(folder / CONFIG_FILE)
    weights = read_tensors(folder / WEIGHTS_FILE)
    _refuse_far_larger(config, weights, folder)
    if is_released:
        weights = released.rename(weights, config)
    return config, weights, folder / WEIGHTS_FILE


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
    configuration: str = "its configuration",
) -> None:
    """Copy weights into an AP-MAE; after an error it is not to be used.

    Args:
        mae: The AP-MAE to fill.
        weights: All of its weights, as float16, bfloat16, float32 or float64.
        source: Where they come from, for the error.
        configuration: What they have to fit, for the error.

    Raises:
        CheckpointError: When a weight is missing, unexpected, of the wrong shape or type, or not
            finite.
    """
    odd = [name for name, value in weights.items() if value.dtype not in _FORMATS]
    if odd:
        raise CheckpointError(f"{source} has weights of the wrong type: {_enumerate(odd)}")
    broken = [name for name, value in weights.items() if not value.float().isfinite().all()]
    if broken:
        raise CheckpointError(f"{source} has weights that are not finite: {_enumerate(broken)}")
    try:
        mae.load_state_dict(weights)
    except RuntimeError as error:
        _, *misfits = str(error).splitlines()
        listed = "; ".join(textwrap.shorten(line, _WIDTH) for line in misfits[:_LINES])
        raise CheckpointError(f"{source} does not fit {configuration}: {listed}") from error


def _enumerate(names: Sequence[str]) -> str:
    """A file of another model has hundreds of names; the first ones tell which."""
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
    read = released.read_config if is_released else APMAEConfig.from_dict
    try:
        return read(values), is_released
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
