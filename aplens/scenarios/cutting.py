"""Cutting prompts out of files: the tokens shown to a model, and the one that really comes next.

The whole file is tokenized once, and prompts and targets are cut out of that. So the target is the
token that continues the prompt, which the span tokenized on its own often is not: a byte-pair
tokenizer puts the blank before a word into the word's token.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from aplens.scenarios.scenario import PromptStyle, ScenarioError
from aplens.scenarios.tasks import Span

FIM_MARKERS: tuple[tuple[str, str, str], ...] = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""The markers before the prefix, between prefix and suffix, and after the suffix.

In order: StarCoder and StarCoder2; Qwen2.5-Coder and CodeGemma; DeepSeek-Coder; Code Llama. All of
them were trained on the prefix, then the suffix, then the middle that the model is to write.
"""


@dataclass(frozen=True)
class TokenizedFile:
    """A file's tokens, no special ones among them, and where in the text each starts and ends."""

    text: str
    ids: list[int]
    starts: Int[np.ndarray, " token"]
    ends: Int[np.ndarray, " token"]

    def tokens_of(self, span: Span) -> range | None:
        """The tokens that cover a span: the fewest whose text has all of it.

        None where the first of them has anything but blanks before the span, so that no prompt can
        stop where the span starts.
        """
        first = int(np.searchsorted(self.ends, span.start, side="right"))
        if first == len(self.ids) or self.starts[first] > span.start:
            return None
        before = self.text[self.starts[first] : span.start]
        if before and not before.isspace():
            return None
        last = int(np.searchsorted(self.ends, span.end, side="left"))
        if last == len(self.ids):
            return None
        # The bytes of one character may be several tokens, all of which end with that character.
        stop = int(np.searchsorted(self.ends, self.ends[last], side="right"))
        return range(first, stop)


class PromptBuilder:
    """Cuts prompts of exactly `context_length` tokens out of tokenized files.

    A prompt starts with what the tokenizer itself puts before a text (a BOS token, or nothing).
    Left to right, the tokens before the span follow. To fill in the middle, the file's tokens
    before and after the span stand between the markers, in the order the model was trained on;
    each side gets half of the room, and what a side cannot fill goes to the other.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        context_length: Number of tokens in a prompt, markers and BOS included.
        style: "left_to_right", "fim", or "auto": "fim" where the tokenizer has a known set of
            markers. That a tokenizer has them does not prove that the model was trained with them
            (OpenCoder was not); ask for "left_to_right" where it was not.

    Raises:
        ScenarioError: The tokenizer gives no offsets or lacks the markers that `style` needs, or
            `context_length` leaves no room for the file's own tokens.
    """

    style: PromptStyle

    def __init__(
        self,
        tokenizer: Any,
        context_length: int,
        style: Literal["auto", "left_to_right", "fim"] = "auto",
    ) -> None:
        if style not in ("auto", "left_to_right", "fim"):
            raise ScenarioError(f"style must be auto, left_to_right or fim, got {style!r}")
        if not getattr(tokenizer, "is_fast", False):
            raise ScenarioError(
                "expected a fast tokenizer, which knows the characters of each token; "
                f"got {type(tokenizer).__name__}"
            )
        self._tokenizer = tokenizer
        markers = None if style == "left_to_right" else find_fim_markers(tokenizer)
        if style == "fim" and markers is None:
            raise ScenarioError(
                "style 'fim' needs a tokenizer with fill-in-the-middle markers; "
                f"this one has none of {FIM_MARKERS}"
            )
        self.style = "left_to_right" if markers is None else "fim"
        self._markers: tuple[int, ...] = markers or ()
        self._bos = _leading_special_tokens(tokenizer)
        self._room = context_length - len(self._bos) - len(self._markers)
        if self._room < 1:
            raise ScenarioError(
                f"context_length {context_length} has no room for text beside "
                f"{len(self._bos) + len(self._markers)} special tokens"
            )

    def tokenize(self, text: str) -> TokenizedFile:
        """Tokenize a file; what looks like a special token in it is taken as plain text."""
        encoding = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        offsets = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return TokenizedFile(text, encoding["input_ids"], offsets[:, 0], offsets[:, 1])

    def is_long_enough(self, file: TokenizedFile) -> bool:
        """Whether the file has tokens enough for one prompt and its target."""
        return len(file.ids) > self._room

    def build(self, file: TokenizedFile, span: range) -> tuple[int, ...] | None:
        """The prompt that asks for the tokens of a span.

        Args:
            file: The file.
            span: Positions of the span's tokens in it.

        Returns:
            The prompt's token ids, or None where the file has too few tokens around the span.
        """
        ids, room = file.ids, self._room
        if self.style == "left_to_right":
            if span.start < room:
                return None
            return (*self._bos, *ids[span.start - room : span.start])
        rest = len(ids) - span.stop
        if span.start + rest < room:
            return None
        n_after = max(min(rest, room // 2), room - span.start)
        n_before = room - n_after
        prefix = ids[span.start - n_before : span.start]
        suffix = ids[span.stop : span.stop + n_after]
        before_prefix, before_suffix, before_middle = self._markers
        return (*self._bos, before_prefix, *prefix, before_suffix, *suffix, before_middle)


def find_fim_markers(tokenizer: Any) -> tuple[int, int, int] | None:
    """Ids of the fill-in-the-middle markers, in a prompt's order; None without a known set."""
    vocabulary = tokenizer.get_vocab()
    for prefix, suffix, middle in FIM_MARKERS:
        if prefix in vocabulary and suffix in vocabulary and middle in vocabulary:
            return vocabulary[prefix], vocabulary[suffix], vocabulary[middle]
    return None


def _leading_special_tokens(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before any text."""
    encoding = tokenizer("x", return_special_tokens_mask=True)
    pairs = zip(encoding["input_ids"], encoding["special_tokens_mask"], strict=True)
    return tuple(token for token, _ in takewhile(lambda pair: pair[1], pairs))
