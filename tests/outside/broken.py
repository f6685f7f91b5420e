"""Data and models that do not fit each other, for the messages on bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tests.outside.semi_supervised import FewLabels, SemiSupervised
from tests.outside.transitions import GustyBall, Transitions
from vae_lightning.data import DataModule, Examples, Images, Split
from vae_lightning.trace import Observed, Trace
from vae_lightning.types import Batch


class NoLabels(FewLabels):
    def load(self, split: Split) -> Images:
        images = super().load(split)
        del images.fields["label"]
        return images


class FiveClasses(FewLabels):
    num_classes = 5


class NoActionShape(DataModule):
    x_shape = (2,)

    def load(self, split: Split) -> Examples:
        return GustyBall().load(split)


class WrongShape(GustyBall):
    x_shape = (3,)


class TwoForces(GustyBall):
    def load(self, split: Split) -> Examples:
        examples = super().load(split)
        examples.fields["action"] = examples.fields["action"][:, None].expand(-1, 2)
        return examples


class ColumnOfRewards(GustyBall):
    """A reward [B, 1] that p(reward), of single numbers, would compare with the rewards of all other examples."""

    def load(self, split: Split) -> Examples:
        examples = super().load(split)
        examples.fields["reward"] = examples.fields["reward"][:, None]
        return examples


class WrongShares(SemiSupervised):
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        trace = super().trace(batch, num_samples, step)
        assert trace.log_shares is not None
        return replace(trace, log_shares=trace.log_shares + 1)


class Probability(SemiSupervised):
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        trace = super().trace(batch, num_samples, step)
        label = replace(trace.latents["label"], exists=torch.full_like(trace.latents["label"].log_p(), 0.5))
        return replace(trace, latents={**trace.latents, "label": label})


class Halves(Transitions):
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        trace = super().trace(batch, num_samples, step)
        done: Any = trace.observed["done"]
        return replace(trace, observed={"done": Observed(done.value + 0.5, done.p)})
