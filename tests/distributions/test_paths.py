"""Ways through the space of a latent never leave this space."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Dirichlet, Distribution, Independent, Normal, OneHotCategorical

from vae_lightning.distributions.groups import Groups
from vae_lightning.distributions.paths import between, centre, centre_or_estimate, inside, limits, moved
from vae_lightning.distributions.sphere import UniformOnSphere, VonMisesFisherDistribution

NORTH = torch.tensor([1.0, 0.0, 0.0])
SPACES: dict[str, Distribution] = {
    "plane": Independent(Normal(torch.zeros(6), torch.ones(6)), 1),
    "spheres": Groups(VonMisesFisherDistribution(NORTH.expand(2, 3), torch.tensor([0.5, 4.0]))),
    "simplices": Groups(Dirichlet(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))),
    "classes": Groups(OneHotCategorical(probs=torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]]))),
}
EVERY = pytest.mark.parametrize("name", SPACES)


@EVERY
def test_the_centre_lies_in_the_space(name: str) -> None:
    q = SPACES[name]
    found = centre(q)
    assert found is not None
    assert q.support is not None
    assert q.support.check(found)
    if name == "spheres":
        assert torch.allclose(found, NORTH.repeat(2))
    if name == "classes":
        assert found.tolist() == [0, 1, 0, 1, 0, 0]


def test_without_a_mean_it_is_estimated() -> None:
    uniform = Groups(UniformOnSphere(torch.zeros(2, 3)))
    assert centre(uniform) is None
    assert uniform.support.check(centre_or_estimate(uniform))
    torch.manual_seed(0)
    assert torch.allclose(centre_or_estimate(SPACES["plane"]), torch.zeros(6))


@EVERY
def test_a_moved_point_stays_in_the_space(name: str) -> None:
    q = SPACES[name]
    low, high = limits(q)
    values = torch.tensor([max(low, -3.0), 0.0, 0.3, min(high, 3.0)])
    for z in (q.sample((5,)), inside(q, torch.eye(6)[:1])):
        ways = moved(q, z, 4, values)
        assert ways.shape == (len(z), 4, 6)
        assert torch.equal(ways[..., 4], values.expand(len(z), 4))
        assert torch.equal(ways[..., :3], z[:, None, :3].expand(-1, 4, -1))  # the other group stands still
        space = SPACES["simplices"].support if name == "classes" else q.support
        assert space is not None
        assert space.check(ways).all()


def test_the_other_numbers_keep_their_proportions() -> None:
    z = torch.tensor([0.2, 0.6, 0.2, 0.5, 0.25, 0.25])
    way = moved(SPACES["simplices"], z, 0, torch.tensor([0.6]))[0]
    assert torch.allclose(way, torch.tensor([0.6, 0.3, 0.1, 0.5, 0.25, 0.25]))
    on_sphere = moved(SPACES["spheres"], torch.tensor([0.0, 0.6, 0.8, 1.0, 0.0, 0.0]), 0, torch.tensor([0.6]))[0]
    assert torch.allclose(on_sphere[:3], torch.tensor([0.6, 0.48, 0.64]))


@EVERY
def test_a_way_has_its_ends_and_stays_in_the_space(name: str) -> None:
    q = SPACES[name]
    a, b = q.sample((4,)), q.sample((4,))
    way = between(q, a, b, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert way.shape == (4, 4, 6)
    assert torch.allclose(way[0], a, atol=1e-6)
    assert torch.allclose(way[-1], b, atol=1e-6)
    assert q.support is not None
    assert q.support.check(way).all()


def test_on_a_sphere_the_angle_grows_evenly() -> None:
    q = SPACES["spheres"]
    a, b = NORTH.repeat(2), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    way = between(q, a, b, torch.linspace(0, 1, 4))
    assert torch.allclose(way[:, 0], torch.tensor([i * math.pi / 6 for i in range(4)]).cos(), atol=1e-6)
    assert torch.allclose(between(q, a, a, torch.tensor([0.5]))[0], a)
