"""Priors p(z): modules that hold parameters or buffers, and build their distribution when called.

To add a prior, subclass `Prior` and build the distribution in `forward`. Add a row to the table in
`tests/distributions/test_priors.py`.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
    Transform,
    TransformedDistribution,
)
from torch.distributions.transforms import ReshapeTransform
from torch.nn import functional as F

from vae_lightning.distributions.families import Family, FamilyRecipe, name_distribution
from vae_lightning.distributions.flows import Flowed, check_sizes, load_zuko
from vae_lightning.distributions.gaussians import FullPrecisionNormal, with_float64
from vae_lightning.distributions.groups import Groups, checked_group_size
from vae_lightning.distributions.mixtures import mixture_of
from vae_lightning.distributions.sphere import UniformOnSphere
from vae_lightning.types import Shape, UserError

Encode: TypeAlias = Callable[[Tensor], Distribution]
"""x [B, C, H, W] -> q(z|x): a model's encoder and posterior."""


class Prior(nn.Module):
    """p(z), with batch shape [] and event shape `event_shape`.

    The distribution is built at each call, because an attribute would not move to the GPU with its module.

    Args:
        event_shape: Shape of one z; the model sets it.
    """

    fit_steps: ClassVar[int] = 2000

    def __init__(self, event_shape: Shape) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    @abstractmethod
    def forward(self) -> Distribution: ...

    def __call__(self) -> Distribution:
        return name_distribution(super().__call__(), type(self).__name__)

    def bind(self, encode: Encode, image_shape: Shape) -> None:
        """Receive q(z|x) of the model that has this prior, which calls this once.

        Only a prior that is made from q(z|x) overrides this.

        Args:
            encode: x [B, C, H, W] -> q(z|x).
            image_shape: [C, H, W].
        """

    def fit(self, z: Tensor, held_out: Tensor) -> None:
        """Maximise the mean of log p(z) over the rows of `z`; keep the state with the highest mean over `held_out`.

        Adam, with a rate that falls as a cosine over `fit_steps`; stops early after 300 steps without a better state.

        Args:
            z: Latents to fit, [N, *event_shape].
            held_out: Other latents, [M, *event_shape].

        Raises:
            UserError: if the prior has no parameter.
        """
        if not list(self.parameters()):
            raise UserError(f"{type(self).__name__} has no parameter to fit; choose MixtureOfFullNormals or FlowPrior")
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.fit_steps)
        best, kept, kept_at = -math.inf, copy.deepcopy(self.state_dict()), 0
        for step in range(1, self.fit_steps + 1):
            rows = torch.randint(len(z), (min(512, len(z)),), device=z.device)
            optimizer.zero_grad()
            (-self().log_prob(z[rows]).mean()).backward()
            optimizer.step()
            scheduler.step()
            if step % 50 == 0 and (density := self._mean_log_prob(held_out)) > best:
                best, kept, kept_at = density, copy.deepcopy(self.state_dict()), step
            if step - kept_at > 300:
                break
        self.load_state_dict(kept)

    @torch.no_grad()
    def _mean_log_prob(self, z: Tensor) -> float:
        return self().log_prob(z).mean().item()


PriorRecipe: TypeAlias = Callable[[Shape], Prior]
"""A `Prior` class, or a `functools.partial` of one: called as `recipe(event_shape)`."""


