"""Named templates of attention patterns: previous token, induction, first token and so on.

A template is measured by the share of a pattern's attention that it holds. Shares of different
templates cannot be compared as they are: the first query has nothing to attend to but the first
token, a prompt of five tokens gives the previous token a large share by chance, and an induction
head has nothing to do before a token repeats. `template_strengths` takes all three out, and
`name_templates` names a pattern by the strongest template.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: The templates that TransformerLens `detect_head` knows, as it defines them.
DETECTED = ("previous_token", "duplicate_token", "induction")

#: Every template; what a query attends to.
TEMPLATES = (
    *DETECTED,  # the token before; earlier copies of its own token; what followed these
    "first_token",  # the first token: an attention sink
    "self",  # its own token
    "local",  # its own token and a few before it
    "uniform",  # every token alike
)

#: The name of a pattern that follows no template.
MIXED = "mixed"

#: Tokens in the window of "local", the query's own included.
LOCAL_WINDOW = 5

#: A pattern of "self" or "previous_token" is local as well: these names go first.
_WITHIN_LOCAL = ("previous_token", "self")

#: Below this strength a pattern is "mixed". Of SmolLM2-135M's heads on code and prose, those that
#: attend to the previous token or to themselves stand above a gap that ends at 0.4. Between a first
#: token or uniform pattern and a mixed one there is no gap.
MIXED_BELOW = 0.4

#: Where a template's largest possible share is not this much above chance, a query or two decide,
#: and its strength says nothing.
_LEAST_RANGE = 0.1


def template_scores(
    attention: Float[Tensor, "*pattern query key"], tokens: Int[Tensor, " pos"]
) -> Float[Tensor, "*pattern template"]:
    """The share of each pattern's attention that each of `TEMPLATES` holds, from 0 to 1.

    The first three are the same as TransformerLens `detect_head` with its default error measure
    "mul", for all heads at once. "uniform" is the share that lies where uniform attention would
    lie: the overlap of the two distributions, 1 - their total variation distance. Templates
    overlap, so that shares may add up to more than 1.

    Args:
        attention: Causal attention probabilities of one prompt.
        tokens: The prompt.

    Raises:
        ValueError: When the patterns are not square, or not as long as the prompt.
    """
    if attention.ndim < 2 or tokens.ndim != 1 or attention.shape[-2:] != tokens.shape * 2:
        raise ValueError(
            "expected patterns (..., query, key) of one prompt (pos,), as long as it: got "
            f"{tuple(attention.shape)} and {tuple(tokens.shape)}"
        )
    values = attention.float()
    keys = template_keys(tokens).to(values)
    held = torch.einsum("...qk,tqk->...t", values, keys)
    as_uniform = values.minimum(uniform_attention(len(tokens)).to(values)).sum((-2, -1))
    total = values.sum((-2, -1)).clamp_min(torch.finfo(values.dtype).tiny)
    shares = torch.cat([held, as_uniform[..., None]], dim=-1) / total[..., None]
    return shares.clamp(max=1)  # rounding may leave it just above


def template_strengths(
    scores: Float[Tensor, "*pattern template"], tokens: Int[Tensor, " pos"]
) -> Float[Tensor, "*pattern template"]:
    """Scores on a scale that is the same for all templates and prompts.

    (share - chance) / (most - chance): 0 is what chance gives, 1 a pattern that follows the
    template wherever the prompt lets it, and less than 0 one that avoids it. Chance is the share
    under uniform causal attention; the most is the share of the queries that have a key of the
    template at all. For "uniform" it is the other way round: chance is the share of attention to a
    single key.

    Args:
        scores: As `template_scores` gives them.
        tokens: The prompt.

    Returns:
        Strengths of at most 1; NaN where a template says nothing on this prompt, because hardly a
        query can follow it (induction where no token repeats), or hardly one can help it ("local"
        in a prompt as short as the window).
    """
    keys = template_keys(tokens)
    uniform = uniform_attention(len(tokens))
    by_uniform = (uniform * keys).sum((-2, -1)) / len(tokens)
    by_one_key = uniform.diagonal().mean()
    queries = keys.any(-1).float().mean(-1)
    chance = torch.cat([by_uniform, by_one_key[None]]).to(scores)
    most = torch.cat([queries, torch.ones(1)]).to(scores)
    telling = most - chance >= _LEAST_RANGE
    return torch.where(telling, (scores - chance) / (most - chance), torch.nan)


def name_templates(
    scores: Float[Tensor, "*pattern template"], tokens: Int[Tensor, " pos"]
) -> np.ndarray:
    """Name each pattern by its strongest template, "mixed" where that is below `MIXED_BELOW`.

    "local" names only what is neither "previous_token" nor "self", whose keys lie in its window.

    Args:
        scores: As `template_scores` gives them.
        tokens: The prompt.

    Returns:
        For each pattern one of `TEMPLATES`, or "mixed"; an array of texts.
    """
    strengths = template_strengths(scores, tokens).nan_to_num(-torch.inf)
    within = strengths[..., [TEMPLATES.index(name) for name in _WITHIN_LOCAL]].amax(-1)
    local = TEMPLATES.index("local")
    strengths[..., local] = strengths[..., local].where(within < MIXED_BELOW, -torch.inf)
    best, which = strengths.max(dim=-1)
    named = which.where(best >= MIXED_BELOW, len(TEMPLATES))
    return np.array([*TEMPLATES, MIXED])[named.cpu().numpy()]


def template_keys(tokens: Int[Tensor, " pos"]) -> Bool[Tensor, "template query key"]:
    """Which keys of each query belong to each template, in the order of `TEMPLATES`.

    "uniform" is left out: every key belongs to it.
    """
    from transformer_lens import head_detector

    prompt = tokens[None].cpu()
    places = torch.arange(len(tokens))
    back = places[:, None] - places
    return torch.stack(
        [
            head_detector.get_previous_token_head_detection_pattern(prompt).bool(),
            head_detector.get_duplicate_token_head_detection_pattern(prompt).bool(),
            head_detector.get_induction_head_detection_pattern(prompt).bool(),
            (places == 0).expand_as(back),
            back == 0,
            (back >= 0) & (back < LOCAL_WINDOW),
        ]
    )


def uniform_attention(n_tokens: int) -> Float[Tensor, "query key"]:
    """Uniform causal attention."""
    return torch.ones(n_tokens, n_tokens).tril() / torch.arange(1, n_tokens + 1)[:, None]
