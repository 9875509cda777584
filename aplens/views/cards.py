"""One card a head: what it does for the answers, and what it does at all."""

from __future__ import annotations

import math
import os
import string
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from aplens._progress import Progress
from aplens._tokens import displayable_token, last_text, token_texts
from aplens.describe.description import HeadDescription, describe_patterns
from aplens.describe.reading import choose_mae, fit_context, leave_out_short
from aplens.describe.surprise_keys import Answers
from aplens.heads import Head, HeadRanking, HeadsLike, ModelShape
from aplens.models import describe_model
from aplens.patterns import log_normalize
from aplens.prompts import Prompts, PromptsLike, read_prompts
from aplens.scenarios import Scenarios
from aplens.views.choice import choose_heads
from aplens.views.embed import View, build_view, render_template
from aplens.views.pixels import draw_pattern
from aplens.views.wording import count, join

if TYPE_CHECKING:
    import pandas as pd

    from aplens.mae import APMAE

#: Side of a small pattern and height of a card and of the text above, in pixels.
_SIDE = 96
_CARD_HEIGHT, _TEXT_HEIGHT, _TALLEST = 332, 110, 1000
_CARDS_A_ROW = 2

#: A kind of key with less of a head's surprise is not drawn.
_LEAST_DRAWN = 0.005


