"""The states of a world: how networks read a state of cells, numbers or pixels, and give the next state."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from vae_lightning.distributions import Classes, DiagonalNormal, Family, FamilyRecipe
from vae_lightning.trace import distribution_name, has_mean, point
from vae_lightning.types import Shape, UserError


class States(nn.Module):
    """Planes of a state s, which networks read, and p(s'|features, s), which begins as a copy of s.

    In one step most of a state does not change. So the features of p(s') are the sum of a network's output and of a
    term that gives s' = s a high probability: gain times the one-hot planes for classes, s itself if the mean of the
    likelihood is its first parameter, and gain (2 s - 1) if that parameter is a logit.

    Args:
        x_shape: The shape of one state.
        vocabulary: V, if a state holds whole numbers 0 .. V - 1; None if it holds real numbers.
        likelihood: Family of p(s'|...). None: `Classes` for whole numbers, else N(., sigma^2) with one learned sigma.
        gain: The nats that this term adds to the logit of s' = s, if the parameters are logits.

    Raises:
        UserError: if the shape is not one of a state, or if the likelihood does not fit.
    """

    unit: Tensor
    centre: Tensor
    spread: Tensor
    change: Tensor

    def __init__(
        self, x_shape: Shape, vocabulary: int | None = None, likelihood: FamilyRecipe | None = None, gain: float = 4.0
    ) -> None:
        super().__init__()
        self.x_shape, self.vocabulary, self.gain = tuple(x_shape), vocabulary, gain
        if any(size < 1 for size in self.x_shape) or (vocabulary is None and len(self.x_shape) not in (1, 3)):
            raise UserError(
                f"Dreaming: x_shape is {self.x_shape}; a state is a vector (D,), an image (C, H, W), or with a "
                "vocabulary whole numbers of any shape such as (n, n)"
            )
        family = likelihood or (_real if vocabulary is None else partial(Classes, num_classes=vocabulary))
        self.likelihood = family(self.x_shape)
        planes = self.x_shape if vocabulary is None else (vocabulary, *self.x_shape)
        self.planes_shape: Shape = planes if len(planes) == 3 else (math.prod(planes),)
        self.num_params = self._check_params()
        self.mean_is_first = vocabulary is None and self._mean_is_first()
        self.register_buffer("unit", torch.ones(()), persistent=False)  # of the dtype and the device of the model
        if self.is_vector:  # the units of each number, of the training data: see `measure`
            for name, value in (("centre", 0.0), ("spread", 1.0), ("change", 1.0)):
                self.register_buffer(name, torch.full(self.x_shape, value))

    @property
    def is_map(self) -> bool:
        """Whether planes are maps [C, H, W], so that convolutions read them; else they are vectors [F]."""
        return len(self.planes_shape) == 3

    @property
    def is_vector(self) -> bool:
        """Whether a state is a vector of real numbers, which have units."""
        return self.vocabulary is None and len(self.x_shape) == 1

    @property
    def features_shape(self) -> Shape:
        """The shape of a network's output for one next state."""
        return (self.num_params * self.planes_shape[0], *self.planes_shape[1:])

    def forward(self, state: Tensor) -> Tensor:
        """Return what a network reads: one-hot planes of whole numbers, vectors in units of their spread, or pixels.

        Args:
            state: [B, *x_shape].

        Returns:
            float [B, *planes_shape]; H and W are those of the state.
        """
        if self.vocabulary is not None:
            planes = F.one_hot(state.long(), self.vocabulary).movedim(-1, 1).to(self.unit.dtype)
            return planes if self.is_map else planes.flatten(1)
        return (state - self.centre) / self.spread if self.is_vector else state

    def p_next(self, features: Tensor, state: Tensor) -> Distribution:
        """p(s'|features, s), with batch shape [..., B].

        Args:
            features: A network's output, [..., B, *features_shape].
            state: s, [B, *x_shape].
        """
        axis = features.dim() - len(self.planes_shape)
        channels = self.planes_shape[0]
        first, others = features.split([channels, features.shape[axis] - channels], axis)
        if self.mean_is_first:
            first = state + self.change * first if self.is_vector else state + first
        else:
            planes = self(state)
            first = first + self.gain * (planes if self.vocabulary is not None else 2 * planes - 1)
        features = torch.cat((first, others), axis)
        if self.vocabulary is not None:  # [V, H, W] -> [V H, W], the form of `Classes`
            lead, shape = features.shape[:axis], self.likelihood.param_shape
            features = features.flatten(axis, axis + 1) if self.is_map else features.reshape(*lead, *shape)
        p: Distribution = self.likelihood(features)
        return p

    def point(self, p: Distribution) -> Tensor:
        """Return one next state that stands for p(s'): the mode of each class, or the mean; pixels within [0, 1].

        Args:
            p: p(s'|...), with batch shape [...].
        """
        state = point(p)
        assert state is not None  # see _check_params
        return state.clamp(0, 1) if len(self.x_shape) == 3 and self.vocabulary is None else state

    @torch.no_grad()
    def measure(self, state: Tensor, following: Tensor) -> None:
        """Take the units of vectors from the training data: the mean and spread of s, and the spread of s' - s.

        Args:
            state: s, [N, D].
            following: s', [N, D].
        """
        changes = (following.double() - state.double()).std(0)
        self.centre.copy_(state.double().mean(0))
        for buffer, spread in ((self.spread, state.double().std(0)), (self.change, changes)):
            buffer.copy_(spread.where(spread > 1e-6, 1.0))  # a number that never changes keeps its unit

    @torch.no_grad()
    def _check_params(self) -> int:
        """The number of parameters of each number of a state; raise if the likelihood has another form."""
        shape, planes = self.likelihood.param_shape, self.planes_shape
        if self.vocabulary is not None:
            wanted = (self.vocabulary * (self.x_shape or (1,))[0], *self.x_shape[1:])
            if shape != wanted:
                raise UserError(
                    f"Dreaming: the likelihood {type(self.likelihood).__name__} has parameters {list(shape)}; states "
                    f"of {self.vocabulary} classes need {list(wanted)}: choose Classes, or leave the likelihood out"
                )
            return 1
        p = self.likelihood(torch.zeros(shape))
        if not has_mean(p):
            raise UserError(f"Dreaming: the likelihood {distribution_name(p)} has no mean, and a dream needs one")
        return shape[0] // planes[0]

    @torch.no_grad()
    def _mean_is_first(self) -> bool:
        """Whether the mean of the likelihood is its first parameter, as that of a Gaussian is."""
        value = torch.full(self.x_shape, 0.25)
        others = torch.zeros((self.num_params - 1) * self.x_shape[0], *self.x_shape[1:])
        mean = point(self.likelihood(torch.cat((value, others))))
        return mean is not None and torch.allclose(mean, value, atol=1e-3)


def _real(event_shape: Shape) -> Family:
    return DiagonalNormal(event_shape, sigma=0.1, learn_sigma=True, min_sigma=1e-4)
