"""The command `gates`: gates for each task, made on its training files, tried on its held-out ones.

For every task: gates from one gradient and learned ones, heads to zero chosen by the same gradient,
and three baselines: the learned gates dealt out to other heads, a bias on the output that knows how
often each token is an answer in the training files, and that bias with the gates. Where asked for,
also learned exponents of the patterns, both learned with the bias in place, and heads to zero by
gradient and SHAP together or by greedy search. Steps, numbers of heads and the bias's weight are
chosen on the part `rank`; the part `ablate` is looked at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from aplens.correctness import CorrectnessPredictor
from aplens.heads import Head, HeadRanking
from aplens.interventions import HeadEffects, estimate_effects
from aplens.models import compute_in, describe_model
from paper.gates import HeadGates
from paper.greedy import choose_greedily
from paper.learning import learn_gates, log_p
from paper.parts import dtype_of, of_task
from paper.trials import GateTrials, scaled_logits

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios
    from aplens.study import Store, Study
    from paper.settings import GateSettings

#: Weights of the answers' bias that are tried on the validation files; 0 is no bias.
BIAS_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)

COMBINED = "zeroed by gradient and SHAP"
GREEDY = "zeroed greedily"
SHARPENED = "patterns sharpened"
BIAS = "answer bias"

#: What stands after an intervention's name where it was applied to some scenarios only.
WHERE_EXPECTED = " where an error is expected"


@dataclass(frozen=True)
class TaskGates:
    """What was made for one task, and how it did on its held-out scenarios."""

    gates: dict[str, HeadGates]
    chosen: dict[str, float]
    clean: NDArray[np.bool_]
    outcomes: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    held_out: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` reads it."""
        return {
            "gates": {name: gates.to_dict() for name, gates in self.gates.items()},
            "chosen": self.chosen,
            "held_out": self.held_out,
            "clean": self.clean.tolist(),
            "outcomes": {name: correct.tolist() for name, correct in self.outcomes.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskGates:
        """What `to_dict` gave."""
        return cls(
            {name: HeadGates.from_dict(one) for name, one in data["gates"].items()},
            data["chosen"],
            np.array(data["clean"], dtype=bool),
            {name: np.array(one, dtype=bool) for name, one in data["outcomes"].items()},
            data["held_out"],
        )


def gate_tasks(study: Study, settings: GateSettings, store: Store) -> pd.DataFrame:
    """Make and try every task's gates; what is finished is kept, task by task.

    Returns:
        As `GateTrials.to_frame`, with a column `gated`: whether the intervention was applied only
        where `settings.predictor` expects an error.
    """
    tasks = sorted(set(settings.tasks or study.folder.parts["ablate"].tasks))
    kept = slice(settings.per_task or None)
    held_out = [of_task(study.folder.parts["ablate"], task)[kept] for task in tasks]
    results = []
    for number, (task, scenarios) in enumerate(zip(tasks, held_out, strict=True)):
        fit, rank = (of_task(study.folder.parts[part], task) for part in ("fit", "rank"))
        tell = partial(_tell, study, task, number, len(tasks))
        make = partial(gate_task, study, fit, rank, scenarios, settings, tell)
        results.append(recall_task(store, task, scenarios, make))
    seed = study.settings.seed
    trials = GateTrials.join(list(map(to_trials, held_out, results)))
    tables = [trials.to_frame(seed, baseline=BIAS).assign(gated=False)]
    if settings.predictor:
        expected = _expected_errors(study, settings.predictor, held_out)
        gated = trials.apply_where(expected, WHERE_EXPECTED)
        tables.append(gated.to_frame(seed, baseline=BIAS + WHERE_EXPECTED).assign(gated=True))
    return pd.concat(tables, ignore_index=True)


def _tell(study: Study, task: str, number: int, total: int, note: str) -> None:
    study.reporter.update(number, total, f"{task}: {note}")


def _expected_errors(
    study: Study, features: str, held_out: Sequence[Scenarios]
) -> NDArray[np.bool_]:
    """Whether a predictor that saw `fit` and `rank` expects an error, in the order given."""
    n = len(study.folder.parts["fit"]) + len(study.folder.parts["rank"])
    predictor = CorrectnessPredictor(features, seed=study.settings.seed)
    predictor.fit(study.folder.observations.select(range(n)))
    expected = predictor.decision_function(study.folder.observed_part("ablate")) > 0
    tasks = np.array(study.folder.parts["ablate"].tasks)
    by_task = [expected[tasks == part.tasks[0]][: len(part)] for part in held_out]
    return np.concatenate(by_task)


def gate_task(
    study: Study,
    fit: Scenarios,
    validation: Scenarios,
    held_out: Scenarios,
    settings: GateSettings,
    tell: Callable[[str], object] = lambda note: None,
) -> TaskGates:
    """Make one task's gates and try them."""
    model, seed, precision = study.model, study.settings.seed, dtype_of(settings.precision)
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
        both = _average_ranks(harmful, study.folder.shap)
        chosen["n_combined"], gates[COMBINED] = trial.choose_size(
            shape, both, settings.zeroed, COMBINED
        )
    # Without a step along a gradient to begin from, one epoch more.
    from_one = partial(learn, n_epochs=settings.epochs + 1)
    if settings.patterns:
        tell("sharpening")
        gates[SHARPENED] = from_one(acts_on="pattern")
    beside = {}
    if settings.beside_bias:
        tell("learning beside the bias")
        beside["learned"] = from_one(bias=weight * bias)
        if settings.patterns:
            tell("sharpening beside the bias")
            beside[SHARPENED] = from_one(acts_on="pattern", bias=weight * bias)
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
        outcomes[name] = trial.correct(logits)
        if name in ("learned", SHARPENED):
            outcomes[f"{name} + {BIAS}"] = trial.correct(logits + weight * bias)
    for name, one in beside.items():
        beside_bias = f"{name} beside the bias"
        gates[beside_bias] = one
        outcomes[beside_bias] = trial.correct(trial.held_out_logits(one) + weight * bias)
    outcomes[BIAS] = trial.correct(trial.clean + weight * bias)
    return TaskGates(gates, chosen, trial.correct(trial.clean), outcomes, _fingerprint(held_out))


def answer_bias(targets: Int[Tensor, " scenario"], n_tokens: int) -> Float[Tensor, " d_vocab"]:
    """What to add to logits so that tokens count as often as they are answers: log(1 + count).

    The baseline of anything that learns from a task's answers without looking at the prompt.
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
    return HeadGates.from_effects(effects, describe_model(model), step=step)


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


def recall_task(
    store: Store, task: str, held_out: Scenarios, make: Callable[[], TaskGates]
) -> TaskGates:
    """A task that was done before, or is done now.

    Raises:
        ValueError: When what was kept is of other scenarios.
    """
    found = TaskGates.from_dict(store.recall(task, lambda: make().to_dict()))
    if found.held_out != _fingerprint(held_out):
        raise ValueError(
            f"{store.file(task)} holds outcomes of {len(found.clean)} other scenarios, this study "
            f"holds out {len(held_out)} of that task: delete it"
        )
    return found


def _fingerprint(scenarios: Scenarios) -> str:
    prompts = [[list(each.prompt), each.target] for each in scenarios]
    return hashlib.sha256(repr(prompts).encode()).hexdigest()
