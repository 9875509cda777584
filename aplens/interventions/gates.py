"""Gates: one number a head, estimated or learned from answered prompts.

It multiplies the head's output, or is an exponent of its pattern.

Zeroing a head is a gate of 0. A few hundred numbers between 0 and 2 say more than a choice of heads
to zero, and are found by following the gradient of the answer's log-probability (docs/method.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens._answers import require_answers, require_logits
from aplens._documents import check, read_document, take
from aplens._io import write_json
from aplens._seeds import read_seed
from aplens.heads import all_heads
from aplens.interventions.effects import HeadEffects
from aplens.interventions.head_numbers import ActsOn, check_acts_on
from aplens.interventions.trials import choose_change, scaled_logits
from aplens.models import compute_in, describe_model, last_token_logits
from aplens.prompts import read_prompts

if TYPE_CHECKING:
    import pandas as pd

    from aplens.scenarios import Scenarios

#: Between which numbers gates are kept: switched off, and twice as loud.
LIMITS = (0.0, 2.0)


@dataclass(frozen=True)
class HeadGates:
    """One gate for every head of a model; `scale_heads` or `sharpen_heads` applies them.

    Attributes:
        values: `Float[ndarray, "layer head"]`; 1 leaves a head as it is.
        model_name: The model.
        metadata: JSON-able facts about how they were made.
        acts_on: "output", for `scale_heads`, or "pattern", for `sharpen_heads`.

    Raises:
        ValueError: When the values are not `[layer, head]`, one is not finite, or `acts_on` is
            something else.
    """

    values: Float[np.ndarray, "layer head"]
    model_name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    acts_on: ActsOn = "output"

    _FORMAT = "aplens.head_gates"

    def __post_init__(self) -> None:
        """Refuse what are no gates."""
        if self.values.ndim != 2 or self.values.size == 0:
            raise ValueError(f"gates must be [layer, head], got shape {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise ValueError("gates must be finite; found NaN or infinity")
        check_acts_on(self.acts_on)

    @classmethod
    def from_effects(
        cls,
        effects: HeadEffects,
        *,
        model_name: str,
        n_layers: int,
        n_heads: int,
        step: float = 2.0,
        limits: tuple[float, float] = LIMITS,
    ) -> HeadGates:
        """One step along the gradient: 1 + step × g, where g is the metric's by the head's gate.

        An estimate of zeroing (`estimate_effects` with method "zero") is minus that gradient. Heads
        without an estimate keep 1.

        Args:
            effects: The estimates.
            model_name: The model.
            n_layers: Its layers.
            n_heads: Its heads a layer.
            step: How far to go, for each nat (or logit) that the gate is worth.
            limits: What gates are clipped to.

        Raises:
            ValueError: When the effects are no estimates of zeroing.
        """
        if not effects.estimated or effects.method != "zero":
            raise ValueError(
                "gates need estimates of zeroing, estimate_effects(method='zero'); got "
                f"{'estimated' if effects.estimated else 'measured'} effects of {effects.method!r}"
            )
        values = np.ones((n_layers, n_heads))
        for head, effect in zip(effects.heads, effects.values.mean(axis=1), strict=True):
            values[head] = np.clip(1 - step * effect, *limits)
        facts = {"method": "gradient", "step": step, "metric": effects.metric}
        return cls(values, model_name, {**facts, "n_prompts": effects.values.shape[1]})

    def shuffled(self, seed: int) -> HeadGates:
        """The same numbers dealt out to the heads at random: what the choice of heads is worth.

        Raises:
            ValueError: When the seed is no whole number from 0 to 2**63 - 1.
        """
        seed = read_seed(seed)
        drawn = np.random.default_rng(seed).permutation(self.values.ravel())
        facts = {**self.metadata, "shuffled": seed}
        return HeadGates(drawn.reshape(self.values.shape), self.model_name, facts, self.acts_on)

    def to_frame(self) -> pd.DataFrame:
        """One row a head with `layer`, `head` and `gate`, those furthest from 1 first."""
        import pandas as pd

        heads = all_heads(*self.values.shape)
        frame = pd.DataFrame(heads, columns=["layer", "head"])
        frame["gate"] = self.values.ravel()
        frame.index = pd.Index([str(head) for head in heads], name="name")
        return frame.iloc[(-(frame["gate"] - 1).abs()).argsort(kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able tables."""
        return {
            "format": self._FORMAT,
            "version": 1,
            "model_name": self.model_name,
            "acts_on": self.acts_on,
            "values": self.values.tolist(),
            "metadata": dict(self.metadata),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the gates as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeadGates:
        """Read what `save` wrote.

        Raises:
            OSError: When the file cannot be read.
            ValueError: When it holds no gates, or damaged ones; the message names the file.
        """
        data = read_document(path, "head gates", cls._FORMAT, 1)
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{path} holds damaged head gates: {error}") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadGates:
        """What `to_dict` gave.

        Raises:
            ValueError: When something is missing, or of another kind.
        """
        rows = [
            [
                check(gate, float, f"values[{i}][{j}]")
                for j, gate in enumerate(check(row, list, f"values[{i}]"))
            ]
            for i, row in enumerate(take(data, "values", list))
        ]
        if len({len(row) for row in rows}) != 1:
            raise ValueError("values must be rows of one length")
        name = take(data, "model_name", str)
        acts_on = check(data.get("acts_on", "output"), str, "acts_on")  # older ones do not say
        return cls(
            np.array(rows, dtype=float),
            name,
            take(data, "metadata", dict),
            acts_on,  # type: ignore[arg-type]
        )


@torch.inference_mode(mode=False)  # inside it nothing can be differentiated, even with enable_grad
@torch.enable_grad()
def learn_gates(
    model: Any,
    scenarios: Scenarios,
    validation: Scenarios | None = None,
    *,
    acts_on: ActsOn = "output",
    start: HeadGates | None = None,
    n_epochs: int = 2,
    learning_rate: float = 0.03,
    penalty: float = 0.01,
    limits: tuple[float, float] = LIMITS,
    bias: Float[Tensor, " d_vocab"] | None = None,
    batch_size: int = 8,
    precision: torch.dtype | None = None,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> HeadGates:
    """Learn one gate a head so that the model gives the answers' tokens more probability.

    Adam on the mean of -log p(answer), in nats, plus penalty × the sum of (gate - 1)². The model's
    own parameters stay as they are, and their gradients are neither computed nor touched.

    Args:
        model: A HookedTransformer or TransformerBridge.
        scenarios: Prompts with their targets.
        validation: Held-out ones, of other files. The gates after the epoch with the largest mean
            log p(answer) on them are returned, the start itself among them; without, the last.
        acts_on: "output": gates for `scale_heads`. "pattern": exponents for `sharpen_heads`.
        start: Gates to begin with (default: all 1).
        n_epochs: Passes over the scenarios.
        learning_rate: Of Adam: about how far a gate moves at most in one batch.
        penalty: Nats for one gate at 0 or 2.
        limits: What gates are kept between.
        bias: Added to the logits throughout, so that gates learn what it does not give already.
        batch_size: Prompts a forward and backward pass.
        precision: torch.bfloat16 lets the model compute its matrix products in bfloat16.
        seed: Of the order of the prompts.
        progress: Called with (prompts learned from, prompts in all epochs).

    Raises:
        ValueError: When there are no scenarios, an argument is out of range, `start` is another
            model's, `bias` is not a number for each token, an answer is none of the model's tokens,
            the seed is no whole number from 0 to 2**63 - 1, or the model's logits contain NaN or
            infinity.
    """
    info, seed = describe_model(model), read_seed(seed)
    if len(scenarios) == 0:
        raise ValueError("there are no scenarios to learn gates from")
    require_answers(model, scenarios)
    if validation is not None:
        require_answers(model, validation)
    for name, value in (("n_epochs", n_epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not (learning_rate > 0 and penalty >= 0 and limits[0] < limits[1]):
        raise ValueError(
            "expected a learning_rate above 0, a penalty of 0 or more and limits (low, high), got "
            f"{learning_rate}, {penalty} and {limits}"
        )
    shape = (info.n_layers, info.n_heads)
    apply = choose_change(acts_on)
    before = np.ones(shape) if start is None else start.values
    if before.shape != shape or (start is not None and start.acts_on != acts_on):
        raise ValueError(
            f"start must be gates of {shape} (layer, head) on each head's {acts_on}, got "
            f"{before.shape}" + (f" on its {start.acts_on}" if start is not None else "")
        )

    def score(values: np.ndarray) -> float:
        assert validation is not None
        logits = scaled_logits(model, validation, values, acts_on=acts_on, precision=precision)
        return float(log_p(_add_bias(logits, bias), validation.targets()).double().mean())

    gates = torch.tensor(before, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([gates], lr=learning_rate)
    prompts, targets = read_prompts(model, scenarios), scenarios.targets()
    draw = torch.Generator().manual_seed(seed)
    epochs = [before]
    scores = [] if validation is None else [score(before)]
    for epoch in range(n_epochs):
        for number, rows in enumerate(
            torch.randperm(len(scenarios), generator=draw).split(batch_size)
        ):
            batch = prompts[rows]
            with compute_in(model, precision), apply(model, gates), _frozen(model):
                logits = last_token_logits(model, batch.tokens, batch.lengths)
                loss = -log_p(_add_bias(logits, bias), targets[rows]).mean()
                loss = loss + penalty * (gates - 1).square().sum()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            with torch.no_grad():
                gates.clamp_(*limits)
            if progress is not None:
                done = min((number + 1) * batch_size, len(scenarios))
                progress(epoch * len(scenarios) + done, n_epochs * len(scenarios))
        epochs.append(gates.detach().numpy().astype(float))
        if validation is not None:
            scores.append(score(epochs[-1]))
    best = int(np.argmax(scores)) if scores else n_epochs
    return HeadGates(
        epochs[best],
        info.name,
        {
            "method": "learned",
            "n_prompts": len(scenarios),
            "epoch": best,
            "validation": scores,
            "learning_rate": learning_rate,
            "penalty": penalty,
            "seed": seed,
        },
        acts_on,
    )


def _add_bias(
    logits: Float[Tensor, "prompt d_vocab"], bias: Float[Tensor, " d_vocab"] | None
) -> Float[Tensor, "prompt d_vocab"]:
    if bias is None:
        return logits
    if bias.shape != logits.shape[1:]:
        raise ValueError(
            f"expected a bias of {logits.shape[1]} tokens, got shape {tuple(bias.shape)}"
        )
    return logits + bias.to(logits)


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No parameter asks for a gradient inside the block: what goes back reaches the gates alone."""
    asking = [one for one in model.parameters() if one.requires_grad]
    for one in asking:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in asking:
            one.requires_grad_(True)


def log_p(
    logits: Float[Tensor, "prompt d_vocab"], targets: Int[Tensor, " prompt"]
) -> Float[Tensor, " prompt"]:
    """Log-probability of the answers, in nats.

    Raises:
        ValueError: When the logits contain NaN or infinity.
    """
    log_probabilities = require_logits(logits).float().log_softmax(dim=-1)
    return log_probabilities.gather(1, targets.to(logits.device)[:, None])[:, 0]
