"""Families of sequences: one family repeated along time or objects, and the classes of tokens and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution, Independent

from vae_lightning.distributions.families import Family, FamilyRecipe
from vae_lightning.distributions.masks import Masked, MaskedPositions
from vae_lightning.types import Shape, UserError


class Repeated(Family):
    """p(x) = prod_t p(x_t): one family at every step of an event [T, *event_shape].

    Use this for frames, tokens, or objects. T is read from the features, [..., T, *param_shape], so one network serves
    every length; a `Repeated` of a `Repeated` has time and objects. Sequences of several lengths in a batch are padded,
    and `Masked` hides the padding.

    Args:
        event_shape: Shape of one step, () if it is one number; the model sets it.
        family: The family of one step.
    """

    def __init__(self, event_shape: Shape, family: FamilyRecipe) -> None:
        super().__init__(event_shape)
        self.family = family(self.event_shape)

    @property
    def param_shape(self) -> Shape:
        """The shape of the features of one step."""
        return self.family.param_shape

    def distribution(self, features: Tensor) -> Distribution:
        if features.dim() <= len(self.param_shape):
            raise UserError(
                f"Repeated: features of one step have the shape {list(self.param_shape)}, and an axis of steps leads "
                f"them; found {list(features.shape)}"
            )
        steps = self.family(features)  # batch shape [..., T]
        if type(steps) is Independent:
            steps, num_dims = steps.base_dist, steps.reinterpreted_batch_ndims
        else:
            num_dims = 0
        sequence = Independent(steps, num_dims + 1, validate_args=self.validate_args)
        sequence.is_sequence = True  # type: ignore[attr-defined]  # for `num_steps`
        return sequence


def num_steps(p: Distribution) -> Tensor | None:
    """How many steps of its event p explains, [] or [..., B]: all T of a `Repeated`, the seen ones of a `Masked`.

    Use it for nats a frame or a token.

    Args:
        p: The distribution of whole sequences; None is returned for any other.
    """
    if isinstance(p, Masked) and isinstance(p.base_dist, MaskedPositions):
        seen = p.base_dist.seen  # [..., B, T, 1...]
        others = tuple(range(-p.reinterpreted_batch_ndims + 1, 0))
        return (seen.any(others) if others else seen).sum(-1)
    if getattr(p, "is_sequence", False):
        return torch.tensor(p.event_shape[0])
    return None


class Classes(Family):
    """P(x = v) = softmax(logits)_v, v = 0 .. V - 1, at each position: whole numbers without an order.

    A likelihood of tokens, labels and cells; `Categorical` is its counterpart for one-hot latents, `CategoricalLevels`
    for grey levels. The features hold V logits for each position, all of the first class first. The classes have no
    mean; the mode stands for the distribution.

    Args:
        event_shape: Shape of one x, () if it is one number; the model sets it.
        num_classes: V, at least 2.
    """

    def __init__(self, event_shape: Shape, num_classes: int) -> None:
        super().__init__(event_shape)
        if num_classes < 2:
            raise UserError(f"Classes: num_classes is {num_classes}; it must be at least 2")
        self.num_params = num_classes

    def pointwise(self, *params: Tensor) -> TorchCategorical:
        return TorchCategorical(logits=torch.stack(params, dim=-1), validate_args=self.validate_args)
