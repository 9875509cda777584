"""Scores of heads out of their patterns alone: no answers, no predictor, a pretrained AP-MAE."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aplens._progress import Progress, show_progress
from aplens.describe.reading import choose_mae, common_length, fit_context
from aplens.heads import HeadsLike
from aplens.mae.error import hidden_errors
from aplens.mae.masking import random_masks
from aplens.mae.rounds import seeded
from aplens.patterns import log_normalize, stream_patterns
from aplens.patterns.collect import select_heads
from aplens.patterns.templates import MIXED, TEMPLATES, name_templates, template_scores
from aplens.prompts import Prompts, PromptsLike, read_prompts

if TYPE_CHECKING:
    import pandas as pd

    from aplens.mae import APMAE


#: Of the masks, one a prompt.
_MASK_SEED = 0


def score_heads(
    model: Any,
    prompts: PromptsLike,
    *,
    mae: APMAE | str | os.PathLike[str] = "auto",
    heads: HeadsLike | None = None,
    batch_size: int = 8,
    precision: torch.dtype | None = None,
    progress: bool | Progress = True,
) -> pd.DataFrame:
    """Score heads by what a pretrained AP-MAE and named templates say of their patterns.

    Needs prompts, but no answers. Each prompt is run once; memory does not grow with their number.
    Of prompts longer than the AP-MAE's context the first tokens are taken, which changes nothing
    about these tokens' patterns.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: Text, token ids, a tokenizer's output, scenarios, of any lengths; see
            `aplens.prompts.read_prompts`.
        mae: The AP-MAE, or its name, as for `APMAE.from_pretrained`. "auto" (the default):
            "aplens-short" where the middle prompt has up to 64 tokens, else "aplens-base".
        heads: Which heads (default: all).
        batch_size: Prompts a forward pass.
        precision: The AP-MAE's: float32 or bfloat16 (default: what its device is good at, see
            `aplens.mae.default_precision`). In bfloat16 the last digits of `error` and `variation`
            depend on `batch_size`.
        progress: A bar (the default), nothing (False), or a function called with prompts done and
            prompts in all.

    Returns:
        One row a head, by layer and head, with its name as index and the columns

        - `layer`, `head`;
        - `error`: mean squared error on hidden patches, in log-normalized units, averaged over
          prompts; NaN when no prompt is longer than one patch;
        - `relative_error`: the same, divided by the error of what knows nothing of the head: the
          AP-MAE's mean pattern, or, where it holds none, each pattern's own mean value. Heads whose
          patterns differ less from the mean are easier to reconstruct; this takes that out;
        - `variation`: how much the pattern varies with the prompt, from 0 (always the same
          embedding) to 1: the mean cosine distance of a head's embeddings to their mean direction.
          Embeddings depend on the prompt's length, so all prompts are cut to the length of the
          middle one, and shorter ones are left out. NaN for a single prompt;
        - `template`, `template_share`: the name that most prompts give the head's pattern (of
          `aplens.patterns.templates.TEMPLATES`, or "mixed"), and the share of the prompts that do;
        - one column for each template: the share of attention that it holds, averaged over prompts.

    Raises:
        ValueError: When a head is out of range, or prompts are empty, too long or not the model's.
        TypeError: When `prompts` is no form of prompts, or `mae` neither an AP-MAE nor a name.
        aplens.mae.CheckpointError: When there is no AP-MAE of that name.
    """
    import pandas as pd

    chosen = tuple(sorted(select_heads(model, heads)))
    whole = read_prompts(model, prompts)
    mae = choose_mae(mae, whole.lengths)
    (read,) = fit_context(mae, whole)
    _warn_of_short_prompts(read, mae.grid.patch_size)
    errors = _Errors(mae, precision)
    variation = _Variation(mae, common_length(read.lengths), precision)
    templates = TemplateCounts(len(chosen))
    tell = show_progress(progress, "Scoring heads")
    for rows, patterns, _ in stream_patterns(model, read, chosen, batch_size):
        for place, prompt in enumerate(range(rows.start, rows.stop)):
            attention = patterns.prompt(place)
            errors.see(prompt, attention)
            variation.see(attention)
            templates.see(attention, torch.tensor(read.ids(prompt)))
        tell(rows.stop, len(read))
    error, relative_error = errors.means(len(chosen))
    return pd.DataFrame(
        {
            "layer": [head.layer for head in chosen],
            "head": [head.head for head in chosen],
            "error": error,
            "relative_error": relative_error,
            "variation": variation.distances(len(chosen)),
            **templates.columns(),
        },
        index=pd.Index([str(head) for head in chosen], name="name"),
    )


class _Errors:
    """Squared errors on hidden patches, and those of a guess without AP-MAE."""

    def __init__(self, mae: APMAE, precision: torch.dtype | None) -> None:
        self._mae = mae
        self._precision = precision
        self._by_prompt: list[Float[np.ndarray, "2 head"]] = []

    def see(self, prompt: int, attention: Float[Tensor, "head query key"]) -> None:
        mae, n_tokens = self._mae, attention.shape[-1]
        scaled = log_normalize(mae.grid.patchify(attention.to(mae.device)))
        n_heads, n_patches = scaled.shape[:2]
        if n_patches < 2:
            return  # nothing can be seen when something is hidden
        mask = random_masks(1, n_patches, mae.config.mask_ratio, seeded(_MASK_SEED, prompt))
        mask = mask.to(mae.device).expand(n_heads, -1)
        filled = mae.fill_in(scaled, mask, n_tokens=n_tokens, precision=self._precision)
        inside = mae.grid.inside(n_tokens, mae.device)
        errors = [
            hidden_errors(guess, scaled, mask, inside)
            for guess in (filled, self._simple_guess(scaled, n_tokens))
        ]
        self._by_prompt.append(torch.stack(errors).double().cpu().numpy())

    def _simple_guess(
        self, scaled: Float[Tensor, "head patch pixel"], n_tokens: int
    ) -> Float[Tensor, "head patch pixel"]:
        mean = self._mae.mean_pattern(n_tokens)
        if mean is not None:
            return mean.expand_as(scaled)
        causal = self._mae.grid.causal(n_tokens, scaled.device)
        return scaled.sum((1, 2), keepdim=True) / causal.sum() * causal

    def means(self, n_heads: int) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, " head"]]:
        """The mean error, and how many times the simple guess's it is."""
        if not self._by_prompt:
            return np.full(n_heads, np.nan), np.full(n_heads, np.nan)
        error, simple = np.mean(self._by_prompt, axis=0)
        return error, error / np.where(simple > 0, simple, np.nan)


