"""The stage `gates`: gates for each task, made on its training files, tried on its held-out ones.

For every task: gates from one gradient and learned ones, heads to zero chosen by the same gradient,
and three baselines: the learned gates dealt out to other heads, a bias on the output that knows how
often each token is an answer in the training files, and that bias with the gates. Where asked for,
also learned exponents of the patterns, both learned with the bias in place, and heads to zero by
gradient and SHAP together or by greedy search. Steps, numbers of heads and the bias's weight are
chosen on the part `rank`; the part `ablate` is looked at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from aplens._documents import check, read_document, take
from aplens._io import hash_tokens, write_json
from aplens.heads import Head, HeadRanking
from aplens.interventions.effects import HeadEffects, estimate_effects
from aplens.interventions.gates import HeadGates, learn_gates, log_p
from aplens.interventions.greedy import choose_greedily
from aplens.interventions.results import read_bits, write_bits
from aplens.interventions.trials import GateTrials, scaled_logits
from aplens.models import compute_in, describe_model

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios
    from aplens.study.config import GateSettings

#: Weights of the answers' bias that are tried on the validation files; 0 is no bias.
BIAS_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)

COMBINED = "zeroed by gradient and SHAP"
GREEDY = "zeroed greedily"
SHARPENED = "patterns sharpened"
BESIDE_BIAS = " beside the bias"
BIAS = "answer bias"

_FORMAT = "aplens.task_gates"


@dataclass(frozen=True)
class TaskGates:
    """What was made for one task, and how it did on its held-out scenarios.

    Attributes:
        gates: The gates by name.
        chosen: What was chosen on the validation files, by name.
        clean: Whether the unchanged model is correct on each held-out scenario.
        outcomes: The same with each intervention.
        held_out: A fingerprint of those scenarios; none in files that older versions wrote.
    """

    gates: dict[str, HeadGates]
    chosen: dict[str, float]
    clean: NDArray[np.bool_]
    outcomes: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    held_out: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        write_json(
            path,
            {
                "format": _FORMAT,
                "version": 1,
                "gates": {name: gates.to_dict() for name, gates in self.gates.items()},
                "chosen": self.chosen,
                "held_out": self.held_out,
                "clean": write_bits(self.clean),
                "outcomes": {name: write_bits(bits) for name, bits in self.outcomes.items()},
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskGates:
        """Read what `save` wrote.

        Raises:
            OSError: When the file cannot be read.
            ValueError: When it is something else, or damaged; the message names the file.
        """
        data = read_document(path, "a task's gates", _FORMAT, 1)
        try:
            clean = read_bits(take(data, "clean", str), "clean")
            outcomes = {
                name: read_bits(check(bits, str, f"outcomes.{name}"), f"outcomes.{name}")
                for name, bits in take(data, "outcomes", dict).items()
            }
            if any(len(bits) != len(clean) for bits in outcomes.values()):
                raise ValueError(f"outcomes must be of {len(clean)} scenarios, as clean is")
            return cls(
                {
                    name: HeadGates.from_dict(check(one, dict, f"gates.{name}"))
                    for name, one in take(data, "gates", dict).items()
                },
                {
                    name: check(value, float, f"chosen.{name}")
                    for name, value in take(data, "chosen", dict).items()
                },
                clean,
                outcomes,
                check(data.get("held_out", ""), str, "held_out"),
            )
        except ValueError as error:
            raise ValueError(f"{path} holds damaged gates of a task: {error}") from error


def gate_task(
    model: Any,
    fit: Scenarios,
    validation: Scenarios,
    held_out: Scenarios,
    settings: GateSettings,
    precision: torch.dtype | None,
    seed: int,
    tell: Callable[[str], object] = lambda note: None,
    ranking: HeadRanking | None = None,
) -> TaskGates:
    """Make one task's gates and try them.

    Args:
        model: A HookedTransformer or TransformerBridge.
        fit: Scenarios that gates are made on.
        validation: Those on which steps and sizes are chosen.
        held_out: Those on which the result is measured.
        settings: How much to try.
        precision: As for `scaled_logits`.
        seed: Of learning and of shuffling.
        tell: Called with what is done next.
        ranking: The study's, which `settings.combine` needs.
    """
    trial = _Trial(model, validation, held_out, settings.batch_size, precision)
    tell("gradient")
    with compute_in(model, precision):
        effects = estimate_effects(model, fit, batch_size=settings.batch_size)
    tell("steps")
    stepped = {step: _step(model, effects, step) for step in settings.steps}
    step = trial.choose({step: gates.values for step, gates in stepped.items()})
    tell("learning")
    learn = partial(
        learn_gates,
        model,
        fit,
        validation,
        learning_rate=settings.learning_rate,
        penalty=settings.penalty,
        batch_size=settings.batch_size,
        precision=precision,
        seed=seed,
    )
    learned = learn(start=stepped[step], n_epochs=settings.epochs)
    tell("zeroing")
    shape = stepped[step]
    harmful = [effects.heads[i] for i in np.argsort(-effects.values.mean(axis=1), kind="stable")]
    size, zeroed = trial.choose_size(shape, harmful, settings.zeroed, "zeroed")
    bias = answer_bias(fit.targets(), trial.clean.shape[1])
    weight = trial.choose_bias(bias)
    gates = {
        "gradient": stepped[step],
        "learned": learned,
        "zeroed": zeroed,
        "shuffled": learned.shuffled(seed),
    }
    chosen = {"step": step, "n_zeroed": size, "bias_weight": weight}
    if settings.combine:
        assert ranking is not None
        both = _average_ranks(harmful, ranking)
        chosen["n_combined"], gates[COMBINED] = trial.choose_size(
            shape, both, settings.zeroed, COMBINED
        )
    # Without a step along a gradient to begin from, one epoch more.
    from_one = partial(learn, n_epochs=settings.epochs + 1)
    if settings.patterns:
        tell("sharpening")
        gates[SHARPENED] = from_one(acts_on="pattern")
    if settings.beside_bias:
        tell("learning beside the bias")
        gates["learned" + BESIDE_BIAS] = from_one(bias=weight * bias)
        if settings.patterns:
            tell("sharpening beside the bias")
            gates[SHARPENED + BESIDE_BIAS] = from_one(acts_on="pattern", bias=weight * bias)
    if settings.greedy:
        tell("greedy search")
        found = choose_greedily(
            lambda heads: trial.score(_zeroed(shape, heads, GREEDY).values),
            harmful,
            settings.greedy,
            n_tried=settings.greedy_tried,
        )
        chosen["n_greedy"] = float(len(found.heads))
        gates[GREEDY] = _zeroed(shape, found.heads, GREEDY)
    outcomes = {}
    for name, one in gates.items():
        tell(name)
        logits = trial.held_out_logits(one)
        biased = trial.correct(logits + weight * bias)
        outcomes[name] = biased if name.endswith(BESIDE_BIAS) else trial.correct(logits)
        if name in ("learned", SHARPENED):
            outcomes[f"{name} + {BIAS}"] = biased
    outcomes[BIAS] = trial.correct(trial.clean + weight * bias)
    return TaskGates(gates, chosen, trial.correct(trial.clean), outcomes, _fingerprint(held_out))


def answer_bias(targets: Int[Tensor, " scenario"], n_tokens: int) -> Float[Tensor, " d_vocab"]:
    """What to add to logits so that tokens count as often as they are answers: log(1 + count).

    The baseline of anything that learns from a task's answers without looking at the prompt.

    Args:
        targets: The training scenarios' answers.
        n_tokens: Size of the vocabulary.
    """
    return torch.bincount(targets, minlength=n_tokens).float().log1p()


class _Trial:
    """One task's validation and held-out scenarios, and the unchanged model's logits on them."""

    def __init__(
        self,
        model: Any,
        validation: Scenarios,
        held_out: Scenarios,
        batch_size: int,
        precision: torch.dtype | None,
    ) -> None:
        self._model = model
        self._validation = validation
        self._held_out = held_out
        self._options: dict[str, Any] = {"batch_size": batch_size, "precision": precision}
        self._clean_validation = scaled_logits(model, validation, **self._options)
        self.clean = scaled_logits(model, held_out, **self._options)

    def held_out_logits(self, gates: HeadGates) -> Float[Tensor, "scenario d_vocab"]:
        return scaled_logits(self._model, self._held_out, gates, **self._options)

    def correct(self, logits: Float[Tensor, "scenario d_vocab"]) -> NDArray[np.bool_]:
        return (logits.argmax(dim=-1) == self._held_out.targets()).numpy()

    def score(self, gates: np.ndarray) -> float:
        """The mean log p of the validation scenarios' answers, in nats."""
        return self._log_p(scaled_logits(self._model, self._validation, gates, **self._options))

    def choose(self, candidates: dict[float, np.ndarray]) -> float:
        """The candidate with which the answers of the validation scenarios are most probable."""
        scores = {name: self.score(gates) for name, gates in candidates.items()}
        return max(scores, key=lambda name: scores[name])

    def choose_size(
        self, like: HeadGates, heads: Sequence[Head], sizes: Sequence[int], method: str
    ) -> tuple[float, HeadGates]:
        """How many of the first heads to zero, and the gates that do it."""
        by_size = {float(size): _zeroed(like, heads[:size], method) for size in sizes}
        size = self.choose({size: gates.values for size, gates in by_size.items()})
        return size, by_size[size]

    def choose_bias(self, bias: Float[Tensor, " d_vocab"]) -> float:
        scores = {w: self._log_p(self._clean_validation + w * bias) for w in BIAS_WEIGHTS}
        return max(scores, key=lambda weight: scores[weight])

    def _log_p(self, logits: Float[Tensor, "scenario d_vocab"]) -> float:
        return float(log_p(logits, self._validation.targets()).double().mean())


