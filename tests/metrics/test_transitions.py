"""Scores of world models: known answers for a perfect model, for one that copies, and for one that breaks states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.outside.transitions import GustyBall, Transitions
from vae_lightning.data import Mazes
from vae_lightning.metrics import TransitionScores
from vae_lightning.models import Dreaming, Step
from vae_lightning.synthetic import mazes
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

DATA = Mazes(num_mazes=(10, 2, 30), num_transitions=(60, 10, 40))
SLIPPERY = Mazes(num_mazes=(10, 2, 30), num_transitions=(60, 10, 40), slip=0.3)


class Simulator(Dreaming):
    """A perfect model: the rules themselves."""

    slip = 0.0

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Step:
        random = np.random.default_rng(0 if generator is None else generator.initial_seed() + self.count())
        x, reward, done = mazes.step(state.numpy().astype(np.uint8), action.numpy(), self.slip, random)
        return Step(torch.from_numpy(x).long(), torch.from_numpy(reward), torch.from_numpy(done))

    calls = 0

    def count(self) -> int:
        self.calls += 1
        return self.calls


class Copy(Simulator):
    """Nothing changes, and nothing ends."""

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Step:
        return Step(state, torch.zeros(len(state)), torch.zeros(len(state), dtype=torch.bool))


class LosesThePlayer(Simulator):
    """A perfect model but for moves down, after which there is no player."""

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Step:
        step = super().step(state, action, generator)
        lost = (action == 1)[:, None, None] & (step.state == 2)
        return Step(torch.where(lost, 0, step.state), step.reward, step.done)


def batch_of(data: Mazes) -> Batch:
    fields = data.examples("test").fields
    return {name: value.long() if value.dtype == torch.uint8 else value for name, value in fields.items()}


def scores(model: Dreaming, data: Mazes = DATA, **settings: Any) -> dict[str, Any]:
    """The results of the test split, in two batches."""
    metric, batch = TransitionScores(**settings), batch_of(data)
    model.eval()
    metric.begin(model, data)
    with torch.no_grad():
        for part in (slice(0, 100), slice(100, None)):
            rows = {name: value[part] for name, value in batch.items()}
            trace = model.trace(rows)
            assert metric.why_not_of_batch(trace, rows) is None
            metric.update(trace, rows)
    return metric.compute()


def test_a_perfect_model() -> None:
    found = scores(Simulator((7, 7), 4, 4))
    for name in ("exact/unseen", "exact/unseen_moved", "exact/unseen_blocked", "exact/seen"):
        assert found[name] == 1
    assert (found["done_precision"], found["done_recall"], found["invalid_states"]) == (1, 1, 0)
    assert found["reward_error/terminal"] == found["reward_error/other"] == 0
    assert 0.4 < found["copy/unseen"] < 0.6
    assert 100 < found["dream_length"] <= 196
    assert not any(name.startswith("slip") for name in found)


def test_a_copy_is_never_better_than_the_copy() -> None:
    batch = batch_of(DATA)
    same = (batch["x"] == batch["state"]).flatten(1).all(1)
    found = scores(Copy((7, 7), 4, 4), num_steps=20)
    for half, rows in (("unseen", ~batch["seen"]), ("seen", batch["seen"])):
        assert found[f"exact/{half}"] == found[f"copy/{half}"] == pytest.approx(same[rows].double().mean().item())
        assert (found[f"exact/{half}_moved"], found[f"exact/{half}_blocked"]) == (0, 1)
    assert found["done_recall"] == 0
    assert "done_precision" not in found
    assert found["reward_error/terminal"] == pytest.approx(1)
    assert (found["dream_length"], found["invalid_states"], found["dreams_ended_by_done"]) == (20, 0, 0)


def test_invalid_states_end_a_dream() -> None:
    """Each action is down with probability 1/4, so that a dream has 3 valid steps in the mean."""
    found = scores(LosesThePlayer((7, 7), 4, 4), num_dreams=4000)
    assert found["dream_length"] == pytest.approx(3, abs=0.2)
    assert found["invalid_states"] == pytest.approx(0.25, abs=0.02)


def test_slips_of_a_perfect_model_have_the_true_frequencies() -> None:
    model = Simulator((7, 7), 4, 4)
    model.slip = 0.3
    found = scores(model, SLIPPERY, num_draws=8000)
    assert found["slip_draws"] >= 8000
    assert found["slip_true/intended"] == pytest.approx(0.775)
    assert sum(found[f"slip/{name}"] for name in ("intended", "right", "opposite", "left")) == pytest.approx(1)
    assert found["slip_error"] < 0.02
    assert found["slip/none"] == 0


def test_a_dream_without_slips_is_off_by_their_probability() -> None:
    found = scores(Simulator((7, 7), 4, 4), SLIPPERY)
    assert found["slip/intended"] == 1
    assert found["slip_error"] == pytest.approx(0.225)


def test_turns_are_told_apart() -> None:
    """A model that always turns right of the action that was chosen."""

    class TurnsRight(Simulator):
        def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Step:
            return super().step(state, torch.tensor([3, 2, 0, 1])[action], generator)

    found = scores(TurnsRight((7, 7), 4, 4), SLIPPERY)
    assert found["slip/right"] == 1


def test_states_of_real_numbers_have_errors() -> None:
    torch.manual_seed(0)
    state, model = torch.randn(50, 3), Dreaming((3,), 2).eval()
    zeros = torch.zeros(50)
    batch = {"x": state + 2, "state": state, "action": zeros.long(), "reward": zeros, "done": zeros}
    trace = model.trace(batch)
    metric = TransitionScores()
    metric.begin(model, None)
    metric.update(trace, batch)
    found = metric.compute()
    assert found["copy_error/all"] == pytest.approx(2)
    error = (trace.found["dreamt_state"] - batch["x"]).square().mean().sqrt().item()
    assert found["state_error/all"] == pytest.approx(error, rel=1e-4)
    assert not any(name.startswith("exact") for name in found)


def test_states_that_are_one_number_and_halves_without_a_step() -> None:
    """Discrete states [B]: three of four steps change the state; none of them is of the half `seen`."""
    state = torch.tensor([0, 1, 2, 3])
    batch = {"x": torch.tensor([1, 2, 3, 3]), "state": state, "action": torch.zeros(4, dtype=torch.long)}
    batch |= {"reward": torch.zeros(4), "done": torch.zeros(4), "seen": torch.zeros(4, dtype=torch.bool)}
    model = Dreaming((), 2, 4).eval()
    for name, kind in (("exact/unseen", torch.long), ("state_error/unseen", torch.float)):
        of_kind = {**batch, "x": batch["x"].to(kind), "state": state.to(kind)}
        found = {"dreamt_state": of_kind["x"], "dreamt_reward": batch["reward"], "dreamt_done": batch["done"].bool()}
        trace = replace(model.trace(batch), found=found)
        metric = TransitionScores()
        metric.begin(model, None)
        metric.update(trace, of_kind)
        results = metric.compute()
        assert results[name] == (1 if kind == torch.long else 0)
        copy = "copy/unseen" if kind == torch.long else "copy_error/unseen"
        assert results[copy] == pytest.approx(0.25 if kind == torch.long else 0.75**0.5)
        assert not any(name.endswith("/seen") for name in results)


def test_it_is_left_out_where_no_step_is_dreamt() -> None:
    metric = TransitionScores()
    trace = Trace(torch.zeros(2, 3), torch.distributions.Normal(0, 1))
    assert metric.why_not_of_batch(trace, {"x": trace.x}) == "the batch has no state, action, reward, done"
    batch = GustyBall().examples("val").select(torch.arange(2))
    trace = Transitions((2,), ()).trace(batch)
    assert "dreams no step" in str(metric.why_not_of_batch(trace, batch))


@pytest.mark.parametrize("name", ["num_dreams", "num_steps", "num_draws"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0"):
        TransitionScores(**{name: 0})
