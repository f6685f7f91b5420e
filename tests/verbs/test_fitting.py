"""A prior fitted after training: the command, its file, its numbers, and one-line errors."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal

from tests.helpers import TrainedRun, read_picture, trained_run
from tests.models.linear_gaussian import linear_gaussian
from vae_lightning.__main__ import main
from vae_lightning.distributions import (
    Dirichlet,
    FamilyPrior,
    FlowPrior,
    Gamma,
    LearnedNormal,
    MixtureOfFullNormals,
    Prior,
    PriorRecipe,
    StandardNormal,
    UniformSphere,
    VonMisesFisher,
)
from vae_lightning.models import DLGM, VAE
from vae_lightning.models.loading import load_model
from vae_lightning.objectives import ELBO
from vae_lightning.types import UserError
from vae_lightning.verbs.fit_prior import Encoded, check_space, encode, fit_prior, report, save_prior, use_fitted_prior

CHECKPOINT = Path("checkpoints") / "best.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return trained_run(tmp_path_factory.getbasetemp() / "trained")


@pytest.fixture
def run(trained: TrainedRun, tmp_path: Path) -> Path:
    """A run's folder that a test may write to."""
    return trained.copy_to(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The single line of error that a command prints."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_fit_prior_and_sample_from_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-prior", str(run), "--prior=MixtureOfFullNormals", "--prior.num_components=3"]) == 0
    output = capsys.readouterr().out
    before_fit, fitted, before, after, gain = (float(n) for n in re.findall(r"(-?[\d.]+) \+-", output))
    assert fitted > before_fit  # for held-out latents
    assert gain == pytest.approx(fitted - before_fit, abs=0.02)
    assert after == pytest.approx(before + gain, abs=0.02)
    kept = torch.load(run / "checkpoints" / "best.prior.pt", weights_only=True)
    assert kept["prior"]["class_path"].endswith("MixtureOfFullNormals")
    assert kept["prior"]["init_args"]["num_components"] == 3
    for prior in ("fitted", "own"):
        picture = run / f"{prior}.png"
        assert main(["sample", str(run), f"--prior={prior}", "--num_images=10", f"--output={picture}"]) == 0
    assert (read_picture(run / "fitted.png") != read_picture(run / "own.png")).any()


def test_mistakes_on_the_command_line_are_one_line_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "fit-prior" in refusal(capsys, "sample", run, "--prior=fitted")  # the command that makes the file
    assert "no Prior" in refusal(capsys, "fit-prior", run, "--prior=Nope")
    assert "no parameter to fit" in refusal(capsys, "fit-prior", run, "--prior=StandardNormal")
    assert "VampPrior is made of a model's encoder" in refusal(capsys, "fit-prior", run, "--prior=VampPrior")
    assert "required: run" in refusal(capsys, "fit-prior")
    assert "no such checkpoint" in refusal(capsys, "fit-prior", run / "nothing.ckpt")
    assert not (run / "checkpoints" / "best.prior.pt").exists()
    (run / "config.yaml").unlink()
    assert "config.yaml" in refusal(capsys, "fit-prior", run)


