"""Words and limits that all views share."""

from __future__ import annotations

from aplens.heads import Head

#: Heads that a ranking stands for.
TOP_HEADS = 6

#: More heads than this no one looks at, and a page of them would be slow.
_MOST_HEADS = 24


def at_most(heads: tuple[Head, ...]) -> tuple[Head, ...]:
    """The heads; too many to look at are refused."""
    if len(heads) > _MOST_HEADS:
        raise ValueError(
            f"{len(heads)} heads are too many to look at: choose up to {_MOST_HEADS}, such as "
            "ranking.top(6)"
        )
    return heads


def count(n: int, what: str) -> str:
    """Such as "1 head" and "1,200 heads"."""
    return f"{n:,} {what}" + "s" * (n != 1)


def join(*parts: str) -> str:
    """Facts side by side, those that are empty left out."""
    return " · ".join(part for part in parts if part)