class _Variation:
    """Embeddings of prompts cut to one length, added up."""

    def __init__(self, mae: APMAE, n_tokens: int, precision: torch.dtype | None) -> None:
        self._mae = mae
        self._n_tokens = n_tokens
        self._precision = precision
        self._sum: Tensor | float = 0.0
        self._count = 0

    def see(self, attention: Float[Tensor, "head query key"]) -> None:
        n = self._n_tokens
        if attention.shape[-1] >= n:
            # The first n rows are what the first n tokens alone would have given.
            embeddings = self._mae.encode(attention[:, :n, :n], precision=self._precision)
            self._sum = self._sum + F.normalize(embeddings, dim=-1).double()
            self._count += 1

    def distances(self, n_heads: int) -> Float[np.ndarray, " head"]:
        """1 - the mean cosine of the embeddings to their mean direction.

        That cosine is the length of the mean of the unit vectors, so their sum is all it takes.
        """
        if self._count < 2:
            return np.full(n_heads, np.nan)
        mean = torch.as_tensor(self._sum) / self._count
        return (1 - mean.norm(dim=-1)).clamp(min=0).cpu().numpy()


class TemplateCounts:
    """Template scores, and how often each name was given."""

    _NAMES = np.array([*TEMPLATES, MIXED])

    def __init__(self, n_heads: int) -> None:
        self._scores = np.zeros((n_heads, len(TEMPLATES)))
        self._counts = np.zeros((n_heads, len(self._NAMES)), dtype=int)
        self._n_prompts = 0

    def see(self, attention: Float[Tensor, "head query key"], tokens: Int[Tensor, " pos"]) -> None:
        """Add one prompt."""
        scores = template_scores(attention, tokens)
        self._scores += scores.double().cpu().numpy()
        self._counts += name_templates(scores, tokens)[:, None] == self._NAMES
        self._n_prompts += 1

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of the table."""
        return {
            "template": self._NAMES[self._counts.argmax(axis=1)].astype(object),
            "template_share": self._counts.max(axis=1) / self._n_prompts,
            **dict(zip(TEMPLATES, self._scores.T / self._n_prompts, strict=True)),
        }


def _warn_of_short_prompts(prompts: Prompts, patch_size: int) -> None:
    n_short = int((prompts.lengths <= patch_size).sum())
    if n_short:
        warnings.warn(
            f"{n_short} of {len(prompts)} prompts have at most {patch_size} tokens, one patch of "
            "this AP-MAE: they cannot be reconstructed in part, and count for no error",
            stacklevel=3,
        )
