"""Flows: an invertible map f carries a simple density to another, log p(f(e)) = log p(e) - log |det df/de|.

This file has posteriors q(z|x) with a flow of vectors. A flow of maps is in `map_flows.py`, a flow as the prior in
`priors.py`. The maps f are zuko's (https://zuko.readthedocs.io), except the gated step of IAF, which zuko lacks.
"""

from __future__ import annotations

import importlib
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, Transform, constraints

from vae_lightning.distributions.families import DiagonalNormal, Family
from vae_lightning.distributions.gaussians import FullPrecisionNormal, TriangularNormal
from vae_lightning.distributions.inversion import InexactError, call_and_log_det, check_memory, needs_solving
from vae_lightning.types import Shape, UserError


def load_zuko() -> ModuleType:
    """Import zuko when a flow is built, and undo what its import does to all of torch.

    The import of zuko turns off the argument checks of every distribution. A user who wants this can tell torch.
    """
    checks = Distribution._validate_args
    zuko = importlib.import_module("zuko")
    Distribution.set_default_validate_args(checks)
    return zuko


_FOREIGN = "flow: the density was asked for at a point that the flow did not draw"
_REMEDY = "choose a posterior with a density everywhere (DiagonalNormal, LinearIAF), or an objective that needs none"
_STEEP = "choose a prior of fewer steps (--model.prior.num_steps), or another, such as MixtureOfFullNormals"


class _Sample(NamedTuple):
    z: Tensor
    version: int | None
    log_prob: Tensor
    with_grad: bool


def _version(z: Tensor) -> int | None:
    """How often `z` was changed in place; None in inference mode, in which torch does not count."""
    return None if z.is_inference() else z._version


