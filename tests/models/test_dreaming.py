"""The Dreaming VAE: its bound against the exact likelihood, one rule for every size, the copy path, runs, bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from torch.nn import functional as F

from tests.helpers import REPOSITORY, only, run_cli
from vae_lightning.__main__ import main
from vae_lightning.data import DataModule, Examples, Mazes, Split
from vae_lightning.distributions import Bernoulli as BernoulliFamily
from vae_lightning.distributions import Categorical, DiagonalNormal, LearnedNormal
from vae_lightning.metrics import log_marginal_likelihood
from vae_lightning.models import Dreaming, LatentVariableModel
from vae_lightning.networks import MLP, LocalConv
from vae_lightning.objectives import ELBO, IWAE, log_mean_exp
from vae_lightning.runs.record import read_run
from vae_lightning.types import UserError

SMALL = partial(LocalConv, channels=(8,), kernel_sizes=(3,))
DATA = Mazes(num_mazes=(8, 2, 4), num_transitions=(40, 10, 10))


def mazes_model(size: int = 7, **settings: Any) -> Dreaming:
    return Dreaming((size, size), 4, 4, **{"encoder": SMALL, "decoder": SMALL, "outcome": SMALL, **settings})


def slippery_model(**settings: Any) -> Dreaming:
    return mazes_model(latent_size=3, posterior=Categorical, prior_network=SMALL, **settings)


def steps(count: int = 6, data: DataModule = DATA, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The first transitions of test, as a loader gives them."""
    batch = data.examples("test").select(torch.arange(count))
    whole = {"x": batch["x"].long(), "state": batch["state"].long()}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in {**batch, **whole}.items()}


# -- the bound ---------------------------------------------------------------------------------------------------------


def exact_log_p(model: Dreaming, batch: dict[str, Tensor]) -> Tensor:
    """log p(s', r, done|s, a) of a model with a categorical z, by a loop over its values."""
    x, state, action = batch["x"], batch["state"], batch["action"]
    before, after = (F.one_hot(one, 4).permute(0, 3, 1, 2).double() for one in (state, x))
    act = F.one_hot(action, 4).double()[..., None, None].expand(-1, -1, *x.shape[1:])
    log_prior = model.prior_network(torch.cat((before, act), 1)).log_softmax(-1)  # [B, C]
    terms = []
    for c in range(model.latent_size):
        z = torch.zeros(len(x), model.latent_size, *x.shape[1:], dtype=torch.float64)
        z[:, c] = 1
        logits = model.decoder(torch.cat((before, act, z), 1)) + 4 * before
        terms.append(log_prior[:, c] + (logits.log_softmax(1) * after).sum((1, 2, 3)))
    reward, done = model.outcome(torch.cat((after, before, act), 1)).unbind(1)
    sigma = model.p_reward(reward[:, None]).stddev  # 0.1 in float32
    outcome = Normal(reward, sigma).log_prob(batch["reward"]) + Bernoulli(logits=done).log_prob(batch["done"])
    return torch.stack(terms).logsumexp(0) + outcome


@pytest.mark.parametrize("num_samples", [1, 3])
def test_with_enumerated_z_the_importance_bound_is_the_exact_likelihood(num_samples: int) -> None:
    torch.manual_seed(0)
    model, batch = slippery_model().double(), steps(dtype=torch.float64)
    trace, exact = model.trace(batch, num_samples), exact_log_p(model, batch)
    assert trace.p_x.batch_shape == (3 * num_samples, 6)
    torch.testing.assert_close(
        -IWAE(num_samples=num_samples, costs={"posterior": 0.0})(trace, 0)["loss"], exact, rtol=1e-12, atol=1e-9
    )
    torch.testing.assert_close(log_marginal_likelihood(model, batch, 2), exact, rtol=1e-12, atol=1e-9)
    assert (ELBO()(trace, 0)["elbo"] < exact).all()


def test_a_may_act_through_z_alone_and_z_starts_as_a() -> None:
    torch.manual_seed(0)
    model, batch = (
        mazes_model(latent_size=5, posterior=Categorical, prior_network=SMALL, action_in_decoder=False),
        steps(),
    )
    assert model.decoder.in_shape == (9, 7, 7)  # four kinds of cells and five values of z
    one, other = (model.trace({**batch, "action": action}) for action in (batch["action"], 3 - batch["action"]))
    torch.testing.assert_close(one.p_x.log_prob(one.x), other.p_x.log_prob(other.x))
    for trace, action in ((one, batch["action"]), (other, 3 - batch["action"])):
        assert torch.equal(trace.latents["z"].log_p().argmax(0), action)


