from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mae_helpers import scaled_patches, tiny_mae

from aplens.mae import additive_fit, low_rank_fit, random_masks
from aplens.mae.low_rank import complete
from aplens.patterns import PatchGrid

GRID = PatchGrid(64, 8)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def products(n, rank, grid=GRID, seed=0):
    """Queries times keys, below the diagonal."""
    queries, keys = torch.randn(2, n, grid.n_ctx, rank, generator=generator(seed))
    return grid.patchify((queries @ keys.mT).tril())


def masks(n, grid=GRID, ratio=0.3, seed=0):
    return random_masks(n, grid.n_patches, ratio, generator(seed))


def ratio(predicted, actual, mask):
    return ((predicted - actual)[mask].square().sum() / actual[mask].square().sum()).item()


def test_a_low_rank_pattern_is_completed():
    patches, mask = products(16, rank=2), masks(16)
    # Keys of the last rows of patches meet too few queries to be told.
    known = mask & (GRID.columns < 5) & (GRID.rows > 2)
    assert ratio(complete(patches, mask, GRID), patches, known) < 0.2


def test_noise_is_not_taken_for_structure():
    noise = GRID.patchify(torch.randn(16, 64, 64, generator=generator(0)).tril())
    mask = masks(16)
    completed = complete(noise, mask, GRID)
    assert completed[mask].square().mean() < 0.2 * noise[mask].square().mean()


def test_products_are_found_beside_additive_effects():
    generator_ = generator(3)
    row, column = torch.randn(2, 16, 64, generator=generator_)
    effects = GRID.patchify((row[:, :, None] + column[:, None, :]).tril())
    patches, mask, mean = products(16, rank=2) + effects, masks(16), torch.zeros(36, 64)
    additive = ratio(additive_fit(patches, mask, mean, GRID), patches, mask)
    assert ratio(low_rank_fit(patches, mask, mean, GRID), patches, mask) < 0.8 * additive


@settings(max_examples=25, deadline=None)
@given(n_tokens=st.integers(9, 64), hidden=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_hidden_patches_are_never_read_and_nothing_is_above_the_diagonal(n_tokens, hidden, seed):
    k = GRID.n_patches_for(n_tokens)
    patches = products(3, rank=3, seed=seed)[:, :k]
    mask = random_masks(3, k, hidden, generator(seed))
    mean = torch.zeros(36, 64)
    fit = low_rank_fit(patches, mask, mean, GRID)
    poisoned = low_rank_fit(patches.masked_fill(mask[..., None], torch.nan), mask, mean, GRID)
    assert torch.equal(fit, poisoned)
    assert torch.isfinite(fit).all()
    assert not GRID.unpatchify(fit, n_tokens).triu(1).any()


def test_each_pattern_is_fitted_alone():
    patches, mask, mean = products(4, rank=2), masks(4), torch.zeros(36, 64)
    together = low_rank_fit(patches, mask, mean, GRID)
    alone = [low_rank_fit(patches[i][None], mask[i][None], mean, GRID) for i in range(4)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_a_pattern_without_remainder_stays_as_it_is():
    mean = torch.rand(36, 64, generator=generator(1)) * GRID.patchify(torch.ones(64, 64).tril())
    patches, mask = mean.expand(2, -1, -1).clone(), masks(2)
    assert torch.allclose(low_rank_fit(patches, mask, mean, GRID), patches, atol=1e-6)


def test_an_untrained_apmae_predicts_the_fit():
    from aplens.mae import APMAE

    mae = APMAE(tiny_mae(base="low_rank", patch_input="centred").config)
    scaled = scaled_patches(mae, 8)
    mae.mean_patches.copy_(scaled.mean(0))
    output = mae(scaled, masks(8, mae.grid, 0.5))
    fit = low_rank_fit(scaled, output.mask, mae.mean_patches, mae.grid)
    assert torch.allclose(output.predicted.flatten(0, 1), fit[output.mask], atol=1e-6)
