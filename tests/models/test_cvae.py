"""The conditional VAE: its conditions, their effect on the trace, and its special cases without z or without c."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from vae_lightning.callbacks import FastNetworks
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial, DiagonalNormal
from vae_lightning.metrics import log_marginal_likelihood
from vae_lightning.models import CVAE, VAE, ClassLabel, ImageColumns
from vae_lightning.models.loading import load_model
from vae_lightning.networks import MLP, ConvDecoder, ConvEncoder
from vae_lightning.pictures import reconstruction_grid
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

SHAPE = (1, 4, 5)
AFFINE = partial(MLP, hidden_sizes=())
COLUMNS = partial(ImageColumns, columns=(1, 2))
CONDITIONS: dict[str, Callable[..., ClassLabel | ImageColumns]] = {
    "label": partial(ClassLabel, num_classes=3),
    "columns": COLUMNS,
}
conditions = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)


def batch(count: int = 6, shape: tuple[int, ...] = SHAPE) -> Batch:
    return {"x": torch.rand(count, *shape).round(), "label": torch.arange(count) % 3}


def cvae(condition: Any = CONDITIONS["label"], latent_size: int = 4, **slots: Any) -> CVAE:
    tiny = partial(MLP, hidden_sizes=(16,))
    return CVAE(SHAPE, latent_size, condition, **{"encoder": tiny, "decoder": tiny, **slots})


@conditions
@pytest.mark.parametrize("prior_network", [None, AFFINE])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_trace_shapes(condition: Any, prior_network: Any, num_samples: int) -> None:
    """z [K, B, D], q [B], p(z) [] or p(z|c) [B], p(x|z, c) [K, B] over the whole image."""
    trace = cvae(condition, prior_network=prior_network).trace(batch(), num_samples)
    z = trace.latents["z"]
    assert z.z.shape == (num_samples, 6, 4)
    assert (z.q.batch_shape, z.q.event_shape) == ((6,), (4,))
    assert z.p.batch_shape == (() if prior_network is None else (6,))
    assert (trace.p_x.batch_shape, trace.p_x.event_shape) == ((num_samples, 6), SHAPE)
    assert trace.log_weight().shape == (num_samples, 6)
    assert z.kl_estimator == "closed form"
    assert (trace.kl()["z"] > 0).all()


@conditions
@pytest.mark.parametrize("latent_size", [0, 4])
def test_gradient_reaches_every_parameter(condition: Any, latent_size: int) -> None:
    """With and without z, every parameter has a gradient."""
    model = cvae(condition, latent_size, prior_network=AFFINE)
    model.objective(model.trace(batch()), 0)["loss"].mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_constant_condition_makes_it_a_vae() -> None:
    """With all labels 0, its terms are those of the VAE whose first layers add the part of c to their biases."""
    model = cvae(encoder=AFFINE, decoder=AFFINE, embedding=AFFINE).double()
    vae = VAE(SHAPE, 4, encoder=AFFINE, decoder=AFFINE).double()
    given = {"x": batch()["x"].double(), "label": torch.zeros(6, dtype=torch.long)}
    c = torch.eye(3, dtype=torch.float64)[0]
    with torch.no_grad():
        copy_affine(model.encoder.layers, vae.encoder.layers, slice(0, 20), model.embedding(c).flatten(), slice(20, 40))
        copy_affine(model.decoder.layers, vae.decoder.layers, slice(0, 4), c, slice(4, 7))
        found = []
        for one in (model, vae):
            torch.manual_seed(0)
            found.append(one.objective(one.trace(given, 3), 0))
    for name, term in found[1].items():
        torch.testing.assert_close(found[0][name], term)


def copy_affine(source: nn.Module, target: nn.Module, kept: slice, c: Tensor, absorbed: slice) -> None:
    """Copy y = W [u, c] + b as a map of u alone."""
    (a, b), (w, bias) = source.parameters(), target.parameters()
    w.copy_(a[:, kept])
    bias.copy_(b + a[:, absorbed] @ c)


@conditions
def test_without_z_the_bound_is_the_likelihood_itself(condition: Any) -> None:
    """With latent_size 0 the bound is log p(x|c) for every K, and there are no latents and no encoder."""
    model = cvae(condition, 0)
    given = batch()
    trace = model.trace(given, 3)
    assert dict(trace.latents) == {}
    assert trace.log_weight().shape == (3, 6)
    for num_samples in (1, 7):
        found = log_marginal_likelihood(model, given, num_samples)
        torch.testing.assert_close(found.float(), trace.log_likelihood()[0])
    assert not any("encoder" in name for name, _ in model.named_parameters())
    assert model.objective(trace, 0)["kl"].tolist() == [0] * 6


def test_the_label_decides_what_is_drawn() -> None:
    """Samples at one label share its decoder's bias. Without given labels the classes take turns, in order."""
    model = cvae(decoder=AFFINE)
    with torch.no_grad():
        weight, bias = model.decoder.layers[1].parameters()  # type: ignore[index, union-attr]
        weight.zero_()
        bias.zero_()
        weight[:, 4:] = 5 * torch.tensor([-1.0, 0.0, 1.0])
    assert model.sample(7).mean((1, 2, 3)).tolist() == pytest.approx([0.0067] * 3 + [0.5] * 2 + [0.9933] * 2, abs=1e-3)
    asked = model.sample(2, torch.eye(3)[[2, 0]])
    assert asked.mean((1, 2, 3)).tolist() == pytest.approx([0.9933, 0.0067], abs=1e-3)


