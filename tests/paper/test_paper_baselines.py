"""Baselines that need no AP-MAE: copying a neighbour, and linear regression on what is visible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aplens.mae import random_masks
from aplens.patterns import PatchGrid
from paper.evaluation.gaussian import GaussianRegression, choose_gaussian
from paper.evaluation.nearest import nearest_visible

GRID = PatchGrid(16, 4)  # 10 patches of 16 pixels
PLACES = list(zip(GRID.rows.tolist(), GRID.columns.tolist(), strict=True))


def numbered_patches(n=1, k=10):
    """Patches that hold their own number, so that a copy tells where it came from."""
    lower = GRID.patchify(torch.ones(16, 16).tril())[:k]
    return ((1.0 + torch.arange(k)[:, None]) * lower).expand(n, -1, -1).clone()


def copied_from(filled):
    """The number of the patch each patch was copied from; its first pixel is never cut off."""
    return (filled[..., 0] - 1).long()


def hide(*places, k=10):
    mask = torch.zeros(1, k, dtype=torch.bool)
    mask[0, [PLACES.index(place) for place in places]] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.integers(2, 4), ratio=st.floats(0.1, 0.9))
def test_nearest_visible_copies_only_visible_patches_and_nothing_nearer_is_visible(
    seed, rows, ratio
):
    k = rows * (rows + 1) // 2
    mask = random_masks(3, k, ratio, torch.Generator().manual_seed(seed))
    hidden = numbered_patches(3, k).masked_fill(mask[..., None], torch.nan)
    filled = nearest_visible(hidden, mask, GRID)
    assert not filled[..., 0].isnan().any()
    source = copied_from(filled)
    assert not mask.gather(1, source).any()
    for pattern in range(3):
        for patch in range(k):
            row, column = PLACES[patch]
            visible = [PLACES[other] for other in range(k) if not mask[pattern, other]]
            alike = [(r, c) for r, c in visible if (r == c) == (row == column)] or visible
            nearest = min((r - row) ** 2 + (c - column) ** 2 for r, c in alike)
            r, c = PLACES[source[pattern, patch]]
            assert (r, c) in alike
            assert (r - row) ** 2 + (c - column) ** 2 == nearest


def test_nearest_visible_prefers_the_same_keys_and_then_the_earlier_patch():
    source = copied_from(nearest_visible(numbered_patches(), hide((2, 0)), GRID))
    # (1, 0) and (3, 0) have the same keys, (2, 1) the same queries; all are one step away.
    assert source[0, PLACES.index((2, 0))] == PLACES.index((1, 0))


def test_a_patch_on_the_diagonal_stays_zero_above_it_even_when_copied_from_elsewhere():
    diagonal = [(i, i) for i in range(4)]
    filled = nearest_visible(numbered_patches(), hide(*diagonal), GRID)
    above = torch.ones(4, 4).triu(1).bool().flatten()
    for place in diagonal:
        patch = filled[0, PLACES.index(place)]
        assert (patch[above] == 0).all()
        assert (patch[~above] > 0).all()


def low_rank_patches(n, rank=3, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(rank, 10, 16, generator=torch.Generator().manual_seed(99))
    z = torch.randn(n, rank, generator=generator)
    patches = 0.5 + torch.einsum("nr,rkp->nkp", z, directions)
    return patches + noise * torch.randn(patches.shape, generator=generator)


def test_linear_regression_recovers_hidden_pixels_of_a_low_rank_gaussian():
    fitted = GaussianRegression.fit(low_rank_patches(200), n_components=8)
    assert len(fitted.components) == 3  # the other directions are rounding
    test = low_rank_patches(20, seed=1)
    mask = random_masks(20, 10, 0.5, torch.Generator().manual_seed(0))
    predicted = fitted.predict(test.masked_fill(mask[..., None], torch.nan), mask)
    assert torch.allclose(predicted, test, atol=1e-2)


def test_linear_regression_is_the_conditional_expectation_of_its_gaussian():
    fitted = GaussianRegression.fit(low_rank_patches(300, noise=0.5), n_components=3)
    test = low_rank_patches(4, noise=0.5, seed=1)
    mask = random_masks(4, 10, 0.5, torch.Generator().manual_seed(3))
    predicted = fitted.predict(test, mask)
    directions = fitted.components.flatten(1).double()
    covariance = directions.T @ torch.diag(fitted.variances.double()) @ directions
    covariance += fitted.noise * torch.eye(160, dtype=torch.float64)
    for pattern in range(4):
        hidden = mask[pattern].repeat_interleave(16)
        deviation = (test[pattern] - fitted.mean).flatten()[~hidden].double()
        solved = torch.linalg.solve(covariance[~hidden][:, ~hidden], deviation)
        expected = fitted.mean.flatten()[hidden] + covariance[hidden][:, ~hidden] @ solved
        assert torch.allclose(predicted[pattern].flatten()[hidden], expected.float(), atol=1e-3)


def test_truncating_is_the_same_as_fitting_fewer_components():
    patches = low_rank_patches(100, rank=5, noise=0.3)
    fewer = GaussianRegression.fit(patches, 5).truncate(2)
    fitted = GaussianRegression.fit(patches, 2)
    assert fewer.noise == pytest.approx(fitted.noise, rel=1e-4)
    assert torch.allclose(fewer.variances, fitted.variances, rtol=1e-3)


def test_validation_chooses_enough_components():
    mask = random_masks(50, 10, 0.5, torch.Generator().manual_seed(0))
    chosen = choose_gaussian(
        low_rank_patches(200, noise=0.1),
        low_rank_patches(50, noise=0.1, seed=1),
        mask,
        n_components=(1, 3),
        ridges=(1.0, 1000.0),
    )
    assert len(chosen.components) == 3
    assert chosen.ridge == 1.0


def test_patterns_that_never_vary_are_predicted_by_their_mean():
    patches = torch.full((5, 10, 16), 0.25)
    mask = random_masks(5, 10, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(GaussianRegression.fit(patches, 4).predict(patches, mask), patches)
