"""The only module that knows that HookedTransformer and TransformerBridge differ.

Neither class is imported before it is asked for: TransformerLens 4 has no HookedTransformer.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

ModelKind = Literal["hooked", "bridge"]
DeviceMap: TypeAlias = "str | dict[str, str | int]"

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer  # type: ignore[attr-defined, unused-ignore]
    from transformer_lens.model_bridge import TransformerBridge

    #: What `load_model` returns. TransformerLens 4 has the bridge alone.
    HookedModel: TypeAlias = HookedTransformer | TransformerBridge

CLASS_NAMES: dict[ModelKind, str] = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}

#: Options of a configuration by these names change what a model computes.
_COMPUTES = re.compile("rope|rotary|window|bias|scal|mult|cap|norm|act|layer_types|alibi|clip")


class UnsupportedModelError(TypeError):
    """The model cannot be had with hooks on causal attention patterns, or not as the same model."""


def kind_of(model: Any) -> ModelKind | None:
    """Which of the two classes a model is of, by name, so that neither need be importable."""
    names = {cls.__name__ for cls in type(model).__mro__}
    if "TransformerBridge" in names:
        return "bridge"
    if "HookedTransformer" in names:
        return "hooked"
    return None


def first_parameter(model: Any) -> torch.Tensor:
    """The first that is in memory: those offloaded to disk are on the "meta" device."""
    in_memory = (p for p in model.parameters() if p.device.type != "meta")
    return next(in_memory, next(model.parameters()))


def available_kinds() -> tuple[ModelKind, ...]:
    """The classes that the installed TransformerLens has, HookedTransformer first."""
    hooked = importlib.util.find_spec("transformer_lens.HookedTransformer")
    return ("hooked", "bridge") if hooked else ("bridge",)


def text_config(hf_config: Any) -> Any:
    """The part of a Hugging Face configuration that is about text: of models for images the inner
    one.
    """
    return hf_config.get_text_config(decoder=True)


def own_context(hf_config: Any) -> int | None:
    """The longest prompt by a model's own configuration, in tokens; None where it does not say."""
    config = text_config(hf_config)
    keys = ("n_positions", "max_position_embeddings", "max_seq_len", "seq_length", "n_ctx")
    found = (getattr(config, key, None) for key in keys)
    return next((length for length in found if isinstance(length, int) and length > 0), None)


def build(
    kind: ModelKind,
    hf_model: Any,
    tokenizer: Any,
    *,
    name: str,
    device: str | None,
    dtype: torch.dtype,
    official_name: str | None = None,
) -> Any:
    """Wrap a Hugging Face model, weights unprocessed.

    Without a device the model stays where it is, which only a bridge can. Without a tokenizer the
    model reads tokens only. What the result computes is not looked at: `load_model` compares it.

    Raises:
        ImportError: When the installed TransformerLens has no such class.
        UnsupportedModelError: When the class cannot hold this architecture.
    """
    # Both classes look the configuration up by name; from a folder of our own they need no network,
    # and the user's path cannot mislead TransformerLens, which reads families out of names.
    with tempfile.TemporaryDirectory(prefix="aplens-") as folder, _converting(kind, hf_model):
        _save_config(hf_model.config, architecture_of(hf_model), folder)
        if tokenizer is None:
            _save_placeholder_tokenizer(folder)
        if kind == "hooked":
            names = [folder] if official_name is None else [folder, official_name]
            model = _build_hooked(names, hf_model, tokenizer, device, dtype)
        else:
            model = _build_bridge(folder, hf_model, tokenizer, device, dtype)
    if tokenizer is None:
        model.tokenizer = None
    model.cfg.model_name = name
    model.cfg.n_ctx = own_context(hf_model.config) or model.cfg.n_ctx
    return model.eval()


def architecture_of(hf_model: Any) -> str:
    """The name of a Hugging Face model's class, such as LlamaForCausalLM."""
    return str((hf_model.config.architectures or [type(hf_model).__name__])[0])


