"""STOVE: its chain against integrals and loops, positions against the simulator's pictures, and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from tests.helpers import REPOSITORY, only, run_cli
from vae_lightning.__main__ import main
from vae_lightning.data import Billiards
from vae_lightning.distributions import Bernoulli, DiagonalNormal, Family
from vae_lightning.models import STOVE, ConstantVelocity, Interactions
from vae_lightning.models.attention import Seen, best_order, in_order
from vae_lightning.objectives import ELBO, IWAE, STL, DReG, FreeBits, Objective
from vae_lightning.runs.record import read_run
from vae_lightning.synthetic import billiards
from vae_lightning.types import UserError

DATA = Billiards(num_sequences=(4, 4, 4), sequence_length=12)
FIELDS = DATA.sequences("train")
X = FIELDS["x"][:, :8].float() / 255  # [4, 8, 1, 32, 32]


def balls_model(seed: int = 0, **settings: Any) -> STOVE:
    """The model of configs/stove/billiards.yaml, at the start of training."""
    torch.manual_seed(seed)
    return STOVE((-1, 1, 32, 32), num_objects=3, **settings)


def shaken(model: STOVE) -> STOVE:
    """The model with dynamics that are not linear."""
    torch.manual_seed(1)
    for parameter in model.transition.dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def parts(p: Distribution) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of independent normals."""
    assert isinstance(p, Independent)
    assert isinstance(p.base_dist, Normal)
    return p.base_dist.loc, p.base_dist.scale


# -- the chain --------------------------------------------------------------------------------------------------------


