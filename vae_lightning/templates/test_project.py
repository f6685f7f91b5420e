"""Tests of the project: `make test`."""

from __future__ import annotations

import os
import unittest
from itertools import combinations
from pathlib import Path

import torch

from vae_lightning.__main__ import main
from vae_lightning.models import VAE
from vae_lightning.objectives import IWAE
from vae_lightning.templates.data import Blobs
from vae_lightning.templates.model import MyVAE


class TestData(unittest.TestCase):
    """The splits."""

    def test_no_image_is_in_two_splits(self) -> None:
        data = Blobs(num_images=200)
        splits = [data.load(split).pixels.flatten(1) for split in ("train", "val", "test")]
        assert [len(split) for split in splits] == [200, 40, 40]
        images = [{tuple(image) for image in split.tolist()} for split in splits]
        for one, other in combinations(images, 2):
            assert not one & other


class TestModel(unittest.TestCase):
    """Laws of the model."""

    def setUp(self) -> None:  # noqa: N802 - unittest's name
        torch.manual_seed(0)
        self.model = MyVAE((1, 16, 16), latent_size=3, noise=0.5)
        self.batch = {"x": torch.rand(4, 1, 16, 16)}

    def test_evaluation_sees_no_noise(self) -> None:
        for step, same in ((None, True), (0, False)):
            torch.manual_seed(1)
            trace = self.model.trace(self.batch, step=step)
            torch.manual_seed(1)
            plain = VAE.trace(self.model, self.batch)
            assert torch.equal(trace.latents["z"].z, plain.latents["z"].z) is same

    def test_more_samples_give_a_tighter_bound(self) -> None:
        """The importance-weighted bound of 50 samples is above the mean of those of one sample."""
        trace = self.model.trace(self.batch, num_samples=50)
        bound = IWAE(num_samples=50)(trace, 0)["iwae"]
        assert bool((bound > trace.log_weight().mean(0)).all())


class TestConfig(unittest.TestCase):
    """The config, as `make train` uses it."""

    def test_it_takes_a_step(self) -> None:
        os.chdir(Path(__file__).parents[1])
        flags = ["--trainer.fast_dev_run=true", "--trainer.logger=false"]
        assert main(["train", "-c", "configs/first.yaml", *flags]) == 0


if __name__ == "__main__":
    unittest.main()
