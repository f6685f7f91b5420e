"""Laws of priors. To add a prior, add one row to PRIORS."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MixtureSameFamily, MultivariateNormal, Normal

from vae_lightning import distributions
from vae_lightning.distributions import (
    IAF,
    Beta,
    Categorical,
    DiagonalNormal,
    Dirichlet,
    Family,
    FamilyPrior,
    FamilyRecipe,
    FlowPrior,
    FullNormal,
    Gamma,
    Laplace,
    LearnedNormal,
    LinearIAF,
    LowRankNormal,
    MixtureOfFullNormals,
    MixtureOfNormals,
    Prior,
    RelaxedCategorical,
    StandardNormal,
    UniformSphere,
    VampPrior,
    VonMisesFisher,
    share_support,
)
from vae_lightning.models import VAE
from vae_lightning.models.loading import load_model
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO
from vae_lightning.trace import distribution_name
from vae_lightning.types import Shape, UserError

PRIORS: dict[str, Callable[[Shape], Prior]] = {
    "standard normal": StandardNormal,
    "family": partial(FamilyPrior, family=partial(Laplace, scale=1.0)),
    "family, learned": partial(FamilyPrior, family=DiagonalNormal, learn=True),
    "learned normal": LearnedNormal,
    "mixture": partial(MixtureOfNormals, num_components=4),
    "mixture, full covariance": partial(MixtureOfFullNormals, num_components=3),
    "VampPrior": partial(VampPrior, num_components=5, init_mean=0.5, init_sigma=0.3),
    "flow": partial(FlowPrior, num_steps=2, hidden_sizes=(8,)),
    "flow, autoregressive": partial(FlowPrior, num_steps=1, hidden_sizes=(8,), coupling=False),
}
ROWS = pytest.mark.parametrize("name", PRIORS)
IMAGE_SHAPE = (1, 4, 4)


def encoder(family: Family) -> Callable[[Tensor], Distribution]:
    """Return q(z|x) of an affine map, as a model passes it to its prior."""
    network = MLP(IMAGE_SHAPE, family.param_shape, hidden_sizes=())
    return lambda x: family(network.to(x.dtype)(x))


def make(name: str, event_shape: Shape) -> Prior:
    """Return a prior that is moved away from its start, and bound to a q(z|x)."""
    prior = PRIORS[name](event_shape)
    prior.bind(encoder(DiagonalNormal(event_shape)), IMAGE_SHAPE)
    with torch.no_grad():
        for weight in prior.double().parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return prior


def test_every_prior_has_a_row() -> None:
    """The uniform prior on the sphere has no density in R^D to integrate, so it has tests of its own."""
    exported = {cls for cls in vars(distributions).values() if isinstance(cls, type) and issubclass(cls, Prior)}
    assert exported - {Prior, UniformSphere} == {type(recipe((2,))) for recipe in PRIORS.values()}


@ROWS
@pytest.mark.parametrize("event_shape", [(3,), (2, 2, 2)])
def test_a_message_names_the_prior_that_was_chosen(name: str, event_shape: Shape) -> None:
    """A FamilyPrior is named by its family, because two FamilyPriors may be over different spaces."""
    prior = make(name, event_shape)
    assert distribution_name(prior()) == type(prior.family if isinstance(prior, FamilyPrior) else prior).__name__


@ROWS
def test_normalised_in_one_dimension(name: str) -> None:
    z = torch.linspace(-15, 15, 6_001, dtype=torch.float64)
    density = make(name, (1,))().log_prob(z[:, None]).exp()
    assert torch.trapezoid(density, z).item() == pytest.approx(1, abs=1e-4)


@ROWS
def test_normalised_in_two_dimensions(name: str) -> None:
    line = torch.linspace(-9, 9, 301, dtype=torch.float64)
    density = make(name, (2,))().log_prob(torch.cartesian_prod(line, line)).exp()
    assert density.sum().item() * (line[1] - line[0]).item() ** 2 == pytest.approx(1, abs=2e-3)


@ROWS
def test_samples_are_of_the_density(name: str) -> None:
    """E[z] and E[z^2] by the density equal those of samples."""
    p = make(name, (1,))()
    z, n = torch.linspace(-15, 15, 6_001, dtype=torch.float64), 20_000
    density = p.log_prob(z[:, None]).exp()
    m1, m2, m4 = (torch.trapezoid(density * z**k, z).item() for k in (1, 2, 4))
    samples = p.sample((n,))
    assert abs(samples.mean().item() - m1) < 4.5 * math.sqrt((m2 - m1**2) / n)
    assert abs(samples.square().mean().item() - m2) < 4.5 * math.sqrt((m4 - m2**2) / n)


@ROWS
@pytest.mark.parametrize("event_shape", [(3,), (2, 4, 4)])
def test_shapes_and_dtype_follow_the_module(name: str, event_shape: Shape) -> None:
    """The batch shape is [], and moving the module moves the distribution."""
    p = make(name, event_shape)()
    assert (p.batch_shape, p.event_shape) == ((), event_shape)
    z = p.sample((5, 2))
    assert z.shape == (5, 2, *event_shape)
    assert p.log_prob(z).shape == (5, 2)
    assert p.sample().shape == event_shape
    assert p.sample().dtype == p.log_prob(z).dtype == torch.float64


@ROWS
def test_gradient_reaches_the_point_and_every_weight(name: str) -> None:
    prior = make(name, (3,))
    z = torch.randn(32, 3, dtype=torch.float64, requires_grad=True)
    (prior().log_prob(z) ** 2).sum().backward()
    for tensor in (z, *prior.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


def test_standard_normal_at_zero() -> None:
    """log N(0; 0, I) = -D/2 log 2 pi."""
    assert StandardNormal((4,))().log_prob(torch.zeros(4)).item() == pytest.approx(-2 * 1.8378770664)


@pytest.mark.parametrize(
    ("family", "log_density"),
    [
        (Beta, 0.0),
        (Dirichlet, math.lgamma(4)),
        (Categorical, -math.log(4)),
        (partial(Laplace, scale=1.0), -4 * math.log(2) - 1),
        (Gamma, -1.0),
    ],
)
def test_features_of_zero_are_the_plainest_member(family: FamilyRecipe, log_density: float) -> None:
    """Uniform if possible, else Laplace(0, 1) and Gamma(1, 1): their log p at a point with |z|_1 = 1."""
    p = FamilyPrior((4,), family).double()()
    z = torch.tensor([1.0, 0, 0, 0] if family is Categorical else [0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert p.log_prob(z).item() == pytest.approx(log_density, abs=1e-6)


@pytest.mark.parametrize("family", [DiagonalNormal, LowRankNormal, Gamma, Beta, Dirichlet])
def test_a_learned_prior_gets_a_gradient_everywhere(family: FamilyRecipe) -> None:
    prior = FamilyPrior((4,), family, learn=True)
    z = torch.tensor([0.1, 0.2, 0.3, 0.4])
    prior().log_prob(z).backward()
    assert prior.theta.grad is not None
    assert (prior.theta.grad.abs() > 0).all()
    assert not list(FamilyPrior((4,), family).parameters())


@pytest.mark.parametrize("group_size", [None, 2, 3])
def test_uniform_sphere(group_size: int | None) -> None:
    """Samples have norm 1 in each group and mean 0; the density of each group is 1 / area."""
    p = UniformSphere((6,), group_size).double()()
    z = p.sample((5000,))
    size = group_size or 6
    norms = z.unflatten(-1, (-1, size)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert z.mean(0).abs().max() < 4.5 / (5000 * size) ** 0.5
    area = 2 * math.pi ** (size / 2) / math.gamma(size / 2)
    torch.testing.assert_close(p.log_prob(z), torch.full((5000,), -(6 // size) * math.log(area)).double())
    torch.testing.assert_close(p.entropy(), -p.log_prob(z[0]))


def test_a_sphere_of_one_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"UniformSphere: z has one dimension, .*raise latent_size"):
        UniformSphere((1,))
    with pytest.raises(UserError, match="UniformSphere: group_size is 1; it must be at least 2"):
        UniformSphere((6,), group_size=1)
    with pytest.raises(UserError, match=r"group_size is 4.*divide the 6"):
        UniformSphere((6,), group_size=4)


class PseudoInputsOnASphere(VampPrior):
    """Bound to q(z|x) of a model with von Mises-Fisher posteriors."""

    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, num_components=3)
        family = VonMisesFisher(event_shape)
        encoder = MLP((1, 2, 2), family.param_shape)
        self.bind(lambda x: family(encoder(x)), (1, 2, 2))


@pytest.mark.parametrize(
    ("posterior", "prior", "fits"),
    [
        (FullNormal, StandardNormal, True),
        (Gamma, StandardNormal, True),
        (DiagonalNormal, partial(FamilyPrior, family=Gamma), False),
        (Gamma, partial(FamilyPrior, family=Gamma), True),
        (VonMisesFisher, StandardNormal, False),
        (DiagonalNormal, UniformSphere, False),
        (VonMisesFisher, UniformSphere, True),
        (partial(VonMisesFisher, group_size=2), UniformSphere, False),
        (partial(VonMisesFisher, group_size=2), partial(UniformSphere, group_size=2), True),
        (Dirichlet, UniformSphere, False),
        (RelaxedCategorical, partial(FamilyPrior, family=Dirichlet), True),
        (RelaxedCategorical, partial(FamilyPrior, family=Categorical), False),
        (VonMisesFisher, PseudoInputsOnASphere, True),
        (partial(VonMisesFisher, group_size=2), PseudoInputsOnASphere, False),
        (DiagonalNormal, PseudoInputsOnASphere, False),
    ],
)
def test_which_prior_fits_which_posterior(posterior: FamilyRecipe, prior: Callable[[Shape], Prior], fits: bool) -> None:
    """True if q and p are over one space and z is possible. A Normal and a density on a sphere have no ratio."""
    family = posterior((4,))
    q, p = family(torch.randn(50, *family.param_shape)), prior((4,))()
    assert share_support(q, p, q.rsample()) == fits


@pytest.mark.parametrize("min_sigma", [0.0, 0.1])
def test_learned_normals_start_at_the_standard_one(min_sigma: float) -> None:
    z = torch.randn(6, 3)
    one = LearnedNormal((3,), min_sigma=min_sigma)()
    torch.testing.assert_close(one.log_prob(z), StandardNormal((3,))().log_prob(z))
    sigmas = MixtureOfNormals((3,), 4, min_sigma)().component_distribution.stddev
    factors = MixtureOfFullNormals((3,), 4, min_sigma)().component_distribution.scale_tril
    torch.testing.assert_close(sigmas, torch.ones(4, 3))
    torch.testing.assert_close(factors, torch.eye(3).expand(4, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [1.0, 1e-3])
def test_a_diagonal_mixture_equals_the_sum_over_its_components(dtype: torch.dtype, sigma: float) -> None:
    """log sum_k pi_k prod_d N(z_d; mu_kd, sigma_kd^2) in float64, and in float32 with sigma at its floor."""
    prior = MixtureOfNormals((6,), 20, min_sigma=0.0).to(dtype)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(20))
        prior.raw_sigma.copy_(torch.log(torch.expm1(sigma * torch.rand(20, 6, dtype=torch.float64) + sigma)))
    z = (prior.means[:9] + sigma * torch.randn(9, 6).to(dtype)).detach()
    p = prior()
    normal = p.component_distribution.base_dist
    each = Normal(normal.loc.double(), normal.scale.double()).log_prob(z.double()[:, None]).sum(-1)  # [9, 20]
    expected = torch.logsumexp(prior.logits.double().log_softmax(0) + each, dim=1)
    torch.testing.assert_close(p.log_prob(z).double(), expected, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 0)


# -- VampPrior --------------------------------------------------------------------------------------------------------


def vamp(posterior: Callable[[Shape], Family] = DiagonalNormal, num_components: int = 5) -> VAE:
    affine = partial(MLP, hidden_sizes=())
    prior = partial(VampPrior, num_components=num_components, init_mean=0.5, init_sigma=0.3)
    return VAE(IMAGE_SHAPE, 3, encoder=affine, decoder=affine, posterior=posterior, prior=prior)


@pytest.mark.parametrize("posterior", [DiagonalNormal, LinearIAF, partial(IAF, hidden_sizes=(8,), context_size=2)])
def test_vamp_prior_is_the_mixture_of_the_models_own_posterior(posterior: Callable[[Shape], Family]) -> None:
    """log 1/K sum_k q(z|u_k), each q computed by itself, in float64."""
    model = vamp(posterior).double()
    z = torch.randn(4, 2, 3, dtype=torch.float64)
    u = model.prior.pseudo_inputs.clamp(0, 1)
    assert (u != model.prior.pseudo_inputs).any()
    each = torch.stack([model.encode(u[k : k + 1]).log_prob(z.reshape(8, 1, 3))[:, 0] for k in range(5)])
    torch.testing.assert_close(model.prior().log_prob(z).flatten(), torch.logsumexp(each, 0) - math.log(5))


def test_vamp_prior_samples_every_component() -> None:
    """With distant pseudo-inputs and narrow posteriors, each component is drawn with its share."""
    prior = VampPrior((1,), 4)
    prior.bind(lambda x: Independent(Normal(100 * x.flatten(1), torch.ones(len(x), 1)), 1), (1,))
    with torch.no_grad():
        prior.pseudo_inputs.copy_(torch.tensor([[0.0], [0.25], [0.5], [1.0]]))
    near = (prior().sample((4000,)) / 25).round().unique(return_counts=True)
    assert near[0].tolist() == [0, 1, 2, 4]
    assert ((near[1] - 1000).abs() < 4.5 * math.sqrt(4000 * 0.25 * 0.75)).all()


def test_vamp_prior_registers_the_encoder_once() -> None:
    names = [name for name, _ in vamp().named_parameters(remove_duplicate=False)]
    assert [name for name in names if name.startswith("prior")] == ["prior.pseudo_inputs"]
    assert len(names) == len(set(names)) == len(vamp().state_dict())


def test_a_copy_of_a_vamp_prior_reads_the_copys_encoder() -> None:
    model = vamp()
    other = copy.deepcopy(model)
    z = torch.randn(4, 3)
    torch.testing.assert_close(other.prior().log_prob(z), model.prior().log_prob(z))
    with torch.no_grad():
        for weight in other.encoder.parameters():
            weight.add_(1.0)
    assert (other.prior().log_prob(z) - model.prior().log_prob(z)).abs().min() > 1e-3


def test_vamp_prior_trains_through_the_encoder_and_loads(tmp_path: Path) -> None:
    """The KL's gradient reaches the pseudo-inputs, and the loaded file gives the same density."""
    import lightning.pytorch as pl

    model = vamp()
    trace = model.trace({"x": torch.rand(6, *IMAGE_SHAPE).round()}, 2)
    assert trace.latents["z"].kl_estimator == "sampled"
    ELBO()(trace, 0)["loss"].mean().backward()
    for weight in (model.prior.pseudo_inputs, *model.encoder.parameters()):
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "vamp.ckpt")
    loaded, z = load_model(tmp_path / "vamp.ckpt"), torch.randn(4, 3)
    assert isinstance(loaded, VAE)
    torch.testing.assert_close(loaded.prior().log_prob(z), model.prior().log_prob(z))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo reads .grad of an input that is not a leaf
