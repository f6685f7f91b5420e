"""Pictures of roll-outs: which frames were seen, where the crosses are, and what a run and its commands write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from tests.outside.video import VideoVAE
from vae_lightning.callbacks import Pictures
from vae_lightning.data import Billiards
from vae_lightning.distributions import DiagonalNormal, Repeated
from vae_lightning.metrics import Evaluation, RolloutScores
from vae_lightning.models import VAE, Rollout
from vae_lightning.networks import MLP
from vae_lightning.pictures import NoPictureError, error_chart, rollouts
from vae_lightning.pictures.rollouts import _drawn, _linear, _with_crosses
from vae_lightning.storage.loader import first_sequences

DATA = Billiards(num_sequences=(3, 3, 9), sequence_length=14, num_frames=4, image_size=16)


class Drifting(VideoVAE):
    """Sees one object, the centre of all ink, and lets it go on; draws nothing, but for a sampled grey."""

    def __init__(self, x_shape: tuple[int, ...], num_frames: int, latent_size: int = 8, **kwargs: Any) -> None:
        super().__init__(x_shape, num_frames, latent_size, **kwargs)
        self.likelihood = Repeated(x_shape[1:], DiagonalNormal)
        self.asked: list[tuple[int, int, bool]] = []
        self.decoder = MLP((latent_size,), self.likelihood.param_shape, (64,))

    def predict_frames(self, x_seen: Tensor, horizon: int, sampled: bool = False) -> Rollout:
        self.asked.append((x_seen.shape[1], horizon, sampled))
        across = torch.linspace(-1, 1, x_seen.shape[-1])
        ink = x_seen[:, :, 0] / x_seen[:, :, 0].sum((2, 3), keepdim=True)
        centre = torch.stack(((ink.sum(2) * across).sum(-1), (ink.sum(3) * across).sum(-1)), -1)[:, :, None]
        steps = torch.arange(1, horizon + 1)[:, None, None]
        after = centre[:, -1:] + steps * (centre[:, -1:] - centre[:, -2:-1])
        level = torch.rand(()) if sampled else torch.zeros(())
        return Rollout(centre, after, level.expand(len(x_seen), horizon, *x_seen.shape[2:]))


def model() -> Drifting:
    torch.manual_seed(0)
    return Drifting((-1, 1, 16, 16), 4)


def test_the_strip_and_the_moving_picture() -> None:
    batch = first_sequences(DATA.val_dataloader(), 2)
    assert batch["x"].shape == (2, 14, 1, 16, 16)
    video, state = model(), torch.get_rng_state()
    pictures = [rollouts(video, DATA, batch, seed, "roll-outs") for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert video.asked == [(8, 6, False), (8, 6, True)] * 3
    assert [None if one.frames is None else len(one.frames) for one in pictures] == [14] * 3
    first, again, other = (torch.zeros(0) if one.still is None else one.still for one in pictures)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_frames_that_were_seen_have_a_grey_border() -> None:
    x = torch.zeros(1, 6, 1, 20, 40)
    drawn = _drawn(None, x, x, None, 4)
    assert drawn.shape == (1, 6, 3, 40 + 8, 80 + 8)
    corner = drawn[0, :, 0, 1, 1]
    assert corner.tolist() == pytest.approx([0.55] * 4 + [1.0] * 2)
    assert not drawn[:, :, :, 4:-4, 4:-4].any()


def test_a_cross_is_at_the_place_of_its_object() -> None:
    """x to the right and y down, as in the data: the cross of a ball lies at the ball's centre of ink."""
    fields = DATA.sequences("val")
    x, places = fields["x"].float() / 255, fields["positions"]
    crossed = _with_crosses(torch.zeros(3, 14, 3, 160, 160), places[:, :, :1])
    ink = (crossed.sum(2) > 0).double()
    along = torch.arange(160).double() + 0.5
    for axis, others in ((0, 2), (1, 3)):
        centre = (ink.sum(others) * along).sum(-1) / ink.sum((2, 3))
        torch.testing.assert_close(centre / 80 - 1, places[:, :, 0, axis].double(), atol=0.01, rtol=0)
    at_ball = x.flatten(0, 1)[torch.arange(42), 0, *((places[:, :, 0].flip(-1).flatten(0, 1) + 1) * 8).long().T]
    assert at_ball.min() > 0.9
    assert not _with_crosses(torch.zeros(1, 1, 3, 80, 80), torch.full((1, 1, 1, 2), 1.5)).any()


def test_the_linear_prediction_goes_on_as_the_last_two_frames_seen() -> None:
    places = torch.tensor([[0.0, 0.0], [0.1, -0.2], [9.0, 9.0], [9.0, 9.0], [9.0, 9.0]])[None, :, None]
    wanted = torch.tensor([[0.0, 0.0], [0.1, -0.2], [0.2, -0.4], [0.3, -0.6], [0.4, -0.8]])[None, :, None]
    torch.testing.assert_close(_linear(places, 2), wanted)


def test_what_cannot_be_drawn_is_said() -> None:
    x = torch.rand(2, 5, 1, 8, 8)
    with pytest.raises(NoPictureError, match="VAE has no predict_frames"):
        rollouts(VAE((5, 1, 8, 8), 2), None, {"x": x}, 0, "title")
    with pytest.raises(NoPictureError, match=r"x of shape \[1, 1, 16, 16\] has no picture"):
        rollouts(model(), None, {"x": torch.rand(2, 1, 1, 16, 16)}, 0, "title")
    assert rollouts(model(), None, {"x": torch.rand(2, 5, 1, 16, 16)}, 0, "title").still is not None


def test_the_chart_has_a_curve_for_each_prediction() -> None:
    chart = error_chart({"mean": [0.1, 0.2], "linear": [0.2, 0.4]}, "errors")
    assert all(text in chart for text in ("<title>mean</title>", "<title>linear</title>", "predicted frame", "errors"))


def test_a_run_draws_roll_outs_of_whole_clips(tmp_path: Path) -> None:
    """Of validation in training and of test after it, with the curve of the errors."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [Pictures(1, num_images=2), Evaluation([RolloutScores(long_horizon=0)])]
    trainer = pl.Trainer(
        default_root_dir=tmp_path, max_epochs=1, limit_train_batches=1, callbacks=callbacks, accelerator="cpu",
        enable_checkpointing=False, **quiet,
    )  # fmt: skip
    video = model()
    trainer.fit(video, DATA)
    trainer.test(video, DATA, verbose=False)
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert {"rollouts-0001.png", "rollouts-0001.gif", "rollouts_test.png", "rollouts_test.gif"} <= names
    assert "<title>simulator</title>" in (tmp_path / "images" / "rollout_errors.svg").read_text()
