"""The number of objects n = 0 .. N: priors p(n), and q(n) of a chain of decisions to continue."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from vae_lightning.distributions import Family
from vae_lightning.types import UserError


class CountPrior(nn.Module):
    """p(n) on 0 .. N, proportional to e^(log_p).

    Args:
        log_p: N + 1 numbers.
    """

    log_p: Tensor

    def __init__(self, log_p: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_p", log_p.log_softmax(-1), persistent=False)

    def forward(self) -> Categorical:
        return Categorical(logits=self.log_p, validate_args=Family.validate_args)


CountPriorRecipe: TypeAlias = Callable[[int], CountPrior]
"""A `CountPrior` class, or a `functools.partial` of one: called as `recipe(max_count)`."""


class UniformCount(CountPrior):
    """p(n) = 1 / (N + 1). Samples of the prior then have as many objects as not.

    Args:
        max_count: N; the model sets it.
    """

    def __init__(self, max_count: int) -> None:
        super().__init__(torch.zeros(max_count + 1))


class DecayingCount(CountPrior):
    """p(n) proportional to rho^n on 0 .. N: a truncated geometric distribution.

    Choose it if few objects are likelier. Most samples of the prior are empty if rho is small.

    Args:
        max_count: N; the model sets it.
        rho: The ratio of p(n + 1) to p(n), above 0.

    Raises:
        UserError: if rho is not above 0.
    """

    def __init__(self, max_count: int, rho: float = 0.1) -> None:
        if not rho > 0:
            raise UserError(f"DecayingCount: rho is {rho}; it must be above 0")
        super().__init__(torch.arange(max_count + 1) * math.log(rho))


def mixed(logits: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """log c and log (1 - c) with c = eps + (1 - 2 eps) sigmoid(l) = (1 - eps) sigmoid(l) + eps sigmoid(-l).

    With eps > 0 neither continuing nor stopping ever becomes impossible, so that the objects of later steps are trained
    whatever the first logits are.

    Args:
        logits: l, any shape.
        floor: eps, from 0 to 0.5.
    """
    eps = logits.new_full((), floor)
    go, stop = F.logsigmoid(logits), F.logsigmoid(-logits)
    stay, swap = torch.log1p(-eps), eps.log()
    return torch.logaddexp(stay + go, swap + stop), torch.logaddexp(stay + stop, swap + go)


def log_count(log_go: Tensor, log_stop: Tensor) -> Tensor:
    """log q(n) = sum_(i <= n) log c_i + log (1 - c_(n + 1)), with c_(N + 1) = 0: [..., N + 1].

    Args:
        log_go: log c_1 .. log c_N, [..., N].
        log_stop: log (1 - c_1) .. log (1 - c_N), [..., N].
    """
    return F.pad(log_go.cumsum(-1), (1, 0)) + F.pad(log_stop, (0, 1))


def say_too_many(owner: str, data: Any, stage: str, most: int, what: str) -> None:
    """Say in one line for each split of a stage how many examples have more objects than a model can find.

    Args:
        owner: The model's class, for the message.
        data: The data module; None if the loaders came without one.
        stage: `fit`, `validate`, `test` or `predict`.
        most: The largest number of objects that the model can find.
        what: What limits this number, an argument first: `num_steps=3`.
    """
    for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
        fields = getattr(data.examples(split), "fields", {}) if hasattr(data, "examples") else {}
        count = fields.get("count")
        if count is not None and bool((more := count > most).any()):
            rank_zero_info(
                f"{owner}: {int(more.sum()):,} of {len(count):,} {split} examples have more objects than {what}, at "
                f"most {int(count.max())}: their count cannot be found; raise --model.{what.partition('=')[0]}"
            )
