"""The measurements of the collapse report and the choice of its images. `test_verdict.py` tests its conclusions."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal
from torch.utils.data import DataLoader

from tests.models.linear_gaussian import IMAGE_SHAPE, linear_gaussian, set_exact_posterior
from vae_lightning.__main__ import main
from vae_lightning.data import Digits, ImageDataModule, Images
from vae_lightning.distributions import Binomial, Given
from vae_lightning.metrics import CollapseReport, SpreadRows, collapse
from vae_lightning.metrics.collapse import measure, use_of_latents
from vae_lightning.models import VAE
from vae_lightning.objectives import ELBO
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch, UserError

X = torch.randn(40, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def healthy() -> VAE:
    """The exact posterior of a decoder that reads both of its dimensions."""
    model = linear_gaussian(ELBO)
    with torch.no_grad():
        last(model.decoder).weight.mul_(3)
    set_exact_posterior(model)
    return model


def last(network: nn.Module) -> nn.Linear:
    layer = list(network.modules())[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def deaf_decoder(model: VAE) -> None:
    last(model.decoder).weight.zero_()


def test_a_decoder_that_ignores_z_costs_exactly_nothing() -> None:
    """The same image has two equal distributions, so the difference is exactly 0, however unlike the images are."""
    model = healthy()
    with torch.no_grad():
        deaf_decoder(model)
    assert torch.equal(use_of_latents(model.trace({"x": 100 * X}))["swap_cost"], torch.zeros(40).double())


def test_the_swap_is_of_z_between_examples() -> None:
    """log p(x_b|z_b) - log p(x_b|z_(b-1)) equals the result of running the decoder on the neighbour's z."""
    model = healthy()
    trace = model.trace({"x": X}, 3)
    swapped = model.likelihood(model.decoder(trace.latents["z"].z.roll(1, 1))).log_prob(X)
    expected = (trace.log_likelihood() - swapped).mean(0)
    torch.testing.assert_close(use_of_latents(trace)["swap_cost"], expected)


def silent_trainer(*callbacks: pl.Callback) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(accelerator="cpu", callbacks=list(callbacks), enable_checkpointing=False, **quiet)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")  # Lightning's, of loaders without workers
def test_a_latent_of_one_number_has_one_dimension() -> None:
    """A count that is enumerated has the event shape [] and a KL [B]."""
    c = torch.arange(3)[:, None].expand(3, 5)  # [C, B]
    q, p = Categorical(logits=torch.randn(5, 3)), Categorical(logits=torch.zeros(3))
    p_x = Independent(Normal(torch.randn(3, 5, 2), 1.0), 1)
    latents = {"c": Latent(c, q, p, enumerated=True)}
    use = use_of_latents(Trace(torch.randn(5, 2), p_x, latents, log_shares=q.log_prob(c), num_values=3))
    assert use["kl_by_dimension/c"].shape == (5, 1)
    torch.testing.assert_close(use["kl_by_dimension/c"][:, 0], use["kl/c"])


