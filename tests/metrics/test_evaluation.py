"""The metrics beside the NLL: each agrees with a model whose answer is known, for all batches and ranks."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, StudentT, TransformedDistribution
from torch.distributions.transforms import SigmoidTransform

from tests.helpers import REPOSITORY, clean_environment
from tests.metrics.test_frechet import Fixed, InFirstPixels
from tests.models.linear_gaussian import IMAGE_SHAPE, exact_log_p, linear_gaussian, set_exact_posterior
from vae_lightning.data import Digits, ImageDataModule, ProceduralSprites
from vae_lightning.distributions import Binomial as Likelihood
from vae_lightning.distributions import FamilyPrior, MixtureOfNormals, PriorRecipe, RelaxedCategorical, VampPrior
from vae_lightning.metrics import (
    CollapseReport,
    Disentanglement,
    Evaluation,
    Evaluator,
    FoundAccuracy,
    Information,
    LatentUnits,
    RateDistortion,
    Reconstruction,
    SceneScores,
    SpreadRows,
)
from vae_lightning.metrics.likelihood import importance_estimate
from vae_lightning.models import VAE
from vae_lightning.objectives import ELBO
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import UserError

X = torch.randn(40, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MODEL = VAE((1, 8, 8), latent_size=2)
QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
}


def trace_of(q: Distribution, p: Distribution | None = None, num_samples: int = 1, x: Tensor | None = None) -> Trace:
    """A trace with one latent, z. Its x and p(x|z) are placeholders unless the test passes x."""
    z = q.sample((num_samples,))
    x = torch.zeros(z.shape[1], 1, 2, 2) if x is None else x
    p_x = Independent(Normal(torch.zeros(num_samples, *x.shape), 1.0), 3)
    return Trace(x, p_x, {"z": Latent(z, q, standard(z.shape[-1]) if p is None else p)})


def found(metric: Evaluator, *traces: Trace, data: ImageDataModule | None = None) -> dict[str, Any]:
    assert metric.why_not_applicable(traces[0], data) is None
    metric.begin(MODEL, data)
    for trace in traces:
        metric.update(trace, {"x": trace.x})
    return metric.compute()


def normal(mean: Tensor, scale: float = 1.0) -> Independent:
    """q(z|x), batch [B] or [K, B], event [D]."""
    return Independent(Normal(mean, scale), 1)


def standard(size: int) -> Independent:
    return normal(torch.zeros(size, dtype=torch.float64))


# -- the effective sample size ----------------------------------------------------------------------------------------


def test_every_sample_is_effective_at_the_exact_posterior() -> None:
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    effective = importance_estimate(model, {"x": X}, 30, chunk_size=7).effective_samples
    torch.testing.assert_close(effective, torch.full_like(effective, 30), rtol=1e-6, atol=0)


def test_effective_samples_are_those_of_the_weights() -> None:
    """The formula on the same noise gives the same result; weights of distant images do not underflow."""
    model = linear_gaussian(ELBO)
    for x in (X[:20], 100 * X[:20]):
        torch.manual_seed(5)
        streamed = importance_estimate(model, {"x": x}, 50, chunk_size=50).effective_samples
        torch.manual_seed(5)
        w = torch.softmax(model.trace({"x": x}, 50).log_weight(), 0)
        torch.testing.assert_close(streamed, 1 / w.square().sum(0))
        assert streamed.min() >= 1 - 1e-9
        assert streamed.max() <= 50 + 1e-9


# -- rate, distortion, units ------------------------------------------------------------------------------------------


def test_rate_and_distortion_at_the_exact_posterior() -> None:
    """At the exact posterior R + D = -log p(x) on average, within the standard error."""
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    numbers = found(RateDistortion(), *(model.trace({"x": x}, 200) for x in X.split([17, 23])))
    expected = -exact_log_p(model, X).mean().item()
    assert numbers["rate"] + numbers["distortion"] == pytest.approx(expected, abs=0.05)
    spread = model.trace({"x": X}).kl()["z"].std().item() / math.sqrt(len(X))
    assert numbers["rate_stderr"] == pytest.approx(spread, rel=1e-6)


def test_kl_of_each_dimension_adds_up_to_the_latents() -> None:
    q = normal(torch.randn(5, 3, dtype=torch.float64), 0.3)
    trace = trace_of(q, standard(3), num_samples=4)
    each = trace.kl_by_dimension()["z"]
    torch.testing.assert_close(each.sum(1), trace.latents["z"].kl())
    by_hand = 0.5 * (0.3**2 + q.mean**2 - 1) - math.log(0.3)
    torch.testing.assert_close(each, by_hand)


def test_kl_of_each_dimension_is_sampled_where_it_has_no_closed_form() -> None:
    heavy = Independent(StudentT(5.0, torch.zeros(3)), 1)
    trace = trace_of(normal(torch.zeros(2, 3)), heavy, num_samples=4)
    latent = trace.latents["z"]
    assert latent.kl_estimator == "sampled"
    torch.testing.assert_close(trace.kl_by_dimension()["z"].sum(1), latent.log_ratio().mean(0))


def test_a_density_that_does_not_factorise_has_no_kl_for_each_dimension() -> None:
    q = MultivariateNormal(torch.zeros(4, 2), torch.eye(2))
    assert "z" not in trace_of(q).kl_by_dimension()
    assert "kl_per_dimension/z" not in found(LatentUnits(), trace_of(q))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("prior", [MixtureOfNormals, partial(VampPrior, num_components=5)])
def test_a_prior_that_is_no_product_has_no_kl_for_each_dimension(prior: PriorRecipe) -> None:
    """The log of a mixture is not a sum over dimensions. Neither the trace nor the test has a KL by dimension.

    The latent is judged by its whole KL.
    """
    evaluation, collapse = Evaluation([LatentUnits()]), CollapseReport()
    torch.manual_seed(0)
    model = VAE((1, 8, 8), 3, prior=prior, likelihood=partial(Likelihood, num_steps=16))
    trace = model.trace({"x": torch.rand(4, 1, 8, 8).round()})
    assert isinstance(trace.latents["z"].q, Independent)
    assert trace.latents["z"].pointwise() is None
    assert trace.kl_by_dimension() == {}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[evaluation, collapse], **QUIET)  # type: ignore[arg-type]
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert evaluation.results()["details"].keys() == {"variance_of_means/z"}
    assert not any("dimension" in name for name in trainer.callback_metrics)
    assert "test/swap_cost" in trainer.callback_metrics
    assert collapse.verdict is not None
    assert not any("dead" in line for line in collapse.findings)


@pytest.mark.parametrize("sizes", [[600], [1, 250, 349]])
def test_active_units(sizes: list[int]) -> None:
    """The means have a variance of 1, slightly above 0.01, slightly below 0.01, and 0 around a large value."""
    means = torch.randn(600, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = (means - means.mean(0)) / means.std(0, unbiased=False)
    means = means * torch.tensor([1.0, 0.0101**0.5, 0.0099**0.5, 0.0]) + torch.tensor([0.0, 0.0, 0.0, 1e3])
    numbers = found(LatentUnits(), *(trace_of(normal(part, 0.5)) for part in means.split(sizes)))
    assert numbers["active_units/z"] == 2
    assert numbers["variance_of_means/z"] == pytest.approx([1, 0.0101, 0.0099, 0], abs=1e-8)


def test_a_relaxed_category_has_a_density_and_so_its_information() -> None:
    """40 images have two codes: log 2 nats. The missing closed-form mean does not matter for the information."""
    logits = 60 * torch.eye(2, dtype=torch.float64)[torch.arange(40) % 2]
    trace = trace_of(
        RelaxedCategorical((2,))(logits), FamilyPrior((2,), RelaxedCategorical)(), x=torch.zeros(40, 1, 2, 2)
    )
    assert found(Information(), trace)["mutual_information/z"] == pytest.approx(math.log(2), abs=1e-6)


def test_units_of_a_flow_are_counted_by_samples_without_bias() -> None:
    """If q has no mean, E_q[z] is estimated, and the noise of the estimate does not count as activity."""

    class NoMean(TransformedDistribution):
        arg_constraints = {}  # noqa: RUF012 - as torch has it

    means = torch.cat([torch.zeros(4000, 1), torch.randn(4000, 1)], 1)
    q = NoMean(normal(means, 1.0), [torch.distributions.transforms.AffineTransform(0.0, 2.0)])
    numbers = found(LatentUnits(), trace_of(q))
    assert numbers["variance_of_means/z"][0] == pytest.approx(0, abs=0.01)  # 4 / 64 = 0.06 with the noise
    assert numbers["variance_of_means/z"][1] == pytest.approx(4 * means[:, 1].var().item(), rel=0.02)
    assert numbers["active_units/z"] == 1


def test_a_latent_below_another_is_averaged_over_it() -> None:
    """q(z|x, z') has a mean for each sample of z'; the units belong to the average of these means."""
    x = torch.randn(2000, 1)
    above = torch.randn(8, 2000, 1)
    q = normal(torch.cat([x + above, above], -1), 0.1)
    numbers = found(LatentUnits(), Trace(torch.zeros(2000, 1, 2, 2), *parts(q)))
    assert numbers["active_units/z"] == 1
    assert numbers["variance_of_means/z"] == pytest.approx([x.var().item(), 0], abs=0.03)


def parts(q: Distribution) -> tuple[Distribution, dict[str, Latent]]:
    """p(x|z) and the latents of a trace whose q depends on an earlier sample: batch [K, B]."""
    p_x = Independent(Normal(torch.zeros(*q.batch_shape, 1, 2, 2), 1.0), 3)
    return p_x, {"z": Latent(q.sample(), q, standard(2))}


# -- information ------------------------------------------------------------------------------------------------------


def test_information_adds_up_to_the_rate_at_the_same_samples() -> None:
    trace = trace_of(normal(torch.randn(50, 2, dtype=torch.float64), 0.5), standard(2))
    numbers = found(Information(50), trace)
    rate = trace.latents["z"].log_ratio().mean().item()
    assert numbers["mutual_information/z"] + numbers["aggregate_gap/z"] == pytest.approx(rate, abs=1e-9)


def test_codes_far_apart_name_their_image() -> None:
    """I(x;z) = log N if no two posteriors overlap. If all are equal, I is 0 and the gap is the whole rate."""
    apart = found(Information(), trace_of(normal(1e3 * torch.arange(30.0)[:, None])))
    assert apart["mutual_information/z"] == pytest.approx(math.log(30), abs=1e-5)
    alike = found(Information(), trace_of(normal(torch.full((30, 1), 2.0))))
    assert alike["mutual_information/z"] == pytest.approx(0, abs=1e-6)
    assert alike["aggregate_gap/z"] == pytest.approx(2.0, abs=4 * alike["aggregate_gap/z_stderr"])
    assert alike["aggregate_gap/z_stderr"] == pytest.approx(2 / math.sqrt(30), rel=0.3)


def test_information_of_gaussians_is_known() -> None:
    """x ~ N(0, 1), z|x ~ N(x, s^2): I = 1/2 log(1 + 1/s^2), q(z) = N(0, 1 + s^2), and its KL to N(0, 1)."""
    means = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(4000) + 0.5) / 4000)[:, None].double()
    s = 0.8
    numbers = found(Information(4000), *(trace_of(normal(part, s)) for part in means.split(1500)))
    assert numbers["mutual_information/z"] == pytest.approx(0.5 * math.log(1 + s**-2), abs=0.03)
    assert numbers["aggregate_gap/z"] == pytest.approx(0.5 * (s**2 - math.log(1 + s**2)), abs=0.05)


@pytest.mark.parametrize(
    ("q", "said"),
    [
        (TransformedDistribution(normal(torch.zeros(2, 3)), SigmoidTransform()), "flow"),
        (Independent(Normal(torch.zeros(1, 2, 3), 1.0), 1), "another latent"),
    ],
)
def test_information_is_left_out_where_the_aggregate_cannot_be_had(q: Distribution, said: str) -> None:
    z = q.sample((1,)) if len(q.batch_shape) == 1 else q.sample()
    trace = Trace(torch.zeros(2, 1, 2, 2), normal(torch.zeros(1, 2, 3)), {"z": Latent(z, q, standard(3))})
    assert said in (Information().why_not_applicable(trace, None) or "")


# -- reconstructions --------------------------------------------------------------------------------------------------


def test_psnr_and_ssim_of_known_errors() -> None:
    """An error of 0.1 everywhere is 20 dB; SSIM is 1 for the image itself."""
    x = torch.rand(3, 1, 16, 16)
    mean = torch.stack([x[0], x[1] + 0.1, x[2] + 0.01])
    trace = Trace(x, Independent(Normal(mean[None], 1.0), 3), {})
    numbers = found(Reconstruction(), Trace(x[1:], Independent(Normal(mean[None, 1:], 1.0), 3), {}))
    assert numbers["mse"] == pytest.approx((0.1**2 + 0.01**2) / 2, rel=1e-4)
    assert numbers["psnr"] == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert numbers["psnr_stderr"] == pytest.approx(10, abs=1e-3)
    assert found(Reconstruction(), Trace(x[:1], Independent(Normal(mean[None, :1], 1.0), 3), {}))["ssim"] == 1
    assert found(Reconstruction(), trace)["ssim"] < 1


def test_small_images_have_no_ssim() -> None:
    x = torch.rand(3, 1, 10, 16)
    assert found(Reconstruction(), Trace(x, Independent(Normal(x[None] + 0.1, 1.0), 3), {})).keys() == {
        *("mse", "mse_stderr", "psnr", "psnr_stderr"),
    }


# -- disentanglement --------------------------------------------------------------------------------------------------


def test_the_sprites_own_factors_score_one(tmp_path: Path) -> None:
    """The codes are the factors of the data module's batches. MIG is below 1: 20 bins cannot distinguish 40 values."""
    data = ProceduralSprites(str(tmp_path), num_images=6000, eval_batch_size=170)
    data.prepare_data()
    metric = Disentanglement(num_trees=3)
    metric.begin(MODEL, data)
    for batch in data.test_dataloader():
        assert batch["label"].shape[1] == len(data.factors) == 5
        trace = trace_of(normal(batch["label"].double(), 1e-3), x=batch["x"])
        assert metric.why_not_applicable(trace, data) is None
        metric.update(trace, batch)
    scores = metric.compute()
    assert min(scores["sap"], scores["factor_vae_score"]) > 0.98
    assert min(scores["dci_disentanglement"], scores["dci_completeness"]) > 0.8
    assert scores["mig"] > 0.6  # 300 images: see the bias that its docstring states
    assert all(0 < scores[f"{name}_stderr"] < 0.1 or scores[name] == 1 for name in metric.units)  # type: ignore[operator]


# -- how they hang together -------------------------------------------------------------------------------------------


def run_test(evaluation: Evaluation, eval_batch_size: int = 500, latent_size: int = 3) -> dict[str, float]:
    data = Digits(eval_batch_size=eval_batch_size)
    torch.manual_seed(0)
    model = VAE(data.image_shape, latent_size, likelihood=partial(Likelihood, num_steps=16))
    trainer = pl.Trainer(accelerator="cpu", callbacks=[evaluation], **QUIET)  # type: ignore[arg-type]
    trainer.test(model, datamodule=data, verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_numbers_do_not_depend_on_the_batch_size() -> None:
    """Numbers without noise agree to rounding, the others within their standard error."""
    whole, cut = Evaluation(), Evaluation()
    a, b = run_test(whole), run_test(cut, eval_batch_size=100)
    assert a.keys() == b.keys()
    assert {"test/rate", "test/active_units/z", "test/psnr", "test/mutual_information/z"} <= a.keys()
    for name in ("test/rate", "test/rate_stderr", "test/active_units/z"):
        assert a[name] == pytest.approx(b[name], abs=1e-5)
    for name in ("kl_per_dimension/z", "variance_of_means/z"):
        assert whole.found[name] == pytest.approx(cut.found[name], abs=1e-6)
    for name in ("test/distortion", "test/psnr", "test/mutual_information/z", "test/aggregate_gap/z"):
        assert abs(a[name] - b[name]) < 4 * a[f"{name}_stderr"] + 1e-5
    assert a["test/rate"] == pytest.approx(a["test/kl"], abs=1e-4)
    assert a["test/rate"] == pytest.approx(sum(whole.found["kl_per_dimension/z"]), abs=1e-4)  # type: ignore[arg-type]
    assert "factors" in whole.left_out["Disentanglement"]
    assert whole.results()["units"]["psnr"] == "dB"


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_latent_of_one_dimension_has_lists_of_one_number() -> None:
    """The lists are in the details of results.json, as for larger latents, and not among the metrics."""
    evaluation = Evaluation([LatentUnits()])
    numbers = run_test(evaluation, latent_size=1)
    details = evaluation.results()["details"]
    assert details.keys() == {"variance_of_means/z", "kl_per_dimension/z", "kl_per_dimension_stderr/z"}
    assert [len(values) for values in details.values()] == [1, 1, 1]
    assert details["kl_per_dimension/z"] == pytest.approx([numbers["test/kl"]], rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("evaluation", [Evaluation([Disentanglement()]), Evaluation(also=[Disentanglement()])])
def test_what_is_asked_for_and_does_not_apply_is_refused(evaluation: Evaluation) -> None:
    with pytest.raises(UserError, match="Disentanglement does not apply: the factors of Digits are not known"):
        run_test(evaluation)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_errors_of_the_terms_are_those_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors are s / sqrt(N) of the terms of all images, and the means are the logged ones."""
    said: list[dict[str, Tensor]] = []
    step = VAE.test_step

    def spy(self: VAE, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        said.append(step(self, batch, batch_idx))
        return said[-1]

    monkeypatch.setattr(VAE, "test_step", spy)
    numbers = run_test(Evaluation(metrics=[]), eval_batch_size=100)
    assert len(said) > 2
    for name in ("elbo", "log_likelihood", "kl", "kl/z"):
        values = torch.cat([terms[name] for terms in said]).double()
        assert numbers[f"test/{name}"] == pytest.approx(values.mean().item(), rel=1e-5)
        assert numbers[f"test/{name}_stderr"] == pytest.approx(values.std().item() / math.sqrt(len(values)), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_no_metrics_are_none() -> None:
    evaluation = Evaluation(metrics=[])
    assert "test/rate" not in run_test(evaluation)
    assert evaluation.numbers == {}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="num_samples is 0"):
        Evaluation(num_samples=0)
    with pytest.raises(UserError, match="num_points is 1"):
        Information(num_points=1)


# -- ranks ------------------------------------------------------------------------------------------------------------

RANK_ONE = """
import sys, torch
from tests.metrics.test_evaluation import join, over_images
join(sys.argv[1], rank=1)
over_images(1, 2)
torch.distributed.destroy_process_group()  # else gloo's threads may still run when the interpreter ends, and abort it
"""


def join(store: str, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


class Still(VAE):
    """A model whose samples are all equal, so that the ranks' shares do not differ by noise."""

    def sample(self, n: int) -> Tensor:
        return torch.full((n, 1, 8, 8), 0.25)


def scene(generator: torch.Generator) -> dict[str, Tensor]:
    """Counts, boxes, probabilities and segments of 41 images of up to two objects."""
    count = torch.randint(0, 3, (41,), generator=generator)
    corner, size = (torch.randint(low, 7, (41, 2, 2), generator=generator) for low in (0, 4))
    boxes = torch.cat((corner, size), 2).where((torch.arange(2) < count[:, None])[..., None], -1).double()
    segments = torch.randint(0, 3, (41, 12, 12), generator=generator)
    return {"count": count, "boxes": boxes, "presence": boxes[..., 2] / 7, "segmentation": segments}


def over_images(rank: int, world_size: int) -> dict[str, Any]:
    """The results of every metric for this rank's share of 41 images in batches of 8, with fixed samples."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(41, 1, 12, 12, generator=generator, dtype=torch.float64)
    mean = torch.randn(41, 2, generator=generator, dtype=torch.float64)
    z = mean + 0.5 * torch.randn(1, 41, 2, generator=generator, dtype=torch.float64)
    factors = torch.stack([torch.arange(41) % 3, torch.arange(41) % 4], 1)
    guesses = torch.where(torch.rand(41, 2, generator=generator) < 0.3, 0, factors)
    scenes, found = scene(generator), scene(generator)
    metrics = [RateDistortion(), LatentUnits(), Information(20), Reconstruction(), Disentanglement(), FoundAccuracy()]
    metrics.append(SceneScores())
    for metric in metrics:
        metric.begin(MODEL, None)
    rows = SpreadRows(20)
    for index in torch.arange(41).split(8)[rank::world_size]:
        rows.add({"x": x[index], "label": factors[index]}, int(index[0]))
        p_x = Independent(Normal((0.9 * x[index] + 0.01 * z[:, index].sum(-1)[..., None, None, None]), 1.0), 3)
        latent = Latent(z[:, index], normal(mean[index], 0.5), standard(2))
        for metric in metrics:
            objects = {name: values[index] for name, values in found.items()}
            trace = Trace(x[index], p_x, {"z": latent}, found={"label": guesses[index], **objects})
            truth = {name: values[index] for name, values in scenes.items()}
            metric.update(trace, {"x": x[index], "label": factors[index], **truth})
    frechet = InFirstPixels()
    frechet.begin(Still((1, 8, 8), latent_size=2), Fixed((255 * x[:, :, :8, :8]).byte()))
    spread = {f"rows/{name}": values.flatten().tolist() for name, values in rows.from_all_ranks().items()}
    return {name: value for metric in [*metrics, frechet] for name, value in metric.compute().items()} | spread


def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    """Of 41 images one rank has batches of 8, 8 and 8, the other 8, 8 and 1. This process is rank 0."""
    one, store = over_images(0, 1), str(tmp_path / "store")
    env = {**clean_environment(), "PYTHONPATH": str(REPOSITORY)}
    other = subprocess.Popen([sys.executable, "-W", "ignore", "-c", RANK_ONE, store], env=env)
    join(store, rank=0)
    try:
        two = over_images(0, 2)
    finally:
        torch.distributed.destroy_process_group()
    assert other.wait(timeout=60) == 0
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert two[name] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-9)), name
