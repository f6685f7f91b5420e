"""Laws of priors. To add a prior: one row in PRIORS."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vae_lightning.distributions import Prior, StandardNormal
from vae_lightning.types import Shape

PRIORS: dict[str, Callable[[Shape], Prior]] = {"standard normal": StandardNormal}
ROWS = pytest.mark.parametrize("name", PRIORS)


@ROWS
def test_normalised_in_one_dimension(name: str) -> None:
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    density = PRIORS[name]((1,)).double()().log_prob(z[:, None]).exp()
    assert torch.trapezoid(density, z).item() == pytest.approx(1, abs=1e-6)


@ROWS
@pytest.mark.parametrize("event_shape", [(3,), (2, 4, 4)])
def test_shapes_and_dtype_follow_the_module(name: str, event_shape: Shape) -> None:
    """Batch shape [], event shaped; a move of the module moves the distribution."""
    p = PRIORS[name](event_shape).double()()
    assert (p.batch_shape, p.event_shape) == ((), event_shape)
    assert p.sample((5,)).shape == (5, *event_shape)
    assert p.sample().dtype == torch.float64


def test_standard_normal_at_zero() -> None:
    """log N(0; 0, I) = -D/2 log 2 pi."""
    assert StandardNormal((4,))().log_prob(torch.zeros(4)).item() == pytest.approx(-2 * 1.8378770664)
