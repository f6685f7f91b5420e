"""Free bits, capacity and GECO hold the KL or the likelihood at the wanted value."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from vae_lightning.objectives import GECO, Capacity, FreeBits, LinearWarmup
from vae_lightning.trace import Latent, Trace


def trace_of(locs: dict[str, Tensor], x: float = 0.0) -> Trace:
    """Return latents N(loc, 1) against N(0, 1), so each dimension has loc^2 / 2 nats, with p(x|z) = N(0, 1)."""
    latents = {}
    for name, loc in locs.items():
        q = Independent(Normal(loc, torch.ones_like(loc)), 1)
        latents[name] = Latent(q.rsample((1,)), q, Independent(Normal(torch.zeros_like(loc[0]), 1.0), 1))
    size = len(next(iter(locs.values())))
    data = torch.full((size, 4), x, dtype=torch.float64)
    return Trace(data, Independent(Normal(torch.zeros(1, size, 4, dtype=torch.float64), 1.0), 1), latents)


def nats(*rows: list[float]) -> Tensor:
    """Return locations that give these nats in each dimension of each example."""
    return (2 * torch.tensor(rows, dtype=torch.float64)).sqrt().requires_grad_()


@pytest.mark.parametrize(
    ("per_dimension", "charged"),
    [
        (False, max(1.0, (0.2 + 3.0 + 1.2 + 1.0) / 2) + max(1.0, 0.3)),  # latent a has 2.7 nats, b has 0.3
        (True, max(1.0, 0.7) + max(1.0, 2.0) + 1.0 + 1.0),  # a's dimensions have 0.7 and 2.0, b's 0.1 and 0.2
    ],
)
def test_free_bits_are_of_the_batch_mean_of_each_group(per_dimension: bool, charged: float) -> None:
    """sum_g max(1, mean_B KL_g): by latent, and by dimension. One example below the floor is not enough."""
    trace = trace_of({"a": nats([0.2, 3.0], [1.2, 1.0]), "b": nats([0.1, 0.2], [0.1, 0.2])})
    terms = FreeBits(floor=1.0, per_dimension=per_dimension)(trace, 0)
    assert terms["kl_charged"].mean().item() == pytest.approx(charged)
    torch.testing.assert_close(terms["loss"], terms["kl_charged"] - terms["log_likelihood"])
    assert terms["kl"].mean().item() == pytest.approx(2.7 + 0.3)


def test_no_slope_below_the_floor_and_the_whole_slope_above() -> None:
    free, held = nats([0.1, 0.2]), nats([2.0, 3.0])
    FreeBits(floor=1.0)(trace_of({"a": free, "b": held}), 0)["loss"].sum().backward()
    assert free.grad is not None
    assert held.grad is not None
    assert free.grad.abs().max() == 0
    torch.testing.assert_close(held.grad, held.detach())  # d (loc^2 / 2) / d loc


@pytest.mark.parametrize(("step", "wanted"), [(0, 0.0), (5, 1.0), (10, 2.0), (99, 2.0)])
def test_capacity_follows_its_schedule(step: int, wanted: float) -> None:
    """gamma |mean KL - C(step)|. The KL is the batch's mean, here 1.5 nats, not that of each example."""
    objective = Capacity(LinearWarmup(10, end=2.0), gamma=7.0)
    loc = nats([0.5], [2.5])
    terms = objective(trace_of({"z": loc}), step)
    expected = 7 * abs(1.5 - wanted) - terms["log_likelihood"].mean().item()
    assert terms["loss"].mean().item() == pytest.approx(expected)
    terms["loss"].mean().backward()
    assert loc.grad is not None
    assert (loc.grad > 0).all() == (wanted < 1.5)  # descent lowers the KL above C and raises it below
    assert objective.coefficients(step) == {"capacity": pytest.approx(wanted), "gamma": 7.0}


def log_likelihood(x: float) -> float:
    return 4 * Normal(0.0, 1.0).log_prob(torch.tensor(x)).item()


def test_geco_weighs_the_shortfall_by_its_multiplier() -> None:
    objective = GECO(goal=3.0).eval()
    objective.multiplier.fill_(2.5)
    terms = objective(trace_of({"z": nats([0.5])}, x=1.0), 0)
    assert terms["loss"].item() == pytest.approx(0.5 + 2.5 * (3.0 - log_likelihood(1.0)))


