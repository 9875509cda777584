"""Principal components are scikit-learn's full solver's, whatever the shape and the rank."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from aplens.correctness.principal import fit_pca


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (12, 12)])
def test_rows_lie_where_the_full_decomposition_puts_them(shape):
    rng = np.random.default_rng(0)
    rows, new = rng.normal(size=shape) + 5, rng.normal(size=(3, shape[1]))
    expected = PCA(4, svd_solver="full").fit(rows)
    fitted = fit_pca(rows.astype(np.float64), 4)
    signs = np.sign((fitted.axes * expected.components_.T).sum(axis=0))
    np.testing.assert_allclose(fitted.axes * signs, expected.components_.T, atol=1e-9)
    np.testing.assert_allclose(fitted.transform(new) * signs, expected.transform(new), atol=1e-9)
    largest = np.abs(fitted.axes).argmax(axis=0)
    assert (np.take_along_axis(fitted.axes, largest[None], axis=0) > 0).all()


@pytest.mark.parametrize("width", [3, 60])
def test_where_nothing_is_left_to_vary_there_is_no_direction(width):
    rows = np.eye(width)[[0, 1] * 6]
    scores = fit_pca(rows, 3).transform(rows)
    assert np.abs(scores) == pytest.approx(np.full((12, 1), np.sqrt(0.5)))
    assert fit_pca(rows, 100).axes.shape[1] == 1


@pytest.mark.parametrize("width", [9, 200])
def test_what_rounding_varies_is_no_direction(width):
    rng = np.random.default_rng(0)
    places, directions = rng.normal(size=(80, 2)), rng.normal(size=(2, width))
    rows = (3 + places @ directions).astype(np.float32)
    assert fit_pca(rows, 8).axes.shape[1] == 2