def test_the_cost_trains_q_alone_and_is_least_at_the_posterior() -> None:
    torch.manual_seed(0)
    model, batch = slippery_model().double(), steps(dtype=torch.float64)
    trace = model.trace(batch)
    trace.costs["posterior"].sum().backward()
    assert all(p.grad is None or name.startswith("encoder") for name, p in model.named_parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())
    z = trace.latents["z"]
    exact = trace.log_weight()[0]
    log_posterior = (trace.p_x.log_prob(batch["x"]) + z.log_p()).log_softmax(0)  # [C, B]
    gap = (z.log_q().exp() * (z.log_q() - log_posterior)).sum(0)  # KL(q || posterior)
    torch.testing.assert_close(ELBO()(trace, 0)["elbo"] + gap, exact)
    entropy = -(log_posterior.exp() * log_posterior).sum(0)
    assert (trace.costs["posterior"] > entropy).all()


def test_the_cost_is_the_cross_entropy_to_the_posterior_under_p_of_z() -> None:
    """p(z|s, a) is far from uniform here, and the likelihood says little: a cost without the prior is another one."""
    torch.manual_seed(0)
    model, batch = slippery_model().double(), steps(dtype=torch.float64)
    *_, last = model.prior_network.layers.children()
    assert isinstance(last, torch.nn.Linear)
    last.bias.data = torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64)
    trace = model.trace(batch)
    z, log_p = trace.latents["z"], trace.p_x.log_prob(batch["x"])
    posterior = (log_p + z.log_p()).softmax(0)  # [C, B]
    torch.testing.assert_close(trace.costs["posterior"], -(posterior * z.log_q()).sum(0))
    assert ((posterior - log_p.softmax(0)).abs().amax(0) > 0.1).all()


def test_the_bound_of_a_gaussian_z_lies_below_the_likelihood() -> None:
    torch.manual_seed(0)
    model, batch = mazes_model(prior=LearnedNormal).eval(), steps()
    few, many = (log_mean_exp(model.trace(batch, k).log_weight(), 0).mean() for k in (4, 2000))
    elbo = ELBO()(model.trace(batch, 2000), 0)["elbo"].mean()
    assert elbo < few + 0.1
    assert elbo < many
    seen = model.trace(batch, 2).log_likelihoods()
    assert seen.keys() == {"x", "reward", "done"}


# -- one rule, a copy, a step ------------------------------------------------------------------------------------------


def test_one_network_serves_every_size_by_the_same_local_rule() -> None:
    torch.manual_seed(0)
    model = mazes_model().eval()
    large = steps(data=Mazes(size=11, num_mazes=(2, 2, 2), num_transitions=(4, 4, 4)))
    small = {**large, "state": large["state"][:, 2:9, 3:10]}
    z = torch.randn(1, 6, 8)

    def logits(batch: dict[str, Tensor]) -> Tensor:
        state = batch["state"]
        p: Any = model.p_next(z, model.given(state, batch["action"]), state)
        return p.base_dist.logits[0]  # [B, n, n, 4]

    inner = logits(large)[:, 2:9, 3:10]
    torch.testing.assert_close(logits(small)[:, 1:-1, 1:-1], inner[:, 1:-1, 1:-1])
    assert not torch.allclose(logits(small), inner)  # the border is seen
    assert model.step(large["state"], large["action"]).state.shape == (6, 11, 11)
    assert model.trace(large).p_x.event_shape == (11, 11)


STATES: dict[str, Callable[[], Tensor]] = {
    "cells": lambda: steps()["state"],
    "tokens": lambda: torch.randint(5, (6, 3)),
    "number": lambda: torch.randint(5, (6,)),
    "vectors": lambda: torch.randn(6, 4),
    "images": lambda: torch.rand(6, 3, 8, 8),
}


