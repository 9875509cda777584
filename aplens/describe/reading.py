"""The AP-MAE that reads prompts' patterns, and of the prompts what it can read."""

from __future__ import annotations

import os
import warnings

import torch
from jaxtyping import Int
from torch import Tensor

from aplens._words import shorten
from aplens.mae import APMAE
from aplens.prompts import Prompts

#: The bundled AP-MAE for short prompts, its context and its patches' side in tokens, and the one
#: for longer prompts.
_SHORT, _SHORT_CONTEXT, _SHORT_PATCH = "aplens-short", 64, 8
_LONG = "aplens-base"


def choose_mae(mae: APMAE | str | os.PathLike[str], lengths: Int[Tensor, " prompt"]) -> APMAE:
    """The AP-MAE that was given or named; for "auto" the bundled one for prompts of these lengths.

    That is "aplens-short" where the middle prompt has up to 64 tokens, all that it reads, and else
    "aplens-base".
    """
    if isinstance(mae, APMAE):
        return mae
    if not isinstance(mae, (str, os.PathLike)):
        raise TypeError(
            "mae must be an APMAE, 'auto', or what APMAE.from_pretrained takes, such as "
            f"'{_SHORT}' or a folder, got {shorten(mae)}"
        )
    if mae == "auto":
        mae = _SHORT if common_length(lengths) <= _SHORT_CONTEXT else _LONG
    return APMAE.from_pretrained(mae)


def common_length(lengths: Int[Tensor, " prompt"]) -> int:
    """The length of the middle prompt, the shorter of two: at least half of them are as long.

    The shortest prompt's length would let a single short one decide how much of the others is seen.
    """
    return int(lengths.median())


def fit_context(mae: APMAE, *prompts: Prompts) -> list[Prompts]:
    """The first tokens that the AP-MAE takes; the caller's caller is warned when others are cut."""
    n_ctx = mae.config.n_ctx
    lengths = torch.cat([each.lengths.cpu() for each in prompts])  # of models on several devices
    n_longer = int((lengths > n_ctx).sum())
    if n_longer:
        warnings.warn(
            f"{n_longer} of {len(lengths)} prompts are longer than this AP-MAE's context: their "
            f"first {n_ctx} tokens are taken",
            stacklevel=3,
        )
    return [each.first_tokens(n_ctx) for each in prompts]


def leave_out_short(mae: APMAE, prompts: Prompts) -> tuple[list[int], Prompts]:
    """The prompts that have a habit, with their places; the caller's caller is warned of others."""
    patch_size = mae.grid.patch_size
    long = prompts.lengths > patch_size
    n_short = len(prompts) - int(long.sum())
    few = f"have at most {patch_size} tokens, one patch of this AP-MAE"
    if n_short == len(prompts):
        shorter = f"use '{_SHORT}', whose patches are of {_SHORT_PATCH}, or "
        raise ValueError(
            f"all {n_short} prompts {few}, and so no habit: "
            f"{shorter if patch_size > _SHORT_PATCH else ''}give longer prompts"
        )
    if n_short:
        warnings.warn(
            f"{n_short} of {len(prompts)} prompts {few}: they have no habit, and are left out",
            stacklevel=3,
        )
    return long.nonzero().flatten().tolist(), prompts[long]
