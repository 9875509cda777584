"""Prompts of any lengths, in any form a user has them, as one tensor padded on the right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aplens._words import is_whole, shorten
from aplens.models import describe_model
from aplens.models.classes import kind_of

_MOST = 2**63


@dataclass(frozen=True, repr=False)
class Prompts:
    """Token ids of prompts, padded on the right to the longest.

    Padding on the right needs no attention mask: in a causal model no token sees a later one, so
    what a prompt's own tokens compute is what they compute alone.

    Attributes:
        tokens: `Int[Tensor, "prompt pos"]`; 0 in the padding.
        lengths: `Int[Tensor, "prompt"]`, tokens of each prompt.

    Raises:
        ValueError: When the shapes do not fit, or a length is not between 1 and the longest.
    """

    tokens: Int[Tensor, "prompt pos"]
    lengths: Int[Tensor, " prompt"]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.lengths.shape != self.tokens.shape[:1]:
            raise ValueError(
                "expected tokens (prompt, pos) and one length a prompt, got "
                f"{tuple(self.tokens.shape)} and {tuple(self.lengths.shape)}"
            )
        longest = self.tokens.shape[1]
        if len(self) == 0 or not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= longest:
            raise ValueError(
                f"expected prompts of 1 to {longest} tokens, got lengths {self.lengths.tolist()}"
            )
        object.__setattr__(self, "tokens", self.tokens.masked_fill(~self.mask, 0))

    def __repr__(self) -> str:
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        tokens = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
        return f"Prompts({len(self)} of {tokens} tokens)"

    @classmethod
    def from_ids(cls, prompts: Sequence[Sequence[int]]) -> Prompts:
        """Pad lists of token ids.

        Raises:
            ValueError: When there are no prompts, or one has no tokens.
        """
        lengths = [len(prompt) for prompt in prompts]
        if not lengths or 0 in lengths:
            where = f"prompt {lengths.index(0)} has no tokens" if lengths else "got none"
            raise ValueError(f"expected prompts with at least one token each: {where}")
        rows = [torch.as_tensor(prompt, dtype=torch.long) for prompt in prompts]
        return cls(pad_sequence(rows, batch_first=True), torch.tensor(lengths))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> Prompts:
        """The prompts at a slice, positions or mask, padded to the longest among them only."""
        lengths = self.lengths[rows]
        return Prompts(self.tokens[rows][:, : int(lengths.max())], lengths)

    def split(self, batch_size: int) -> Iterator[Prompts]:
        """Batches in order, each padded to its own longest prompt."""
        for start in range(0, len(self), batch_size):
            yield self[start : start + batch_size]

    def first_tokens(self, n_tokens: int) -> Prompts:
        """The first `n_tokens` tokens of each prompt; shorter prompts stay as they are."""
        return Prompts(self.tokens[:, :n_tokens], self.lengths.clamp(max=n_tokens))

    def to(self, device: torch.device) -> Prompts:
        """The same on another device."""
        return Prompts(self.tokens.to(device), self.lengths.to(device))

    def ids(self, index: int) -> list[int]:
        """One prompt's own token ids."""
        return self.tokens[index, : int(self.lengths[index])].tolist()

    @property
    def mask(self) -> Bool[Tensor, "prompt pos"]:
        """True where a token is the prompt's own."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return places < self.lengths[:, None]

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return self.tokens.shape[1]


@runtime_checkable
class HasPrompts(Protocol):
    """What knows its prompts, such as `Scenarios`."""

    def prompts(self) -> Prompts:
        """The prompts."""


@runtime_checkable
class Column(Protocol):
    """An array, or a column of a table, such as a NumPy array or a pandas Series."""

    def tolist(self) -> Any:
        """What it holds, in order."""


PromptsLike: TypeAlias = (
    Prompts
    | HasPrompts
    | str
    | Sequence[str]
    | Sequence[int]
    | Sequence[Sequence[int]]
    | Sequence[Column]
    | Column
    | Mapping[str, Any]
)


def read_prompts(
    model: Any,
    prompts: PromptsLike,
    *,
    prepend_bos: bool | None = None,
) -> Prompts:
    """Prompts in any form, checked against the model and moved to it.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: A text or several, which the model's own `to_tokens` tokenizes one by one; token
            ids as lists, as a tensor or NumPy array (of one prompt or a batch), or as a list of
            those; a pandas Series of texts or of lists of ids; scenarios; `Prompts`; or a mapping
            such as a Hugging Face tokenizer returns: `input_ids`, and with them `attention_mask`
            where some are padding, on either side, which is taken out (1 where a token is none).
            Without a mask every token counts.
        prepend_bos: Whether to put the BOS token before texts (default: what the model does by
            default). None is put before a text that begins with one, such as a chat template's;
            its own stays in any case. Token ids are taken as they are.

    Raises:
        ValueError: When there are no prompts, one is empty or longer than the model's context, a
            token id is none of the model's, the mask is of other shape, or there is text but no
            tokenizer.
        TypeError: When this is no form of prompts, or one of them is neither text nor token ids,
            such as a missing value; the message names its row.
    """
    read = _read(model, prompts, prepend_bos)
    info = describe_model(model)
    if read.n_tokens > info.n_ctx:
        raise ValueError(
            f"prompts of {read.n_tokens} tokens are too long: {info.name} takes {info.n_ctx}"
        )
    d_vocab = int(model.cfg.d_vocab)
    if int(read.tokens.min()) < 0 or (d_vocab > 0 and int(read.tokens.max()) >= d_vocab):
        raise ValueError(
            f"token ids must be 0 to {d_vocab - 1} for {info.name}, got "
            f"{int(read.tokens.min())} to {int(read.tokens.max())}"
        )
    return read.to(info.device)


def as_list(values: Any) -> Any:
    """What an array or a column holds, as a list; anything else as it is."""
    return values.tolist() if isinstance(values, Column) else values


def name_unfit(values: Any, fits: Callable[[Any], bool], where: str = "for prompt") -> str:
    """The first value that does not fit and its place, for an error; empty where all fit.

    NaN comes before others: for one missing value pandas makes floats of a column's whole numbers.
    """
    rows = [as_list(value) for value in as_list(values)]
    unfit = [place for place, row in enumerate(rows) if not fits(row)]
    if not unfit:
        return ""
    place = min(unfit, key=lambda place: not _is_nan(rows[place]))
    labels = getattr(values, "index", None)  # of a list this is a method
    label = as_list(labels)[place] if isinstance(labels, Column) else place
    of_pandas = "" if label == place else f" (row {shorten(label)})"
    return f"{shorten(rows[place])} {where} {place}{of_pandas}"


def _read(model: Any, prompts: Any, prepend_bos: bool | None) -> Prompts:
    attention_mask = None
    if isinstance(prompts, Mapping):  # what a Hugging Face tokenizer returns
        if "input_ids" not in prompts:
            raise ValueError(
                f"expected a mapping with 'input_ids', got the keys {shorten(list(prompts))}"
            )
        prompts, attention_mask = prompts["input_ids"], prompts.get("attention_mask")
    # A Series answers to its labels, a DataFrame to its columns: neither is a method.
    elif isinstance(prompts, HasPrompts) and callable(prompts.prompts):
        prompts = prompts.prompts()
    if isinstance(prompts, Prompts) and attention_mask is None:
        return prompts
    rows = as_list(prompts)
    if isinstance(rows, str):
        prompts = rows = [rows]
    if not isinstance(rows, Sequence) or isinstance(rows, (bytes, bytearray)):
        raise TypeError(
            "expected prompts as text, token ids, a tokenizer's output or scenarios, "
            f"got {type(prompts).__name__}"
            + (": the model comes first, then the prompts" if kind_of(prompts) else "")
        )
    rows = [as_list(row) for row in rows]
    if any(map(is_whole, rows)):
        if unfit := name_unfit(prompts, is_whole, "at place"):
            raise TypeError(f"expected the token ids of one prompt as whole numbers, got {unfit}")
        rows = [rows]
    elif unfit := name_unfit(prompts, _is_prompt):
        is_array = isinstance(prompts, (Tensor, np.ndarray))
        form = f", in {prompts.dtype} of shape {tuple(prompts.shape)}" if is_array else ""
        raise TypeError(f"expected each prompt as text or token ids, got {unfit}{form}")
    ids = [_tokenize(model, row, prepend_bos) if isinstance(row, str) else row for row in rows]
    return _from_ids(ids if attention_mask is None else _without_padding(ids, attention_mask))


def _without_padding(prompts: list[Any], attention_mask: Any) -> list[list[int]]:
    """The tokens of each prompt that its mask keeps."""
    mask = as_list(attention_mask)
    rows = [as_list(row) for row in mask] if isinstance(mask, Sequence) else []
    if not any(isinstance(row, Sequence) for row in rows):  # the mask of one prompt
        rows = [rows]
    lengths = [len(prompt) for prompt in prompts]
    if [len(row) if isinstance(row, list | tuple) else -1 for row in rows] != lengths:
        raise ValueError(
            "expected attention_mask with a 0 or 1 for each token of prompts of "
            f"{shorten(lengths)} tokens, got {shorten(mask)}"
        )
    return [
        [token for token, keep in zip(*row, strict=True) if keep]
        for row in zip(prompts, rows, strict=True)
    ]


def _from_ids(prompts: list[Any]) -> Prompts:
    """Prompts of ids that a tensor can hold; whether the model knows them is seen later."""
    for prompt in prompts:
        if prompt and not (min(prompt) >= -_MOST and max(prompt) < _MOST):
            raise ValueError(f"expected token ids, got numbers as large as {shorten(max(prompt))}")
    return Prompts.from_ids(prompts)


def _are_ids(prompt: Any) -> bool:
    """Whether these are whole numbers in a list of any kind."""
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, (str, bytes, bytearray))
        and all(map(is_whole, prompt))
    )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or _are_ids(value)


def _tokenize(model: Any, text: str, prepend_bos: bool | None) -> list[int]:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"{model.cfg.model_name} has no tokenizer to read {text[:40]!r} with: pass token ids"
        )
    # `to_tokens` would put a second BOS before a text that begins with one.
    own = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if own and own[0] == tokenizer.bos_token_id:
        return own
    options = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
    return model.to_tokens(text, truncate=False, **options)[0].tolist()
