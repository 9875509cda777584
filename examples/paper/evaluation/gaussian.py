"""Linear regression of a pattern's hidden pixels on its visible ones, for any mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: What `choose_gaussian` tries. On patterns of SmolLM2-135M, 512 and 768 components did no better
#: than 256. A ridge above 1 helps where what is left over is not independent from pixel to pixel.
N_COMPONENTS = (64, 256)
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0)

# A direction or noise of less than this share of the largest variance is rounding.
_TINY = 1e-6


@dataclass(frozen=True)
class GaussianRegression:
    """The best linear predictor of hidden pixels under a low-rank Gaussian model of patterns.

    A pattern is its mean + a few principal components in proportions z + noise. The visible pixels
    give the ridge regression estimate of z, with a K × K solve whatever the mask; hidden pixels are
    the conditional expectation given the visible ones.

    Attributes:
        mean: The mean pattern.
        components: Orthonormal directions, by falling variance.
        variances: Variance along each, without the noise's share.
        noise: Variance of a pixel in all other directions.
        ridge: Multiplies `noise`: above 1, the visible pixels are trusted less.
    """

    mean: Float[Tensor, "patch pixel"]
    components: Float[Tensor, "component patch pixel"]
    variances: Float[Tensor, " component"]
    noise: float
    ridge: float = 1.0

    @classmethod
    def fit(
        cls, patches: Float[Tensor, "pattern patch pixel"], n_components: int
    ) -> GaussianRegression:
        """Estimate mean, components and noise by probabilistic PCA.

        Args:
            patches: Log-normalized patches of reference patterns.
            n_components: How many to keep; fewer where the patterns span fewer directions.
        """
        n, size = len(patches), patches[0].numel()
        mean = patches.mean(dim=0)
        centred = (patches - mean).flatten(1)
        # Fewer patterns than pixels: the n × n products hold the same eigenvectors.
        values, vectors = torch.linalg.eigh((centred @ centred.T).double() / n)
        values, vectors = values.flip(0), vectors.flip(1)
        kept = min(n_components, int((values > _TINY * values[0]).sum()))
        directions = vectors[:, :kept].float().T @ centred
        directions /= directions.norm(dim=1, keepdim=True)
        left_over = (values.sum() - values[:kept].sum()).clamp(min=0) / max(size - kept, 1)
        floor = _TINY * float(values[0]) / size
        noise = max(float(left_over), floor)
        return cls(
            mean=mean,
            components=directions.reshape(kept, *mean.shape),
            variances=(values[:kept].float() - noise).clamp(min=floor),
            noise=noise,
        )

    def truncate(self, n_components: int) -> GaussianRegression:
        """The model with only the first components; what the others explained becomes noise."""
        kept = min(n_components, len(self.components))
        size = self.mean.numel()
        dropped = float((self.variances[kept:] + self.noise).sum())
        left_over = self.noise * (size - len(self.components)) + dropped
        noise = left_over / max(size - kept, 1)
        return replace(
            self,
            components=self.components[:kept],
            variances=(self.variances[:kept] + self.noise - noise).clamp(min=_TINY * noise),
            noise=noise,
        )

    def predict(
        self, patches: Float[Tensor, "pattern patch pixel"], mask: Bool[Tensor, "pattern patch"]
    ) -> Float[Tensor, "pattern patch pixel"]:
        """The expected patches given the visible ones; hidden ones are never read."""
        visible = (~mask).to(patches.dtype)
        # Masked by selection, not by multiplication: 0 × NaN would let a hidden NaN through.
        seen = torch.where(mask[..., None], 0.0, patches - self.mean)
        directions = self.components.flatten(1)
        products = torch.einsum("nk,kcd->ncd", visible, self._products)
        shrinkage = torch.diag(self.ridge * self.noise / self.variances)
        z = torch.linalg.solve(products + shrinkage, seen.flatten(1) @ directions.T)
        return self.mean + (z @ directions).reshape(patches.shape)

    @cached_property
    def _products(self) -> Float[Tensor, "patch component component"]:
        """What each patch, when visible, adds to the normal equations."""
        return torch.einsum("ckp,dkp->kcd", self.components, self.components)


def choose_gaussian(
    fit: Float[Tensor, "pattern patch pixel"],
    validation: Float[Tensor, "pattern patch pixel"],
    mask: Bool[Tensor, "pattern patch"],
    n_components: Sequence[int] = N_COMPONENTS,
    ridges: Sequence[float] = RIDGES,
) -> GaussianRegression:
    """The number of components and the ridge that fill in validation patterns best."""

    def error(candidate: GaussianRegression) -> float:
        wrong = (candidate.predict(validation, mask) - validation)[mask]
        return float(wrong.square().mean())

    fitted = GaussianRegression.fit(fit, max(n_components))
    candidates = (
        replace(fitted.truncate(n), ridge=ridge) for n in n_components for ridge in ridges
    )
    return min(candidates, key=error)