@pytest.mark.parametrize("sizes", [[16, 16, 8], [39, 1], [1] * 40])
def test_the_callback_counts_each_image_once_up_to_its_number(sizes: list[int]) -> None:
    """The count holds for all batch sizes, also for a batch of one image, which has no partner in its own batch."""
    model, batches = healthy().float(), DataLoader([{"x": part} for part in X.float().split(sizes)], batch_size=None)  # type: ignore[arg-type]
    for asked, counted in ((20, 20), (1000, 40)):
        report = CollapseReport(num_images=asked)
        trainer = silent_trainer(report)
        trainer.test(model, batches, verbose=False)
        assert len(report._use["swap_cost"]) == counted
        assert report.findings == []
        found = {name: value.item() for name, value in trainer.callback_metrics.items()}
        assert found["test/swap_cost"] > 1
        assert found["test/dead_dimensions/z"] == 0
        cost = report._use["swap_cost"]
        assert found["test/swap_cost_stderr"] == pytest.approx(cost.std().item() / counted**0.5, rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.parametrize(("asked", "images"), [(0, X), (1, X), (1000, X[:1])])
def test_without_a_pair_there_is_no_report(asked: int, images: Tensor) -> None:
    report = CollapseReport(num_images=asked)
    trainer = silent_trainer(report)
    trainer.test(healthy().float(), DataLoader([{"x": images.float()}], batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert "test/swap_cost" not in trainer.callback_metrics
    assert report.verdict is None
    assert report.findings == []


class Failing(VAE):
    """Its trace fails outside the steps of the trainer, as one that needs what rows do not have."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        if len(batch["x"]) == 40:
            raise RuntimeError("out of memory:\nof the user's own")
        return super().trace(batch, num_samples)


@pytest.mark.filterwarnings("ignore")  # as above
def test_an_exception_ends_no_test(capsys: pytest.CaptureFixture[str]) -> None:
    """One line says why there is no report; what the test itself measures is there."""
    model, report = healthy().float(), CollapseReport()
    model.__class__ = Failing
    trainer = silent_trainer(report)
    trainer.test(model, DataLoader([{"x": part} for part in X.float().split(20)], batch_size=None), verbose=False)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert said.count("collapse: no report: RuntimeError: out of memory: of the user's own\n") == 1
    assert "test/elbo" in trainer.callback_metrics
    assert "test/swap_cost" not in trainer.callback_metrics
    assert report.verdict is None


@pytest.mark.filterwarnings("ignore")  # as above
def test_a_batch_that_cannot_be_kept_ends_no_test(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of two lengths cannot be joined, and a text has no device."""
    for batches in ([{"x": X[:20].float(), "name": ["a"] * 20}], [{"x": X.float(), "more": torch.ones(3)}]):
        report = CollapseReport()
        trainer = silent_trainer(report)
        trainer.test(healthy().float(), DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
        assert capsys.readouterr().out.count("collapse: no report: ") == 1
        assert "test/elbo" in trainer.callback_metrics


@pytest.mark.filterwarnings("ignore")  # as above
def test_the_failure_of_another_rank_is_that_of_every_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank that logged alone would wait for the others for ever."""
    asked: list[str | None] = []
    answers = iter([[None, None], [None, "RuntimeError: of rank 1"]])
    monkeypatch.setattr(collapse, "objects_from_all_ranks", lambda error: asked.append(error) or next(answers))
    report = CollapseReport()
    trainer = silent_trainer(report)
    trainer.test(healthy().float(), DataLoader([{"x": X.float()}], batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert asked == [None, None]
    assert "test/swap_cost" not in trainer.callback_metrics
    assert report.verdict is None
    assert "collapse: no report: RuntimeError: of rank 1\n" in capsys.readouterr().out


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(UserError, match="num_images is -1"):
        CollapseReport(num_images=-1)


# -- which images -----------------------------------------------------------------------------------------------------


class BlackAndWhite(ImageDataModule):
    """As many black images as white ones, sorted or not."""

    image_shape = (1, 4, 4)

    def __init__(self, is_sorted: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_sorted = is_sorted

    def load(self, split: Any) -> Images:
        white = torch.arange(1200) >= 600 if self.is_sorted else torch.arange(1200) % 2 == 1
        return Images(white.to(torch.uint8)[:, None, None, None].expand(-1, *self.image_shape).clone(), None, 1)


class Brightness(VAE):
    """q(z|x) = N(mean pixel, 0.1^2), p(x|z) = N(z, 1) in each pixel: only a swap of black and white costs anything."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x = batch["x"]
        q = Independent(Normal(x.flatten(1).mean(1, keepdim=True), 0.1), 1)
        z = q.sample((num_samples,))  # [K, B, 1]
        p_x = Independent(Normal(z[..., None, None].expand(num_samples, *x.shape), 1.0), 3)
        return Trace(x, p_x, {"z": Latent(z, q, self.prior())})


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("eval_batch_size", [30, 500])
def test_a_sorted_test_set_costs_what_a_shuffled_one_costs(is_sorted: bool, eval_batch_size: int) -> None:
    """Every second pair swaps black and white: 1/2 nat in each of 16 pixels, 4 nats on average.

    The first 200 images of a sorted set would give 0, and neighbours in the alternating set would give 8.
    """
    data = BlackAndWhite(is_sorted, eval_batch_size=eval_batch_size)
    report = CollapseReport(num_images=200)
    trainer = silent_trainer(report)
    trainer.test(Brightness(data.image_shape, 1), datamodule=data, verbose=False)
    found = trainer.callback_metrics
    assert found["test/swap_cost"].item() == pytest.approx(4, abs=3 * found["test/swap_cost_stderr"].item())
    assert found["test/swap_cost_stderr"].item() < 0.4
    assert report._use["mean/z"].mean().item() == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("num_images", [100, 1000])
def test_the_batch_size_changes_nothing(num_images: int) -> None:
    """The images, pairs and noise are the same, so the numbers are equal, also for 100 of the 355 images."""
    found = []
    for size in (20, 44):
        data = Digits(eval_batch_size=size)
        torch.manual_seed(0)
        model = VAE(data.image_shape, 3, likelihood=partial(Binomial, num_steps=16))
        trainer = silent_trainer(CollapseReport(num_images))
        trainer.test(model, datamodule=data, verbose=False)
        found.append({name: value.item() for name, value in trainer.callback_metrics.items() if "swap" in name})
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-6)
    assert found[0].keys() == {"test/swap_cost", "test/swap_cost_stderr"}


@pytest.mark.parametrize("count", [2, 100, 101, 201])
def test_no_image_is_swapped_with_itself(count: int) -> None:
    """Parts of about a hundred images are measured at once; a part of one image would have a cost of 0."""
    x = torch.randn(count, *IMAGE_SHAPE, dtype=torch.float64)
    assert (measure(healthy(), {"x": x})["swap_cost"] != 0).all()


def test_rows_are_spread_and_shuffled() -> None:
    """Of 500 rows out of 5,000, each tenth of the set gives a tenth, in random order, for all batch sizes."""
    whole, cut = SpreadRows(500), SpreadRows(500)
    whole.add({"x": torch.arange(5000)}, 0)
    for part in torch.arange(5000).split(700):
        cut.add({"x": part}, int(part[0]))
    x = whole.from_all_ranks()["x"]
    assert torch.equal(x, cut.from_all_ranks()["x"])
    assert len(x.unique()) == 500
    assert torch.bincount(x // 500, minlength=10).sub(50).abs().max() < 4 * 50**0.5
    correlation = torch.corrcoef(torch.stack([x[1:], x[:-1]]).double())[0, 1].item()
    assert abs(correlation) < 0.2


# -- by the command line ----------------------------------------------------------------------------------------------

SHORT = ("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--nll.num_samples=2")
QUIET = ("--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")


@pytest.mark.filterwarnings("ignore")  # as on the command line
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.objective.beta=1000"], "z is not used: KL 0"),
        ([], "z is not used: it carries almost no information about the image (mutual information 0.0"),
        (
            ["--model.objective=FreeBits"],
            "z is not used: it carries almost no information about the image (mutual information 0.0",
        ),
    ],
)
def test_a_run_ends_with_it(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last lines report a q(z|x) collapsed by a huge beta, and a z with a KL but no information after one epoch."""
    monkeypatch.chdir(Path(__file__).parents[2])
    args = ["train", "-c", "configs/vae/digits.yaml", f"--runs_dir={tmp_path}", *SHORT, *QUIET, *flags]
    assert main(args) == 0
    (results,) = tmp_path.rglob("results.json")
    found = json.loads(results.read_text())
    assert found["collapse"][0].startswith(message)
    if "KL 0" not in message:
        assert f"(mutual information {found['metrics']['test/mutual_information/z']:.3f} +- " in found["collapse"][0]
    shown = capsys.readouterr().out
    assert f"latents     {found['collapse'][0]}\n" in shown
    assert "in use" not in shown


def test_a_model_that_is_given_pixels_is_asked_for_the_others_alone() -> None:
    """The known pixels of the neighbour's image have no density, so the cost stays finite."""
    x = (torch.rand(6, 1, 4, 4) < 0.5).float()
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[..., 1] = True
    p_x = Independent(Bernoulli(logits=torch.zeros(1, 6, 1, 4, 4)), 3)
    q = Independent(Normal(torch.zeros(6, 2), torch.ones(6, 2)), 1)
    latent = Latent(q.sample((1,)), q, Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
    cost = use_of_latents(Trace(x, Given(p_x, mask, x), {"z": latent}))["swap_cost"]
    torch.testing.assert_close(cost, torch.zeros(6))
