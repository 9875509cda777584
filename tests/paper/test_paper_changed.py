"""Training some layers of a model, and finding them again by their heads."""

from __future__ import annotations

import pytest
import torch
from conftest import make_any_tiny
from mae_helpers import tiny_mae

from aplens import read_prompts
from paper.changed import ChangeSettings, judge, train_layers, try_change


@pytest.fixture
def model(monkeypatch):
    """A small model of one's own, to be trained, that reads a character as a token."""
    model = make_any_tiny()

    def read(model, texts):
        several = [texts] if isinstance(texts, str) else texts
        if not isinstance(several, list) or not isinstance(several[0], str):
            return read_prompts(model, texts)
        return read_prompts(model, [[ord(c) % 101 for c in text[:64]] for text in several])

    monkeypatch.setattr("aplens.read_prompts", read)
    return model


SETTINGS = ChangeSettings(
    (1,), "aplens", steps=6, batch_size=2, n_tokens=16, learning_rate=0.05, prompts=4
)


def test_only_the_free_layers_are_trained(model):
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = train_layers(model, SETTINGS)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    moved = {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}
    assert moved
    assert all("blocks.1." in name or ".h.1." in name for name in moved)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"layers must be 0 to 2, got \[3\]"):
        train_layers(model, ChangeSettings((3,), "aplens"))
    with pytest.raises(ValueError, match="no installed package 'nowhere'"):
        train_layers(model, ChangeSettings((1,), "nowhere"))


def test_heads_before_the_trained_layer_stay_and_its_own_move(model):
    said = []
    frame, judged = try_change(model, tiny_mae(fingerprint_dim=8), SETTINGS, said.append)
    assert "nats" in said[0]
    assert frame["free"].sum() == 4
    assert set(frame["layer"][frame["free"]]) == {1}
    assert frame.loc[frame["layer"] == 0, ["moved", "attention"]].abs().max().max() < 1e-3
    assert frame.loc[frame["free"], "attention"].min() > 0.001
    assert judged["chance"].tolist() == [pytest.approx(4 / 8)] * 3
    assert judged["auc"].between(0, 1).all()


def test_a_list_with_the_free_heads_first_is_found_whole():
    import pandas as pd

    frame = pd.DataFrame(
        {
            "layer": [1, 1, 2, 2, 0],  # the last one can not change
            "moved": [0.4, 0.3, 0.2, 0.1, 0.0],
            "between_halves": [0.1] * 5,
            "attention": [0.1, 0.2, 0.3, 0.4, 0.0],
            "free": [True, True, False, False, False],
        }
    )
    judged = judge(frame).set_index("number")
    assert judged.loc["moved", ["auc", "found", "chance"]].tolist() == [1.0, 1.0, 0.5]
    assert judged.loc["attention changed", "auc"] == 0.0
