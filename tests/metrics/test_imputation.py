"""Imputation keeps observed pixels, and has the stated distribution on the linear-Gaussian model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.models.linear_gaussian import IMAGE_SHAPE, SIGMA, linear_gaussian, set_exact_posterior, weights
from vae_lightning.metrics import draw_missing, impute, missing_error
from vae_lightning.models import CVAE, DLGM, HVAE, VAE, BottomUp, ClassLabel, ImageColumns, LatentVariableModel
from vae_lightning.objectives import ELBO
from vae_lightning.types import UserError

SHAPE = (1, 4, 5)
MISSING = torch.tensor([True, False, True, True, False, False]).view(1, *IMAGE_SHAPE)
CHAINS = 4_000
MODELS: dict[str, LatentVariableModel] = {
    "VAE": VAE(SHAPE, 3),
    "DLGM": DLGM(SHAPE, (4, 3)),
    "ladder": HVAE(SHAPE, (4, 3)),
    "bottom-up": HVAE(SHAPE, (4, 3), BottomUp),
    "by class": CVAE(SHAPE, 3, ClassLabel),
    "by column": CVAE(SHAPE, 3, partial(ImageColumns, columns=(2,))),
}


def law_of_the_rest(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p(x_missing|x_observed) for x ~ N(b, W W^T + sigma^2 I)."""
    w, b = weights(model)
    covariance = w @ w.T + SIGMA**2 * torch.eye(len(b), dtype=torch.float64)
    m, o = MISSING.flatten(), ~MISSING.flatten()
    gain = covariance[m][:, o] @ covariance[o][:, o].inverse()
    return b[m] + gain @ (x.flatten()[o] - b[o]), covariance[m][:, m] - gain @ covariance[o][:, m]


def far_from_the_posterior() -> VAE:
    """A model whose q is wider than p(z|x) and has other means, so that the correction has an effect."""
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    encoder = list(model.encoder.modules())[-1]
    with torch.no_grad():
        encoder.bias += torch.tensor([0.3, -0.3, 0.6, 0.6], dtype=torch.float64)  # type: ignore[operator]
    return model


def standardised_distance(model: VAE, corrected: bool, num_steps: int) -> tuple[float, float]:
    """The largest deviations of mean and covariance of 4,000 chains' last draws, in standard errors."""
    torch.manual_seed(1)
    x = torch.randn(1, *IMAGE_SHAPE, dtype=torch.float64)
    mean, covariance = law_of_the_rest(model, x)
    torch.manual_seed(0)
    filled = impute(model, {"x": x.expand(CHAINS, *IMAGE_SHAPE)}, MISSING, num_steps, corrected)
    draws = filled.draw.flatten(1)[:, MISSING.flatten()]  # [CHAINS, 3]
    scale = torch.outer(covariance.diag(), covariance.diag()) + covariance**2
    off_mean = (draws.mean(0) - mean) / (covariance.diag() / CHAINS).sqrt()
    off_covariance = (draws.T.cov() - covariance) / (scale / CHAINS).sqrt()
    return off_mean.abs().max().item(), off_covariance.abs().max().item()


def test_the_corrected_chain_has_the_right_law_whatever_q_is() -> None:
    off_mean, off_covariance = standardised_distance(far_from_the_posterior(), corrected=True, num_steps=120)
    assert off_mean < 4
    assert off_covariance < 4


def test_the_plain_chain_is_off_where_q_is_off() -> None:
    """The negative control: the same model and number of steps, without rejections."""
    off_mean, _ = standardised_distance(far_from_the_posterior(), corrected=False, num_steps=120)
    assert off_mean > 50


@pytest.mark.parametrize("corrected", [False, True])
def test_both_chains_have_the_right_law_at_the_exact_posterior(corrected: bool) -> None:
    """At the exact posterior every proposal is accepted."""
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    assert max(standardised_distance(model, corrected, num_steps=40)) < 4
    filled = impute(model, {"x": torch.randn(50, *IMAGE_SHAPE, dtype=torch.float64)}, MISSING, 10, corrected)
    assert filled.acceptance == pytest.approx(1.0)