@dataclass(frozen=True, repr=False)
class HeadCards:
    """What some heads of a model do on some prompts, a card each; a notebook shows them.

    Iterating and indexing by place give each head's `HeadDescription`.

    Attributes:
        cards: One description a head, in the order asked for.
        ranking: Where effects and ranks come from, if there is a ranking.
        model: The model's name and shape.
        n_prompts: On how many prompts the heads were looked at.
        texts: The end of each typical prompt, head by head; empty without a tokenizer.
    """

    cards: tuple[HeadDescription, ...]
    ranking: HeadRanking | None
    model: ModelShape
    n_prompts: int
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.cards)

    def __iter__(self) -> Iterator[HeadDescription]:
        return iter(self.cards)

    def __getitem__(self, place: int) -> HeadDescription:
        return self.cards[place]

    def __repr__(self) -> str:
        heads = ", ".join(f"{card.head} {_readable(card.template)}" for card in self.cards[:3])
        more = ", …" if len(self) > 3 else ""
        return f"HeadCards({count(len(self), 'head')} of {self.model.name}: {heads}{more})"

    def to_frame(self) -> pd.DataFrame:
        """One row a head, with its name as index.

        Columns: `layer`, `head`; with a ranking `rank` (from 1), `importance`, `mean`, and where
        the ranking has them `low`, `high`, `measured` (see `HeadRanking`), missing for a head that
        it lacks; `template`, `template_share`, `variation`, `surprise`; `surprise_self` to
        `surprise_other`, the shares by kind of key; `surprise_by_text` and `nearest`, each a dict
        from name to number; `typical_prompt`, its place among the prompts.
        """
        import pandas as pd

        rows = [
            {
                "layer": card.head.layer,
                "head": card.head.head,
                "template": card.template,
                "template_share": card.template_share,
                "variation": card.variation,
                "surprise": card.surprise,
                **{f"surprise_{kind}": share for kind, share in card.surprise_by_kind.items()},
                "surprise_by_text": card.surprise_by_text,
                "nearest": {str(head): cosine for head, cosine in card.nearest.items()},
                "typical_prompt": card.typical.prompt,
            }
            for card in self.cards
        ]
        frame = pd.DataFrame(rows, index=pd.Index([str(card.head) for card in self], name="name"))
        if self.ranking is None:
            return frame
        ranked = self.ranking.to_frame()
        ranked["rank"] = pd.Series(range(1, len(ranked) + 1), ranked.index, dtype="Int64")
        columns = ["rank", "importance", "mean", *HeadRanking.EFFECT_COLUMNS]
        known = ranked[[column for column in columns if column in ranked]].reindex(frame.index)
        return pd.concat([frame[["layer", "head"]], known, frame.iloc[:, 2:]], axis=1)

    def to_html(self) -> str:
        """The cards as a piece of HTML with its own style, for a page that has other content."""
        return render_template("_cards.html.j2", **self._context())

    def view(self) -> View:
        """The cards as a document of their own, to show or to `save`."""
        rows = -(-len(self) // _CARDS_A_ROW)
        return build_view(
            "cards.html.j2",
            f"What {count(len(self), 'head')} of {self.model.name} "
            + ("does" if len(self) == 1 else "do"),
            height=min(_TALLEST, _TEXT_HEIGHT + rows * _CARD_HEIGHT),
            note=f"On {count(self.n_prompts, 'prompt')}. {_explain_effects(self.ranking)}"
            "Pictures: the head's typical pattern, and its habit there, what AP-MAE expects "
            "(log-normalized; queries run down, keys to the right). Surprise: attention beyond the "
            "habit, as a share of a query's attention. Bars: which keys get it.",
            **self._context(),
        )

    def _repr_html_(self) -> str:
        return self.view()._repr_html_()

    def _context(self) -> dict[str, Any]:
        effects = _effects(self.ranking)
        longest = max(len(card.typical.attention) for card in self.cards)
        return {
            "cards": [
                _draw(card, effects.get(card.head, ""), text)
                for card, text in zip(self.cards, self.texts, strict=True)
            ],
            "side": longest * (_SIDE // longest) or _SIDE,  # squares of whole pixels
            "rendering": "pixelated" if longest <= _SIDE else "auto",
        }


def describe_heads(
    model: Any,
    prompts: PromptsLike,
    heads: HeadsLike,
    *,
    mae: APMAE | str | os.PathLike[str] = "auto",
    ranking: HeadRanking | None = None,
    batch_size: int = 8,
    precision: torch.dtype | None = None,
    progress: bool | Progress = True,
) -> HeadCards:
    """Describe what heads do on prompts: effects say which heads matter, AP-MAE says what they do.

    Each card has the head's effect and rank, if there is a ranking; the template that its pattern
    follows; how much the pattern varies with the prompt; its typical pattern beside its habit
    there; where its attention exceeds its habit, by kind of key (for scenarios also the answer and
    the wrong answer) and by token; and the heads of the model whose patterns are most like its own.
    `HeadDescription` says how each is measured.

    The prompts are run twice, and memory does not grow with their number. All heads of the model
    are embedded, for the comparison. Without a tokenizer, tokens are named by their ids, and none
    counts as a delimiter.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: Texts, token ids, scenarios, of any lengths; see `aplens.read_prompts`.
        heads: Which heads, at most 24. A `HeadRanking` stands for its 6 best.
        mae: The AP-MAE that knows the habits, or its name, as for `APMAE.from_pretrained`. "auto"
            (the default): "aplens-short" where the middle prompt has up to 64 tokens, else
            "aplens-base".
        ranking: Where effects and ranks come from (default: `heads`, if that is a ranking).
        batch_size: Prompts a forward pass.
        precision: The AP-MAE's: float32 or bfloat16 (default: what its device is good at).
        progress: A bar (the default), nothing (False), or a function called with (prompts run,
            prompts to run); each is run twice.

    Warns:
        UserWarning: Prompts are longer than the AP-MAE's context: their first tokens are taken.
            Or no longer than one of its patches: they have no habit, and are left out.

    Raises:
        ValueError: When no heads or too many are chosen, one is out of range, the ranking is of
            a model of another shape, no prompt is longer than one patch, or the prompts are empty,
            too long for the model or not the model's.
        TypeError: When `prompts` is no form of prompts, or `mae` neither an AP-MAE nor a name.
        UnsupportedModelError: When the model has no causal attention patterns.
        aplens.mae.CheckpointError: When there is no AP-MAE of that name.
    """
    chosen, ranking = choose_heads(model, heads, ranking)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    whole = read_prompts(model, prompts)
    mae = choose_mae(mae, whole.lengths)
    (cut,) = fit_context(mae, whole)
    places, read = leave_out_short(mae, cut)
    texts = _read_texts(model, read)
    described = describe_patterns(
        model,
        read,
        chosen,
        mae=mae,
        texts=texts,
        delimiters=_find_delimiters(texts),
        answers=_read_answers(prompts, places),
        batch_size=batch_size,
        precision=precision,
        progress=progress,
    )
    ends = [last_text(model, read.ids(card.typical.prompt)) for card in described]
    cards = [
        replace(card, typical=replace(card.typical, prompt=places[card.typical.prompt]))
        for card in described
    ]
    shape = describe_model(model).shape
    return HeadCards(tuple(cards), ranking, shape, len(read), tuple(ends))


def _read_answers(prompts: PromptsLike, places: list[int]) -> list[Answers]:
    """The answers of the prompts at these places; scenarios have some."""
    if not isinstance(prompts, Scenarios):
        return [Answers()] * len(places)
    return [Answers(prompts[place].target, prompts[place].wrong) for place in places]


def _read_texts(model: Any, prompts: Prompts) -> dict[int, str]:
    """What each token id that occurs reads alone; its number where there is no tokenizer."""
    ids = prompts.tokens[prompts.mask].unique().tolist()
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return {token: str(token) for token in ids}
    return {token: token_texts(tokenizer, [token])[0] for token in ids}


def _find_delimiters(texts: Mapping[int, str]) -> Bool[Tensor, " token_id"]:
    delimiters = torch.zeros(max(texts) + 1, dtype=torch.bool)
    delimiters[[token for token, text in texts.items() if _is_delimiter(text)]] = True
    return delimiters


def _is_delimiter(text: str) -> bool:
    """Whether a token is nothing but punctuation, brackets, blanks and line ends."""
    return all(
        character.isspace()
        or character in string.punctuation
        or unicodedata.category(character).startswith("P")
        for character in text
    )


def _effects(ranking: HeadRanking | None) -> dict[Head, str]:
    """Each head's rank and effect, in words."""
    if ranking is None:
        return {}
    rows = ranking.to_frame().to_dict(orient="records")
    return {
        head: join(f"#{place} of {len(rows)}", _describe_effect(row))
        for place, (head, row) in enumerate(zip(ranking, rows, strict=True), start=1)
    }


def _describe_effect(row: Mapping[Any, Any]) -> str:
    if "measured" not in row:
        return f"score {_signed(row['mean'])}"
    known = not math.isnan(row["low"])
    interval = f" [{_signed(row['low'])}, {_signed(row['high'])}]" if known else ""
    how = "measured" if row["measured"] else "estimated"
    return f"effect {_signed(row['mean'])}{interval}, {how}"


def _signed(number: float) -> str:
    return f"{number:+#.3g}".replace("-", "−")


def _explain_effects(ranking: HeadRanking | None) -> str:
    if ranking is None or "metric" not in ranking.metadata:
        return ""
    metric = str(ranking.metadata["metric"]).replace("_", " ")
    return f"Effect: what ablating the head alone does to the {metric}, with its 95 % interval. "


def _draw(card: HeadDescription, effect: str, text: str) -> dict[str, Any]:
    """What the template shows of one head."""
    pictures = {
        name: draw_pattern(log_normalize(pattern).numpy())
        for name, pattern in (("attention", card.typical.attention), ("habit", card.typical.habit))
    }
    return {
        "name": str(card.head),
        "effect": effect,
        "template": f"{_readable(card.template)} on {card.template_share:.0%} of the prompts",
        "variation": "" if math.isnan(card.variation) else f"{card.variation:.3f}",
        "surprise": f"{card.surprise:.0%} of attention",
        "kinds": [
            (_readable(kind), share)
            for kind, share in card.surprise_by_kind.items()
            if share >= _LEAST_DRAWN
        ],
        "tokens": [(displayable_token(t), share) for t, share in card.surprise_by_text.items()],
        "nearest": ", ".join(f"{head} {cosine:.3f}" for head, cosine in card.nearest.items()),
        "prompt": f"prompt {card.typical.prompt}",
        "text": text,
        **pictures,
    }


def _readable(name: str) -> str:
    return name.replace("_", " ")
