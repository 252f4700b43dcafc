"""Stage II of SWAE for one prior (paper 000)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dtrain.losses.adversarial import critic_loss, fooling_loss, gradient_ratio
from dtrain.losses.reconstruction import Reduction, relative_error, squared_error
from dtrain.models.base import Terms
from dtrain.nets.mlp import MLP, CodeCritic
from dtrain.noise import Noise

Distribution = Literal["normal", "uniform"]


def groups_of(prior: Distribution) -> dict[str, tuple[str, ...]]:
    """What trains together in the head of SWAE's `heads` for that prior."""
    head = f"heads.{prior}"
    return {f"critic2_{prior}": (f"{head}.critic",), f"autoencoder2_{prior}": (f"{head}.encoder", f"{head}.decoder")}


class Head(nn.Module):
    """Stage II for one prior: E2, G2 and their critic D2 on codes h of stage I.

    code_error: "sum", over the dimensions of h and relative to its variance, or "mean" over them.
    """

    def __init__(
        self,
        prior: Distribution,
        code_dim: int,
        latent_dim: int,
        hidden: int,
        code_error: Reduction,
        code_weight: float,
    ) -> None:
        super().__init__()
        self.prior, self.latent_dim = prior, latent_dim
        self.code_error, self.code_weight = code_error, code_weight
        self.encoder = MLP(code_dim, hidden, latent_dim, depth=3)
        self.decoder = MLP(latent_dim, hidden, code_dim, depth=3)
        self.critic = CodeCritic(latent_dim, hidden)

    def draw(self, noise: Noise) -> Tensor:
        """z from N(0, I) or U(-1, 1): [B, latent_dim]."""
        if self.prior == "normal":
            return noise.normal("prior", self.latent_dim)
        return 2 * noise.uniform("prior", self.latent_dim) - 1

    def sample_codes(self, noise: Noise) -> Tensor:
        """h = G2(z)."""
        return self.decoder(self.draw(noise))

    def reconstruct(self, h: Tensor) -> Tensor:
        """G2(E2 h)."""
        return self.decoder(self.encoder(h))

    def critic_loss(self, h: Tensor, z: Tensor) -> Terms:
        """D2 ascends log D2(z) + log(1 - D2(E2 h)). z: of `draw`."""
        with torch.no_grad():
            codes = self.encoder(h)
        return {"critic": critic_loss(self.critic(z), self.critic(codes))}

    def autoencoder_loss(self, h: Tensor, variance: Tensor) -> Terms:
        """E2, G2 descend |h - G2(E2 h)|^2 - log D2(E2 h) (Eq. 4), the square weighted. variance: of h, [B]."""
        codes = self.encoder(h)
        return self.terms(h, variance, codes, self.decoder(codes))

    def terms(self, h: Tensor, variance: Tensor, codes: Tensor, decoded: Tensor) -> Terms:
        """The two terms of Eq. 4 for codes E2(h), decoded."""
        error = relative_error(h, decoded, variance) if self.code_error == "sum" else squared_error(h, decoded)
        return {"code": self.code_weight * error, "fool": fooling_loss(self.critic(codes))}

    def balance(self, h: Tensor, variance: Tensor, gather: Callable[[Tensor], Tensor]) -> Terms:
        """The error of h in every reading; the ratio of the gradients of Eq. 4's two terms at E2(h)."""
        with torch.no_grad():
            codes = self.encoder(h)
        decoded = self.decoder(codes.requires_grad_())
        terms = self.terms(h, variance, codes, decoded)
        return {
            "sum": squared_error(h, decoded, "sum"),
            "relative": relative_error(h, decoded, variance),
            "mean": squared_error(h, decoded),
            "gradient_ratio": gradient_ratio(terms["code"], terms["fool"], codes, gather),
        }
