"""A mean over examples with its standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A mean and its standard error; the error is NaN if it is unknown."""

    mean: float
    error: float

    def is_above(self, limit: float) -> bool:
        """Whether the mean is above `limit` by at least two standard errors."""
        return self.mean - 2 * self.error >= limit

    def is_below(self, limit: float) -> bool:
        """Whether the mean is below `limit` by more than two standard errors."""
        return self.mean + 2 * self.error < limit


def mean_and_error(values: Tensor) -> Estimate:
    """The mean and standard error of one value per example, [N]. The error is unknown if N is 1."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(values.mean().item(), error)
