"""A Gaussian mixture fitted to the training codes: ex-post density estimation (Ghosh et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dtrain.config import ConfigError
from dtrain.data.latents import encoded
from dtrain.models.base import Algorithm, Site
from dtrain.noise import Noise

COMPONENTS = 10  # with full covariances


@dataclass(frozen=True)
class GaussianMixture:
    """weights [K] and means [K, d]; factors [K, d, d]: the lower Cholesky factors of the covariances.

    shape: of a code, whose d elements these are.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    shape: torch.Size

    @classmethod
    def standard(cls, shape: torch.Size, device: torch.device) -> GaussianMixture:
        """N(0, I), for codes of a shape."""
        d = shape.numel()
        return cls(torch.ones(1), torch.zeros(1, d), torch.eye(d)[None], shape).to(device)

    def to(self, device: torch.device) -> GaussianMixture:
        tensors = {name: getattr(self, name).to(device) for name in ("weights", "means", "factors")}
        return replace(self, **tensors)

    def draw(self, noise: Noise) -> Tensor:
        """A code for each of B rows, a function of the row's position: [B, *shape]."""
        of = torch.searchsorted(self.weights.cumsum(0), noise.uniform("mixture component").to(self.weights.dtype))
        of = of.clamp_max(len(self.weights) - 1)  # the weights sum to 1 up to rounding
        deviation = noise.normal("mixture", self.means.shape[1])
        codes = self.means[of].to(noise.dtype)
        for k, factor in enumerate(self.factors):  # a factor for every row would not fit into memory
            codes[of == k] += deviation[of == k] @ factor.T.to(noise.dtype)
        return codes.view(-1, *self.shape)


def fit(codes: Tensor, seed: int) -> GaussianMixture:
    """By EM from k-means: codes [N, ...] on the CPU, N at least 2, to COMPONENTS components, or N if that is less.

    ValueError for codes that are not finite.
    """
    from sklearn import mixture

    flat = codes.flatten(1).double().numpy()
    # scikit-learn adds 1e-6 to the variances, for constant dimensions: here, relative to the mean variance.
    scale = float(np.sqrt(flat.var(0).mean())) or 1.0
    found = mixture.GaussianMixture(min(COMPONENTS, len(flat)), random_state=seed % 2**32).fit(flat / scale)
    parts = found.weights_, scale * found.means_, scale * np.linalg.cholesky(found.covariances_)
    weights, means, factors = (torch.from_numpy(part).float() for part in parts)
    return GaussianMixture(weights, means, factors, codes.shape[1:])


def fitted(algorithm: Algorithm, site: Site, seed: int) -> GaussianMixture:
    """Fitted by rank 0 to the codes of level 1 of all training images: the same on every rank.

    Conditions of the images do not enter. To be called on every rank. ConfigError if there is no fit.
    """
    codes = encoded(site, algorithm.encode)
    found = error = None
    if site.world.main:
        try:
            found = fit(codes, seed)
        except ValueError as e:
            error = str(e).splitlines()[0]
    found, error = site.world.share((found, error))
    if error is not None:
        raise ConfigError(f"evaluate.sampler=gmm cannot be fitted to the training codes ({error}); set it to prior")
    mixture: GaussianMixture = found
    return mixture.to(site.world.device)
