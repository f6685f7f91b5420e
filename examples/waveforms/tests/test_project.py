"""Tests of the project: `make test`."""

from __future__ import annotations

import math
import os
import unittest
from pathlib import Path

import torch
from waveforms.data import STEPS, DampedWaves
from waveforms.model import WaveVAE

from vae_lightning.__main__ import main


class TestData(unittest.TestCase):
    """The signals."""

    def test_the_frequency_is_that_of_the_signal(self) -> None:
        """In one second, the largest term of the Fourier series is the one nearest to the frequency."""
        fields = DampedWaves(num_signals=500).load("train").fields
        found = torch.fft.rfft(fields["x"]).abs().argmax(-1)
        assert float(((found - fields["frequency"]).abs() < 1).float().mean()) > 0.95

    def test_a_curve_is_drawn_at_its_height(self) -> None:
        flat = torch.tensor([[1.5] * STEPS, [0.0] * STEPS, [-1.5] * STEPS])
        rows = DampedWaves().show(flat).squeeze(1).mean(-1).argmax(-1)
        assert rows.tolist() in ([0, 15, 31], [0, 16, 31])


class TestModel(unittest.TestCase):
    """Laws of the model."""

    def test_the_bound_is_below_the_likelihood(self) -> None:
        """With a linear decoder p(x) is a Gaussian, which the ELBO must stay below, and importance samples approach."""
        torch.manual_seed(0)
        model = WaveVAE((8,), latent_size=2)
        model.decoder = torch.nn.Linear(2, 8)
        x = torch.randn(16, 8)
        with torch.no_grad():
            sigma = model.decode({"z": torch.zeros(2)}).stddev[0]
            weight, bias = model.decoder.weight, model.decoder.bias
            covariance = weight @ weight.T + sigma**2 * torch.eye(8)
            exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
            log_weight = model.trace({"x": x}, num_samples=5000).log_weight()
        estimate = torch.logsumexp(log_weight, 0) - math.log(5000)
        assert bool((log_weight.mean(0) < exact).all())
        assert float((estimate - exact).abs().max()) < 0.3


class TestConfig(unittest.TestCase):
    """The config, as `make train` uses it."""

    def test_it_takes_a_step(self) -> None:
        os.chdir(Path(__file__).parents[1])
        flags = ["--trainer.fast_dev_run=true", "--trainer.logger=false"]
        assert main(["train", "-c", "configs/waveforms.yaml", *flags]) == 0


if __name__ == "__main__":
    unittest.main()