def test_the_acceptance_is_a_share() -> None:
    filled = impute(
        far_from_the_posterior(), {"x": torch.randn(200, *IMAGE_SHAPE).double()}, MISSING, 20, corrected=True
    )
    assert 0.05 < filled.acceptance < 0.95


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_steps", [1, 5])
def test_observed_pixels_stay_as_they_are(name: str, num_steps: int) -> None:
    """Observed pixels are unchanged for every model. Missing pixels are draws of 0 or 1, their means probabilities."""
    batch = {"x": torch.rand(6, *SHAPE).round(), "label": torch.arange(6)}
    missing = draw_missing(batch["x"], 0.6)
    missing[..., 2] = False  # what `by column` is given
    filled = impute(MODELS[name], batch, missing, num_steps)
    for image in (filled.draw, filled.mean):
        assert torch.equal(image[~missing], batch["x"][~missing])
    assert set(filled.draw.unique().tolist()) == {0.0, 1.0}
    chosen = filled.mean[missing]
    assert ((chosen >= 0) & (chosen <= 1)).all()
    assert len(chosen.unique()) > 2


@pytest.mark.parametrize("name", ["VAE", "DLGM", "by class"])
def test_a_model_with_decode_can_be_corrected(name: str) -> None:
    batch = {"x": torch.rand(6, *SHAPE).round(), "label": torch.arange(6) % 2}
    filled = impute(MODELS[name], batch, draw_missing(batch["x"], 0.6), 5, corrected=True)
    assert 0 < filled.acceptance <= 1


@pytest.mark.parametrize("name", ["VAE", "DLGM", "ladder"])
def test_decode_is_the_traces_own_likelihood(name: str) -> None:
    model = MODELS[name]
    trace = model.trace({"x": torch.rand(2, *SHAPE).round()}, 3)
    again = model.decode({key: latent.z for key, latent in trace.latents.items()})
    torch.testing.assert_close(again.log_prob(trace.x), trace.log_likelihood())


@pytest.mark.parametrize(
    ("name", "says"),
    [("ladder", "leave out --corrected"), ("bottom-up", "q of z2")],
)
def test_a_model_that_cannot_be_corrected_says_so(name: str, says: str) -> None:
    batch = {"x": torch.rand(2, *SHAPE).round(), "label": torch.arange(2)}
    with pytest.raises(UserError, match=says):
        impute(MODELS[name], batch, draw_missing(batch["x"], 0.5), 3, corrected=True)


def test_what_a_model_is_given_cannot_be_missing() -> None:
    with pytest.raises(UserError, match="conditioned on cannot be missing"):
        impute(MODELS["by column"], {"x": torch.zeros(2, *SHAPE)}, torch.ones(2, *SHAPE, dtype=torch.bool), 3)


def test_missing_error_is_over_the_missing_pixels() -> None:
    """Two of four pixels are missing, with errors of 0.5 and 0.1: (0.25 + 0.01) / 2. The others do not count."""
    x = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 1, 2, 2)
    guess = torch.tensor([0.5, 0.9, 0.7, 0.2]).view(1, 1, 2, 2)
    missing = torch.tensor([True, True, False, False]).view(1, 1, 2, 2)
    torch.testing.assert_close(missing_error(guess, x, missing), torch.tensor([0.13]))


def test_the_share_of_missing_pixels_is_the_one_asked_for() -> None:
    """A missing pixel is missing in all of its channels."""
    missing = draw_missing(torch.zeros(50, 3, 20, 20), 0.8)
    assert missing.shape == (50, 1, 20, 20)
    assert missing.double().mean().item() == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 1.5])
def test_an_impossible_share_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        draw_missing(torch.zeros(1, 1, 2, 2), fraction)


def test_no_step_is_refused() -> None:
    with pytest.raises(UserError, match="steps is 0"):
        impute(MODELS["VAE"], {"x": torch.zeros(1, *SHAPE)}, torch.ones(1, *SHAPE, dtype=torch.bool), 0)
