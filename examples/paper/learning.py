"""Learning gates from answered prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from aplens import read_prompts
from aplens.models import compute_in, describe_model, last_token_logits
from paper.gates import LIMITS, ActsOn, HeadGates
from paper.trials import choose_change, require_finite, scaled_logits

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios


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
    bias: Float[Tensor, " d_vocab"] | None = None,
    batch_size: int = 8,
    precision: torch.dtype | None = None,
    seed: int = 0,
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
        bias: Added to the logits throughout, so that gates learn what it does not give already.
        batch_size: Prompts a forward and backward pass.
        precision: torch.bfloat16 lets the model compute its matrix products in bfloat16.
        seed: Of the order of the prompts.

    Raises:
        ValueError: When there are no scenarios, an argument is out of range, `start` is another
            model's, `bias` is not a number for each token, or the model's logits contain NaN or
            infinity.
    """
    info = describe_model(model)
    if len(scenarios) == 0:
        raise ValueError("there are no scenarios to learn gates from")
    for name, value in (("n_epochs", n_epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not (learning_rate > 0 and penalty >= 0):
        raise ValueError(
            "expected a learning_rate above 0 and a penalty of 0 or more, got "
            f"{learning_rate} and {penalty}"
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
    for _ in range(n_epochs):
        for rows in torch.randperm(len(scenarios), generator=draw).split(batch_size):
            batch = prompts[rows]
            with compute_in(model, precision), apply(model, gates), _frozen(model):
                logits = last_token_logits(model, batch.tokens, batch.lengths)
                loss = -log_p(_add_bias(logits, bias), targets[rows]).mean()
                loss = loss + penalty * (gates - 1).square().sum()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            with torch.no_grad():
                gates.clamp_(*LIMITS)
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
    log_probabilities = require_finite(logits).float().log_softmax(dim=-1)
    return log_probabilities.gather(1, targets.to(logits.device)[:, None])[:, 0]