@pytest.mark.parametrize("kind", STATES)
def test_at_the_start_nothing_changes(kind: str) -> None:
    torch.manual_seed(0)
    state = STATES[kind]()
    vocabulary = None if state.is_floating_point() else int(state.max()) + 1
    model = Dreaming(tuple(state.shape[1:]), 2, vocabulary)
    dreamt = model.step(state, torch.zeros(6, dtype=torch.long))
    assert (dreamt.state.shape, dreamt.state.dtype) == (state.shape, state.dtype)
    if kind != "vectors":  # in units of the change, which are not measured here
        torch.testing.assert_close(dreamt.state, state, atol=0.5, rtol=0)
    torch.nn.init.zeros_(list(model.decoder.parameters())[-2])
    torch.nn.init.zeros_(list(model.decoder.parameters())[-1])
    torch.testing.assert_close(model.step(state, torch.zeros(6, dtype=torch.long)).state, state)
    batch = {"x": state, "state": state, "action": torch.tensor([0, 1] * 3), "reward": torch.zeros(6)}
    terms = ELBO()(model.trace({**batch, "done": torch.zeros(6)}), 0)
    assert terms["elbo"].isfinite().all()


def test_logits_of_pixels_are_copied_as_signs() -> None:
    state = (torch.rand(4, 1, 8, 8) > 0.5).float()
    model = Dreaming((1, 8, 8), 2, likelihood=BernoulliFamily)
    assert not model.states.mean_is_first
    dreamt = model.step(state, torch.zeros(4, dtype=torch.long)).state
    assert ((dreamt - state).abs() < 0.1).all()


def test_vectors_are_read_in_their_units() -> None:
    """A world in other units is the same world: the mean moves with them, after the units are measured."""
    torch.manual_seed(0)
    model, other = (Dreaming((3,), 2, decoder=MLP) for _ in range(2))
    other.load_state_dict(model.state_dict())
    state, units = torch.randn(50, 3), torch.tensor([1.0, 100.0, 0.01])
    following = state + 0.1 * torch.randn(50, 3)
    model.states.measure(state, following)
    other.states.measure(state * units + 5, following * units + 5)
    torch.testing.assert_close(model.states(state), other.states(state * units + 5), atol=1e-3, rtol=1e-3)
    action = torch.zeros(50, dtype=torch.long)
    z = torch.randn(1, 50, 8)
    mean = model.p_next(z, model.given(state, action), state).mean * units + 5
    state = state * units + 5
    torch.testing.assert_close(other.p_next(z, other.given(state, action), state).mean, mean, atol=1e-2, rtol=1e-3)
    *_, last = other.decoder.layers.children()
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.ones_(last.bias)  # one spread of the change more
    found = other.p_next(z, other.given(state, action), state).mean[0]
    torch.testing.assert_close((found - state) / units, torch.full((50, 3), 0.1), atol=0, rtol=0.3)


def test_a_step_is_a_function_of_its_generator() -> None:
    torch.manual_seed(0)
    model, batch = slippery_model().train(), steps(40)
    torch.nn.init.normal_(model.decoder.layers[-1].weight, std=8)  # type: ignore[operator, union-attr]
    state = torch.get_rng_state()
    one, two, three = (
        model.step(batch["state"], batch["action"], torch.Generator().manual_seed(seed)).state for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert model.training
    assert model.step(batch["state"], batch["action"]).done.dtype == torch.bool
    assert model.sample(3).shape == (3, 7, 7)


@pytest.mark.parametrize(("logit", "ends"), [(2.0, True), (-2.0, False)])
def test_reward_and_end_are_read_off_the_next_state(logit: float, ends: bool) -> None:
    model, batch = mazes_model(), steps()
    *_, last = model.outcome.layers.children()
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.3, logit])
    dreamt = model.step(batch["state"], batch["action"])
    torch.testing.assert_close(dreamt.reward, torch.full((6,), 0.3))
    assert (dreamt.done == ends).all()
    seen = model.eval().trace(batch).found
    assert torch.equal(seen["dreamt_done"], dreamt.done)


def test_reward_and_end_of_a_dream_are_those_of_the_dreamt_state() -> None:
    """The ends that the outcome network reads off s' and off s differ, and the dream takes those of s'."""
    torch.manual_seed(0)
    model, batch = mazes_model(), steps(40)
    for network in (model.decoder, model.outcome):
        torch.nn.init.normal_(network.layers[-1].weight, std=8)  # type: ignore[operator, union-attr]
    state, given = batch["state"], model.given(batch["state"], batch["action"])
    dreamt = model.step(state, batch["action"])
    after, before = model.p_outcome(dreamt.state, given), model.p_outcome(state, given)
    torch.testing.assert_close(dreamt.reward, after[0].mean)
    assert torch.equal(dreamt.done, after[1].mean > 0.5)
    assert not torch.allclose(dreamt.reward, before[0].mean)
    assert not torch.equal(dreamt.done, before[1].mean > 0.5)