@pytest.mark.parametrize(("miss", "direction"), [(2.0, 1), (-2.0, -1), (0.0, 0)])
def test_geco_moves_towards_its_goal(miss: float, direction: int) -> None:
    """The multiplier rises below the goal, falls above the goal and rests at the goal, by the stated rule."""
    objective = GECO(goal=log_likelihood(0.5) + miss, rate=0.2, smoothing=0.5)
    for _ in range(3):
        objective(trace_of({"z": nats([0.5])}, x=0.5), 0)
    averages = [miss / 4 * (1 - 0.5**n) for n in (1, 2, 3)]  # in nats per dimension, of four
    assert objective.multiplier.log().item() == pytest.approx(0.2 * sum(averages), abs=1e-6)
    assert torch.sign(objective.multiplier.log().round(decimals=5)).item() == direction


def test_a_training_loss_has_the_multiplier_from_before_its_batch() -> None:
    """The multiplier is updated after the loss, so a batch is weighed by the multiplier before the update."""
    objective, trace = GECO(goal=100.0, smoothing=0.0), trace_of({"z": nats([0.5])}, x=1.0)
    for _ in range(2):
        before = objective.multiplier.item()
        terms = objective(trace, 0)
        assert terms["loss"].item() == pytest.approx(0.5 + before * (100.0 - log_likelihood(1.0)))
        assert objective.multiplier.item() > before


@pytest.mark.parametrize(("goal", "direction"), [(1e6, 1), (-1e6, -1)])
def test_a_first_batch_far_off_moves_the_multiplier_by_one_rate_at_most(goal: float, direction: int) -> None:
    """ln multiplier moves by at most `rate`, however large the shortfall."""
    objective = GECO(goal=goal, rate=0.2, smoothing=0.0)
    objective(trace_of({"z": nats([0.5])}), 0)
    assert objective.multiplier.log().item() == pytest.approx(direction * 0.2, rel=1e-5)


def test_geco_learns_in_training_alone() -> None:
    objective, trace = GECO(goal=100.0), trace_of({"z": nats([0.5])})
    objective.eval()(trace, 0)
    with torch.no_grad():
        objective.train()(trace, 0)
    assert objective.multiplier == 1
    objective(trace, 0)["loss"].sum().backward()  # although the multiplier has changed since
    assert objective.multiplier > 1


def test_geco_is_bounded_whatever_the_distance() -> None:
    objective, trace = GECO(goal=1e30, rate=10.0), trace_of({"z": nats([0.5])})
    for _ in range(200):
        terms = objective(trace, 0)
    assert objective.multiplier == 1e6
    assert terms["loss"].isfinite().all()


def test_a_checkpoint_has_the_multiplier() -> None:
    objective = GECO(goal=100.0, smoothing=0.5)
    trace = trace_of({"z": nats([0.5])})
    for _ in range(3):
        objective(trace, 0)
    other = GECO(goal=100.0, smoothing=0.5)
    other.load_state_dict(objective.state_dict())
    for one in (objective, other):
        one(trace, 0)
    assert other.multiplier == objective.multiplier > 1
    assert other.coefficients(0) == objective.coefficients(0)


def one_rank(rank: int, store: str, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    objective = GECO(goal=-5.0, smoothing=0.0)
    objective(trace_of({"z": nats([0.5])}, x=float(rank)), 0)
    answers.put(objective.multiplier.item())
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the children of this fork take no gradient
def test_geco_is_the_same_on_every_rank(tmp_path: Path) -> None:
    """Two processes with different images have one multiplier, from the mean over both."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [context.Process(target=one_rank, args=(rank, str(tmp_path / "store"), answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    multipliers = [answers.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join(timeout=60)
    shortfall = -5 / 4 - (log_likelihood(0.0) + log_likelihood(1.0)) / 2 / 4
    assert multipliers[0] == multipliers[1]
    assert multipliers[0] == pytest.approx(math.exp(0.1 * shortfall), rel=1e-5)
    assert 0.05 < abs(shortfall) < 1


def test_a_batch_that_is_not_finite_leaves_the_multiplier_alone() -> None:
    """A NaN loss must not reach the buffers, because they would stay NaN for the rest of the run."""
    objective = GECO(goal=100.0)
    objective._update(torch.tensor(math.nan))
    assert (objective.multiplier.item(), objective.average.item()) == (1.0, 0.0)
    objective(trace_of({"z": nats([0.5])}), 1)
    assert objective.multiplier > 1
