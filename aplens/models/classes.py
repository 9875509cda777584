"""The only module that knows that HookedTransformer and TransformerBridge differ.

Neither class is imported before it is asked for: TransformerLens 4 has no HookedTransformer.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

ModelKind = Literal["hooked", "bridge"]
DeviceMap: TypeAlias = "str | dict[str, str | int]"


class Placement(NamedTuple):
    """Where a model's layers go.

    Attributes:
        device: The one device, or the first of several; None where a device map says it.
        n_devices: GPUs that a HookedTransformer is spread over.
        device_map: Where a bridge's modules go, as accelerate says it.
        max_memory: Bytes that each GPU may take of it.
    """

    device: str | None
    n_devices: int = 1
    device_map: DeviceMap | None = None
    max_memory: dict[str | int, str | int] | None = None


def kind_of(model: Any) -> ModelKind | None:
    """Which of the two classes a model is of, by name, so that neither need be importable."""
    names = {cls.__name__ for cls in type(model).__mro__}
    if "TransformerBridge" in names:
        return "bridge"
    if "HookedTransformer" in names:
        return "hooked"
    return None


def default_kind() -> ModelKind:
    """HookedTransformer where the installed TransformerLens has it, else TransformerBridge."""
    return "hooked" if importlib.util.find_spec("transformer_lens.HookedTransformer") else "bridge"


def build(
    kind: ModelKind,
    hf_model: Any,
    tokenizer: Any,
    *,
    name: str,
    placement: Placement,
    dtype: torch.dtype,
) -> Any:
    """Wrap a Hugging Face model, weights unprocessed, so that it computes what that model does.

    Without a tokenizer the model reads tokens only.

    Raises:
        ImportError: When the installed TransformerLens has no such class.
        ValueError: When HookedTransformer cannot convert this architecture.
    """
    # Both classes look the configuration up by name; from a folder of our own they need no network,
    # and the user's path cannot mislead TransformerLens, which reads families out of names.
    with tempfile.TemporaryDirectory(prefix="aplens-") as folder:
        _save_config(hf_model, folder)
        if tokenizer is None:
            _save_placeholder_tokenizer(folder)
        if kind == "hooked":
            model = _build_hooked(folder, hf_model, tokenizer, placement, dtype)
        else:
            model = _build_bridge(folder, hf_model, tokenizer, placement, dtype)
    if tokenizer is None:
        model.tokenizer = None
    model.cfg.model_name = name
    return model.eval()


def _save_config(hf_model: Any, folder: str) -> None:
    config = copy.deepcopy(hf_model.config)
    if not config.architectures:
        config.architectures = [type(hf_model).__name__]
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
    folder: str, hf_model: Any, tokenizer: Any, placement: Placement, dtype: torch.dtype
) -> Any:
    try:
        from transformer_lens import HookedTransformer
    except ImportError as error:
        raise ImportError(
            "this TransformerLens has no HookedTransformer (it was removed in 4.0): "
            "use kind='bridge', or install transformer-lens<4"
        ) from error
    from transformer_lens import loading_from_pretrained as loading

    architecture = (hf_model.config.architectures or [type(hf_model).__name__])[0]
    try:
        config = loading.get_pretrained_model_config(
            folder,
            hf_cfg=hf_model.config.to_dict(),
            device=placement.device,
            n_devices=placement.n_devices,
            dtype=dtype,
        )
        weights = loading.get_pretrained_state_dict(folder, config, hf_model, dtype=dtype)
        model = HookedTransformer(config, tokenizer, move_to_device=False)
        model.load_and_process_state_dict(
            weights,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
    # TransformerLens says in many ways that it does not know a family, or a variant of one.
    except (NotImplementedError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"HookedTransformer cannot convert {architecture}: use kind='bridge' ({error})"
        ) from error
    model.move_model_modules_to_device()
    return model


def _build_bridge(
    folder: str, hf_model: Any, tokenizer: Any, placement: Placement, dtype: torch.dtype
) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    device = placement.device
    return TransformerBridge.boot_transformers(
        folder,
        hf_model=hf_model if device is None else hf_model.to(device),
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
    )


def build_by_official_name(
    kind: ModelKind, name: str, placement: Placement, dtype: torch.dtype
) -> Any | None:
    """Let TransformerLens load a name it knows itself; None when it does not know it."""
    if kind == "bridge":
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            name,
            device=placement.device,
            device_map=placement.device_map,
            max_memory=placement.max_memory,
            dtype=dtype,
        ).eval()
    try:
        from transformer_lens import HookedTransformer
        from transformer_lens.loading_from_pretrained import get_official_model_name
    except ImportError:
        return None  # the folder route says what is missing
    try:
        get_official_model_name(name)
    except ValueError:
        return None
    return HookedTransformer.from_pretrained_no_processing(
        name, device=placement.device, n_devices=placement.n_devices, dtype=dtype
    ).eval()


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
        own = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    except (OSError, ValueError):
        return tokenizer
    return own if own.get_vocab() == tokenizer.get_vocab() else tokenizer
