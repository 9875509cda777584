"""Short trainings of a fingerprint, each with one change: which choices matter?

All begin from one AP-MAE whose fingerprint is fitted but not trained, and see as many patterns.
Evaluated as on the page of fingerprints, on files that nothing is trained on. What is finished is
kept in the folder, and the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor

import aplens
from aplens.mae import compare_reconstruction
from aplens.patterns import DETECTED, stream_patterns, template_scores
from aplens.scenarios import Scenarios
from aplens.study import Reporter
from aplens.tables import Table
from paper.files import open_store
from paper.fingerprint_measures import found_again, kin
from paper.fingerprint_samples import repeated_like
from paper.fit_fingerprint import fit
from paper.held_out import draw_prompts
from paper.train_fingerprint import Recipe, draw_training, train

#: Prompts of each domain that a fingerprint is fitted on where the encoder is another one.
_FIT_PROMPTS = 16

#: Prompts of each domain that the error on hidden patches is measured on.
_ERROR_PROMPTS = 4


class Trial(NamedTuple):
    """What a trial changes.

    Attributes:
        recipe: Fields of the recipe.
        config: Fields of the AP-MAE's configuration; weights that no longer fit begin anew.
        temperature: What similarities are divided by.
    """

    recipe: Mapping[str, Any] = MappingProxyType({})
    config: Mapping[str, Any] = MappingProxyType({})
    temperature: float = 0.1


TRIALS = {
    "the recipe": Trial(),
    "temperature 0.05": Trial(temperature=0.05),
    "temperature 0.2": Trial(temperature=0.2),
    "weight 0.3": Trial({"identity_weight": 0.3}),
    "weight 3": Trial({"identity_weight": 3.0}),
    "24 prompts a domain": Trial({"prompts": 24}),
    "two encoder blocks": Trial(config={"encoder_depth": 2}),
    "decoder sees CLS alone": Trial(config={"decoder_context": "cls", "base": "none"}),
    "SmolLM2's heads alone": Trial({"models": ("smollm2-135m",)}),
}

#: The same without training.
UNTRAINED = "no training"

_COLUMNS = [
    "",
    "unseen, 1 / 4 prompts",
    "half of another",
    f"kin: {' / '.join(name.replace('_', ' ') for name in DETECTED)}",
    "error",
]


class Patterns(NamedTuple):
    """One model's patterns `[prompt, head, query, key]` of each domain, and its heads' scores."""

    java: Float[Tensor, "prompt head query key"]
    prose: Float[Tensor, "prompt head query key"]
    scores: Float[Tensor, "head kind"]


def run_trials(
    start: str,
    models: tuple[str, ...],
    patterns: int,
    folder: Path,
    reporter: Reporter,
    load: Callable[[str, str], Any] = aplens.load_model,
    evaluated: tuple[str, str] = ("smollm2-135m", "gemma3-270m"),
    prompts: int = 12,
) -> Table:
    """Train and measure what the folder does not hold yet, and tabulate all of it.

    Args:
        start: The AP-MAE that all begin from.
        models: Whose heads are told apart in training.
        patterns: How many each is trained on.
        folder: Where trials go.
        reporter: Told of each.
        load: As `load_model`.
        evaluated: A model of the training, and one that nothing has seen.
        prompts: Of each domain, to evaluate on.
    """
    setup = {"start": start, "models": models, "patterns": patterns, "prompts": prompts}
    store = open_store(folder, {**setup, "evaluated": evaluated})
    load = cache(load)
    n_tokens = aplens.APMAE.from_pretrained(start).config.n_ctx
    collect = cache(lambda name: _collect(load(name, "bridge"), prompts, n_tokens))
    draw = cache(draw_training)

    @cache
    def sides() -> tuple[Scenarios, Scenarios]:
        return _draw_error(load(evaluated[0], "bridge"), n_tokens)

    def try_one(name: str) -> list[float]:
        mae = start
        if name != UNTRAINED:
            recipe = Recipe(models, patterns=patterns)
            mae = _train(start, TRIALS[name], recipe, folder / name, reporter, load, draw)
        reporter.start("fingerprint-trials", f"measuring: {name}")
        own, other = map(collect, evaluated)
        trained = aplens.APMAE.from_pretrained(mae)
        errors = compare_reconstruction(load(evaluated[0], "bridge"), trained, *sides())
        error = errors.set_index("predictor").loc["AP-MAE", "ratio"]
        return [*_measure(trained, own, other), float(error)]

    rows = []
    for name in (UNTRAINED, *TRIALS):
        figures = store.recall(name, partial(try_one, name))
        *told, error = figures
        one, four, half, *near = (f"{figure:.2f}" for figure in told)
        rows.append([name, f"{one} / {four}", half, " / ".join(near), f"{error:.3f}"])
        reporter.say(" | ".join(rows[-1]))
    return Table(_COLUMNS, rows)


def _train(
    start: str,
    trial: Trial,
    recipe: Recipe,
    folder: Path,
    reporter: Reporter,
    load: Callable[[str, str], Any],
    draw: Callable[..., Any],
) -> str:
    """The folder of the AP-MAE that a trial trained."""
    if trial.config:
        start = _vary(start, trial.config, recipe.models[0], folder / "start", reporter, load)
    with patch("aplens.mae.identity.TEMPERATURE", trial.temperature):
        train(start, recipe._replace(**trial.recipe), folder, reporter, load, draw)
    return str(folder / "float16")


def _vary(
    start: str,
    changes: Mapping[str, Any],
    model: str,
    folder: Path,
    reporter: Reporter,
    load: Callable[[str, str], Any],
) -> str:
    """The folder of an AP-MAE that is another one in its configuration."""
    before = aplens.APMAE.from_pretrained(start)
    mae = aplens.APMAE(replace(before.config, **changes))
    own, weights = mae.state_dict(), before.state_dict()
    fitting = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
    mae.load_state_dict(fitting, strict=False)
    mae.save_pretrained(folder)
    if "encoder_depth" in changes:  # its embeddings are others
        dim = mae.config.fingerprint_dim
        fit(str(folder), model, _FIT_PROMPTS, folder, reporter, dim, load)
    return str(folder)


def _collect(model: Any, n: int, n_tokens: int) -> Patterns:
    java, prose = (
        draw_prompts(model, domain, n, n_tokens, held_out=True).tokens()
        for domain in ("java", "prose")
    )
    repeated = repeated_like(torch.cat([java, prose]))
    ((_, patterns, _),) = stream_patterns(model, repeated, batch_size=len(repeated))
    scores = [template_scores(x, t) for x, t in zip(patterns.values, repeated, strict=True)]
    read = (
        torch.cat([found.values for _, found, _ in stream_patterns(model, tokens)])
        for tokens in (java, prose)
    )
    return Patterns(*read, torch.stack(scores).mean(0)[:, : len(DETECTED)])


def _draw_error(model: Any, n_tokens: int) -> tuple[Scenarios, Scenarios]:
    """Prompts that the mean patch is of, and held-out ones that the error is measured on."""
    reference, held_out = (
        Scenarios(
            scenario
            for domain in ("java", "prose")
            for scenario in draw_prompts(model, domain, _ERROR_PROMPTS, n_tokens, held_out=side)
        )
        for side in (False, True)
    )
    return reference, held_out


def _measure(mae: aplens.APMAE, own: Patterns, other: Patterns) -> list[float]:
    """What a row of the table holds before the error: the unseen model told apart, kin in it."""
    units = [
        torch.cat([mae.fingerprint(prompt)[None] for prompt in torch.cat([x.java, x.prose])])
        for x in (own, other)
    ]
    java, prose = units[1].chunk(2)
    half = other.java.shape[-1] // 2
    halves = torch.stack([mae.fingerprint(prompt[:, :half, :half]) for prompt in other.java])
    near, _ = kin(*units, own.scores, other.scores)
    figures = [found_again(java, prose, n) for n in (1, min(4, len(java)))]
    figures.append(found_again(halves, java.roll(1, 0), 1))
    figures += [near[name] for name in DETECTED]
    return [figure.value for figure in figures]
