"""A map of heads as one safetensors file: arrays, and all else as JSON in the file's header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aplens._documents import check, take
from aplens._io import atomic_write, parse_json
from aplens.describe.fingerprints import ModelHeads
from aplens.heads import ModelShape, parse_heads

_KEY, _VERSION = "aplens.head_map", 1
_ARRAYS = {
    "fingerprints": torch.float32,
    "halves": torch.float32,
    "template_scores": torch.float32,
    "template_shares": torch.float32,
    "pictures": torch.uint8,
    "departures": torch.int64,
    "surprises": torch.float32,
}


def write_map(path: str | os.PathLike[str], models: Sequence[ModelHeads], mae: str) -> None:
    """Write what is known of models' heads; `mae` says which AP-MAE made the fingerprints."""
    facts = {"version": _VERSION, "mae": mae, "models": [_facts(each) for each in models]}
    arrays = {
        f"{number}.{name}": getattr(each, name).contiguous()
        for number, each in enumerate(models)
        for name in _ARRAYS
        if getattr(each, name) is not None
    }
    with atomic_write(path) as temporary:
        save_file(arrays, temporary, metadata={_KEY: json.dumps(facts, allow_nan=False)})


def read_map(path: str | os.PathLike[str]) -> tuple[tuple[ModelHeads, ...], str]:
    """What `write_map` wrote: the models, and which AP-MAE it was."""
    with Path(path).open("rb"):  # a missing file or a folder is an OSError that names it
        pass
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a map of heads saved by aplens: {error}") from error
    if header is None:
        raise ValueError(f"{path} is not a map of heads saved by aplens")
    try:
        facts = check(parse_json(header), dict, "the header")
        version = take(facts, "version", int)
        if version != _VERSION:
            raise ValueError(f"it is of version {version}; this aplens reads {_VERSION}")
        models = [
            _read_model(check(each, dict, f"models[{number}]"), number, arrays)
            for number, each in enumerate(take(facts, "models", list))
        ]
        return tuple(models), take(facts, "mae", str)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged map of heads: {error}") from error


def _facts(model: ModelHeads) -> dict[str, Any]:
    return {
        "name": model.name,
        "model_name": model.model.name,
        "n_layers": model.model.n_layers,
        "n_heads": model.model.n_heads,
        "heads": [list(head) for head in model.heads],
        "templates": list(model.templates),
        "texts": list(model.texts),
    }


def _read_model(facts: Mapping[str, Any], number: int, arrays: Mapping[str, Tensor]) -> ModelHeads:
    where = f"models[{number}]."
    shape = ModelShape(
        take(facts, "model_name", str, where),
        take(facts, "n_layers", int, where),
        take(facts, "n_heads", int, where),
    )
    pairs = [
        tuple(check(pair, list, f"{where}heads")) for pair in take(facts, "heads", list, where)
    ]
    heads = parse_heads(pairs, shape)
    if len(heads) != len(pairs):
        raise ValueError(f"{where}heads names a head twice")
    return ModelHeads(
        name=take(facts, "name", str, where),
        model=shape,
        heads=heads,
        templates=_texts(facts, "templates", where),
        texts=_texts(facts, "texts", where),
        **{name: _array(arrays, f"{number}.{name}") for name in _ARRAYS},
    )


def _texts(facts: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    return tuple(check(each, str, f"{where}{key}") for each in take(facts, key, list, where))


def _array(arrays: Mapping[str, Tensor], name: str) -> Any:
    """An array of the kind that belongs there; halves may be missing."""
    kind = _ARRAYS[name.partition(".")[2]]
    if name not in arrays:
        if name.endswith(".halves"):
            return None
        raise ValueError(f"the array {name} is missing")
    if arrays[name].dtype != kind:
        raise ValueError(f"expected the array {name} of {kind}, got {arrays[name].dtype}")
    return arrays[name]