class Flowed(Distribution):
    """log q(z) = log q_0(e) - log |det df/de| with z = f(e), e ~ q_0.

    `rsample` stores the density of its last sample, so the density at that sample needs no inversion. At any other
    point f is inverted; an autoregressive f is inverted one dimension after another, which is D times the work. Every
    inverse is checked by mapping back. The computation is in float32 at least, also under autocast.

    Args:
        q_0: The distribution of e.
        flow: f as a function of `context`: a `Transform` of vectors or maps.
        context: What f depends on, [*batch, C], or [*batch, C, H, W] for maps; None for nothing.

    Raises:
        UserError: by `log_prob` at a point that is not its own sample, if f has no inverse, rounding spoils the
            inverse, or the inverse takes more memory than there is.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(
        self, q_0: Distribution, flow: Callable[[Tensor | None], Transform], context: Tensor | None = None
    ) -> None:
        self.q_0, self.flow, self.context = q_0, flow, context
        self._last: _Sample | None = None
        super().__init__(q_0.batch_shape, q_0.event_shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return reals(len(self.event_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        e = self.q_0.rsample(torch.Size(sample_shape))  # [*sample, *batch, D]
        with torch.autocast(e.device.type, enabled=False):
            try:
                z, log_det = call_and_log_det(self.flow(self.context), e)
            except InexactError as error:
                raise UserError(f"flow: rounding spoils its samples: the error is {error}; {_STEEP}") from error
            log_prob = self.q_0.log_prob(e) - log_det
        self._last = _Sample(z, _version(z), log_prob, torch.is_grad_enabled())
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        last = self._last
        if (
            last is not None
            and value is last.z
            and _version(value) == last.version
            and (
                last.with_grad or not torch.is_grad_enabled()
            )  # the stored density has no gradient if the sample had none
        ):
            return last.log_prob
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))
        with torch.autocast(value.device.type, enabled=False):
            inverse = self.flow(self.context).inv
            if needs_solving(inverse):
                check_memory(self.flow, self.context, value, len(self.event_shape))
            try:
                e, log_det = call_and_log_det(inverse, value)
            except NotImplementedError as error:
                raise UserError(f"{_FOREIGN}, and its transform has no inverse; {_REMEDY}") from error
            except InexactError as error:
                raise UserError(
                    f"{_FOREIGN}, and rounding spoils the inverse: the error is {error}; {_REMEDY}"
                ) from error
            return self.q_0.log_prob(e) + log_det

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        shape = torch.Size(batch_shape)
        context = self.context
        if context is not None:
            context = context.expand(*shape, *context.shape[-len(self.event_shape) :])
        return Flowed(self.q_0.expand(shape), self.flow, context)


class Flow(Family):
    """z = f(e; h(x)), e ~ N(mu(x), diag sigma(x)^2): features hold mu, the raw scale, and the context h.

    With S = `context_size`, the features are [..., 2 D + S] for vectors [D], and [..., 2 C + S, H, W] for maps [C, H,
    W] (`event_dims` 3). A subclass sets `flow`, a module from h to a `Transform` of events.

    Args:
        event_shape: Shape of one z; the model sets it.
        context_size: S, the number of features or maps in h.
        min_sigma: Floor of sigma, in the units of z.
    """

    flow: Callable[[Tensor | None], Transform]
    event_dims: ClassVar[int] = 1

    def __init__(self, event_shape: Shape, context_size: int, min_sigma: float) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != self.event_dims:
            raise UserError(self._wrong_shape_message())
        if context_size < 1:
            raise UserError(f"{type(self).__name__}: context_size is {context_size}; it must be at least 1")
        self.context_size = context_size
        self.base = DiagonalNormal(event_shape, min_sigma=min_sigma)

    def _wrong_shape_message(self) -> str:
        name, shape = type(self).__name__, self.event_shape
        return (
            f"{name}: is a flow of vectors, but shape {shape} is that of maps; choose ConvIAF for a latent of maps, "
            "and a likelihood of independent pixels, such as DiagonalNormal"
        )

    @property
    def param_shape(self) -> Shape:
        return (2 * self.event_shape[0] + self.context_size, *self.event_shape[1:])

    def distribution(self, features: Tensor) -> Distribution:
        params, context = features.split((2 * self.event_shape[0], self.context_size), dim=-self.event_dims)
        return Flowed(self.base(params), self.flow, context)


class IAF(Flow):
    """z <- g z + (1 - g) m with (m_i, s_i) = MADE(z_1 .. z_(i-1), h), g = sigmoid(s): inverse autoregressive flow.

    Choose it for a flexible q(z|x) over vectors. Kingma et al. 2016 (https://arxiv.org/abs/1606.04934), algorithm 1.
    From z ~ N(mu(x), diag sigma(x)^2) the step is applied `num_steps` times, each time in reversed order: log q falls
    by sum log g. Deviation: g has a floor, so that each step can be inverted. Sampling takes one pass; the density at
    another point takes one pass for each dimension.

    Args:
        event_shape: Shape of one z; the model sets it.
        num_steps: The number of steps, at least 1.
        hidden_sizes: Units of the hidden layers of each step's MADE (Germain et al. 2015).
        context_size: The number of features in h.
        gate_bias: Added to s, so that a step starts near the identity.
        min_gate: Floor of g, between 0 and 1.
        min_sigma: Floor of sigma, in the units of z.
        activation: Class of the activation function of the MADE.
    """

    def __init__(
        self,
        event_shape: Shape,
        num_steps: int = 2,
        hidden_sizes: Sequence[int] = (320,),
        context_size: int = 64,
        gate_bias: float = 1.5,
        min_gate: float = 1e-3,
        min_sigma: float = 1e-3,
        activation: Callable[[], nn.Module] = nn.ELU,
    ) -> None:
        super().__init__(event_shape, context_size, min_sigma)
        check_sizes("IAF", num_steps, hidden_sizes)
        check_gate("IAF", min_gate)
        size = self.event_shape[0]
        steps = [
            _MadeStep(size, context_size, k % 2 == 1, hidden_sizes, activation, gate_bias, min_gate)
            for k in range(num_steps)
        ]
        self.flow = load_zuko().lazy.LazyComposedTransform(*steps)


class GatedStep(nn.Module):
    """h -> the transform z_i <- g_i z_i + (1 - g_i) m_i, where (m_i, g_i) depend on h and on the z before i.

    g = sigmoid(s + `gate_bias`), with the floor `min_gate`. A subclass defines (m, s), and the order of z.
    """

    def __init__(self, event_shape: Shape, gate_bias: float, min_gate: float) -> None:
        super().__init__()
        self.event_shape, self.gate_bias, self.min_gate = event_shape, gate_bias, min_gate
        self._dependent = load_zuko().transforms.DependentTransform

    @abstractmethod
    def shift_and_gate(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """m and s [..., *event] of z [..., *event], for a context with the batch shape of z or fewer leading dims."""

    def forward(self, context: Tensor) -> Transform:
        return _Autoregressive(partial(self._update, context), self.event_shape)

    def _update(self, context: Tensor, z: Tensor) -> Transform:
        m, s = self.shift_and_gate(z, context)
        g = self.min_gate + (1 - self.min_gate) * torch.sigmoid(s + self.gate_bias)
        return self._dependent(AffineTransform((1 - g) * m, g), len(self.event_shape))


class _MadeStep(GatedStep):
    """A step in the order of the vector's dimensions, or in the opposite order with `reverse`."""

    def __init__(
        self,
        size: int,
        context_size: int,
        reverse: bool,
        hidden_sizes: Sequence[int],
        activation: Callable[[], nn.Module],
        gate_bias: float,
        min_gate: float,
    ) -> None:
        super().__init__((size,), gate_bias, min_gate)
        before = torch.ones(size, size).tril(-1).bool()  # [i, j]: j comes before i
        sees = torch.cat([before.T if reverse else before, torch.ones(size, context_size).bool()], dim=1)
        self.made = load_zuko().nn.MaskedMLP(torch.cat([sees, sees]), tuple(hidden_sizes), activation)  # m above s

    def shift_and_gate(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        context = context.expand(*z.shape[:-1], context.shape[-1])
        m, s = self.made(torch.cat([z, context], dim=-1)).chunk(2, dim=-1)
        return m, s


class _Autoregressive(Transform):
    """y_i = f_i(x_i; x_1 .. x_(i-1)); `step(x)` is the elementwise transform f of all dimensions, given x.

    The inverse takes as many sweeps as there are dimensions, because each sweep makes one more dimension right.
    """

    bijective = True

    def __init__(self, step: Callable[[Tensor], Transform], event_shape: Shape) -> None:
        super().__init__()
        self.step, self.num_passes = step, math.prod(event_shape)
        self.domain = self.codomain = reals(len(event_shape))

    def _call(self, x: Tensor) -> Tensor:
        return self.step(x)(x)

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        for _ in range(self.num_passes):
            x = self.step(x).inv(y)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.step(x).log_abs_det_jacobian(x, y)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log |det dy/dx|, by one pass of the networks."""
        transform = self.step(x)
        y = transform(x)
        return y, transform.log_abs_det_jacobian(x, y)


class LinearIAF(TriangularNormal):
    """z = L(x) y, y ~ N(mu(x), diag sigma(x)^2), L unit lower triangular: q(z|x) = N(L mu, L diag sigma^2 L^T).

    Choose it to compare with the IAF's paper; otherwise `FullNormal` has the same densities. Kingma et al. 2016
    (https://arxiv.org/abs/1606.04934), section 4: one linear autoregressive step makes any Gaussian of full covariance.
    The features [..., 2 D + D (D - 1) / 2] hold mu, the raw scale, and by rows W of L = I + W / D^1/2; the factor D^1/2
    is that of `FullNormal`.

    Args:
        event_shape: Shape of one z; the model sets it.
        min_sigma: Floor of sigma, in the units of z.
    """

    def gaussian(self, features: Tensor) -> FullPrecisionNormal:
        mu, sigma, matrix = self.parts(features)  # L [..., D, D]
        factor = matrix * sigma[..., None, :]
        return FullPrecisionNormal(
            (matrix @ mu[..., None])[..., 0], scale_tril=factor, validate_args=self.validate_args
        )


class RealNVP(Flow):
    """z_b <- z_b e^(s(z_a, h)) + t(z_a, h), with z_a and z_b the halves of z in turn: affine coupling.

    Choose it over `IAF` if the density is needed at other points than its samples: two passes for the inverse and one
    for its determinant. Dinh et al. 2017 (https://arxiv.org/abs/1605.08803), here as a posterior, from z ~ N(mu(x),
    diag sigma(x)^2); |s| is bounded by log 1000. Deviation: z_a is scaled and shifted too, by functions of h.

    Args:
        event_shape: Shape of one z; the model sets it.
        num_steps: The number of steps, at least 1.
        hidden_sizes: Units of the hidden layers of s and t.
        context_size: The number of features in h.
        min_sigma: Floor of sigma, in the units of z.
    """

    def __init__(
        self,
        event_shape: Shape,
        num_steps: int = 4,
        hidden_sizes: Sequence[int] = (128, 128),
        context_size: int = 64,
        min_sigma: float = 1e-3,
    ) -> None:
        super().__init__(event_shape, context_size, min_sigma)
        check_sizes("RealNVP", num_steps, hidden_sizes)
        sizes = {"transforms": num_steps, "hidden_features": tuple(hidden_sizes), "passes": 2}
        self.flow = load_zuko().flows.MAF(self.event_shape[0], context_size, **sizes).transform


class NeuralSplineFlow(Flow):
    """`RealNVP` with a monotone rational-quadratic spline on [-5, 5] in the place of the affine map.

    Choose it if `RealNVP` is not flexible enough. Durkan et al. 2019 (https://arxiv.org/abs/1906.04032). Outside [-5,
    5] a dimension is not changed.

    Args:
        event_shape: Shape of one z; the model sets it.
        num_steps: The number of steps, at least 1.
        hidden_sizes: Units of the hidden layers of each step.
        num_bins: The number of pieces of each spline, at least 2.
        context_size: The number of features in h.
        min_sigma: Floor of sigma, in the units of z.
    """

    def __init__(
        self,
        event_shape: Shape,
        num_steps: int = 3,
        hidden_sizes: Sequence[int] = (128, 128),
        num_bins: int = 8,
        context_size: int = 64,
        min_sigma: float = 1e-3,
    ) -> None:
        super().__init__(event_shape, context_size, min_sigma)
        check_sizes("NeuralSplineFlow", num_steps, hidden_sizes)
        if num_bins < 2:
            raise UserError(f"NeuralSplineFlow: num_bins is {num_bins}; it must be at least 2")
        sizes = {"transforms": num_steps, "hidden_features": tuple(hidden_sizes), "passes": 2, "bins": num_bins}
        self.flow = load_zuko().flows.NSF(self.event_shape[0], context_size, **sizes).transform


def check_sizes(owner: str, num_steps: int, hidden_sizes: Sequence[int]) -> None:
    if num_steps < 1:
        raise UserError(f"{owner}: num_steps is {num_steps}; it must be at least 1")
    if not hidden_sizes or min(hidden_sizes) < 1:
        raise UserError(
            f"{owner}: hidden_sizes {list(hidden_sizes)}: must be one or more positive sizes, such as (320,)"
        )


def check_gate(owner: str, min_gate: float) -> None:
    if not 0 < min_gate < 1:
        raise UserError(f"{owner}: min_gate is {min_gate}; it is the floor of a gate, and must be between 0 and 1")


def reals(event_dims: int) -> constraints.Constraint:
    """R^D, for vectors (1 dimension) or maps (3)."""
    return constraints.independent(constraints.real, event_dims)
