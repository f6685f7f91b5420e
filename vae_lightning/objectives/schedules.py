"""Schedules: numbers that change with the global step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from vae_lightning.types import UserError


class Schedule(ABC):
    """A number as a function of the global step: no state, so a resumed run is where it was."""

    @abstractmethod
    def __call__(self, step: int) -> float: ...

    @property
    @abstractmethod
    def lowest(self) -> float:
        """What it never falls below, at any step: so that an objective can refuse its range at once."""


@dataclass(frozen=True)
class Constant(Schedule):
    """beta(t) = value."""

    value: float = 1.0

    def __call__(self, step: int) -> float:
        return self.value

    @property
    def lowest(self) -> float:
        return self.value


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """beta(t) = start + (end - start) min(1, t / num_steps)."""

    num_steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        at_least("LinearWarmup", 1, num_steps=self.num_steps)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.num_steps)

    @property
    def lowest(self) -> float:
        return min(self.start, self.end)


@dataclass(frozen=True)
class Cyclic(Schedule):
    """In each period a linear rise over its first `rise` fraction, then `end` (Fu et al. 2019, arXiv:1903.10145)."""

    period: int
    rise: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        at_least("Cyclic", 1, period=self.period)
        if not 0 < self.rise <= 1:
            raise UserError(f"Cyclic: rise is {self.rise}; it is a fraction of the period, above 0 and at most 1")

    def __call__(self, step: int) -> float:
        phase = step / self.period - step // self.period  # not %, which torch.compile has no code for
        return self.start + (self.end - self.start) * min(1.0, phase / self.rise)

    @property
    def lowest(self) -> float:
        return min(self.start, self.end)


def as_schedule(value: float | Schedule) -> Schedule:
    """A bare number is a `Constant`."""
    return value if isinstance(value, Schedule) else Constant(value)


def at_least(owner: str, least: float, **settings: float) -> None:
    """Raise where one of `settings` is below `least`: which one, of whose."""
    for name, value in settings.items():
        if not value >= least:
            raise UserError(f"{owner}: {name} is {value}; it must be at least {least}")