@contextmanager
def _converting(kind: ModelKind, hf_model: Any) -> Iterator[None]:
    """TransformerLens says in many ways that it does not know a family, or a variant of one."""
    try:
        yield
    except (ImportError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Some say nothing, and some list all families there are.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnsupportedModelError(
            f"{CLASS_NAMES[kind]} cannot hold a {architecture_of(hf_model)}: {reason}"
        ) from error


def _save_config(hf_config: Any, architecture: str, folder: str) -> None:
    config = copy.deepcopy(hf_config)
    config.architectures = config.architectures or [architecture]
    if not hasattr(config, "n_ctx") and hasattr(config, "n_positions"):
        config.n_ctx = config.n_positions  # TransformerLens reads GPT-2's old name for it
    config.save_pretrained(folder)


def _save_placeholder_tokenizer(folder: str) -> None:
    """TransformerLens insists on a tokenizer, and invents one or fails where there is none."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    special = {"bos_token": "<s>", "eos_token": "<s>", "pad_token": "<s>", "unk_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


def _build_hooked(
    names: list[str], hf_model: Any, tokenizer: Any, device: str | None, dtype: torch.dtype
) -> Any:
    try:
        from transformer_lens import HookedTransformer
    except ImportError as error:
        raise ImportError(
            "this TransformerLens has no HookedTransformer (it was removed in 4.0): "
            "use kind='bridge', or install transformer-lens<4"
        ) from error
    from transformer_lens import loading_from_pretrained as loading

    for name in names:
        try:
            config = loading.get_pretrained_model_config(
                name,
                hf_cfg=hf_model.config.to_dict(),
                device=device,
                dtype=dtype,
            )
            break
        except NotImplementedError:  # it knows some families by their models' names only
            if name == names[-1]:
                raise
    # TransformerLens keeps many families to 2,048 tokens, and gives BLOOM as many as that.
    config.n_ctx = own_context(hf_model.config) or config.n_ctx
    weights = loading.get_pretrained_state_dict(name, config, hf_model, dtype=dtype)
    model = HookedTransformer(config, tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    model.move_model_modules_to_device()
    return model


def ignored_by_hooked(hf_model: Any) -> list[str]:
    """Options of a model's configuration that change what it computes, and no HookedTransformer.

    Each that is not the family's default is set to it: HookedTransformer ignores those for which
    its own configuration stays the same.
    """
    config, architecture = hf_model.config, architecture_of(hf_model)
    as_it_is = _hooked_config(config, architecture)
    defaults = type(config)()
    ignored = []
    for key, value in config.to_diff_dict().items():
        if not _COMPUTES.search(key) or not hasattr(defaults, key):
            continue
        usual = getattr(defaults, key)
        if isinstance(value, dict) and "rope_theta" in value:  # what every type of rope has
            kept = value.keys() & {"rope_theta", "partial_rotary_factor"}
            usual = {"rope_type": "default", **{name: value[name] for name in kept}}
        plain = copy.deepcopy(config)
        setattr(plain, key, copy.deepcopy(usual))
        if value != usual and _hooked_config(plain, architecture) == as_it_is:
            ignored.append(f"{key}={value!r}")
    return ignored


def _hooked_config(hf_config: Any, architecture: str) -> dict[str, Any] | None:
    from transformer_lens import loading_from_pretrained as loading

    with tempfile.TemporaryDirectory(prefix="aplens-") as folder:
        try:
            _save_config(hf_config, architecture, folder)
            found = loading.get_pretrained_model_config(folder, hf_cfg=hf_config.to_dict())
        except Exception:  # as in `_converting`
            return None
    named_by_folder = ("model_name", "tokenizer_name")
    return {key: value for key, value in found.to_dict().items() if key not in named_by_folder}


def _build_bridge(
    folder: str, hf_model: Any, tokenizer: Any, device: str | None, dtype: torch.dtype
) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        folder,
        hf_model=hf_model if device is None else hf_model.to(device),
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
    )


def find_official_name(name: str) -> str | None:
    """The hub name of a model that TransformerLens knows by this name; None when it knows none."""
    module = "loading_from_pretrained" if "hooked" in available_kinds() else "supported_models"
    home = importlib.import_module(f"transformer_lens.{module}")
    try:
        return str(home.get_official_model_name(name))
    except ValueError:
        return None


def load_transformer_lens_format(
    kind: ModelKind, name: str, device: str | None, dtype: torch.dtype
) -> Any:
    """A model that exists in TransformerLens' own format only, such as "gelu-1l"."""
    if kind == "bridge":
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name, device=device, dtype=dtype).eval()
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=dtype).eval()


def own_tokenizer(model: Any) -> Any | None:
    """A model's tokenizer as its files define it.

    TransformerLens loads every tokenizer again so that it begins a text with BOS; whether the model
    was trained that way, only the tokenizer's own files say. Where they are out of reach, or the
    tokenizer was changed since, the one the model has is returned.
    """
    from transformers import AutoTokenizer

    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return None
    try:
        own = AutoTokenizer.from_pretrained(tokenizer.name_or_path, trust_remote_code=False)
    except (OSError, ValueError):
        return tokenizer
    return own if own.get_vocab() == tokenizer.get_vocab() else tokenizer
