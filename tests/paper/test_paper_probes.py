"""Linear probes find what is there and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aplens.patterns import DETECTED
from paper.evaluation.probes import downsample, downsampled_side, evaluate_probe
from paper.evaluation.prompts import repeated_prompts

N_PROMPTS, N_HEADS, DIMS = 20, 30, 12


def planted(seed=0):
    """Inputs of which scores and layers are linear functions."""
    rng = np.random.default_rng(seed)
    n = N_PROMPTS * N_HEADS
    layers = rng.integers(0, 3, n)
    values = rng.normal(size=(n, DIMS))
    values[:, :3] += 8 * (layers[:, None] == np.arange(3))
    scores = values[:, 3:] @ rng.normal(size=(DIMS - 3, 3))
    prompt = np.repeat(np.arange(N_PROMPTS), N_HEADS)
    files = [f"File{i // 2}.java" for i in range(N_PROMPTS)]
    domains = ["java" if i < 12 else "python" for i in range(N_PROMPTS)]
    return values, scores, layers, prompt, files, domains


def value_of(frame, target, domain="all"):
    return frame[(frame["target"] == target) & (frame["domain"] == domain)].iloc[0]


def test_a_planted_feature_is_found_on_held_out_files():
    frame = evaluate_probe(*planted())
    for domain in ("all", "java", "python"):
        for name in DETECTED:
            row = value_of(frame, name, domain)
            assert row["value"] > 0.99
            assert row["low"] <= row["value"] <= row["high"]
        assert value_of(frame, "layer", domain)["value"] > 0.95
    whole = value_of(frame, "layer")
    assert whole["n_patterns"] + whole["n_train"] == N_PROMPTS * N_HEADS
    assert whole["n_files"] == 4  # 2 of 6 java files, 2 of 4 python files
    assert whole["dims"] == DIMS


def test_a_shuffled_feature_is_not_found():
    values, *rest = planted()
    shuffled = np.random.default_rng(1).permutation(values)
    frame = evaluate_probe(shuffled, *rest)
    for name in DETECTED:
        assert abs(value_of(frame, name)["value"]) < 0.1
    assert value_of(frame, "layer")["value"] < 0.5  # 1/3 by chance


def test_a_domain_of_one_file_is_refused_by_name():
    values, scores, layers, prompt, files, domains = planted()
    domains[-2:] = ["prose", "prose"]
    with pytest.raises(ValueError, match="'prose' has prompts from 1 file, expected 2"):
        evaluate_probe(values, scores, layers, prompt, files, domains)


def test_repeated_prompts_repeat_and_use_known_tokens():
    tokens = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 11, 12, 13]])
    repeated = repeated_prompts(tokens, n=4, seed=1)
    assert repeated.shape == (4, 5)
    assert torch.equal(repeated[:, :2], repeated[:, 3:])
    assert set(repeated.flatten().tolist()) <= set(tokens.flatten().tolist())
    assert len({tuple(row) for row in repeated.tolist()}) == 4
    assert torch.equal(repeated, repeated_prompts(tokens, n=4, seed=1))


def test_downsampling_averages_blocks_of_the_lower_triangle():
    pattern = torch.arange(16.0).reshape(1, 4, 4)
    assert downsample(pattern, 2).tolist() == [[2.5, 10.5, 12.5]]
    assert torch.equal(downsample(pattern, 4)[0], pattern[0][torch.ones(4, 4).tril().bool()])


@pytest.mark.parametrize(("n", "side"), [(136, 16), (256, 22), (10_000, 64), (1, 1)])
def test_the_raw_pattern_has_about_as_many_values_as_the_embedding(n, side):
    assert downsampled_side(n, n_tokens=64) == side