def test_the_posterior_is_the_normalised_product_and_its_kl_an_integral() -> None:
    """Without the normaliser the density of q would be wrong, and KL(q || p) with it; checked on a grid, by number."""
    model = shaken(balls_model(latent_size=1)).double()
    seen = model.see(X.double())
    latent = model.filter(seen, 2)  # [2, 4, 8, 3, 6]
    q_mean, q_sd = parts(latent.q)
    t = 3
    p = model.p_next(latent.z[:, :, t - 1])
    p_mean, p_sd = parts(p)
    order = best_order(p_mean[..., :2], seen.mean[:, t, :, :2])
    before = best_order(model.p_next(latent.z[:, :, t - 2]).mean[..., :2], seen.mean[:, t - 1, :, :2])
    mean, sd = (in_order(part[:, t], order) for part in seen)
    sd_before = in_order(seen.sd[:, t - 1], before)
    image_mean = torch.cat((mean[..., :2], mean[..., :2] - latent.z[:, :, t - 1, :, :2]), -1)
    image_sd = torch.cat((sd[..., :2], (sd[..., :2] ** 2 + sd_before[..., :2] ** 2).sqrt()), -1)
    for d in range(4):
        ours = Normal(q_mean[:, :, t, :, d, None], q_sd[:, :, t, :, d, None])
        grid = ours.loc + ours.scale * torch.linspace(-12, 12, 20_001, dtype=torch.float64)
        log_p = Normal(p_mean[..., d, None], p_sd[..., d, None]).log_prob(grid)
        log_product = Normal(image_mean[..., d, None], image_sd[..., d, None]).log_prob(grid) + log_p
        width = 24 * ours.scale / 20_000
        log_q = log_product - log_product.logsumexp(-1, keepdim=True) - width.log()
        torch.testing.assert_close(ours.log_prob(grid), log_q, atol=1e-5, rtol=0)
        kl = (log_q.exp() * width * (log_q - log_p)).sum(-1)
        by_dimension = latent.kl_by_dimension()
        assert by_dimension is not None
        torch.testing.assert_close(by_dimension[:, :, t, :, d], kl, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(q_mean[:, :, t, :, 4], p_mean[..., 4])  # an image says nothing of the latent
    torch.testing.assert_close(q_sd[:, :, t, :, 4], p_sd[..., 4])


def test_log_p_is_that_of_the_start_and_of_each_transition_from_the_state_that_was_drawn() -> None:
    model = shaken(balls_model())
    trace = model.trace({"x": X}, 3)
    latent = trace.latents["z"]
    z = latent.z  # [3, 4, 8, 3, 5]
    expected = model.start().log_prob(z[:, :, 0])
    for t in range(1, 8):
        expected = expected + model.p_next(z[:, :, t - 1]).log_prob(z[:, :, t])
    torch.testing.assert_close(latent.log_p(), expected, rtol=1e-5, atol=1e-3)
    frames = [model.p_x(z[:, :, t : t + 1]).log_prob(X[:, t : t + 1]) for t in range(8)]
    torch.testing.assert_close(trace.log_likelihood(), sum(frames, torch.zeros(3, 4)), rtol=1e-5, atol=1e-2)
    kl = latent.kl()
    assert kl.shape == (3, 4)
    many = model.trace({"x": X[:1]}, 400).latents["z"]
    ratio = many.log_ratio()[:, 0]
    assert abs(ratio.mean() - many.kl().mean()) < 4 * ratio.std() / 20


def test_the_filter_does_not_see_the_future() -> None:
    model = shaken(balls_model())
    other = X.clone()
    other[:, 5:] = X.flip(0)[:, 5:]
    states = []
    for x in (X, other):
        torch.manual_seed(0)
        latent = model.filter(model.see(x))
        states.append((latent.z[:, :, :5], parts(latent.q)[0][:, :, :5], parts(latent.q)[1][:, :, :5]))
    torch.testing.assert_close(*states, rtol=0, atol=0)
    first, second = (model.filter(model.see(x)).q.mean[:, :, 0] for x in (X, X.flip(1)[:, [7, 6, *range(6)]]))
    torch.testing.assert_close(first, second)  # frame 1 depends on frames 1 and 2
    moved = X.clone()
    moved[:, 1] = X[:, 4]
    assert not torch.allclose(model.filter(model.see(moved)).q.mean[:, :, 0], first)


def test_the_first_velocity_is_the_way_from_the_first_frame_to_the_second() -> None:
    seen = disc_model().see(X)
    q, first = disc_model().q_start(seen)
    order = best_order(first.mean[..., :2], seen.mean[:, 1, :, :2])
    after = in_order(seen.mean[:, 1], order)
    torch.testing.assert_close(q.mean[..., 2:4], after[..., :2] - seen.mean[:, 0, :, :2])
    torch.testing.assert_close(q.mean[..., :2], seen.mean[:, 0, :, :2])


def test_without_the_product_q_is_what_the_image_says() -> None:
    model = shaken(balls_model(filtered=False))
    seen = model.see(X)
    latent = model.filter(seen)
    mean, sd = parts(latent.q)
    for t in range(1, 8):
        order = best_order(parts(latent.p)[0][:, :, t, :, :2], seen.mean[:, t, :, :2])
        expected = in_order(seen.mean[:, t], order)
        torch.testing.assert_close(mean[:, :, t, :, [0, 1, 4]], expected)
        torch.testing.assert_close(sd[:, :, t, :, [0, 1, 4]], in_order(seen.sd[:, t], order))
        torch.testing.assert_close(mean[:, :, t, :, 2:4], expected[..., :2] - latent.z[:, :, t - 1, :, :2])


def test_still_frames_give_finite_gradients() -> None:
    model = balls_model()
    trace = model.trace({"x": X[:, :1].expand(-1, 8, -1, -1, -1)}, 1, 0)
    ELBO()(trace, 0)["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert parts(trace.latents["z"].q)[1].min() > 1e-4


@pytest.mark.parametrize("objective", [ELBO(), IWAE(2), STL(), DReG(2), FreeBits(0.1)], ids=lambda o: type(o).__name__)
def test_an_objective_trains_every_weight(objective: Objective) -> None:
    model = balls_model(latent_size=2)
    terms = objective(model.trace({"x": X}, objective.num_samples, 0), 0)
    terms["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_importance_estimate_is_above_the_bound() -> None:
    model = balls_model().eval()
    with torch.no_grad():
        log_w = model.trace({"x": X}, 64).log_weight()  # [64, 4]
    assert (log_w.logsumexp(0) - math.log(64) > log_w.mean(0)).all()


# -- positions, painting, finding -------------------------------------------------------------------------------------

PLACES = [(-0.6, -0.6), (-0.6, 0.1), (-0.51, 0.62), (0.03, -0.57), (0.0, 0.0), (0.07, 0.55), (0.6, -0.6), (0.47, -0.1)]
PLACES += [(0.59, 0.33)]


def ball(place: tuple[float, float]) -> Tensor:
    """A picture of one ball by the simulator's rules, [1, 32, 32]."""
    positions = (np.array(place).reshape(1, 1, 1, 2) + 1) * billiards.BOX / 2
    return torch.from_numpy(billiards.draw_balls(positions, 32))[0, 0].float() / 255


def disc_model() -> STOVE:
    """A model whose template is a ball of the rules, in a box of 0.4."""
    model = balls_model(template_size=41)
    at = (2 * torch.arange(41) + 1) / 41 - 1
    alpha = torch.exp(-(((at[:, None] ** 2 + at**2) * (0.4 / 0.24) ** 2) ** 4))
    with torch.no_grad():
        model.template.logits.copy_(alpha.clamp(1e-6, 1 - 1e-6).logit()[None])
    return model.eval()


def centroid(image: Tensor) -> Tensor:
    """(column, row) of the ink of an image [1, S, S], in pixels."""
    at = torch.arange(image.shape[-1]) + 0.5
    return torch.stack(((image[0].sum(0) * at).sum(), (image[0].sum(1) * at).sum())) / image.sum()


@pytest.mark.parametrize("place", PLACES)
def test_an_object_is_painted_where_the_simulator_draws_it(place: tuple[float, float]) -> None:
    """Half a pixel of misalignment, or x and y exchanged, would move the centre of the ink."""
    model, truth = disc_model(), ball(place)
    painted = model.template(torch.tensor(place), torch.zeros(()))
    assert (centroid(painted) - centroid(truth)).abs().max() < 0.02
    slopes = []
    for off in (0.0, 0.03):  # half a pixel
        position = torch.tensor(place, requires_grad=True)
        (model.template(position + off, torch.zeros(())) - truth).square().sum().backward()
        assert position.grad is not None
        slopes.append(position.grad.norm())
    assert slopes[0] < 0.05 * slopes[1]


def test_objects_that_overlap_cover_a_pixel_once() -> None:
    """1 - (1 - a)(1 - b) of two objects, and never more than 1."""
    model = disc_model()
    z = torch.tensor([[0.0, 0.0, 0, 0, 0], [0.1, 0.0, 0, 0, 0]])
    a, b = (model.template(one[:2], one[4]) for one in z)
    torch.testing.assert_close(model.p_x(z[None]).mean[0], a + b - a * b)
    assert model.p_x(z[None]).mean.max() <= 1


@pytest.mark.parametrize("place", PLACES)
def test_the_peak_is_the_pixel_of_the_ball_and_its_window_is_around_it(place: tuple[float, float]) -> None:
    model = disc_model()
    image = ball(place)[None]
    peak = model.attention.peak(image)
    assert (peak[0] - torch.tensor(place)).abs().max() < 2 / 32
    window = model.attention.glimpse(image, peak)
    column, row = (((peak[0] + 1) * 32 - 1) / 2).round().int().tolist()
    padded = torch.nn.functional.pad(image, (6, 6, 6, 6))
    torch.testing.assert_close(window, padded[..., row : row + 13, column : column + 13])


def test_three_balls_are_found_one_after_the_other() -> None:
    model = disc_model()
    seen = model.see(X)
    true = FIELDS["positions"][:, :8]
    order = best_order(true, seen.mean[..., :2])
    found = in_order(seen.mean, order)[..., :2]
    assert (found - true).norm(dim=-1).max() < 0.2  # the network that says where in the window is not trained
    assert seen.sd.min() >= 1e-3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_best_order_is_that_of_the_hungarian_algorithm(count: int) -> None:
    torch.manual_seed(count)
    expected, found = torch.randn(3, 7, count, 2), torch.randn(7, count, 2)
    order = best_order(expected, found)
    for k in range(3):
        for b in range(7):
            costs = (expected[k, b][:, None] - found[b]).square().sum(-1)
            assert order[k, b].tolist() == linear_sum_assignment(costs.numpy())[1].tolist()
    assert torch.equal(in_order(found, order)[1, 2], found[2][order[1, 2]])


def test_frames_may_be_oblong_and_coloured() -> None:
    torch.manual_seed(0)
    model = STOVE((-1, 3, 24, 40), 2, window=9)
    x = torch.rand(2, 3, 3, 24, 40)
    trace = model.trace({"x": x}, 2, 0)
    assert trace.p_x.mean.shape == (2, *x.shape)
    ELBO()(trace, 0)["loss"].mean().backward()


# -- dynamics ---------------------------------------------------------------------------------------------------------


def test_training_starts_with_constant_velocity() -> None:
    model = balls_model().eval()
    z = torch.cat((FIELDS["positions"][:, 0], FIELDS["velocities"][:, 0], torch.zeros(4, 3, 1)), -1)
    states = torch.stack(model.rolled_out(z, 8, False), 1)
    steps = torch.arange(1, 9).view(-1, 1, 1)
    expected = FIELDS["positions"][:, :1] + steps * FIELDS["velocities"][:, :1]
    assert (states[..., :2] - expected).abs().max() < 1e-3 * 8
    exact = balls_model(dynamics=ConstantVelocity).rolled_out(z, 8, False)
    torch.testing.assert_close(torch.stack(exact, 1)[..., :2], expected)


def test_dynamics_have_no_order_of_objects_and_each_acts_on_the_others() -> None:
    dynamics = shaken(balls_model(latent_size=2)).transition.dynamics
    state = torch.randn(5, 3, 6)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(dynamics(state[:, order]), dynamics(state)[:, order])
    other = state.clone()
    other[:, 2, :2] += 0.3
    change = (dynamics(other) - dynamics(state)).abs().amax((0, 2))
    assert (change > 1e-5).all()
    alone = Interactions(0)(torch.randn(2, 1, 4))  # one object has no pair
    assert alone.shape == (2, 1, 4)


def test_the_dynamics_read_no_state_beyond_those_of_training() -> None:
    dynamics = shaken(balls_model()).transition.dynamics
    assert isinstance(dynamics, Interactions)
    state = torch.rand(64, 3, 4) - 0.5
    dynamics.train()
    for _ in range(3000):
        dynamics._remember(state)
    low, high = state.flatten(0, 1).aminmax(dim=0)
    torch.testing.assert_close(dynamics.range, torch.stack((low, high)), atol=0.01, rtol=0)
    dynamics._remember(3 * state)  # what is wider counts at once
    torch.testing.assert_close(dynamics.range, 3 * torch.stack((low, high)), atol=1e-5, rtol=0)
    dynamics.eval()
    known = dynamics.range.clone()
    far = torch.full((1, 3, 4), 5.0)
    end = known[1].expand(1, 3, 4)
    torch.testing.assert_close(dynamics(far)[..., 2:] - far[..., 2:], dynamics(end)[..., 2:] - end[..., 2:])
    torch.testing.assert_close(dynamics.range, known, rtol=0, atol=0)


def test_no_roll_out_grows_exponentially() -> None:
    model = shaken(balls_model())
    positions = model.predict_frames(X, 1000).positions
    assert positions.abs().max() < 1e8  # a constant acceleration over 1,000 frames, where a feedback would overflow


def test_the_size_keeps_its_distribution() -> None:
    """Var(size_t) = a^2 Var(size_(t-1)) + (1 - a^2) s^2 = s^2 in every frame, so that long samples keep their size."""
    model = balls_model()
    z = model.start().sample((1000,))
    for _ in range(20):
        z = model.p_next(z).sample()
    assert z[..., -1].std() == pytest.approx(0.3, rel=0.06)
    assert z[..., -1].mean().abs() < 0.03


def test_roll_outs_begin_at_the_filter_and_are_drawn_if_asked() -> None:
    model = shaken(balls_model())
    mean, again = (model.predict_frames(X, 6) for _ in range(2))
    torch.testing.assert_close(mean.positions, again.positions, rtol=0, atol=0)
    assert (mean.seen.shape, mean.positions.shape, mean.frames.shape) == ((4, 8, 3, 2), (4, 6, 3, 2), (4, 6, 1, 32, 32))
    found = model.trace({"x": X}).found["positions"]
    torch.testing.assert_close(found, mean.seen)
    z = model.codes_of(X)["z"]
    step = model.p_next(z[:, -1]).mean
    torch.testing.assert_close(mean.positions[:, 0], step[..., :2])
    torch.testing.assert_close(mean.frames[:, :1], model.decode({"z": step[:, None]}).mean)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.predict_frames(X, 400, sampled=True).positions)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not torch.equal(drawn[0], drawn[2])
    assert (drawn[0][:, 0] - mean.positions[:, 0]).abs().mean() == pytest.approx(0.01 * math.sqrt(2 / math.pi), rel=0.6)


def test_samples_and_codes_of_the_prior_are_clips() -> None:
    model = balls_model(num_frames=5).eval()
    assert model.sample(2).shape == (2, 5, 1, 32, 32)
    assert model.prior_codes({"x": X})["z"].shape == (4, 8, 3, 5)
    moved = model.traverse(X, "z", 0, torch.tensor([-0.5, 0.5]))
    assert moved.shape == (4, 2, 8, 1, 32, 32)
    q = model.infer({"x": X})["z"]
    torch.testing.assert_close(q.mean[0], model.codes_of(X)["z"])


def test_mixed_precision_keeps_states_in_full() -> None:
    model = balls_model()
    with torch.autocast("cpu", torch.bfloat16):
        trace = model.trace({"x": X}, 1, 0)
    latent = trace.latents["z"]
    assert {v.dtype for v in (latent.z, *parts(latent.q), *parts(latent.p), trace.p_x.mean)} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_step_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Family, "validate_args", False)
    monkeypatch.setattr(Distribution, "_validate_args", False)
    model = balls_model()
    monkeypatch.setattr(model, "_check_once", id)
    batch = {"x": X[:2, :3]}
    model.loss_and_terms(batch, 0)  # as in a run, whose first trace is checked; torch then knows the KLs
    torch._dynamo.reset()
    compiled = torch.compile(model.loss_and_terms, backend="eager", fullgraph=True)
    losses = []
    for function in (compiled, model.loss_and_terms):
        torch.manual_seed(0)
        losses.append(function(batch, 0)[0].detach())
    torch.testing.assert_close(*losses)


# -- runs -------------------------------------------------------------------------------------------------------------

TINY = (
    *("-c", "configs/stove/billiards.yaml", "--trainer.accelerator=cpu", "--trainer.logger=false"),
    *("--data.num_sequences=[8,4,6]", "--data.sequence_length=12", "--data.batch_size=8", "--trainer.max_epochs=2"),
    *("--nll.num_samples=2", "--pictures.num_images=0", "--data.eval_batch_size=3"),
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(REPOSITORY)

    def started(verb: str, run_id: str, *flags: str) -> Path:
        assert main([verb, *TINY, f"--runs_dir={tmp_path}", f"--run_id={run_id}", *flags]) == 0
        return only(tmp_path, f"**/{run_id}")

    return started


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


def metrics(folder: Path) -> dict[str, float]:
    return dict(yaml.safe_load((folder / "results.json").read_text())["metrics"])


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_of_windows_goes_on_to_the_same_weights(run: Callable[..., Path]) -> None:
    """Five steps an epoch, and a stop after the second one of the second epoch."""
    expected = weights(run("fit", "whole"))
    run("fit", "half", "--trainer.max_steps=7")
    assert all(torch.equal(value, expected[name]) for name, value in weights(run("fit", "half")).items())


@pytest.mark.slow
def test_bfloat16_trains_and_tests(run: Callable[..., Path]) -> None:
    found = metrics(run("train", "bf16", "--trainer.precision=bf16-mixed"))
    assert math.isfinite(found["test/elbo"])
    assert found["test/elbo"] < -found["test/nll"]
    assert found["test/elbo_per_step"] == pytest.approx(found["test/elbo"] / 12, rel=1e-4)


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    place = (f"--runs_dir={tmp_path}", "--run_id=two")
    run_cli("train", *TINY, *place, "--trainer.devices=2")
    folder = only(tmp_path, "**/two")
    both = metrics(folder)
    run_cli("test", *TINY, f"--runs_dir={tmp_path}", f"--ckpt_path={folder}", "--trainer.devices=1")
    one = metrics(folder)
    assert read_run(folder).measures == ["rollout_error/mean/sum_1_to_10"]
    for name in ("test/elbo", "test/nll", "test/centre_error", "test/rollout_error/mean/sum_1_to_10"):
        assert both[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.slow
def test_a_short_training_finds_and_follows_the_balls() -> None:
    """300 steps: centres to a third of a pixel, and a bound far above that of the start."""
    model, fields = balls_model(), Billiards(num_sequences=(100, 1, 20)).sequences("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(300):
        first, rows = int(torch.randint(93, ())), torch.randint(80, (16,))
        x = fields["x"][rows, first : first + 8].float() / 255
        loss = ELBO()(model.trace({"x": x}, 1, step), step)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
        optimizer.step()
    x, true = fields["x"][80:].float() / 255, fields["positions"][80:]
    found = model.eval().trace({"x": x}).found["positions"]
    found = in_order(found, best_order(true[:, :1], found[:, :1]).expand(-1, 100, -1))  # one order a sequence
    error = (found - true).norm(dim=-1)
    assert error.mean() < 0.02
    assert error[:, -1].max() < 0.3


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_objects": 0}, "STOVE: num_objects is 0; it must be at least 1"),
        ({"num_objects": 7}, "STOVE: num_objects is 7; at most 6 can be followed"),
        ({"num_frames": 1}, "STOVE: num_frames is 1; it must be at least 2"),
        ({"latent_size": -1}, "STOVE: latent_size is -1; it must be at least 0"),
        ({"object_size": 1.2}, "STOVE: object_size is 1.2; it is a share of the frame"),
        ({"template_size": 0}, "STOVE: template_size is 0; it must be at least 1"),
        ({"window": 12}, "STOVE: window is 12; it is an odd number of pixels, at most 32"),
        ({"window": 33}, "STOVE: window is 33; it is an odd number of pixels, at most 32"),
        ({"spread": 0.0}, "STOVE: spread is 0.0; a standard deviation is above 0"),
        ({"x_shape": (1, 32, 32)}, "STOVE: x_shape is [1, 32, 32]; it is that of clips, [-1, C, H, W]"),
        ({"likelihood": Bernoulli}, "STOVE: the mean of the likelihood Bernoulli is not the canvas; choose one with"),
        ({"dynamics": partial(Interactions, hidden_size=0)}, "Interactions: hidden_size is 0; it must be at least 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, Mapping) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as refused:
        STOVE(**{"x_shape": (-1, 1, 32, 32), "num_objects": 3, **settings})
    assert "\n" not in str(refused.value)


def test_one_frame_is_refused_in_one_line() -> None:
    model = balls_model()
    for call in (lambda: model.trace({"x": X[:, :1]}), lambda: model.predict_frames(X[:, :1], 3)):
        with pytest.raises(UserError, match=r"^STOVE: a clip of one frame has no velocity"):
            call()
    with pytest.raises(UserError, match="horizon is 0; it must be at least 1"):
        model.predict_frames(X, 0)


@pytest.mark.slow
def test_another_number_of_objects_than_the_data_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["fit", *TINY, "--model.num_objects=2"]) == 2
    assert "--model.num_objects is 2, but Billiards has 3" in capfd.readouterr().err


def test_a_likelihood_is_a_slot() -> None:
    model = balls_model(likelihood=partial(DiagonalNormal, sigma=0.2))
    trace = model.trace({"x": X})
    torch.testing.assert_close(trace.p_x.stddev, torch.full_like(trace.p_x.mean, 0.2))
    assert Seen._fields == ("mean", "sd")
