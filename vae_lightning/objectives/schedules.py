"""Schedules: numbers that change with the global step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from vae_lightning.types import UserError


class Schedule(ABC):
    """A number as a function of the global step.

    A schedule has no state, so a resumed run continues with the same number.
    """

    @abstractmethod
    def __call__(self, step: int) -> float: ...

    @property
    @abstractmethod
    def lowest(self) -> float:
        """The lowest value at any step, with which an objective checks its range before the run begins."""


@dataclass(frozen=True)
class Constant(Schedule):
    """beta(t) = value.

    Args:
        value: The number at every step.
    """

    value: float = 1.0

    def __call__(self, step: int) -> float:
        return self.value

    @property
    def lowest(self) -> float:
        return self.value


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """beta(t) = start + (end - start) min(1, t / num_steps).

    Use it against latents that collapse at the start of training.

    Args:
        num_steps: The optimizer step at which `end` is reached; at least 1.
        start: The value at step 0.
        end: The value from step `num_steps` on.
    """

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
    """In each period a linear rise from `start` to `end`, and then `end`.

    Fu et al. 2019 (https://arxiv.org/abs/1903.10145). Use it against latents that collapse even with one warm-up.

    Args:
        period: The length of one cycle, in optimizer steps; at least 1.
        rise: The fraction of the period in which the value rises, above 0 and at most 1.
        start: The value at the beginning of each period.
        end: The value after each rise.
    """

    period: int
    rise: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        at_least("Cyclic", 1, period=self.period)
        if not 0 < self.rise <= 1:
            raise UserError(f"Cyclic: rise is {self.rise}; it is a fraction of the period, above 0 and at most 1")

    def __call__(self, step: int) -> float:
        phase = step / self.period - step // self.period  # torch.compile does not support % here
        return self.start + (self.end - self.start) * min(1.0, phase / self.rise)

    @property
    def lowest(self) -> float:
        return min(self.start, self.end)


def as_schedule(value: float | Schedule) -> Schedule:
    """The schedule itself; a number becomes a `Constant`."""
    return value if isinstance(value, Schedule) else Constant(value)


def is_zero(schedule: Schedule) -> bool:
    """Whether a schedule is the number 0 at every step; false of one that passes through 0, such as a warm-up.

    Args:
        schedule: The schedule.
    """
    return isinstance(schedule, Constant) and schedule.value == 0


def at_least(owner: str, lowest: float, **settings: float) -> None:
    """Check that every one of `settings` is at least `lowest`.

    Args:
        owner: The class whose settings these are, for the message.
        lowest: The lowest value that is allowed.
        **settings: The values by the names of the arguments.

    Raises:
        UserError: for the first setting below `lowest`, or NaN.
    """
    for name, value in settings.items():
        if not value >= lowest:
            raise UserError(f"{owner}: {name} is {value}; it must be at least {lowest}")
