"""Scores of roll-outs: known answers for the simulator, for exchanged balls, and for balls that stand still."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from tests.metrics.test_found import QUIET
from vae_lightning.data import Billiards
from vae_lightning.distributions import DiagonalNormal
from vae_lightning.metrics import Evaluation, RolloutScores
from vae_lightning.metrics.motion import WALL, closest, exchanged, in_pairs, linear, pairs_of, reflecting, simulated
from vae_lightning.metrics.rollouts import table_of
from vae_lightning.models import VAE, Rollout
from vae_lightning.types import UserError

DATA = Billiards(num_sequences=(2, 2, 16), sequence_length=36, num_frames=5, image_size=8, eval_batch_size=6)
TEST = DATA.sequences("test")
OTHER_ORDER = [2, 0, 1]


class Oracle(VAE):
    """Knows the state of the last frame seen by looking the clip up in the data; names the balls in another order."""

    change: Callable[[Tensor], Tensor] = staticmethod(lambda places: places)

    def predict_frames(self, x_seen: Tensor, horizon: int, sampled: bool = False) -> Rollout:
        known, (count, seen) = TEST["x"].float() / 255, x_seen.shape[:2]
        row = (x_seen[:, None] - known[None, :, :seen]).abs().flatten(2).amax(2).argmin(1)
        places, velocities = TEST["positions"][row], TEST["velocities"][row]
        after = self.change(simulated(places[:, seen - 1].double(), velocities[:, seen - 1].double(), horizon))
        frames = torch.zeros(count, horizon, *x_seen.shape[2:])
        return Rollout(places[:, :seen, OTHER_ORDER], after[:, :, OTHER_ORDER].float(), frames)


def oracle(change: Callable[[Tensor], Tensor] = lambda places: places) -> Oracle:
    model = Oracle((1, 8, 8), latent_size=2).eval()
    model.change = change  # type: ignore[method-assign]
    return model


def scores(model: VAE, found: Mapping[str, Tensor] | None = None, **settings: Any) -> dict[str, Any]:
    """The results of the test sequences, in batches of 6, 6 and 4."""
    metric = RolloutScores(**{"long_horizon": 0, **settings})
    metric.begin(model, DATA)
    plain = VAE((1, 8, 8), latent_size=2).trace({"x": torch.zeros(1, 1, 8, 8)})
    with torch.no_grad():
        for first in range(0, 16, 6):
            rows = slice(first, first + 6)
            batch = {name: values[rows] for name, values in TEST.items()}
            batch["x"] = batch["x"].float() / 255
            trace = replace(plain, found={name: value[rows] for name, value in (found or {}).items()})
            assert metric.why_not_of_model(model) is None
            assert metric.why_not_of_batch(trace, batch) is None
            metric.update(trace, batch)
    return metric.compute()


@pytest.fixture(scope="module")
def perfect() -> dict[str, Any]:
    return scores(oracle(), long_horizon=100, num_long=7)


def test_a_perfect_model(perfect: Mapping[str, Any]) -> None:
    for row in ("mean", "sampled", "simulator"):
        assert perfect[f"rollout_error/{row}/sum_1_to_10"] < 1e-4
        assert perfect[f"rollout_error/{row}/24"] < 1e-2  # the state is known to 6e-8, and the balls are chaotic
        assert perfect[f"rollout_swaps/{row}"] == 0
        assert perfect[f"rollout_overlaps/{row}/28"] == 0
        assert perfect[f"rollout_inside/{row}/28"] == 1
        assert perfect[f"rollout_speed/{row}/28"] == pytest.approx(1, abs=0.1)
    assert perfect["rollout_speed/sampled/100"] == pytest.approx(1, abs=0.2)
    assert (perfect["rollout_overlaps/mean/100"], perfect["rollout_inside/mean/100"]) == (0, 1)


def test_the_baselines_are_in_their_known_order(perfect: Mapping[str, Any]) -> None:
    """Sums over ten frames of 300 other sequences: linear 1.19, reflecting 0.57, last 2.27."""
    sums = {row: perfect[f"rollout_error/{row}/sum_1_to_10"] for row in ("linear", "reflecting", "last", "simulator")}
    errors = {row: perfect[f"rollout_error/{row}/sum_1_to_10_stderr"] for row in sums}
    for row, known in (("linear", 1.193), ("reflecting", 0.572), ("last", 2.268)):
        assert sums[row] == pytest.approx(known, abs=4 * errors[row]), row
    assert perfect["rollout_speed/last/28"] == 0
    assert perfect["rollout_speed/linear/28"] < 0.5  # nearly all balls have arrived at a wall
    assert len(perfect["rollout_curve/linear"]) == 28


def test_balls_that_are_exchanged_late_make_the_error_jump() -> None:
    """The pairs are chosen on the frames seen, so that a later exchange is an error."""

    def exchange(places: Tensor) -> Tensor:
        return torch.cat((places[:, :19], places[:, 19:, [1, 0, 2]]), 1)

    found = scores(oracle(exchange))
    curve = found["rollout_curve/mean"]
    assert max(curve[:19]) < 1e-3
    assert min(curve[19:30]) > 0.3
    assert found["rollout_swaps/mean"] == 1


def test_balls_that_stand_still_have_no_speed() -> None:
    found = scores(oracle(lambda places: places[:, :1].expand_as(places)), long_horizon=30)
    assert found["rollout_speed/mean/28"] == found["rollout_speed/sampled/30"] == 0


def test_the_mean_and_the_sampled_roll_out_are_told_apart() -> None:
    class StillIfSampled(Oracle):
        def predict_frames(self, x_seen: Tensor, horizon: int, sampled: bool = False) -> Rollout:
            self.change = (lambda places: places[:, :1].expand_as(places)) if sampled else (lambda places: places)
            return super().predict_frames(x_seen, horizon)

    found = scores(StillIfSampled((1, 8, 8), latent_size=2).eval(), long_horizon=20, num_long=2)
    for horizon in (28, 20):
        assert found[f"rollout_speed/sampled/{horizon}"] == 0
        assert found[f"rollout_speed/mean/{horizon}"] > 0.5
    assert found["rollout_error/mean/8"] < 1e-4 < found["rollout_error/sampled/8"]


def test_balls_that_lie_upon_each_other_and_outside_are_counted() -> None:
    def crowd(places: Tensor) -> Tensor:
        places = places.clone()
        places[:, 14:, 1] = places[:, 14:, 0]  # 14 of 28 frames
        places[:, :7, 2] = 5.0  # one of three balls in 7 of 28 frames
        return places

    found = scores(oracle(crowd))
    assert found["rollout_overlaps/mean/28"] == pytest.approx(0.5)
    assert found["rollout_inside/mean/28"] == pytest.approx(1 - 7 / 28 / 3)


def test_centres_that_are_exact_lost_or_swapped() -> None:
    exact = TEST["positions"][:, :, OTHER_ORDER]
    found = scores(oracle(), {"positions": exact + torch.tensor([0.03, 0.04])})
    assert found["centre_error"] == pytest.approx(0.05, abs=1e-6)
    assert (found["tracks_lost"], found["tracks_swapped"]) == (0, 0)
    lost = exact.clone()
    lost[:4, 30:, 0] = 3.0  # one of three balls in 4 of 16 sequences
    found = scores(oracle(), {"positions": lost})
    assert (found["tracks_lost"], found["tracks_swapped"]) == (pytest.approx(4 / 48), 0)
    swapped = exact.clone()
    swapped[:4, 30:] = swapped[:4, 30:, [1, 0, 2]]
    found = scores(oracle(), {"positions": swapped})
    assert (found["tracks_lost"], found["tracks_swapped"]) == (pytest.approx(8 / 48), pytest.approx(4 / 16))


def test_pairs_are_one_to_one_and_leave_further_objects_out() -> None:
    true = torch.rand(4, 3, 2, 2)
    found = torch.stack((true[:, :, 1], true[:, :, 0] + 9, true[:, :, 0]), 2)
    pairs = pairs_of(found, true)
    assert pairs.tolist() == [[2, 0]] * 4
    assert torch.equal(in_pairs(found, pairs), true)


def test_reflection() -> None:
    """Against the walls of a single ball's simulation, and by hand."""
    place, velocity = torch.tensor([[[0.5, -0.5]]]), torch.tensor([[[0.3, -0.2]]])
    ways = reflecting(place, velocity, 4, 0.76)
    hand = [[0.72, -0.7], [0.42, -0.62], [0.12, -0.42], [-0.18, -0.22]]
    torch.testing.assert_close(ways[0, :, 0], torch.tensor(hand))
    assert torch.equal(linear(place, velocity, 2, 0.8)[0, :, 0], torch.tensor([[0.8, -0.7], [0.8, -0.8]]))
    slow = torch.tensor([[[0.05, 0.03]]]).double()
    exact, guess = simulated(place.double(), slow, 60), reflecting(place.double(), slow, 60, WALL)
    assert (exact - guess).abs().max() < 0.06  # a sub-step is lost at each wall


