from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aplens.mae import random_masks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_paper_hides_18_of_36():
    assert random_masks(5, 36, 0.5, generator()).sum(dim=1).tolist() == [18] * 5


@given(
    n=st.integers(1, 8),
    k=st.integers(2, 40),
    ratio=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_every_mask_hides_the_same_number_and_never_all(n, k, ratio, seed):
    masks = random_masks(n, k, ratio, generator(seed))
    hidden = min(max(int(ratio * k), 1), k - 1)
    assert masks.shape == (n, k)
    assert masks.dtype == torch.bool
    assert masks.sum(dim=1).tolist() == [hidden] * n
    assert torch.equal(masks, random_masks(n, k, ratio, generator(seed)))


def test_masks_differ_between_patterns_and_reach_every_patch_equally():
    masks = random_masks(4000, 10, 0.5, generator())
    assert len({tuple(mask) for mask in masks[:50].tolist()}) > 30
    assert masks.float().mean(0).sub(0.5).abs().max() < 0.05


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, float("nan")])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        random_masks(1, 10, ratio, generator())


def test_a_single_patch_cannot_be_masked():
    with pytest.raises(ValueError, match="2 patches or more, got 1"):
        random_masks(1, 1, 0.5, generator())