def test_the_fitted_prior_replaces_the_models_own(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    """The prior read from the file has the same density, also for a recipe with settings."""
    monkeypatch.setattr(Prior, "fit_steps", 50)
    checkpoint, recipe = run / CHECKPOINT, partial(LearnedNormal, min_sigma=0.01)
    model = load_model(checkpoint)
    assert isinstance(model, VAE)
    shape = model.prior.event_shape
    prior = fit_prior(recipe, Encoded(2 + torch.randn(400, 1, *shape), torch.zeros(400, 1)))
    path = save_prior(prior, recipe, checkpoint)
    use_fitted_prior(model, checkpoint)
    z = torch.randn(5, *shape)
    assert torch.equal(model.prior().log_prob(z), prior().log_prob(z))
    assert [p.name for p in path.parent.glob("*part*")] == []


def test_an_unfit_file_is_refused(run: Path) -> None:
    checkpoint = run / CHECKPOINT
    model = load_model(checkpoint)
    path = save_prior(StandardNormal((3,)), StandardNormal, checkpoint)
    good = torch.load(path, weights_only=True)
    size = model.prior.event_shape[0]  # type: ignore[union-attr, index]

    def refusal_of(contents: object) -> str:
        torch.save(contents, path)
        with pytest.raises(UserError) as refused:
            use_fitted_prior(model, checkpoint)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert f"shape (3,); the model's have ({size},)" in refusal_of(good)
    fits = {**good, "event_shape": [size]}
    assert "an earlier best.ckpt" in refusal_of({**fits, "checkpoint": "0" * 64})
    assert "not of vae_lightning" in refusal_of({**fits, "prior": {"class_path": "os.path.join"}})
    assert "cannot be built" in refusal_of({**fits, "prior": {"class_path": "vae_lightning.models.VAE"}})
    assert "cannot be built" in refusal_of({**fits, "state_dict": {"mean": torch.zeros(1)}})
    assert "fit-prior has written" in refusal_of([1, 2])
    for lie in ({"event_shape": [torch.zeros(3)]}, {"event_shape": [float(size)]}, {"state_dict": {1: torch.zeros(1)}}):
        assert "fit-prior has written" in refusal_of({**fits, **lie})
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged"):
        use_fitted_prior(model, checkpoint)
    shutil.copy(checkpoint, path)
    with pytest.raises(UserError, match="fit-prior has written"):
        use_fitted_prior(model, checkpoint)


def test_the_aggregate_posterior_is_recovered_and_the_elbo_gains_what_the_density_does() -> None:
    """For latents from N(m, C) the fitted prior is N(m, C), and the ELBO gains KL(N(m, C) || N(0, I))."""
    model = linear_gaussian(ELBO)
    model.eval()
    encoded = encode(model, [{"x": torch.randn(8, 1, 2, 3).double()}], "the test", 3)
    assert encoded.z.shape == (8, 3, 2)
    assert encoded.elbo.shape == (8, 3)
    truth = MultivariateNormal(torch.tensor([1.0, -1.0]).double(), torch.tensor([[0.5, 0.3], [0.3, 0.4]]).double())
    train, held_out = (Encoded(truth.sample((n, 1)), torch.zeros(n, 1).double()) for n in (20_000, 20_000))
    prior = fit_prior(partial(MixtureOfFullNormals, num_components=1), train).double()
    expected = torch.distributions.kl_divergence(
        truth, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    )
    gain = re.search(r"a gain of (\S+)", report(model, prior, held_out))
    assert gain is not None
    assert float(gain[1]) == pytest.approx(expected.item(), abs=0.03)


def test_a_worse_prior_is_called_that() -> None:
    model = linear_gaussian(ELBO)
    bad = LearnedNormal((2,)).double()
    with torch.no_grad():
        bad.mean.fill_(3.0)
    z = torch.randn(100, 1, 2).double()
    assert "worse than the model's" in report(model, bad, Encoded(z, torch.zeros(100, 1).double()))


MAP_PRIORS = [partial(MixtureOfFullNormals, num_components=2), LearnedNormal, partial(FlowPrior, num_steps=1)]


@pytest.mark.parametrize("recipe", MAP_PRIORS)
def test_a_prior_is_fitted_to_latent_maps(monkeypatch: pytest.MonkeyPatch, recipe: PriorRecipe) -> None:
    """Latents from N(3, 1/4) are likelier under the fitted prior than under N(0, I), and samples are maps."""
    monkeypatch.setattr(Prior, "fit_steps", 100)
    model = VAE((1, 8, 8), (2, 3, 3))
    assert encode(model, [{"x": torch.zeros(4, 1, 8, 8)}], "the test").z.shape == (4, 1, 2, 3, 3)
    z = Encoded(3 + 0.5 * torch.randn(300, 1, 2, 3, 3), torch.zeros(300, 1))
    prior = fit_prior(recipe, z)
    gain = re.search(r"a gain of (\S+)", report(model, prior, z))
    assert gain is not None
    assert float(gain[1]) > 10
    assert prior().sample((5,)).shape == (5, 2, 3, 3)


SPACES: list[tuple[PriorRecipe, PriorRecipe, bool]] = [
    (StandardNormal, MixtureOfFullNormals, True),
    (partial(FamilyPrior, family=Gamma), MixtureOfFullNormals, True),
    (partial(FamilyPrior, family=Dirichlet), MixtureOfFullNormals, False),
    (partial(FamilyPrior, family=Dirichlet), FlowPrior, False),
    (partial(FamilyPrior, family=Dirichlet), partial(FamilyPrior, family=Dirichlet, learn=True), True),
    (UniformSphere, MixtureOfFullNormals, False),
    (UniformSphere, partial(FamilyPrior, family=VonMisesFisher, learn=True), True),
    (StandardNormal, partial(FamilyPrior, family=Gamma, learn=True), False),
]


@pytest.mark.parametrize(("model_prior", "fitted", "fits"), SPACES)
def test_a_prior_over_another_space_is_not_fitted(model_prior: PriorRecipe, fitted: PriorRecipe, fits: bool) -> None:
    """A mixture of Gaussians on a simplex has an unbounded density, so its gain is meaningless."""
    if fits:
        check_space(model_prior((4,)), fitted)
        return
    with pytest.raises(
        UserError, match=r"is not over the space of the model's latents.*--prior=FamilyPrior"
    ) as refused:
        check_space(model_prior((4,)), fitted)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("prior", "lines"), [(partial(FamilyPrior, family=Gamma), 3), (UniformSphere, 2)])
def test_the_standard_normal_is_compared_where_it_is_over_the_same_space(prior: PriorRecipe, lines: int) -> None:
    model = VAE((1, 2, 2), 4, prior=prior)
    z = model.prior().sample((50, 1))
    assert report(model, model.prior, Encoded(z, torch.zeros(50, 1))).count("validation") == lines


def test_an_empty_set_and_a_model_without_one_prior_are_refused() -> None:
    model = linear_gaussian(ELBO)
    with pytest.raises(UserError, match="the training set has no images"):
        encode(model, [], "the training set")
    with pytest.raises(UserError, match="DLGM: a prior can be fitted only to a model with one latent"):
        report(DLGM((1, 4, 4)), StandardNormal((2,)), Encoded(torch.zeros(1, 1, 2), torch.zeros(1, 1)))


def test_every_fittable_prior_is_stopped_by_held_out_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit on 40 latents in 8 dimensions keeps the state that is best on held-out latents, not the last."""
    monkeypatch.setattr(Prior, "fit_steps", 200)
    z, held_out = torch.randn(40, 8), torch.randn(2000, 8)
    prior = MixtureOfFullNormals((8,), 5)
    start = prior().log_prob(held_out).mean()
    seen: list[float] = []
    density = prior._mean_log_prob
    monkeypatch.setattr(prior, "_mean_log_prob", lambda rows: seen.append(density(rows)) or seen[-1])
    Prior.fit(prior, z, held_out)
    assert seen[-1] < max(seen)  # at the end the prior has overfitted the 40 latents
    assert density(held_out) == max(seen) > start
