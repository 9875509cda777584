from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aplens.mae import additive, additive_fit, random_masks
from aplens.patterns import PatchGrid

GRID = PatchGrid(16, 4)


def additive_patterns(n, seed=0, scale=1.0):
    """mean + row + column + diagonal effects below the diagonal, 0 above."""
    generator = torch.Generator().manual_seed(seed)
    row, column, diagonal = (scale * torch.randn(n, 16, generator=generator) for _ in range(3))
    query, key = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    patterns = row[:, :, None] + column[:, None, :] + diagonal[:, (query - key).clamp(min=0)]
    mean = torch.randn(16, 16, generator=generator)
    causal = (query >= key).float()
    return GRID.patchify((mean + patterns) * causal), GRID.patchify(mean * causal)


def masks(n, hidden=3, seed=0):
    return random_masks(n, GRID.n_patches, hidden / GRID.n_patches, generator(seed))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def dense_ridge(patch, mask, mean, ridge):
    """The same regression for one pattern, with an explicit design matrix."""
    query, key = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    one_hot = torch.nn.functional.one_hot
    design = torch.cat(
        [one_hot(query, 16), one_hot(key, 16), one_hot((query - key).clamp(min=0), 16)], dim=-1
    ).double()
    seen = GRID.unpatchify((~mask).float()[:, None].expand(-1, 16)).bool() & (query >= key)
    target = (GRID.unpatchify(patch) - GRID.unpatchify(mean)).double()
    x, y = design[seen], target[seen]
    effects = torch.linalg.solve(x.T @ x + ridge * torch.eye(48, dtype=torch.float64), x.T @ y)
    fit = GRID.unpatchify(mean) + (design @ effects) * (query >= key)
    return GRID.patchify(fit).float()


@pytest.mark.parametrize("ridge", [1.0, 8.0])
def test_fit_is_the_ridge_regression_on_visible_pixels(ridge, monkeypatch):
    monkeypatch.setattr(additive, "RIDGE", ridge / GRID.patch_size)
    patches, mean = additive_patterns(6)
    noise = 0.3 * torch.randn(6, 16, 16, generator=generator(1)).tril()
    patches = patches + GRID.patchify(noise)
    mask = masks(6, hidden=5)
    fit = additive_fit(patches, mask, mean, GRID)
    expected = torch.stack(
        [dense_ridge(patch, m, mean, ridge) for patch, m in zip(patches, mask, strict=True)]
    )
    assert (fit - expected).abs().max() < 0.02 * expected.std()


def test_an_additive_pattern_is_recovered(monkeypatch):
    monkeypatch.setattr(additive, "RIDGE", 0.01 / GRID.patch_size)
    patches, mean = additive_patterns(20, scale=0.3)
    mask = torch.zeros(20, GRID.n_patches, dtype=torch.bool)
    mask[:, 4] = True  # its rows, columns and diagonals are all seen elsewhere
    fit = additive_fit(patches, mask, mean, GRID)
    error = (fit - patches)[mask].square().mean()
    deviation = (patches - mean)[mask].square().mean()
    assert error < 0.01 * deviation


def test_hidden_patches_are_never_read():
    patches, mean = additive_patterns(4)
    mask = masks(4)
    poisoned = patches.masked_fill(mask[..., None], torch.nan)
    assert torch.equal(
        additive_fit(poisoned, mask, mean, GRID), additive_fit(patches, mask, mean, GRID)
    )


def test_nothing_appears_above_the_diagonal():
    patches, mean = additive_patterns(4)
    fit = GRID.unpatchify(additive_fit(patches, masks(4), mean, GRID))
    assert not fit.triu(1).any()


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), hidden=st.integers(1, 9))
def test_the_mean_pattern_is_its_own_fit(seed, hidden):
    _, mean = additive_patterns(1, seed)
    fit = additive_fit(mean[None], masks(1, hidden, seed), mean, GRID)
    assert torch.allclose(fit[0], mean, atol=1e-6)


def test_strong_ridge_falls_back_to_the_mean(monkeypatch):
    monkeypatch.setattr(additive, "RIDGE", 1e8)
    patches, mean = additive_patterns(3)
    fit = additive_fit(patches, masks(3), mean, GRID)
    assert torch.allclose(fit, mean.expand_as(fit), atol=1e-4)


def test_a_shorter_prompt_is_fitted_on_its_own_patches():
    patches, mean = additive_patterns(5)
    mask = random_masks(5, 6, 0.5, generator(0))
    whole = torch.cat([mask, torch.ones(5, 4, dtype=torch.bool)], dim=1)
    short = additive_fit(patches[:, :6], mask, mean, GRID)
    assert torch.allclose(short, additive_fit(patches, whole, mean, GRID)[:, :6], atol=1e-5)
    assert torch.equal(short, additive_fit(patches[:, :6], mask, mean[:6], GRID))