@pytest.mark.parametrize("prior_network", [None, AFFINE])
def test_a_sample_is_of_a_draw_from_the_prior_at_its_condition(prior_network: Any) -> None:
    """A sample uses a draw of z and not its mean: over 4,000 samples, pixels that show z have the moments of p(z|c)."""
    model = cvae(decoder=AFFINE, prior_network=prior_network, likelihood=partial(DiagonalNormal, sigma=0.1))
    c = torch.eye(3)[[1]]
    with torch.no_grad():
        weight, bias = model.decoder.layers[1].parameters()  # type: ignore[index, union-attr]
        weight.zero_()
        bias.zero_()
        weight[:4, :4] = torch.eye(4)  # the first four pixels are z
        p_z = model._p_z(c)
        z = model.sample(4000, c.expand(4000, -1)).flatten(1)[:, :4]
    mean, variance = (value.expand(1, 4)[0] for value in (p_z.mean, p_z.variance))
    assert ((z.mean(0) - mean).abs() < 4.5 * (variance / 4000).sqrt()).all()
    torch.testing.assert_close(z.var(0), variance, rtol=0.12, atol=0)  # five standard errors


def test_given_columns_are_certain_and_the_rest_is_a_distribution() -> None:
    """p(x|z, c) sums to one over the images with the given column, and is zero for another column."""
    model = CVAE((1, 2, 3), 2, partial(ImageColumns, columns=(1,)), encoder=AFFINE, decoder=AFFINE)
    x = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]).view(1, 1, 2, 3)
    p_x = model.trace({"x": x}, 2).p_x  # [2, 1]
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).view(-1, 1, 1, 1, 2, 3)
    log_p = p_x.log_prob(every)  # [64, 2, 1]
    same = (every[..., 1] == x[..., 1]).flatten(1).all(1)
    torch.testing.assert_close(log_p[same].logsumexp(0), torch.zeros(2, 1))
    assert same.sum() == 16
    assert torch.isneginf(log_p[~same]).all()
    for image in (p_x.mean, p_x.sample(), p_x.sample((5,)), p_x.mode):
        assert torch.equal(image[..., 1], x[..., 1].expand(image.shape[:-1]))
    assert (p_x.variance[..., 1] == 0).all()
    assert p_x.expand((4, 2, 1)).log_prob(x).shape == (4, 2, 1)
    torch.testing.assert_close(p_x.entropy(), -(log_p[same].exp() * log_p[same]).sum(0))


def test_a_given_column_counts_nothing() -> None:
    """The log-likelihood is the sum over the other columns, also for a density."""
    likelihood = partial(DiagonalNormal, sigma=0.3)
    model = cvae(COLUMNS, likelihood=likelihood)
    x = torch.rand(6, *SHAPE)
    torch.manual_seed(0)
    trace = model.trace({"x": x})
    pixels = trace.p_x.base_dist.log_prob(x)[..., [0, 3, 4]]  # type: ignore[attr-defined]
    torch.testing.assert_close(trace.log_likelihood(), pixels.flatten(2).sum(-1))
    assert model._scalars(trace)["sigma"] == pytest.approx(0.3)  # the sigma of the Gaussian is still found