def _step(model: Any, effects: HeadEffects, step: float) -> HeadGates:
    info = describe_model(model)
    return HeadGates.from_effects(
        effects,
        model_name=info.name,
        n_layers=info.n_layers,
        n_heads=info.n_heads,
        step=step,
    )


def _zeroed(like: HeadGates, heads: Sequence[Head], method: str) -> HeadGates:
    values = np.ones_like(like.values)
    for head in heads:
        values[head] = 0
    return HeadGates(values, like.model_name, {"method": method, "size": len(heads)})


def _average_ranks(harmful: Sequence[Head], ranking: HeadRanking) -> list[Head]:
    """The heads by the mean of two ranks; of equal ones those that the first ranks higher."""
    frame = ranking.to_frame().sort_values("mean", ascending=False, kind="stable")
    by_shap = {
        Head(layer, head): rank
        for rank, (layer, head) in enumerate(zip(frame["layer"], frame["head"], strict=True))
    }
    return sorted(harmful, key=lambda head: harmful.index(head) + by_shap[head])


def to_trials(held_out: Scenarios, result: TaskGates) -> GateTrials:
    """A task's outcomes beside its scenarios."""
    return GateTrials(held_out.tasks, held_out.files, result.clean, result.outcomes)


def load_task(path: Path, held_out: Scenarios) -> TaskGates | None:
    """A task that was done before; None when it was not.

    Raises:
        ValueError: When the file is damaged, or of other scenarios.
    """
    if not path.exists():
        return None
    found = TaskGates.load(path)
    if len(found.clean) != len(held_out) or found.held_out not in ("", _fingerprint(held_out)):
        raise ValueError(
            f"{path} holds outcomes of {len(found.clean)} other scenarios, this study holds out "
            f"{len(held_out)} of that task: delete it"
        )
    return found


def _fingerprint(scenarios: Scenarios) -> str:
    prompts = scenarios.prompts()
    return hash_tokens(prompts.tokens, prompts.lengths, scenarios.targets())
