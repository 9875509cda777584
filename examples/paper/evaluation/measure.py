"""One pass over held-out prompts that measures several AP-MAEs in every respect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from aplens.mae import APMAE, seeded
from aplens.models import describe_model
from aplens.scenarios import Scenarios
from paper.evaluation.correctness import CorrectnessSamples
from paper.evaluation.embeddings import POOLS
from paper.evaluation.probes import ProbeSamples
from paper.evaluation.prompts import (
    first_tokens,
    repeated_prompts,
    sample_prompts,
    stream_prompts,
)
from paper.evaluation.reconstruction import ReconstructionErrors, ReferencePatterns, require_room

if TYPE_CHECKING:
    import pandas as pd

#: The domain of random tokens that repeat, in the tables of probes.
REPEATED = "repeated"

_HEADS = 0


@dataclass(frozen=True)
class EvaluationSettings:
    """How much to measure, as the help of the command `evaluate` says."""

    prompts: int = 48
    reference: int = 48
    patterns_per_prompt: int = 0
    mask_ratio: float = 0.0
    mask_seeds: int = 3
    tokens: int = 0
    correctness: int = 0
    pools: tuple[str, ...] = tuple(POOLS)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {
            "prompts": 1,
            "reference": 1,
            "mask_seeds": 1,
            "patterns_per_prompt": 0,
            "tokens": 0,
            "correctness": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {self.mask_ratio}")
        if not self.pools or not set(self.pools) <= set(POOLS):
            raise ValueError(f"pools must be one or more of {list(POOLS)}, got {self.pools}")
        if self.tokens and self.correctness:
            raise ValueError(
                f"a prompt cut to its first {self.tokens} tokens is continued by another token "
                "than its target: measure correctness without `tokens`"
            )


class Evaluation(NamedTuple):
    """The tables of one evaluation; `correctness` is empty when it was not asked for."""

    reconstruction: pd.DataFrame
    probes: pd.DataFrame
    correctness: pd.DataFrame


def evaluate_apmaes(
    model: Any,
    maes: Mapping[str, APMAE],
    reference: Scenarios,
    held_out: Scenarios,
    settings: EvaluationSettings | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Measure AP-MAEs on a model's patterns: reconstruction, probes and correctness.

    All AP-MAEs see the same prompts and patterns, each on its own grid; each prompt runs once.
    """
    import pandas as pd

    settings = settings or EvaluationSettings()
    if not maes:
        raise ValueError("expected at least one AP-MAE to evaluate, got none")
    if shared := sorted(set(reference.files) & set(held_out.files)):
        raise ValueError(f"{len(shared)} source files are on both sides, such as {shared[0]!r}")
    info, seed = describe_model(model), settings.seed
    maes = {label: mae.to(info.device).eval() for label, mae in maes.items()}
    if settings.tokens:
        reference, held_out = (
            first_tokens(side, settings.tokens) for side in (reference, held_out)
        )
    prompts = sample_prompts(held_out, max(settings.prompts, settings.correctness), seed)
    tokens = prompts.tokens()
    require_room(maes, tokens.shape[1])
    tell = progress or (lambda done, total, what: None)

    references = ReferencePatterns.collect(
        model,
        sample_prompts(reference, settings.reference, seed),
        seed=seed,
        progress=lambda done, total: tell(done, total, "reference prompts"),
    )
    errors = ReconstructionErrors(
        maes,
        references,
        info.heads,
        mask_ratio=settings.mask_ratio or None,
        mask_seeds=range(seed, seed + settings.mask_seeds),
    )
    probes = ProbeSamples(maes, info.heads, tokens.shape[1], settings.pools)
    outcomes = CorrectnessSamples(maes, info, settings.pools)
    measured = prompts[: settings.prompts]
    for seen in stream_prompts(model, tokens):
        scenario = prompts[seen.place]
        if seen.place < settings.prompts:
            heads = _choose_heads(len(info.heads), settings, seen.place).to(seen.scaled.device)
            scaled = seen.scaled[heads]
            errors.see(seen.place, scaled, heads)
            place = {"file": scenario.file, "domain": scenario.language}
            probes.see(seen.attention[heads], scaled, heads, tokens[seen.place], **place)
        if seen.place < settings.correctness:
            outcomes.see(seen, scenario)
        tell(seen.place + 1, len(prompts), "held-out prompts")
    _see_repeated(model, probes, measured, settings)
    return Evaluation(
        reconstruction=errors.summarize(measured, seed),
        probes=probes.evaluate(seed),
        correctness=outcomes.evaluate(seed) if settings.correctness else pd.DataFrame(),
    )


def _see_repeated(
    model: Any, probes: ProbeSamples, prompts: Scenarios, settings: EvaluationSettings
) -> None:
    """As many repeated random prompts as a domain has; each counts as a file of its own."""
    n = max(2, len(prompts) // len(set(prompts.languages)))
    tokens = repeated_prompts(prompts.tokens(), n, settings.seed)
    n_heads = len(describe_model(model).heads)
    for seen in stream_prompts(model, tokens):
        heads = _choose_heads(n_heads, settings, len(prompts) + seen.place).to(seen.scaled.device)
        probes.see(
            seen.attention[heads],
            seen.scaled[heads],
            heads,
            tokens[seen.place],
            file=f"{REPEATED} {seen.place}",
            domain=REPEATED,
        )


def _choose_heads(n_heads: int, settings: EvaluationSettings, prompt: int) -> Int[Tensor, " some"]:
    """The places of the heads that a prompt is measured on."""
    order = torch.randperm(n_heads, generator=seeded(settings.seed, _HEADS, prompt))
    return order[: settings.patterns_per_prompt or n_heads].sort().values