def test_vamp_prior_and_a_compiled_encoder() -> None:
    model, z = vamp(), torch.randn(4, 3)
    eager = model.prior().log_prob(z)
    model.encoder.compile(backend="eager")
    torch.testing.assert_close(model.prior().log_prob(z), eager)


class _OwnSamplesOnly(DiagonalNormal):
    def forward(self, features: Tensor) -> Distribution:
        q = super().forward(features)

        def refuse(value: Tensor) -> Tensor:
            raise NotImplementedError("no density here")

        q.log_prob = refuse  # type: ignore[method-assign]
        return q


def test_vamp_prior_wants_a_density_at_any_point_and_the_same_latents() -> None:
    with pytest.raises(UserError, match="density at any point"):
        vamp(_OwnSamplesOnly)
    with pytest.raises(UserError, match=r"shape \(2,\), the prior's \(3,\)"):
        VampPrior((3,), 4).bind(encoder(DiagonalNormal((2,))), IMAGE_SHAPE)
    with pytest.raises(UserError, match="gives none"):
        VampPrior((3,), 4)()


# -- fitting ----------------------------------------------------------------------------------------------------------


def test_a_fitted_mixture_has_scikit_learns_density_and_finds_the_truth() -> None:
    """Data from two Gaussians of full covariance: the mean held-out log density is the truth's, to 0.02 nats."""
    means = torch.tensor([[-3.0, 0.0], [3.0, 1.0]]).double()
    factors = torch.tensor([[[1.0, 0.0], [0.9, 0.2]], [[0.5, 0.0], [-0.4, 1.0]]]).double()
    truth = MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.3, 0.7]).double()),
        MultivariateNormal(means, scale_tril=factors),
    )
    z, held_out = truth.sample((4000,)), truth.sample((4000,))
    prior = MixtureOfFullNormals((2,), 2).double()
    prior.fit(z[:3000], z[3000:])
    found = prior().log_prob(held_out)
    assert (found.mean() - truth.log_prob(held_out).mean()).abs() < 0.02
    theirs = GaussianMixture(2, reg_covar=1e-6, random_state=0).fit(z.numpy()).score_samples(held_out.numpy())
    np.testing.assert_allclose(found.detach().numpy(), theirs, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "recipe",
    [LearnedNormal, partial(MixtureOfNormals, num_components=2), partial(FlowPrior, num_steps=1, hidden_sizes=(8,))],
)
def test_a_prior_is_fitted_by_its_likelihood(monkeypatch: pytest.MonkeyPatch, recipe: Callable[[Shape], Prior]) -> None:
    """Latents around (2, -1): the density of held-out latents rises from that of N(0, I) towards the true one."""
    monkeypatch.setattr(Prior, "fit_steps", 300)
    truth = Independent(Normal(torch.tensor([0.7, -0.5]), torch.tensor([0.5, 1.5])), 1)
    prior, held_out = recipe((2,)), truth.sample((2000,))
    prior.fit(truth.sample((2000,)), truth.sample((500,)))
    gap = (truth.log_prob(held_out) - prior().log_prob(held_out)).mean().item()
    start = (truth.log_prob(held_out) - StandardNormal((2,))().log_prob(held_out)).mean().item()
    assert -0.02 < gap < 0.4 * start


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter to fit"):
        StandardNormal((2,)).fit(torch.randn(5, 2), torch.randn(1, 2))
    with pytest.raises(UserError, match="3 latents cannot be fitted by 4 components"):
        MixtureOfFullNormals((2,), 4).fit(torch.randn(2, 2), torch.randn(1, 2))


@pytest.mark.parametrize(
    "recipe",
    [
        partial(MixtureOfNormals, num_components=0),
        partial(MixtureOfNormals, min_sigma=1.0),
        partial(MixtureOfFullNormals, num_components=0),
        partial(LearnedNormal, min_sigma=-0.1),
        partial(VampPrior, num_components=0),
        partial(FlowPrior, num_steps=0),
        partial(FlowPrior, num_bins=1),
    ],
)
def test_impossible_settings_are_refused(recipe: Callable[[Shape], Prior]) -> None:
    with pytest.raises(UserError):
        recipe((2,))


def test_every_prior_is_a_module_with_plain_weights() -> None:
    for name in PRIORS:
        prior = make(name, (3,))
        assert isinstance(prior, nn.Module)
        assert all(isinstance(value, Tensor) for value in prior.state_dict().values())
