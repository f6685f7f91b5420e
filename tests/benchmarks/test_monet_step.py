"""A step of MONet beside a plain loop: both have one loss, and the command writes their times."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.monet_step import BETA, GAMMA, from_config, loss_of, main
from vae_lightning.models import MONet
from vae_lightning.networks import MLP, SpatialBroadcast, UNet
from vae_lightning.objectives import ELBO


def test_the_plain_loop_has_the_loss_of_the_model() -> None:
    torch.manual_seed(0)
    networks = {
        "attention": partial(UNet, channels=(4, 4), hidden_size=8),
        "encoder": partial(MLP, hidden_sizes=(8,)),
        "decoder": partial(SpatialBroadcast, channels=(8, 4)),
    }
    model, x = MONet((3, 8, 8), 3, 4, **networks).double(), torch.rand(5, 3, 8, 8).double()
    objective = ELBO(beta=BETA, costs={"attention": 1.0, "mask": GAMMA})
    torch.manual_seed(1)
    ours = objective(model.trace({"x": x}, 1, 0), 0)["loss"].mean()
    torch.manual_seed(1)
    torch.testing.assert_close(loss_of(model, x), ours)


def test_the_weights_of_the_loop_are_those_of_the_config() -> None:
    model, data = from_config(16)
    assert isinstance(model.objective, ELBO)
    costs = {name: weight(0) for name, weight in model.objective.costs.items()}
    assert (model.objective.beta(0), costs) == (BETA, {"attention": 1.0, "mask": GAMMA})
    assert data.image_shape == model.image_shape


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_both_times(tmp_path: Path) -> None:
    assert main(["--rounds=1", "--steps=8", f"--out={tmp_path}"]) in (0, 1)
    results = json.loads((tmp_path / "monet_step.json").read_text())
    assert results["ratio"] == pytest.approx(results["step_ms"]["ours"] / results["step_ms"]["plain"])
