"""Attention heads on one prompt: a strip of small patterns, and the chosen one large.

With an AP-MAE each head has its habit and the difference beside its attention. The page carries
attention and habit, and computes the difference itself. It draws a pattern as one picture, and not
with circuitsvis, which makes an element of every cell (2 s for 256 tokens), draws only on white
paper, and numbers the tokens of a cut prompt from 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from aplens._tokens import label_tokens
from aplens.describe.reading import choose_mae
from aplens.heads import Head, HeadRanking, HeadsLike
from aplens.models import describe_model
from aplens.patterns import collect_patterns
from aplens.patterns.collect import AttentionPatterns, as_patterns
from aplens.patterns.templates import name_templates, template_scores
from aplens.prompts import PromptsLike, read_prompts
from aplens.scenarios import Scenario
from aplens.views.choice import choose_heads
from aplens.views.embed import View, build_view, pack, read_script, to_json
from aplens.views.wording import count, join

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

    from aplens.mae import APMAE

#: Tokens of which a browser draws the pattern without delay.
_MOST_TOKENS = 256

#: Full colour begins at this quantile of a head's attention, but not below this attention.
_FULL_COLOR = 0.995
_FAINTEST_FULL_COLOR = 0.05

#: The large pattern at its largest and its side a token, a character of the labels beside it and
#: these at most, the lines of tokens above it and how many of these a line holds, and everything
#: else but the strip; in pixels.
_PATTERN_SIDE, _TOKEN_SIDE = 560, 56
_CHARACTER, _LONGEST_LABEL = 7, 170
_TOKEN_LINES, _TOKENS_A_LINE, _TOKEN_LINE_HEIGHT = 3, 14, 26
_TEXT_HEIGHT = 210


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
    mae: APMAE | str | os.PathLike[str] | None = None,
    max_tokens: int = _MOST_TOKENS,
    patterns: AttentionPatterns | ActivationCache | None = None,
) -> View:
    """The attention of chosen heads on one prompt, to point at in a notebook.

    Each head is labelled with its layer and head, its rank, and the template its pattern follows
    here (`aplens.patterns.templates`). The chosen one is drawn large, with the attention of each
    query to each key under the pointer. Pointing at a query, a row of the large pattern or a token
    above it, lists the keys it attends to most; a click keeps it. The view says which keys go
    through heads and queries, and finds a text. A token that holds a piece of a character is
    labelled with its bytes.

    With `mae`, each head has three pictures: its attention, its habit (`mae.expect`: what the rest
    of the pattern lets AP-MAE expect of each query), and attention minus habit, in the same colours
    for all heads. A query then also lists the keys it attends to beyond its habit.

    Attention and habit are rounded to 1/255, so to within 1/510; what rounds to 0 is left white.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompt: A text, token ids or a `Scenario`.
        heads: Which heads, at most 24. A `HeadRanking` stands for its 6 best. Default: those of
            `ranking`.
        ranking: Where the ranks in the labels come from (default: `heads`, if that is a ranking).
        mae: An AP-MAE for habits (default: none are shown), or its name, as for
            `APMAE.from_pretrained`. "auto": "aplens-short" for a prompt of up to 64 tokens, else
            "aplens-base". Of a prompt longer than its context, the model reads only the BOS token,
            if there is one, and the last tokens, as in mined scenarios; the view says so.
        max_tokens: Of a longer prompt, which the model reads whole, the last tokens are shown, at
            most 256; the view says so, and how much of a query's attention lies before them.
        patterns: The patterns of what the model reads, where you have them: what `collect_patterns`
            returned or `run_with_cache` kept. The model is then not run.

    Raises:
        ValueError: When no heads or too many are chosen, one is out of range, the ranking is of a
            model of another shape, `max_tokens` is not 1 to 256, or the prompt is empty, too long
            for the model, several prompts, text that no tokenizer can read, or, with `mae`, no
            longer than one of its patches.
            With `patterns`: when they lack a head, or are not of one prompt of this length.
        TypeError: When `prompt` is no prompt, or `mae` neither an AP-MAE nor a name.
        aplens.mae.CheckpointError: When there is no AP-MAE of that name.
        UnsupportedModelError: When the model has no causal attention patterns.
    """
    if not 1 <= max_tokens <= _MOST_TOKENS:
        raise ValueError(f"max_tokens must be 1 to {_MOST_TOKENS}, got {max_tokens}")
    chosen, ranking = choose_heads(model, heads, ranking)
    whole = read_one_prompt(model, prompt).cpu()
    if mae is not None:
        mae = choose_mae(mae, torch.tensor([len(whole)]))
    read, positions = _choose_tokens(model, whole, max_tokens, mae)
    _require_habit(len(positions), mae)

    complete = _read_patterns(model, read, chosen, patterns)
    names = name_templates(template_scores(complete, read), read)
    attention = complete[:, -len(positions) :, -len(positions) :]
    habit = None if mae is None else mae.expect(attention, None).float().cpu()
    labels = [
        (str(head), join(_rank(head, ranking), str(name).replace("_", " ")))
        for head, name in zip(chosen, names, strict=True)
    ]
    written = label_tokens(model, whole.tolist())
    is_cut = len(positions) < len(read)
    return _build_heads_view(
        labels,
        attention,
        [written[place] for place in positions],
        positions=positions,
        title=f"Attention of {count(len(chosen), 'head')} of {describe_model(model).name}",
        note=_describe_prompt(whole, positions, mae),
        habit=habit,
        before=1 - attention.sum(-1) if is_cut else None,
    )


def _choose_tokens(
    model: Any, whole: Int[Tensor, " pos"], max_tokens: int, mae: APMAE | None
) -> tuple[Int[Tensor, " read"], list[int]]:
    """What the model reads of a prompt, and the positions that are shown, the last of these.

    Attention to what is not shown is missing in a pattern, and an AP-MAE knows only whole ones. So
    with one the model reads nothing else.
    """
    n_tokens = len(whole)
    if mae is None:
        return whole, list(range(max(0, n_tokens - max_tokens), n_tokens))
    room = min(max_tokens, mae.config.n_ctx, n_tokens)
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    has_bos = bos is not None and int(whole[0]) == bos and room > 1
    positions = [0] * has_bos + list(range(n_tokens - room + has_bos, n_tokens))
    return whole[positions], positions


def _read_patterns(
    model: Any,
    prompt: Int[Tensor, " pos"],
    heads: Sequence[Head],
    patterns: AttentionPatterns | ActivationCache | None,
) -> Float[Tensor, "head query key"]:
    """The heads' patterns on one prompt: the model's, or those that somebody else collected."""
    if patterns is None:
        return collect_patterns(model, prompt[None], heads).prompt(0).float().cpu()
    given = as_patterns(patterns)
    if missing := [str(head) for head in heads if head not in given.heads]:
        raise ValueError(f"these patterns lack {', '.join(missing)}")
    if given.lengths.tolist() != [len(prompt)]:
        raise ValueError(
            f"expected patterns of one prompt of {len(prompt)} tokens, got {len(given)} of "
            f"{given.lengths.tolist()}: choose one with patterns.select([i])"
        )
    return torch.stack([given[head][0] for head in heads]).float().cpu()


def _build_heads_view(
    labels: Sequence[tuple[str, str]],
    cells: Float[Tensor, "head query key"],
    tokens: Sequence[str],
    *,
    positions: Sequence[int],
    title: str,
    note: str,
    habit: Float[Tensor, "head query key"] | None = None,
    before: Float[Tensor, "head query"] | None = None,
) -> View:
    from markupsafe import Markup

    values = quantize(cells)
    expected = None if habit is None else quantize(habit)
    script = read_script("heads.js")
    strip = _ATTENTION_ALONE if habit is None else _WITH_HABIT
    data = {
        "tokens": tokens,
        "positions": list(positions),
        "labels": [join(*label) for label in labels],
        "full": _full_color(values),
        "fullDifference": None if expected is None else _full_difference(values, expected),
        "before": None if before is None else before.double().clamp(0, 1).numpy().round(2).tolist(),
        "side": strip.side,
    }
    side = min(_PATTERN_SIDE, _TOKEN_SIDE * len(tokens))
    return build_view(
        "heads.html.j2",
        title,
        height=_height(strip, len(labels), tokens, side),
        scripts=[script],
        note=note,
        width=side,
        strip=strip,
        heads=[{"name": name, "facts": facts} for name, facts in labels],
        data=Markup(to_json(data)),
        attention=pack(values.tobytes()),
        habit=None if expected is None else pack(expected.tobytes()),
        script=Markup(script),
    )


def quantize(cells: Float[Tensor, "head query key"]) -> UInt8[np.ndarray, "head lower"]:
    """Lower triangles, row after row, in steps of 1/255: nothing moves by more than 1/510."""
    rows, columns = np.tril_indices(cells.shape[-1])
    return (cells.numpy()[:, rows, columns] * 255).round().clip(0, 255).astype(np.uint8)


def _height(strip: _Strip, n_heads: int, tokens: Sequence[str], side: int) -> int:
    """What shows without scrolling in a notebook, in pixels."""
    rows = min(_STRIP_ROWS, -(-n_heads // strip.columns)) * strip.row_height
    lines = min(_TOKEN_LINES, -(-len(tokens) // _TOKENS_A_LINE)) * _TOKEN_LINE_HEIGHT
    longest = max(map(len, tokens)) + len(" (0000)")
    return _TEXT_HEIGHT + rows + lines + side + min(_LONGEST_LABEL, _CHARACTER * longest)


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


def read_one_prompt(model: Any, prompt: PromptsLike | Scenario) -> Int[Tensor, " pos"]:
    """The token ids of a prompt; several are refused."""
    read = read_prompts(model, [prompt.prompt] if isinstance(prompt, Scenario) else prompt)
    if len(read) != 1:
        raise ValueError(f"expected one prompt, got {len(read)}: choose one of them")
    return read.tokens[0, : int(read.lengths[0])]


def _require_habit(n_tokens: int, mae: APMAE | None) -> None:
    """Refuse what has no habit before the model runs."""
    if mae is not None and n_tokens <= mae.config.patch_size:
        raise ValueError(
            f"a habit needs a prompt longer than one patch, {mae.config.patch_size} tokens for "
            f"this AP-MAE, got {n_tokens}: use an AP-MAE with smaller patches (those of "
            '"aplens-short" have 8 tokens), show more tokens, or leave out mae='
        )


def _describe_prompt(
    whole: Int[Tensor, " pos"], positions: Sequence[int], mae: APMAE | None
) -> str:
    shown = count(len(whole), "token")
    if len(positions) < len(whole):
        has_bos = positions[0] == 0 and mae is not None
        start = (
            f"BOS and the last {len(positions) - 1:,}"
            if has_bos
            else f"The last {len(positions):,}"
        )
        shown = f"{start} of {shown}"
        if mae is not None:
            most = ", the most that this AP-MAE takes" * (len(positions) == mae.config.n_ctx)
            shown += f"{most}; the model read nothing before them"
    return (
        f"{shown}. Point at a head or a query (row or token), click to keep it. "
        "Keys: ← → head, ↑ ↓ query, Esc lets go."
    )


def _rank(head: Head, ranking: HeadRanking | None) -> str:
    ranked = [] if ranking is None else list(ranking)
    return f"#{ranked.index(head) + 1}" if head in ranked else ""
