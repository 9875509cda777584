"""Which heads a view shows."""

from __future__ import annotations

from typing import Any

from aplens.heads import Head, HeadRanking, HeadsLike
from aplens.models import describe_model
from aplens.patterns.collect import select_heads

#: Heads that a ranking stands for.
TOP_HEADS = 6

#: More heads than this no one looks at, and a page of them would be slow.
_MOST_HEADS = 24


def choose_heads(
    model: Any, heads: HeadsLike | None, ranking: HeadRanking | None = None
) -> tuple[tuple[Head, ...], HeadRanking | None]:
    """The heads to look at, and where their effects and ranks come from.

    A ranking stands for its best heads. That of a model of another shape is refused: it ranks other
    heads of the same names.
    """
    own = describe_model(model).shape
    for each in (heads, ranking):
        shape = each.model if isinstance(each, HeadRanking) else own
        if (shape.n_layers, shape.n_heads) != (own.n_layers, own.n_heads):
            raise ValueError(f"the ranking is of {shape}, the model is {own}")
    if isinstance(heads, HeadRanking):
        ranking = ranking or heads
        heads = heads.top(TOP_HEADS)
    elif heads is None:
        if ranking is None:
            raise ValueError("no heads were chosen: pass heads or a ranking")
        heads = ranking.top(TOP_HEADS)
    return at_most(select_heads(model, heads)), ranking


def at_most(heads: tuple[Head, ...]) -> tuple[Head, ...]:
    """The heads; too many to look at are refused."""
    if len(heads) > _MOST_HEADS:
        raise ValueError(
            f"{len(heads)} heads are too many to look at: choose up to {_MOST_HEADS}, such as "
            "ranking.top(6)"
        )
    return heads
