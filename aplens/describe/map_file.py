"""A map of heads as one safetensors file: arrays, and all else as JSON in the file's header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aplens._documents import check, take
from aplens._io import atomic_write, fingerprint, hash_tensors, parse_json
from aplens.describe.fingerprints import ModelHeads
from aplens.heads import ModelShape, parse_heads

_KEY, _VERSION = "aplens.head_map", 1
_ARRAYS = (
    "fingerprints",
    "halves",
    "template_scores",
    "template_shares",
    "pictures",
    "departures",
    "surprises",
)


def write_map(path: str | os.PathLike[str], models: Sequence[ModelHeads], mae: str) -> None:
    """Write what is known of models' heads; `mae` says which AP-MAE made the fingerprints."""
    facts = {"version": _VERSION, "mae": mae, "models": [_facts(each) for each in models]}
    arrays = {
        f"{number}.{name}": getattr(each, name).contiguous()
        for number, each in enumerate(models)
        for name in _ARRAYS
        if getattr(each, name) is not None
    }
    facts["checksum"] = _checksum(facts, arrays)
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
        facts = parse_json(header)
        version = take(facts, "version", int)
        if version != _VERSION:
            raise ValueError(f"it is of version {version}; this aplens reads {_VERSION}")
        checksum = _checksum(facts, arrays)
        if facts.get("checksum", checksum) != checksum:  # the first files had none
            raise ValueError("it does not match its checksum")
        models = [
            _read_model(each, number, arrays)
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
    shape = ModelShape(
        take(facts, "model_name", str), take(facts, "n_layers", int), take(facts, "n_heads", int)
    )
    pairs = [tuple(pair) for pair in take(facts, "heads", list)]
    names = {name: f"{number}.{name}" for name in _ARRAYS}
    found: dict[str, Any] = {name: arrays[of] for name, of in names.items() if of in arrays}
    return ModelHeads(
        name=take(facts, "name", str),
        model=shape,
        heads=parse_heads(pairs, shape),
        templates=tuple(take(facts, "templates", list)),
        texts=tuple(check(text, str, "texts") for text in take(facts, "texts", list)),
        **{"halves": None, **found},  # a single prompt has none
    )


def _checksum(facts: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> str:
    """Of all that is in the file."""
    content = {name: value for name, value in facts.items() if name != "checksum"}
    return fingerprint([content, hash_tensors(arrays)])
