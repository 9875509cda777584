"""Words that all views share."""

from __future__ import annotations


def count(n: int, what: str) -> str:
    """Such as "1 head" and "1,200 heads"."""
    return f"{n:,} {what}" + "s" * (n != 1)


def join(*parts: str) -> str:
    """Facts side by side, those that are empty left out."""
    return " · ".join(part for part in parts if part)
