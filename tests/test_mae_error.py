"""The error on hidden patches: what it is of, and the report's comparison with baselines."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from correctness_helpers import make_mae, make_scenarios

from aplens.mae import BASELINES, compare_reconstruction, hidden_errors
from aplens.patterns import PatchGrid
from aplens.scenarios import Scenarios


def in_files(scenarios, prefix):
    """The same scenarios in files of their own."""
    return Scenarios(dataclasses.replace(s, file=f"{prefix}/{s.file}") for s in scenarios)


@pytest.mark.parametrize("n_tokens", [16, 13])
def test_the_error_is_over_the_hidden_values_of_the_pattern_itself(n_tokens):
    grid = PatchGrid(16, 4)
    patterns, guessed = torch.rand(2, 3, n_tokens, n_tokens, generator=torch.Generator())
    patches, predicted = grid.patchify(patterns), grid.patchify(guessed)
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask[:, [2, 7, 9]] = True  # 9 holds the last tokens, and of 13 tokens only one
    hidden = grid.unpatchify(mask[..., None].expand_as(patches).float(), n_tokens).bool()
    expected = [
        (ours - theirs)[some].square().mean()
        for ours, theirs, some in zip(guessed, patterns, hidden, strict=True)
    ]
    inside = grid.inside(n_tokens)
    found = hidden_errors(predicted + 9 * (1 - inside), patches, mask, inside)
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_comparison_has_one_row_a_predictor(tiny_model):
    sides = [in_files(make_scenarios(n, seed=n), str(n)) for n in (6, 8)]
    frame = compare_reconstruction(tiny_model, make_mae(), *sides, seed=1)
    assert list(frame["predictor"]) == ["AP-MAE", *BASELINES]
    assert list(frame.columns) == ["predictor", "error", "low", "high", "ratio"]
    assert (frame["error"] > 0).all()
    assert (frame["low"] <= frame["error"]).all()
    assert frame.set_index("predictor").loc["mean patch", "ratio"] == 1
    assert frame.equals(compare_reconstruction(tiny_model, make_mae(), *sides, seed=1))


def test_the_comparison_is_that_of_single_reconstructions(any_model):
    from aplens import collect_patterns
    from aplens.mae import random_masks, seeded
    from aplens.patterns import log_normalize

    mae, held_out = make_mae(), make_scenarios(4, seed=2)
    frame = compare_reconstruction(any_model, mae, in_files(make_scenarios(4), "r"), held_out, 5)
    errors = []
    for place in range(4):
        scaled = log_normalize(collect_patterns(any_model, held_out.tokens()[[place]]).values[0])
        patches = mae.grid.patchify(scaled)
        mask = random_masks(len(patches), patches.shape[1], 0.5, seeded(5, 2, place))
        filled = mae.grid.unpatchify(mae.fill_in(patches, mask, n_tokens=20), 20)
        hidden = mae.grid.unpatchify(mask[..., None].expand_as(patches).float(), 20)
        errors.append(((filled - scaled).square() * hidden).sum((1, 2)) / hidden.sum((1, 2)))
    error = frame.set_index("predictor").loc["AP-MAE", "error"]
    assert error == pytest.approx(torch.cat(errors).mean().item(), rel=1e-4)


def test_prompts_too_long_for_the_apmae_are_refused(any_model):
    long = make_scenarios(4, n_tokens=40)
    with pytest.raises(ValueError, match="patterns of 40 tokens do not fit"):
        compare_reconstruction(any_model, make_mae(), long, in_files(long, "other"))
