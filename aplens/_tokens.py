"""Tokens as text. Tokenizers of bytes cut characters in pieces, which alone are no text at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from aplens._words import displayable, spell_out

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
_ABOVE, _BELOW = "⁰¹²³⁴", "₀₁₂₃₄"


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
    r"""Each token of a prompt as text.

    A token that holds a piece of a character reads as the character and which of its pieces this is
    ("日¹⁄₃", the first of three tokens): its neighbours hold the rest. Where they do not, because
    the prompt begins or ends inside the character, it reads as its bytes (`\xE6`). So U+FFFD, which
    a tokenizer writes for a piece alone, is there only where the prompt's text has it.

    Args:
        tokenizer: A Hugging Face tokenizer: of bytes (GPT-2, Llama 3), of text with bytes for what
            is not in its vocabulary (`<0xE6>`; Gemma, Mistral), or of text.
        ids: Token ids in their order.
    """
    texts = [tokenizer.decode([token]) for token in ids]
    pieces = _read_pieces(tokenizer, ids, texts)
    for places in _runs(pieces):
        if pieces[places[0]]:
            for place, text in zip(places, _name(pieces[places[0] : places[-1] + 1]), strict=True):
                texts[place] = text
    return texts


def readable_text(tokenizer: Any, ids: Sequence[int]) -> str:
    r"""The text of a prompt, with the bytes of a character that it cuts through (`\xE6`)."""
    whole = tokenizer.decode(list(ids))
    if _REPLACEMENT not in whole:
        return whole
    pieces = _read_pieces(tokenizer, ids, [tokenizer.decode([token]) for token in ids])
    return "".join(
        "".join(text for text, *_ in _characters(b"".join(pieces[place] for place in places)))
        if pieces[places[0]]
        else tokenizer.decode([ids[place] for place in places])
        for places in _runs(pieces)
    )


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


def _runs(pieces: Sequence[bytes]) -> Iterator[list[int]]:
    """Places of tokens that follow each other, either all of bytes or all of text."""
    for _, run in groupby(range(len(pieces)), lambda place: bool(pieces[place])):
        yield list(run)


def _name(pieces: Sequence[bytes]) -> list[str]:
    owners = [place for place, piece in enumerate(pieces) for _ in piece]
    names = [""] * len(pieces)
    for text, start, stop in _characters(b"".join(pieces)):
        first, last = owners[start], owners[stop - 1]
        n = last - first + 1
        for part in range(1, n + 1):
            names[first + part - 1] += text if n == 1 else _name_part(text, part, n)
    return names


def _name_part(character: str, part: int, n: int) -> str:
    if unicodedata.category(character) == "Cf":  # such as what joins emoji, which shows nothing
        character = spell_out(character)
    return f"{character}{_ABOVE[part]}⁄{_BELOW[n]}"


def _characters(data: bytes) -> Iterator[tuple[str, int, int]]:
    r"""Each character with its first byte and the byte after its last; a byte of none as `\xE6`."""
    start = 0
    while start < len(data):
        for stop in range(start + 1, min(start + 4, len(data)) + 1):
            try:
                text = data[start:stop].decode()
            except UnicodeDecodeError:
                continue
            break
        else:
            stop = start + 1
            text = rf"\x{data[start]:02X}"
        yield text, start, stop
        start = stop