# -- runs --------------------------------------------------------------------------------------------------------------

FEW = (
    "--data.num_mazes=[8,2,4]",
    "--data.num_transitions=[40,10,10]",
    "--data.batch_size=32",
    "--trainer.logger=false",
)
TINY = (*FEW, "--trainer.max_epochs=2", "--nll.num_samples=2", "--pictures.num_images=4")


def place(tmp_path: Path) -> tuple[str, ...]:
    """Flags for runs in a folder of this test."""
    return (f"--runs_dir={tmp_path / 'runs'}", "--trainer.logger=false")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(REPOSITORY)

    def run(name: str, run_id: str, *flags: str, verb: str = "fit") -> Path:
        assert (
            main([verb, "-c", f"configs/dreaming/{name}.yaml", *place(tmp_path), f"--run_id={run_id}", *TINY, *flags])
            == 0
        )
        return only(tmp_path / "runs", f"**/{run_id}")

    return run


def weights(run: Path) -> dict[str, Tensor]:
    return dict(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


def metrics(run: Path) -> dict[str, float]:
    return dict(yaml.safe_load((run / "results.json").read_text())["metrics"])


def test_a_run_of_slippery_mazes(train: Callable[..., Path]) -> None:
    run = train("maze7_slip", "whole", verb="train")
    found = metrics(run)
    assert found["test/nll"] == pytest.approx(-found["test/exact_log_likelihood"], abs=1e-5)
    assert found["test/elbo"] < found["test/exact_log_likelihood"]
    assert found["test/slip_true/intended"] == pytest.approx(0.775)
    assert (run / "images" / "dream-0002.gif").is_file()
    half = train("maze7_slip", "half", "--trainer.max_steps=13")
    train("maze7_slip", "half")
    expected = weights(run)
    assert all(torch.equal(value, expected[name]) for name, value in weights(half).items())


def test_a_run_with_oversampled_ends_resumes_in_an_epoch(train: Callable[..., Path]) -> None:
    """Ten batches an epoch, two rows of each from steps that end an episode; a stop in the second one."""
    quiet = ("--pictures.num_images=0", "--data.terminal_share=0.0625")
    expected = weights(train("maze7", "whole", *quiet))
    train("maze7", "half", *quiet, "--trainer.max_steps=13")
    assert all(torch.equal(value, expected[name]) for name, value in weights(train("maze7", "half", *quiet)).items())


def test_a_run_is_tested_on_larger_mazes(
    train: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train("maze7", "whole", "--trainer.precision=bf16-mixed")
    capfd.readouterr()
    flags = (f"--ckpt_path={run}", "--data.size=11", *TINY)
    assert main(["test", "-c", "configs/dreaming/maze7.yaml", *place(tmp_path), *flags]) == 0
    said = capfd.readouterr().out
    assert "This is right where s and a determine s'" in said
    found = metrics(run)
    assert 0 <= found["test/exact/unseen"] <= 1
    assert re.search(r"^test +exact/unseen \d", said, re.MULTILINE)
    assert read_run(run).measures == ["exact/unseen"]
    assert found["test/copy/seen"] > 0.3
    path = run / "checkpoints" / "best.ckpt"
    model = LatentVariableModel.load_from_checkpoint(path, x_shape=(21, 21))
    assert isinstance(model, Dreaming)
    assert model.example_state.shape == (100, 7, 7)
    assert ((model.example_state == 2).flatten(1).sum(1) == 1).all()
    assert main(["sample", str(run), "--num_images=2"]) == 0


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    args = ("-c", "configs/dreaming/maze7_slip.yaml", *place(tmp_path), *TINY, "--trainer.devices=2", "--run_id=two")
    run_cli("train", *args)
    run = only(tmp_path / "runs", "**/two")
    both = metrics(run)
    args = ("-c", run / "config.yaml", f"--ckpt_path={run}", "--trainer.devices=1", "--trainer.logger=false")
    run_cli("test", *args)
    for name, value in metrics(run).items():
        assert both[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_a_short_training_is_nearly_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 steps; with the mean of a loss over cells, the share would still be that of a copy, one half."""
    monkeypatch.chdir(REPOSITORY)
    flags = ("--trainer.max_steps=1000", "--pictures.num_images=0", "--nll.num_samples=2")
    assert main(["train", "-c", "configs/dreaming/maze7.yaml", *place(tmp_path), "--run_id=short", *flags]) == 0
    found = metrics(only(tmp_path / "runs", "**/short"))
    assert found["test/exact/unseen"] >= 0.9
    assert found["test/exact/seen"] >= 0.9
    assert found["test/copy/unseen"] < 0.6


# -- bad input ---------------------------------------------------------------------------------------------------------


class WrongActions(DataModule):
    """Transitions of vectors whose last action is number 3 of three."""

    x_shape, num_actions = (2,), 3
    with_action = True

    def load(self, split: Split) -> Examples:
        x = torch.randn(40, 2)
        action = {"action": torch.arange(40).clamp(max=3)} if self.with_action else {}
        return Examples({"x": x, "state": x, "reward": x[:, 0], "done": torch.zeros(40), **action})


class NoActions(WrongActions):
    with_action = False


def one_line(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    capfd.readouterr()
    assert main([*args, "--trainer.logger=false"]) != 0
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out
    return said.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("tests.models.test_dreaming.WrongActions", "an action is 3; it must be from 0 to 2"),
        ("tests.models.test_dreaming.NoActions", "Dreaming needs action of each example"),
        ("vae_lightning.data.Digits", "Dreaming needs num_actions, and the data set Digits has none to give"),
    ],
)
def test_data_without_fitting_actions_are_refused(
    data: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": {"class_path": "vae_lightning.models.Dreaming"}, "data": {"class_path": data}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    assert message in one_line(capfd, "fit", "-c", "c.yaml", "--trust", "tests", "--trainer.fast_dev_run=true")


def test_mazes_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    flags = ("--data.num_mazes=[1,1,1]", "--data.num_transitions=[2,2,2]")
    line = one_line(capfd, "fit", "-c", "configs/dreaming/maze7.yaml", *flags)
    assert "0 of 2 transitions of train end an episode" in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x_shape": (7, 7)}, "x_shape is (7, 7); a state is a vector (D,), an image (C, H, W)"),
        ({"num_actions": 0}, "num_actions is 0"),
        ({"posterior": partial(Categorical, group_size=4)}, "a categorical z is one group of latent_size=8"),
        ({"action_in_decoder": False}, "give a prior_network, and a latent_size of at least 4"),
        ({"action_in_decoder": False, "prior_network": SMALL, "latent_size": 3}, "a latent_size of at least 4"),
        ({"likelihood": DiagonalNormal}, "states of 4 classes need [28, 7]"),
        ({"decoder": partial(LocalConv, channels=(8,), kernel_sizes=(2,))}, "must be odd and positive"),
        ({"decoder": partial(LocalConv, channels=(8,))}, "differ in length"),
        ({"decoder": partial(LocalConv, channels=(0, 1))}, "has a width below 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    vocabulary = None if "x_shape" in settings else 4
    with pytest.raises(UserError) as caught:
        Dreaming(**{"x_shape": (7, 7), "num_actions": 4, "vocabulary": vocabulary, **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_step_refuses_other_actions() -> None:
    model, batch = mazes_model(), steps()
    for action, message in ((batch["action"] + 4, "from 0 to 3"), (batch["action"].float(), "whole numbers")):
        with pytest.raises(UserError, match=message):
            model.step(batch["state"], action)


def test_local_convolutions_refuse_other_inputs() -> None:
    network = LocalConv((2, 5, 5), (3, 5, 5))
    assert network(torch.zeros(4, 1, 2, 9, 6)).shape == (4, 1, 3, 9, 6)
    assert LocalConv((2, 5, 5), (3,))(torch.zeros(4, 1, 2, 9, 6)).shape == (4, 1, 3)
    for wrong in (torch.zeros(1, 3, 5, 5), torch.zeros(1, 2, 5, 5, dtype=torch.long)):
        with pytest.raises(UserError, match="it takes floating-point maps"):
            network(wrong)
    with pytest.raises(UserError, match="use an MLP"):
        LocalConv((4,), (3,))
