"""Attention pooling over heads: one small network reads every head alike and weighs them.

Where a linear model has a weight for each head and number, this one shares its weights between
heads, tells heads apart by an embedding of each, and lets the input decide which heads count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from aplens.scoring.splits import draw_files

_WIDTH = 16
_N_QUERIES = 4
_N_EPOCHS = 60
_PATIENCE = 10
_BATCH = 128
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.05
_DROPOUT = 0.2
_VALIDATION = 0.2  # of the source files, to stop on


class PoolingModel:
    """A fitted network; its margins are log-odds of the positive class."""

    def __init__(self, inputs: _Inputs, network: _Pooling) -> None:
        self._inputs = inputs
        self._network = network.eval()

    @torch.no_grad()
    def decision_function(
        self, columns: Float[np.ndarray, "scenario column"]
    ) -> Float[np.ndarray, " scenario"]:
        """Log-odds of the positive class."""
        parts = [self._network(*self._inputs(rows)) for rows in _in_batches(columns)]
        return torch.cat(parts).double().numpy()


def fit_pooling(
    columns: Float[np.ndarray, "scenario column"],
    positive: Bool[np.ndarray, " scenario"],
    files: Sequence[str],
    column_heads: Int[np.ndarray, " column"],
    seed: int,
) -> PoolingModel:
    """Fit by Adam, stopped where the log loss on held-out source files is smallest.

    Args:
        columns: The features.
        positive: The outcome.
        files: Each scenario's source file.
        column_heads: Which head a column describes; -1 for none, and those are read linearly.
        seed: Of the held-out files, the first weights and the order of the scenarios.

    Raises:
        ValueError: When no column describes a head, or there is only one source file.
    """
    if not (column_heads >= 0).any():
        raise ValueError("attention pooling over heads needs features of heads, got none")
    if len(set(files)) < 2:
        raise ValueError("attention pooling stops on held-out source files: it needs 2, got 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = _Inputs(columns, column_heads)
        network = _Pooling(inputs.n_heads, inputs.n_numbers, inputs.n_others)
        heads, others = inputs(columns)
        outcome = torch.tensor(positive, dtype=torch.float32)
        held_out = torch.tensor(draw_files(files, _VALIDATION, seed))
        _train(network, heads, others, outcome, held_out)
    return PoolingModel(inputs, network)


class _Inputs:
    """Columns as numbers of heads, `[scenario, head, number]`, and of none; each standardized."""

    def __init__(
        self,
        columns: Float[np.ndarray, "scenario column"],
        column_heads: Int[np.ndarray, " column"],
    ) -> None:
        self._mean = columns.mean(axis=0)
        deviation = columns.std(axis=0)
        self._scale = np.where(deviation > 0, deviation, 1)
        self._others = np.flatnonzero(column_heads < 0)
        described = np.unique(column_heads[column_heads >= 0])
        by_head = [np.flatnonzero(column_heads == head) for head in described]
        self.n_heads, self.n_others = len(described), len(self._others)
        self.n_numbers = max(map(len, by_head))
        # Heads may differ in how many numbers describe them: what is missing reads a 0.
        self._places = np.full((self.n_heads, self.n_numbers), columns.shape[1])
        for row, places in enumerate(by_head):
            self._places[row, : len(places)] = places

    def __call__(
        self, columns: Float[np.ndarray, "scenario column"]
    ) -> tuple[Float[Tensor, "scenario head number"], Float[Tensor, "scenario other"]]:
        scaled = (columns - self._mean) / self._scale
        padded = np.concatenate([scaled, np.zeros((len(scaled), 1))], axis=1)
        heads = torch.tensor(padded[:, self._places], dtype=torch.float32)
        return heads, torch.tensor(scaled[:, self._others], dtype=torch.float32)


class _Pooling(nn.Module):
    def __init__(self, n_heads: int, n_numbers: int, n_others: int) -> None:
        super().__init__()
        self.key = nn.Linear(n_numbers, _WIDTH)
        self.value = nn.Linear(n_numbers, _WIDTH)
        self.head_key = nn.Parameter(torch.randn(n_heads, _WIDTH) * 0.1)
        self.head_value = nn.Parameter(torch.randn(n_heads, _WIDTH) * 0.1)
        self.query = nn.Parameter(torch.randn(_N_QUERIES, _WIDTH) * _WIDTH**-0.5)
        self.drop = nn.Dropout(_DROPOUT)
        self.read = nn.Linear(_N_QUERIES * _WIDTH + n_others, 1)

    def forward(
        self, heads: Float[Tensor, "scenario head number"], others: Float[Tensor, "scenario other"]
    ) -> Float[Tensor, " scenario"]:
        values = torch.tanh(self.value(heads) + self.head_value)
        scores = torch.tanh(self.key(heads) + self.head_key) @ self.query.T
        weights = scores.softmax(dim=1)  # over heads
        pooled = torch.einsum("shq,shw->sqw", weights, values).flatten(1)
        return self.read(torch.cat([self.drop(pooled), others], dim=1))[:, 0]


def _train(
    network: _Pooling,
    heads: Float[Tensor, "scenario head number"],
    others: Float[Tensor, "scenario other"],
    outcome: Float[Tensor, " scenario"],
    held_out: Bool[Tensor, " scenario"],
) -> None:
    """Leave in the network the weights of the epoch that predicts the held-out files best."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    loss_of = nn.functional.binary_cross_entropy_with_logits
    chosen = torch.nonzero(~held_out)[:, 0]
    best, kept, since = float("inf"), network.state_dict(), 0
    for _ in range(_N_EPOCHS):
        network.train()
        for rows in chosen[torch.randperm(len(chosen))].split(_BATCH):
            optimizer.zero_grad()
            loss_of(network(heads[rows], others[rows]), outcome[rows]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            margin = network(heads[held_out], others[held_out])
            loss = float(loss_of(margin, outcome[held_out]))
        since += 1
        if loss < best:
            best, since = loss, 0
            kept = {name: value.clone() for name, value in network.state_dict().items()}
        if since > _PATIENCE:
            break
    network.load_state_dict(kept)


def _in_batches(columns: Float[np.ndarray, "scenario column"]) -> list[np.ndarray]:
    return [columns[start : start + 1024] for start in range(0, max(1, len(columns)), 1024)]
