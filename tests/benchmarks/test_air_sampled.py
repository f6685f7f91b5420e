"""AIR with a sampled count: its gradient against the enumerated one, and its command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.air_sampled import WHAT, SampledCount, canvases, main
from vae_lightning.data import MultiDigits
from vae_lightning.data.base import SPLITS
from vae_lightning.data.module import Split
from vae_lightning.distributions import Family
from vae_lightning.models import AIR, DecayingCount
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO

SEED = 3  # of where and what: the same in every pass


@pytest.fixture(scope="module")
def tiny() -> SampledCount:
    """A model in float64 of 6 x 6 pixels, away from its start, and a baseline that is far off."""
    torch.manual_seed(0)
    affine = partial(MLP, hidden_sizes=())
    networks = {"embed": affine, "encoder": affine, "decoder": affine}
    model = AIR((1, 6, 6), 2, 3, 2, 4, floor=0.0, count_prior=partial(DecayingCount, rho=0.5), **networks)
    sampled = SampledCount(model).double()
    with torch.no_grad():
        for parameter in sampled.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return sampled.eval()  # in training each pass moves the baseline's centre


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(1, 1, 6, 6, dtype=torch.float64)


def gradient(sampled: SampledCount, loss: Tensor) -> Tensor:
    parameters = list(sampled.model.parameters())
    gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([one.flatten() for one in gradients])


def enumerated(sampled: SampledCount, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of -ELBO with the count summed over, and q(n|z) [N + 1] of the same where and what."""
    torch.manual_seed(SEED)
    trace = sampled.model.trace({"x": x})
    assert trace.log_shares is not None
    return gradient(sampled, ELBO()(trace, 0)["loss"]), trace.log_shares[:, 0].detach().exp()


def of_count(sampled: SampledCount, x: Tensor, n: int) -> Tensor:
    torch.manual_seed(SEED)
    return gradient(sampled, sampled.losses(x, torch.tensor([n]))[0])


def test_the_expectation_of_the_score_functions_gradient_is_the_enumerated_gradient(
    tiny: SampledCount, x: Tensor
) -> None:
    """Exactly: by the sum over the counts for one where and what, whatever the baseline says."""
    expected, q_n = enumerated(tiny, x)
    assert q_n.min() > 0.02
    by_count = torch.stack([of_count(tiny, x, n) for n in range(3)])
    assert (by_count[0] - by_count[1]).abs().max() > 1.0  # a single count's gradient is another one
    assert torch.allclose(q_n @ by_count, expected, rtol=1e-9, atol=1e-9)


def test_with_drawn_counts_the_mean_gradient_is_the_enumerated_one(tiny: SampledCount, x: Tensor) -> None:
    """Within 4.5 standard errors for every weight, over 200 x 100 draws of count, where and what."""
    torch.manual_seed(1)
    many = x.expand(100, -1, -1, -1)
    sampled = torch.stack([gradient(tiny, tiny.losses(many)[0]) for _ in range(200)])
    exact = torch.stack([gradient(tiny, ELBO()(tiny.model.trace({"x": many}), 0)["loss"]) for _ in range(200)])
    error = ((sampled.var(0) + exact.var(0)) / 200).sqrt()
    assert ((sampled.mean(0) - exact.mean(0)).abs() <= 4.5 * error + 1e-9).all()
    assert sampled.std(0).sum() > 1.2 * exact.std(0).sum()  # the counts were drawn


def test_the_baseline_learns_the_signal_and_trains_nothing_else(tiny: SampledCount, x: Tensor) -> None:
    of_baseline = tiny.losses(x, torch.tensor([1]))[1].sum()
    of_network, *rest = torch.autograd.grad(
        of_baseline, [next(tiny.baseline.parameters()), *tiny.model.parameters()], allow_unused=True
    )
    assert of_network.abs().sum() > 0
    assert all(one is None for one in rest)


def test_two_steps_of_each_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def few(data: MultiDigits, split: Split) -> dict[str, Tensor]:
        data.num_images = dict.fromkeys(SPLITS, 128)
        return canvases(data, split)

    monkeypatch.setattr("benchmarks.air_sampled.canvases", few)
    monkeypatch.setattr(Family, "validate_args", Family.validate_args)  # main switches it off
    assert main(["--seeds", "0", "--steps", "2", "--every", "1", "--rho", "0.5", f"--out={tmp_path}"]) == 0
    results = json.loads((tmp_path / "air_sampled.json").read_text())
    assert [one["contender"] for one in results["runs"]] == list(WHAT)
    for one in results["runs"]:
        assert [check["step"] for check in one["checks"]] == [1, 2]
        for check in one["checks"]:
            confusion = torch.tensor(check["confusion"])
            assert confusion.sum() == 128
            assert check["count_accuracy"] == confusion.diagonal().sum() / 128
    page = (tmp_path / "air_sampled.md").read_text()
    assert all(f"| {name} | 0 |" in page for name in WHAT)
    assert "but for p(n), proportional to 0.5^n" in page
    assert "enumerated_floor | 0 | " in capsys.readouterr().out
