"""Attention heads on one prompt: a strip of small patterns, the chosen one drawn by circuitsvis.

With an AP-MAE each head has its habit and the difference beside its attention. The page carries
attention and habit, and computes the difference itself.

circuitsvis' own strip, `AttentionHeads`, makes every cell of every head an element of a chart, and
goes through all of them again whenever another head is pointed at. For 10 heads of 256 tokens
Chromium computes 33 s to draw it and 6 s at each change. Here the strip is made of plain pictures,
and only the head that is looked at becomes a chart, circuitsvis' `AttentionPattern`, which is what
`AttentionHeads` shows large as well: 2 s and 0.3 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from aplens.heads import Head, HeadRanking, HeadsLike
from aplens.models import describe_model
from aplens.patterns import collect_patterns
from aplens.patterns.collect import AttentionPatterns, as_patterns, select_heads
from aplens.patterns.templates import name_templates, template_scores
from aplens.prompts import PromptsLike, read_prompts
from aplens.scenarios import Scenario
from aplens.views.embed import View, build_view, displayable_token, pack, to_json
from aplens.views.tokens import token_texts
from aplens.views.wording import TOP_HEADS, at_most, count, join

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

    from aplens.mae import APMAE

#: Cells a side that a browser draws without delay; of longer prompts a cell is several tokens.
_MOST_CELLS = 256

#: RGB of the most attended, and of what is attended to more and less than by habit. Dark, so that
#: faint attention is seen against white; teal and brown differ for colour-blind readers as well.
_COLORS = {"attention": (0, 48, 143), "more": (1, 102, 94), "less": (140, 81, 10)}

#: Full colour begins at this quantile of a head's attention, but not below this attention.
_FULL_COLOR = 0.995
_FAINTEST_FULL_COLOR = 0.05

#: The large pattern at its largest and its side a token, the lines of tokens above it and how many
#: of these a line holds, and everything else but the strip; in pixels.
_PATTERN_SIDE = 640
_TOKEN_SIDE = 112
_TOKEN_LINES, _TOKENS_A_LINE, _TOKEN_LINE_HEIGHT = 3, 14, 24
_TEXT_HEIGHT = 170


class _Strip(NamedTuple):
    """The small pictures of a head, their side, heads beside each other, and pixels a row."""

    pictures: tuple[str, ...]
    side: int
    columns: int
    row_height: int


_ATTENTION_ALONE = _Strip(("attention",), 96, 6, 156)
_WITH_HABIT = _Strip(("attention", "habit", "difference"), 76, 3, 150)
_STRIP_ROWS = 2  # that show without scrolling


def show_heads(
    model: Any,
    prompt: PromptsLike | Scenario,
    heads: HeadsLike | None = None,
    *,
    ranking: HeadRanking | None = None,
    mae: APMAE | None = None,
    max_tokens: int = _MOST_CELLS,
    patterns: AttentionPatterns | ActivationCache | None = None,
) -> View:
    """The attention of chosen heads on one prompt, to point at in a notebook.

    Each head is labelled with its layer and head, its rank, and the template its pattern follows
    here (`aplens.patterns.templates`). The chosen one is drawn large by circuitsvis, with the
    attention of each query to each key under the pointer. A token that holds a piece of a character
    is labelled with the character and which of its pieces it is ("日¹⁄₃").

    Pointing at a query, a row of the large pattern or a token above it, lists the keys it attends
    to most. Until one is pointed at, this is the last query. A click keeps the query, a second
    click or Escape lets it go. The arrow keys left and right show another head, up and down keep
    another query.

    With `mae`, each head has three pictures: its attention, its habit (`mae.expect`: what the rest
    of the pattern lets AP-MAE expect of each query), and attention minus habit, in the same colours
    for all heads. A query then also lists the keys it attends to beyond its habit, with both
    numbers.

    Attention and habit are rounded to 1/255, so to within 1/510; what rounds to 0 is left white.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompt: A text, token ids or a `Scenario`.
        heads: Which heads, at most 24. A `HeadRanking` stands for its 6 best. Default: those of
            `ranking`.
        ranking: Where the ranks in the labels come from (default: `heads`, if that is a ranking).
        mae: An AP-MAE for habits. A prompt longer than its context is cut; the view says so.
        max_tokens: A longer prompt is cut to its first tokens, whose attention is the same without
            the rest; the view says so. Above 256 tokens a cell stands for several, and shows the
            largest attention among them.
        patterns: The prompt's patterns, where you have them: what `collect_patterns` returned or
            `run_with_cache` kept. The model is then not run.

    Raises:
        ValueError: When no heads or too many are chosen, one is out of range, or the prompt is
            empty, too long for the model, several prompts, text that no tokenizer can read, or,
            with `mae`, no longer than one of its patches.
            With `patterns`: when they lack a head, or are not of one prompt of this length.
        TypeError: When `prompt` is no prompt.
        UnsupportedModelError: When the model has no causal attention patterns.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be 1 or more, got {max_tokens}")
    if isinstance(heads, HeadRanking):
        ranking = ranking or heads
        heads = heads.top(TOP_HEADS)
    elif heads is None:
        if ranking is None:
            raise ValueError("no heads were chosen: pass heads or a ranking")
        heads = ranking.top(TOP_HEADS)
    chosen = at_most(select_heads(model, heads))
    whole = _read_one_prompt(model, prompt)
    tokens = whole[: _most_tokens(max_tokens, mae)].cpu()
    _require_habit(len(tokens), mae)

    if patterns is None:
        attention = collect_patterns(model, tokens[None], chosen).prompt(0).float().cpu()
    else:
        attention = _read_given(patterns, chosen, len(whole))[:, : len(tokens), : len(tokens)]
    habit = None if mae is None else mae.expect(attention, None).float().cpu()
    names = name_templates(template_scores(attention, tokens), tokens).names
    labels = [
        (str(head), join(_rank(head, ranking), str(name).replace("_", " ")))
        for head, name in zip(chosen, names, strict=True)
    ]
    step = -(-len(tokens) // _MOST_CELLS)
    return _build_heads_view(
        labels,
        _pool(attention, step),
        _name_cells(_label_tokens(model, whole)[: len(tokens)], step),
        title=f"Attention of {count(len(chosen), 'head')} of {describe_model(model).name}",
        note=_describe_prompt(len(whole), len(tokens), step, mae),
        habit=None if habit is None else _pool(habit, step),
    )


def _read_given(
    patterns: AttentionPatterns | ActivationCache, heads: Sequence[Head], n_tokens: int
) -> Float[Tensor, "head query key"]:
    """The chosen heads' patterns on the prompt, out of what somebody else collected."""
    given = as_patterns(patterns)
    if missing := [str(head) for head in heads if head not in given.heads]:
        raise ValueError(f"these patterns lack {', '.join(missing)}")
    if given.lengths.tolist() != [n_tokens]:
        raise ValueError(
            f"expected patterns of one prompt of {n_tokens} tokens, got {len(given)} of "
            f"{given.lengths.tolist()}: choose one with patterns.select([i])"
        )
    return torch.stack([given[head][0] for head in heads]).float().cpu()


def _build_heads_view(
    labels: Sequence[tuple[str, str]],
    cells: Float[Tensor, "head query key"],
    tokens: Sequence[str],
    *,
    title: str,
    note: str,
    habit: Float[Tensor, "head query key"] | None = None,
) -> View:
    from markupsafe import Markup

    values = quantize(cells)
    expected = None if habit is None else quantize(habit)
    script, circuitsvis = _read_script("heads.js"), read_circuitsvis()
    strip = _ATTENTION_ALONE if habit is None else _WITH_HABIT
    data = {
        "tokens": tokens,
        "labels": [join(*label) for label in labels],
        "full": _full_color(values),
        "fullDifference": None if expected is None else _full_difference(values, expected),
        "colors": _COLORS,
        "side": strip.side,
    }
    side = min(_PATTERN_SIDE, 44 + _TOKEN_SIDE * len(tokens))
    return build_view(
        "heads.html.j2",
        title,
        height=_height(strip, len(labels), len(tokens), side),
        scripts=[script, circuitsvis],
        note=note,
        width=side,
        strip=strip,
        colors={name: f"rgb{color}" for name, color in _COLORS.items()},
        heads=[{"name": name, "facts": facts} for name, facts in labels],
        data=Markup(to_json(data)),
        attention=pack(values.tobytes()),
        habit=None if expected is None else pack(expected.tobytes()),
        circuitsvis=_packed_circuitsvis(),
        script=Markup(script),
    )


def quantize(cells: Float[Tensor, "head query key"]) -> UInt8[np.ndarray, "head lower"]:
    """Lower triangles, row after row, in steps of 1/255: nothing moves by more than 1/510."""
    rows, columns = np.tril_indices(cells.shape[-1])
    return (cells.numpy()[:, rows, columns] * 255).round().clip(0, 255).astype(np.uint8)


def _height(strip: _Strip, n_heads: int, n_tokens: int, side: int) -> int:
    """What shows without scrolling in a notebook, in pixels."""
    rows = min(_STRIP_ROWS, -(-n_heads // strip.columns)) * strip.row_height
    lines = min(_TOKEN_LINES, -(-n_tokens // _TOKENS_A_LINE)) * _TOKEN_LINE_HEIGHT
    return _TEXT_HEIGHT + rows + lines + side


def _full_color(values: UInt8[np.ndarray, "head lower"]) -> list[int]:
    """From which value on each head is drawn in full colour.

    The first token is left out: most heads attend to it so strongly that nothing else would show.
    """
    full = np.quantile(_later_keys(values), _FULL_COLOR, axis=1)
    return [int(max(value, 255 * _FAINTEST_FULL_COLOR)) for value in full]


def _full_difference(
    values: UInt8[np.ndarray, "head lower"], habit: UInt8[np.ndarray, "head lower"]
) -> int:
    """From which difference on, up or down, every head is drawn in full colour."""
    difference = np.abs(_later_keys(values).astype(int) - _later_keys(habit))
    return int(max(np.quantile(difference, _FULL_COLOR), 255 * _FAINTEST_FULL_COLOR))


def _later_keys(values: UInt8[np.ndarray, "head lower"]) -> UInt8[np.ndarray, "head some"]:
    """Without attention to the first token, unless there is no other."""
    n_tokens = round((2 * values.shape[1] + 0.25) ** 0.5 - 0.5)
    columns = np.tril_indices(n_tokens)[1]
    return values[:, columns > 0] if n_tokens > 1 else values


def _pool(cells: Float[Tensor, "head query key"], step: int) -> Float[Tensor, "head query key"]:
    """The largest of each `step` × `step` cells."""
    return torch.nn.functional.max_pool2d(cells, step, ceil_mode=True)


def _name_cells(tokens: Sequence[str], step: int) -> list[str]:
    """What stands at the axes: each token, or the first of every `step`."""
    return list(tokens) if step == 1 else [f"{token}…" for token in tokens[::step]]


def _read_one_prompt(model: Any, prompt: PromptsLike | Scenario) -> Int[Tensor, " pos"]:
    read = read_prompts(model, [prompt.prompt] if isinstance(prompt, Scenario) else prompt)
    if len(read) != 1:
        raise ValueError(f"expected one prompt, got {len(read)}: choose one of them")
    return read.tokens[0, : int(read.lengths[0])]


def _label_tokens(model: Any, tokens: Int[Tensor, " pos"]) -> list[str]:
    """Each token as text on one line; its id where there is no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return [str(token) for token in tokens.tolist()]
    return [displayable_token(text) for text in token_texts(tokenizer, tokens.tolist())]


def _most_tokens(max_tokens: int, mae: APMAE | None) -> int:
    return max_tokens if mae is None else min(max_tokens, mae.config.n_ctx)


def _require_habit(n_tokens: int, mae: APMAE | None) -> None:
    """Refuse what has no habit before the model runs.

    Raises:
        ValueError: When there is an AP-MAE, and the prompt is no longer than one of its patches.
    """
    if mae is not None and n_tokens <= mae.config.patch_size:
        raise ValueError(
            f"a habit needs a prompt longer than one patch, {mae.config.patch_size} tokens for "
            f"this AP-MAE, got {n_tokens}: use an AP-MAE with smaller patches (those of "
            '"aplens-short" have 8 tokens), show more tokens, or leave out mae='
        )


def _describe_prompt(n_whole: int, n_tokens: int, step: int, mae: APMAE | None) -> str:
    shown = count(n_whole, "token")
    if n_tokens < n_whole:
        shown = f"The first {n_tokens:,} of {shown}"
        if mae is not None and n_tokens == mae.config.n_ctx:
            shown += ", the most that this AP-MAE takes"
    pooled = f" Each cell shows the largest attention of {step} × {step}." if step > 1 else ""
    return (
        f"{shown}.{pooled} Point at a head or a query (row or token), click to keep it. "
        "Keys: ← → head, ↑ ↓ query, Esc lets go."
    )


def _rank(head: Head, ranking: HeadRanking | None) -> str:
    ranked = [] if ranking is None else list(ranking)
    return f"#{ranked.index(head) + 1}" if head in ranked else ""


@lru_cache
def _read_script(name: str) -> str:
    return (resources.files("aplens.views") / "templates" / name).read_text(encoding="utf-8")


@lru_cache
def read_circuitsvis() -> str:
    """The script of circuitsvis for browsers, as installed: nothing is fetched."""
    bundle = resources.files("circuitsvis") / "dist" / "cdn" / "iife.js"
    # Without the address of its source map, for which developer tools would go to the network.
    return bundle.read_text(encoding="utf-8").partition("//# sourceMappingURL")[0]


@lru_cache
def _packed_circuitsvis() -> str:
    return pack(read_circuitsvis().encode())
