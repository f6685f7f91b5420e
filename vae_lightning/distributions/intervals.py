"""Posteriors on the half-line and on the unit interval, with pathwise gradients by implicit reparameterisation."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Beta as TorchBeta
from torch.distributions import Gamma as TorchGamma

from vae_lightning.distributions.families import Family, positive
from vae_lightning.types import Shape, UserError


class Gamma(Family):
    """p(z) ~ z^(alpha - 1) e^(-beta z) for z > 0 in each dimension; Gamma(1, 1) at features of 0.

    A posterior for positive latents. The features hold raw alpha and raw beta. Its prior is `FamilyPrior` with this
    family, which gives a closed-form KL. Gradients: Figurnov et al. 2018 (https://arxiv.org/abs/1805.08498), in torch.

    Args:
        event_shape: Shape of one z; the model sets it.
        min_concentration: Floor of alpha and of beta, in (0, 1). Far below 0.1, float32 rounds samples to 0.
    """

    num_params = 2

    def __init__(self, event_shape: Shape, min_concentration: float = 0.1) -> None:
        super().__init__(event_shape)
        self.min_concentration = checked_floor(self, min_concentration)

    def pointwise(self, *params: Tensor) -> TorchGamma:
        alpha, beta = (positive(raw, self.min_concentration) for raw in params)
        return TorchGamma(alpha, beta, validate_args=self.validate_args)


class Beta(Family):
    """p(z) ~ z^(a - 1) (1 - z)^(b - 1) for z in [0, 1] in each dimension; uniform at features of 0.

    A posterior for latents in [0, 1]. The features hold raw a and raw b. Its prior is `FamilyPrior` with this family,
    which gives a closed-form KL.

    Args:
        event_shape: Shape of one z; the model sets it.
        min_concentration: Floor of a and of b, in (0, 1).
    """

    num_params = 2

    def __init__(self, event_shape: Shape, min_concentration: float = 0.1) -> None:
        super().__init__(event_shape)
        self.min_concentration = checked_floor(self, min_concentration)

    def pointwise(self, *params: Tensor) -> TorchBeta:
        a, b = (positive(raw, self.min_concentration) for raw in params)
        return TorchBeta(a, b, validate_args=self.validate_args)


def checked_floor(family: Family, floor: float) -> float:
    """`floor` itself, if it is a possible floor of concentrations that are 1 at features of 0."""
    if not 0 < floor < 1:
        name = type(family).__name__
        raise UserError(f"{name}: min_concentration is {floor}; it must be above 0 and below 1, such as 0.1")
    return floor
