"""Flows: an invertible map f carries a simple density to another, log p(f(e)) = log p(e) - log |det df/de|.

Here are posteriors q(z|x) with a flow of vectors; one of maps is in `map_flows.py`, a flow as the prior in `priors.py`.
The maps f are zuko's (https://zuko.readthedocs.io), save for the gated step of IAF, which it lacks.
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
    """zuko, imported where a flow is built, without what its import does to all of torch.

    It switches the argument checks of every distribution off; whoever wants that says so to torch.
    """
    checks = Distribution._validate_args
    zuko = importlib.import_module("zuko")
    Distribution.set_default_validate_args(checks)
    return zuko


_FOREIGN = "flow: the density of a point was asked for that is not its own sample"
_REMEDY = "choose a posterior with a density everywhere (DiagonalNormal, LinearIAF), or what needs none of other points"
_STEEP = "choose a prior of fewer steps (--model.prior.num_steps), or another, such as MixtureOfFullNormals"


class _Sample(NamedTuple):
    z: Tensor
    version: int | None
    log_prob: Tensor
    with_grad: bool


def _version(z: Tensor) -> int | None:
    """How often `z` was changed in place; in inference mode torch does not count."""
    return None if z.is_inference() else z._version


class Flowed(Distribution):
    """log q(z) = log q_0(e) - log |det df/de| with z = f(e), e ~ q_0.

    `flow(context)` is f, a `Transform` of vectors or maps, with `context` (or None) as its condition: [*batch, C], for
    maps [*batch, C, H, W].
    The density of the last sample drawn by `rsample` is kept, so that a posterior's own samples cost no inversion;
    any other point is inverted, which an autoregressive f does one dimension after the other: D times the work. An
    inverse is checked by the way back. Float32 at least, whatever autocast says.

    Raises:
        UserError: by `log_prob` of a point that is not its own sample, where f has no inverse, rounding spoils it, or
            it takes more memory than there is.
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
                raise UserError(f"flow: rounding spoils its samples, which are off by {error}; {_STEEP}") from error
            log_prob = self.q_0.log_prob(e) - log_det
        self._last = _Sample(z, _version(z), log_prob, torch.is_grad_enabled())
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        last = self._last
        if (
            last is not None
            and value is last.z
            and _version(value) == last.version
            and (last.with_grad or not torch.is_grad_enabled())  # a sample drawn without a gradient has none to give
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
                raise UserError(f"{_FOREIGN}, and rounding spoils the inverse: off by {error}; {_REMEDY}") from error
            return self.q_0.log_prob(e) + log_det

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        shape = torch.Size(batch_shape)
        context = self.context
        if context is not None:
            context = context.expand(*shape, *context.shape[-len(self.event_shape) :])
        return Flowed(self.q_0.expand(shape), self.flow, context)


class Flow(Family):
    """z = f(e; h(x)), e ~ N(mu(x), diag sigma(x)^2): features hold mu, the raw scale, and the context h.

    Of vectors [D] the features are [..., 2 D + S], S = `context_size`; of maps [C, H, W], `event_dims` 3, they are
    [..., 2 C + S, H, W]. A subclass sets `flow`, a module from h to a `Transform` of events.
    """

    flow: Callable[[Tensor | None], Transform]
    event_dims: ClassVar[int] = 1

    def __init__(self, event_shape: Shape, context_size: int, min_sigma: float) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != self.event_dims:
            raise UserError(self._misfit())
        if context_size < 1:
            raise UserError(f"{type(self).__name__}: context_size is {context_size}; it must be at least 1")
        self.context_size = context_size
        self.base = DiagonalNormal(event_shape, min_sigma=min_sigma)

    def _misfit(self) -> str:
        name, shape = type(self).__name__, self.event_shape
        return (
            f"{name}: is a flow of vectors; of shape {shape} are maps; choose ConvIAF for a latent of maps, and for a "
            "likelihood one of independent pixels, such as DiagonalNormal"
        )

    @property
    def param_shape(self) -> Shape:
        return (2 * self.event_shape[0] + self.context_size, *self.event_shape[1:])

    def distribution(self, features: Tensor) -> Distribution:
        params, context = features.split((2 * self.event_shape[0], self.context_size), dim=-self.event_dims)
        return Flowed(self.base(params), self.flow, context)


class IAF(Flow):
    """z <- g z + (1 - g) m with (m_i, s_i) = MADE(z_1 .. z_(i-1), h), g = sigmoid(s): inverse autoregressive flow.

    Kingma et al. 2016 (https://arxiv.org/abs/1606.04934), algorithm 1, from z ~ N(mu(x), diag sigma(x)^2), `num_steps`
    times, in reversed order each time: log q falls by sum log g. `hidden_sizes` are those of each step's MADE (Germain
    et al. 2015), `gate_bias` is added to s, so that a step starts near the identity. Deviation: g has the floor
    `min_gate`, so that each step can be inverted. Sampling takes one pass, the density elsewhere one a dimension.
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
    """h -> the transform z_i <- g_i z_i + (1 - g_i) m_i, of which (m_i, g_i) see h and what comes before i in an order.

    g = sigmoid(s + `gate_bias`), with the floor `min_gate`. A subclass says (m, s).
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
    """In the order of the vector's dimensions, or with `reverse` in the opposite one."""

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
    """y_i = f_i(x_i; x_1 .. x_(i-1)): `step(x)` is the elementwise transform f of all dimensions, given x.

    Inverted by as many sweeps as there are dimensions, each of which makes one more of them right.
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
        """Both by one pass."""
        transform = self.step(x)
        y = transform(x)
        return y, transform.log_abs_det_jacobian(x, y)


class LinearIAF(TriangularNormal):
    """z = L(x) y, y ~ N(mu(x), diag sigma(x)^2), L unit lower triangular: q(z|x) = N(L mu, L diag sigma^2 L^T).

    Kingma et al. 2016 (https://arxiv.org/abs/1606.04934), section 4: one linear autoregressive step makes any Gaussian
    of full covariance. Features [..., 2 D + D (D - 1) / 2] hold mu, the raw scale, and by rows W of L = I + W / D^1/2,
    whose factor is that of `FullNormal`.
    """

    def gaussian(self, features: Tensor) -> FullPrecisionNormal:
        mu, sigma, matrix = self.parts(features)  # L [..., D, D]
        factor = matrix * sigma[..., None, :]
        return FullPrecisionNormal(
            (matrix @ mu[..., None])[..., 0], scale_tril=factor, validate_args=self.validate_args
        )


class RealNVP(Flow):
    """z_b <- z_b e^(s(z_a, h)) + t(z_a, h), z_a and z_b the halves of z by turns: affine coupling.

    Dinh et al. 2017 (https://arxiv.org/abs/1605.08803), here as a posterior, from z ~ N(mu(x), diag sigma(x)^2); |s| is
    bounded by log 1000. Deviation: z_a too is scaled and shifted, by functions of h alone. Sampling takes one pass, the
    density of another point two for the inverse and one for its determinant.
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
    """As `RealNVP`, with a monotone rational-quadratic spline of `num_bins` pieces on [-5, 5] for the affine map.

    Durkan et al. 2019 (https://arxiv.org/abs/1906.04032). Outside of [-5, 5] a dimension is left as it is.
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
        raise UserError(f"{owner}: hidden_sizes {list(hidden_sizes)}: needs one positive size or more, such as (320,)")


def check_gate(owner: str, min_gate: float) -> None:
    if not 0 < min_gate < 1:
        raise UserError(f"{owner}: min_gate is {min_gate}; it is a floor of the gate, between 0 and 1")


def reals(event_dims: int) -> constraints.Constraint:
    """R^D, as vectors or as maps."""
    return constraints.independent(constraints.real, event_dims)
