"""A mean over examples and its standard error: what every statistic of a test set is."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A mean and its standard error; NaN where that is not known."""

    mean: float
    error: float

    def is_above(self, limit: float) -> bool:
        """By two standard errors."""
        return self.mean - 2 * self.error >= limit

    def is_below(self, limit: float) -> bool:
        """By two standard errors."""
        return self.mean + 2 * self.error < limit


def mean_and_error(values: Tensor) -> Estimate:
    """Of one value an example, [N]. The standard error of a single one is not known."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(values.mean().item(), error)
