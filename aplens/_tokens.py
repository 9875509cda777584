"""Tokens as text. Tokenizers of bytes cut characters in pieces, which alone are no text at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from aplens._words import displayable

#: Characters shown of a prompt's end, which begins with a whole word if one begins among the first.
_TEXT_LENGTH = 44
_CUT_WITHIN = 16

#: Characters of a token that an axis has room for.
_LONGEST_TOKEN = 24

_MARKS = {"\n": "↵", "\t": "→", " ": "·", "\x7f": "␡"} | {
    chr(code): chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"
}

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


def label_tokens(model: Any, ids: Sequence[int]) -> list[str]:
    """Each token of a prompt as text on one line; its id where the model has no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return [str(token) for token in ids]
    return [displayable_token(text) for text in token_texts(tokenizer, ids)]


def displayable_token(token: str) -> str:
    """A token on one line, with marks for blanks and control characters, cut when very long."""
    shown = displayable("".join(_MARKS.get(character, character) for character in token))
    return shown if len(shown) <= _LONGEST_TOKEN else shown[: _LONGEST_TOKEN - 1] + "…"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    r"""Each token of a prompt as text; bytes that are no whole character as numbers (`\xe6`).

    So U+FFFD, which a tokenizer writes for such bytes, is there only where the prompt's text has
    it.

    Args:
        tokenizer: A Hugging Face tokenizer: of bytes (GPT-2, Llama 3), of text with bytes for what
            is not in its vocabulary (`<0xE6>`; Gemma, Mistral), or of text.
        ids: Token ids in their order.
    """
    texts = [tokenizer.decode([token]) for token in ids]
    pieces = _read_pieces(tokenizer, ids, texts)
    return [_as_text(piece) or text for piece, text in zip(pieces, texts, strict=True)]


def readable_text(tokenizer: Any, ids: Sequence[int]) -> str:
    r"""The text of a prompt, with the bytes of a character that it cuts through (`\xe6`)."""
    whole = tokenizer.decode(list(ids))
    if _REPLACEMENT not in whole:
        return whole
    pieces = _read_pieces(tokenizer, ids, [tokenizer.decode([token]) for token in ids])
    parts = []
    for in_bytes, run in groupby(zip(ids, pieces, strict=True), lambda pair: bool(pair[1])):
        tokens, data = zip(*run, strict=True)
        parts.append(_as_text(b"".join(data)) if in_bytes else tokenizer.decode(list(tokens)))
    return "".join(parts)


def last_text(model: Any, prompt: Sequence[int]) -> str:
    """The end of a prompt on one line; empty where the model has no tokenizer to write it with."""
    if getattr(model, "tokenizer", None) is None:
        return ""
    text = readable_text(model.tokenizer, prompt)
    shown = displayable(text.replace("\n", "↵").replace("\t", "→"))
    if len(shown) <= _TEXT_LENGTH:
        return shown
    end = shown[-_TEXT_LENGTH:]
    whole_words = re.search(r"(?<=[ ↵→])[^ ↵→]", end[:_CUT_WITHIN])
    return "…" + end[whole_words.start() if whole_words else 0 :]


def _read_pieces(tokenizer: Any, ids: Sequence[int], texts: Sequence[str]) -> list[bytes]:
    """The bytes of tokens that are no text alone; none for all others, which share no character."""
    return [
        _read_bytes(tokenizer.convert_ids_to_tokens([token])[0]) if _REPLACEMENT in text else b""
        for token, text in zip(ids, texts, strict=True)
    ]


def _read_bytes(written: str | bytes) -> bytes:
    """The bytes of a token as its vocabulary writes it; none where it writes text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if isinstance(written, bytes):
        return written
    if match := _BYTE_TOKEN.fullmatch(written):
        return bytes.fromhex(match[1])
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    return bytes(map(byte_of.__getitem__, written)) if byte_of.keys() >= set(written) else b""


def _as_text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
