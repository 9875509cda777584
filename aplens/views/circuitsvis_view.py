"""Chosen heads in circuitsvis' own attention view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aplens._tokens import label_tokens
from aplens.heads import HeadsLike
from aplens.patterns import collect_patterns
from aplens.views.choice import choose_heads
from aplens.views.heads_view import read_one_prompt

if TYPE_CHECKING:
    from circuitsvis.utils.render import RenderedHTML

    from aplens.prompts import PromptsLike
    from aplens.scenarios import Scenario


def show_in_circuitsvis(
    model: Any, prompt: PromptsLike | Scenario, heads: HeadsLike
) -> RenderedHTML:
    """The attention of chosen heads on one prompt as `circuitsvis.attention.attention_heads`.

    For pages and tools that work with circuitsvis. `show_heads` draws faster, has habits, templates
    and ranks, and shows more of a query.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompt: A text, token ids or a `Scenario`.
        heads: Which heads, at most 24. A `HeadRanking` stands for its 6 best.

    Returns:
        What circuitsvis renders: a notebook shows it, with the script that is installed where there
        is no network, and else with that of circuitsvis' address; `.local_src` is HTML that fetches
        nothing. A "<" in a token reads "‹", since circuitsvis writes tokens into a script as they
        are.

    Raises:
        ValueError: When no heads or too many are chosen, one is out of range, the ranking is of a
            model of another shape, or the prompt is empty, too long for the model or several
            prompts.
        TypeError: When `prompt` is no prompt.
        UnsupportedModelError: When the model has no causal attention patterns.
    """
    from circuitsvis.attention import attention_heads

    chosen, _ = choose_heads(model, heads)
    tokens = read_one_prompt(model, prompt).cpu()
    attention = collect_patterns(model, tokens[None], chosen).prompt(0).float().cpu()
    written = [text.replace("<", "‹") for text in label_tokens(model, tokens.tolist())]
    return attention_heads(attention, written, [str(head) for head in chosen])