def test_a_reconstruction_shows_the_whole_image_with_its_column() -> None:
    model, given = cvae(COLUMNS), batch(3)
    mean = model.trace(given).p_x.mean[0]
    assert torch.equal(mean[..., 1:3], given["x"][..., 1:3])
    assert reconstruction_grid(model, given, seed=0).float().std() > 1


def test_convolutions_read_image_and_condition() -> None:
    model = cvae(encoder=partial(ConvEncoder, channels=(4,)), decoder=partial(ConvDecoder, channels=(4,)))
    assert model.trace(batch(), 2).log_weight().isfinite().all()


@pytest.mark.parametrize("latent_size", [0, 3])
@pytest.mark.parametrize("condition", [ClassLabel, partial(ImageColumns, columns=(3, 4))], ids=["label", "columns"])
def test_a_fit_remembers_examples_and_a_checkpoint_has_them(condition: Any, latent_size: int, tmp_path: Path) -> None:
    likelihood = partial(Binomial, num_steps=16)
    model = CVAE((1, 8, 8), latent_size, condition, likelihood=likelihood, prior_network=AFFINE)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    data = Digits()
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    examples = model.condition.examples
    if isinstance(model.condition, ImageColumns):
        pixels = data.images("train").pixels[..., [3, 4]] / 16
        assert all(any(torch.equal(one, other) for other in pixels) for one in examples)
    assert examples.flatten(1).unique(dim=0).shape[0] > 5
    for loaded in (CVAE.load_from_checkpoint(tmp_path / "a.ckpt"), load_model(tmp_path / "a.ckpt")):
        assert isinstance(loaded, CVAE)
        assert str(loaded) == str(model)
        assert torch.equal(loaded.condition.examples, examples)
        torch.manual_seed(0)
        samples = loaded.sample(12)
        torch.manual_seed(0)
        torch.testing.assert_close(samples, model.sample(12))


@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_the_examples_are_those_of_the_first_batch(steps_per_call: int, tmp_path: Path) -> None:
    """Later batches change nothing, so the pictures of a run show the same rows at each epoch."""
    seen: list[Tensor] = []

    class Spy(CVAE):
        def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
            seen.append(batch["x"][:10, ..., 3:4].clone())
            return super().trace(batch, num_samples)

    model = Spy((1, 8, 8), 2, partial(ImageColumns, columns=(3,)), likelihood=partial(Binomial, num_steps=16))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 0}
    callbacks = [FastNetworks(steps_per_call=steps_per_call)]
    checks = {"limit_val_batches": 0, "enable_checkpointing": False, "default_root_dir": tmp_path}
    pl.Trainer(accelerator="cpu", max_steps=4, callbacks=callbacks, **checks, **quiet).fit(model, datamodule=Digits())
    assert len(seen) == 4
    assert not torch.equal(seen[1], seen[0])
    assert torch.equal(model.condition.examples, seen[0])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: cvae(latent_size=-1), "latent_size is -1"),
        (lambda: cvae(partial(ClassLabel, num_classes=0)), "num_classes is 0"),
        (lambda: cvae(partial(ImageColumns, columns=(5,))), r"columns \[5\]: needs one or more of 0 .. 4"),
        (lambda: cvae(partial(ImageColumns, columns=(-1,))), "columns"),
        (lambda: cvae(partial(ImageColumns, columns=())), "columns"),
        (lambda: cvae(partial(ImageColumns, columns=(0, 1, 2, 3, 4))), "leave at least one to the model"),
        (lambda: cvae().trace({"x": batch()["x"]}), "one label for each image, found none"),
        (lambda: cvae().trace({**batch(), "label": torch.zeros(6, 40)}), r"found \[40\] numbers an image"),
        (lambda: cvae().trace({**batch(), "label": torch.full((6,), 3)}), "num_classes must be above it, and is 3"),
        (lambda: cvae().decode({"z": torch.zeros(1, 4)}), "CVAE has no decode"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        make()
    assert "\n" not in str(refusal.value)