def test_distances_within_a_frame() -> None:
    places = torch.tensor([[[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.5], [9.0, 9.0]]]])
    assert closest(places).tolist() == [[1.0, 0.5]]
    assert closest(places[:, :, :1]).tolist() == [[torch.inf] * 2]
    true = torch.tensor([[[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]]])
    cases = ([1, 0, 2], [0, 1, 2], [1, 2, 0])  # exchanged, at their places, and turned round
    assert [exchanged(true[:, :, case], true, 0.3).item() for case in cases] == [True, False, False]


def test_the_table_shows_each_prediction(perfect: Mapping[str, Any]) -> None:
    lines = table_of(perfect).splitlines()
    assert [line.split()[0] for line in lines] == [
        *("prediction", "mean", "sampled", "linear", "reflecting", "last", "simulator")
    ]
    assert "speed at 28" in lines[0]
    assert "+-" in lines[3]


def test_a_test_run_scores_roll_outs() -> None:
    evaluation = Evaluation([RolloutScores(long_horizon=20, num_long=2)])
    model = Oracle((36, 1, 8, 8), latent_size=2, likelihood=DiagonalNormal)
    pl.Trainer(callbacks=[evaluation], **QUIET).test(model, DATA, verbose=False)
    assert evaluation.numbers["rollout_error/mean/8"] < 1e-4
    again = scores(oracle(), long_horizon=20, num_long=2)
    for name in ("rollout_error/linear/sum_1_to_10", "rollout_error/linear/8_stderr", "rollout_speed/mean/20"):
        assert evaluation.numbers[name] == pytest.approx(again[name])


def test_what_cannot_be_scored_is_left_out_in_words() -> None:
    metric, vae = RolloutScores(), VAE((1, 8, 8), latent_size=2)
    trace, positions = vae.trace({"x": torch.zeros(1, 1, 8, 8)}), torch.zeros(1, 36, 3, 2)
    assert metric.why_not_of_model(vae) == "the model predicts no frames (it has no predict_frames)"
    assert metric.why_not_of_batch(trace, {}) == "the batch has no positions"
    few = "the sequences have 9 frames; 8 seen and 2 predicted ones are needed"
    assert metric.why_not_of_batch(trace, {"positions": positions[:, :9]}) == few
    two = replace(trace, found={"positions": positions[:, :, :2]})
    assert metric.why_not_of_batch(two, {"positions": positions}) == "the model has 2 objects, and the data 3"
    with pytest.raises(UserError, match="RolloutScores: num_seen is 0; it must be at least 1"):
        RolloutScores(num_seen=0)
