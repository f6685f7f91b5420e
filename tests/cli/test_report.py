"""The last lines of a run, also for a model without the slots of the shipped models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers import EPOCHS, REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.distributions import Laplace
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.trace import Trace
from vae_lightning.types import Shape


class Fixed(VAE):
    """A VAE with a fixed likelihood, which is no argument."""

    def __init__(self, image_shape: Shape) -> None:
        tiny = partial(MLP, hidden_sizes=(8,))
        super().__init__(image_shape, 2, encoder=tiny, decoder=tiny, likelihood=Laplace)

    @staticmethod
    def _scalars(trace: Trace) -> dict[str, Tensor]:
        return {**VAE._scalars(trace), "sigma_edge": torch.tensor(0.25)}


@pytest.mark.parametrize("verb", ["train", "fit"])
def test_the_likelihood_is_that_of_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = tmp_path / "fixed.yaml"
    config.write_text("model: {class_path: tests.cli.test_report.Fixed}\ndata: {class_path: Digits}\n")
    quick = ("--trainer.max_epochs=1", "--trainer.logger=false", f"--runs_dir={tmp_path}")
    assert main([verb, "-c", str(config), *EPOCHS, *quick]) == 0
    given = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("given "))
    assert "given       likelihood Laplace, objective ELBO with K = 1" in given
    assert "sigma_edge 0.25, Digits" in given