class StandardNormal(Prior):
    """p(z) = N(0, I), the usual prior. Kingma & Welling 2014 (https://arxiv.org/abs/1312.6114).

    Args:
        event_shape: Shape of one z; the model sets it.
    """

    zeros: Tensor
    ones: Tensor

    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape)
        self.register_buffer("zeros", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("ones", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> Distribution:
        return independent_normal(self.zeros, self.ones, len(self.event_shape))


class LearnedNormal(Prior):
    """p(z) = N(mu, diag sigma^2), with mu and sigma learned from a start at N(0, I).

    Args:
        event_shape: Shape of one z; the model sets it.
        min_sigma: Floor of sigma, in the units of z.
    """

    def __init__(self, event_shape: Shape, min_sigma: float = 1e-3) -> None:
        super().__init__(event_shape)
        _check_mixture("LearnedNormal", 1, min_sigma)
        self.min_sigma = min_sigma
        self.mean = nn.Parameter(torch.zeros(self.event_shape))
        self.raw_sigma = nn.Parameter(_raw_scale(torch.ones(self.event_shape) - min_sigma))

    def forward(self) -> Distribution:
        sigma = self.min_sigma + F.softplus(self.raw_sigma)
        return independent_normal(self.mean, sigma, len(self.event_shape))


class MixtureOfNormals(Prior):
    """p(z) = sum_k pi_k N(z; mu_k, diag sigma_k^2), with all parameters learned.

    Choose it if the aggregate posterior has clusters. Tomczak & Welling 2018 (https://arxiv.org/abs/1705.07120) compare
    the VampPrior with this mixture.

    Args:
        event_shape: Shape of one z; the model sets it.
        num_components: The number of components k, at least 1.
        min_sigma: Floor of sigma, in the units of z.
    """

    def __init__(self, event_shape: Shape, num_components: int = 10, min_sigma: float = 1e-3) -> None:
        super().__init__(event_shape)
        _check_mixture("MixtureOfNormals", num_components, min_sigma)
        shape = (num_components, *self.event_shape)
        self.min_sigma = min_sigma
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(shape))  # different from the start, so that components can specialise
        self.raw_sigma = nn.Parameter(_raw_scale(torch.ones(shape) - min_sigma))

    def forward(self) -> Distribution:
        sigma = self.min_sigma + F.softplus(self.raw_sigma)
        return mixture_of(independent_normal(self.means, sigma, len(self.event_shape)), self.logits)


class MixtureOfFullNormals(Prior):
    """p(z) = sum_k pi_k N(z; mu_k, C_k), C_k = R_k R_k^T of full covariance, with all parameters learned.

    Choose it to fit a prior to a trained model's latents. `raw_factor` holds R_k below its diagonal, and on the
    diagonal the raw numbers whose softplus, plus `min_sigma`, is the diagonal of R_k.

    Args:
        event_shape: Shape of one z; the model sets it.
        num_components: The number of components k, at least 1.
        min_sigma: Floor of the diagonal of R_k, in the units of z.
    """

    def __init__(self, event_shape: Shape, num_components: int = 10, min_sigma: float = 1e-3) -> None:
        super().__init__(event_shape)
        _check_mixture("MixtureOfFullNormals", num_components, min_sigma)
        size = math.prod(self.event_shape)
        self.min_sigma = min_sigma
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, size))
        self.raw_factor = nn.Parameter(torch.diag_embed(_raw_scale(torch.ones(num_components, size) - min_sigma)))

    def forward(self) -> Distribution:
        components = with_float64(self._components, self.means, self.raw_factor)
        return reshaped(mixture_of(components, self.logits), self.event_shape)

    def _components(self, means: Tensor, raw_factor: Tensor) -> FullPrecisionNormal:
        diagonal = self.min_sigma + F.softplus(raw_factor.diagonal(dim1=-2, dim2=-1))
        factor = raw_factor.tril(-1) + torch.diag_embed(diagonal)  # [K, D, D]
        return FullPrecisionNormal(means, scale_tril=factor, validate_args=Family.validate_args)

    @torch.no_grad()
    def fit(self, z: Tensor, held_out: Tensor) -> None:
        """Expectation maximisation over all rows, from a start by k-means (scikit-learn).

        Each variance has `min_sigma`^2 added.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        count, z = len(self.logits), torch.cat([z, held_out])
        if len(z) <= count:
            raise UserError(f"MixtureOfFullNormals: {len(z)} latents cannot be fitted by {count} components")
        found = GaussianMixture(count, max_iter=500, reg_covar=max(self.min_sigma**2, 1e-9), random_state=0)
        with warnings.catch_warnings():  # the density of held-out latents shows how good the fit is
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.fit(z.flatten(1).double().cpu().numpy())
        factor = torch.linalg.cholesky(torch.from_numpy(found.covariances_))
        rest = (factor.diagonal(dim1=-2, dim2=-1) - self.min_sigma).clamp(min=1e-6)
        self.logits.copy_(torch.from_numpy(found.weights_).log())
        self.means.copy_(torch.from_numpy(found.means_))
        self.raw_factor.copy_(factor.tril(-1) + torch.diag_embed(_raw_scale(rest)))


class FlowPrior(Prior):
    """log p(z) = log N(f(z); 0, I) + log |det df/dz|, with f a neural spline flow.

    Choose it if a mixture does not fit the aggregate posterior. Durkan et al. 2019 (https://arxiv.org/abs/1906.04032).
    Outside [-5, 5] a dimension of z is not changed.

    Args:
        event_shape: Shape of one z; the model sets it.
        num_steps: The number of steps of f, at least 1.
        hidden_sizes: Units of the hidden layers of each step.
        num_bins: The number of pieces of each spline, at least 2.
        coupling: Whether each step transforms the dimensions in two halves; sampling then costs two passes a step.
            Otherwise f is autoregressive: as cheap to evaluate and more flexible, but sampling costs a pass a
            dimension.
    """

    def __init__(
        self,
        event_shape: Shape,
        num_steps: int = 4,
        hidden_sizes: Sequence[int] = (64, 64),
        num_bins: int = 8,
        coupling: bool = True,
    ) -> None:
        super().__init__(event_shape)
        check_sizes("FlowPrior", num_steps, hidden_sizes)
        if num_bins < 2:
            raise UserError(f"FlowPrior: num_bins is {num_bins}; it must be at least 2")
        sizes = {"transforms": num_steps, "hidden_features": tuple(hidden_sizes), "bins": num_bins}
        size = math.prod(self.event_shape)
        self.flow = load_zuko().flows.NSF(size, **sizes, passes=2 if coupling else None).transform  # f
        self.base = StandardNormal((size,))

    def forward(self) -> Distribution:
        return reshaped(Flowed(self.base(), self._from_noise), self.event_shape)

    def _from_noise(self, context: Tensor | None) -> Transform:
        return self.flow(context).inv


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z|u_k), with K learned pseudo-inputs u_k, images in [0, 1].

    Choose it if the aggregate posterior is far from a Gaussian. Tomczak & Welling 2018
    (https://arxiv.org/abs/1705.07120), eq. 10; q is the model's own posterior. u_k is clamped to [0, 1] in use. Each
    call costs a pass of the encoder over K images. A sample comes from one u_k drawn at random. If q is a flow, each z
    is inverted under all K posteriors; under an IAF one dimension after another, with the memory of every pass.

    Args:
        event_shape: Shape of one z; the model sets it.
        num_components: K, at least 1.
        init_mean: The mean of the noise that u_k starts at, in [0, 1]; the mean pixel of the data is a good choice.
        init_sigma: The standard deviation of that noise.

    Raises:
        UserError: by `bind`, if the posterior has a density only at its own samples, or has another event shape.
    """

    pseudo_inputs: nn.Parameter

    def __init__(
        self, event_shape: Shape, num_components: int = 500, init_mean: float = 0.05, init_sigma: float = 0.01
    ) -> None:
        super().__init__(event_shape)
        _check_mixture("VampPrior", num_components)
        self.num_components, self.init_mean, self.init_sigma = num_components, init_mean, init_sigma
        self._encode: Encode | None = None

    def bind(self, encode: Encode, image_shape: Shape) -> None:
        """Keep `encode`, a bound method of the model: a module would be registered here as well as in the model."""
        noise = torch.randn(self.num_components, *image_shape)
        self.pseudo_inputs = nn.Parameter(self.init_mean + self.init_sigma * noise)
        self._encode = encode
        with torch.no_grad():
            self._check_density(encode(self.pseudo_inputs[:1].clamp(0, 1)))

    def forward(self) -> Distribution:
        if self._encode is None:
            raise UserError(
                "VampPrior: is made from the model's q(z|x), but this model gives none (Prior.bind); choose "
                "MixtureOfNormals, or the model VAE"
            )
        components = self._encode(self.pseudo_inputs.clamp(0, 1))  # batch [K], event [D]
        return mixture_of(components, self.pseudo_inputs.new_zeros(self.num_components))

    def _check_density(self, q: Distribution) -> None:
        if q.event_shape != self.event_shape:
            shapes = f"the posterior's latents have shape {tuple(q.event_shape)}, the prior's {self.event_shape}"
            raise UserError(f"VampPrior: {shapes}; they must be the same")
        try:
            q.log_prob(q.sample().clone())  # a copy, because a flow recognises its own sample
        except (UserError, NotImplementedError) as error:
            raise UserError(
                f"VampPrior: needs a posterior with a density at any point, such as DiagonalNormal: {error}"
            ) from error


class FamilyPrior(Prior):
    """p(z) = family(theta), with theta = 0 or learned from near 0: the prior for a posterior of the same family.

    Features of 0 give the simplest member: Gamma(1, 1), the uniform Beta, Dirichlet and Categorical, and Laplace(0, 1)
    with `family=partial(Laplace, scale=1.0)`.

    Args:
        event_shape: Shape of one z; the model sets it.
        family: The family, usually that of the posterior with the same settings.
        learn: Whether theta is learned.
    """

    theta: Tensor

    def __init__(self, event_shape: Shape, family: FamilyRecipe, learn: bool = False) -> None:
        super().__init__(event_shape)
        self.family = family(self.event_shape)
        theta = torch.zeros(self.family.param_shape)
        if learn:
            self.theta = nn.Parameter(theta.normal_(std=0.01))  # not 0, where a low rank has no gradient
        else:
            self.register_buffer("theta", theta, persistent=False)

    def forward(self) -> Distribution:
        return self.family(self.theta)


class UniformSphere(Prior):
    """p(z) = 1 / area on the unit sphere of R^K, or on G of them: the prior for `VonMisesFisher`.

    z [D] is G = D / K groups of K numbers, as in the posterior. Davidson et al. 2018
    (https://arxiv.org/abs/1804.00891).

    Args:
        event_shape: Shape of one z; the model sets it.
        group_size: K, as in the posterior: at least 2 and a divisor of D. None: one group of all D numbers.
    """

    zeros: Tensor

    def __init__(self, event_shape: Shape, group_size: int | None = None) -> None:
        super().__init__(event_shape)
        size = checked_group_size("UniformSphere", self.event_shape, group_size)
        self.register_buffer("zeros", torch.zeros(self.event_shape[0] // size, size), persistent=False)

    def forward(self) -> Distribution:
        return Groups(UniformOnSphere(self.zeros, validate_args=Family.validate_args))


def independent_normal(mean: Tensor, sigma: Tensor, event_dims: int) -> Independent:
    normal = Normal(mean, sigma, validate_args=Family.validate_args)
    return Independent(normal, event_dims, validate_args=Family.validate_args)


def reshaped(p: Distribution, event_shape: Shape) -> Distribution:
    """A distribution of vectors as one of latents of shape `event_shape`."""
    if p.event_shape == event_shape:
        return p
    shape = ReshapeTransform(p.event_shape, torch.Size(event_shape))
    return TransformedDistribution(p, [shape], validate_args=Family.validate_args)


def _raw_scale(scale: Tensor) -> Tensor:
    """The raw number with softplus(raw) = scale."""
    return scale + torch.log(-torch.expm1(-scale))


def _check_mixture(owner: str, num_components: int, min_sigma: float = 0.0) -> None:
    if num_components < 1:
        raise UserError(f"{owner}: num_components is {num_components}; it must be at least 1")
    if not 0 <= min_sigma < 1:
        raise UserError(f"{owner}: min_sigma is {min_sigma}; it must be at least 0 and below 1, where sigma starts")
