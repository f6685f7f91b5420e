"""A BatchNorm1d and batches of one example: refused if the run meets such a batch, and only then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from vae_lightning.cli.trainer_checks import _check_batch_statistics
from vae_lightning.data import Digits
from vae_lightning.networks import MLP
from vae_lightning.types import UserError

NORMALISED: Any = MLP((3,), (5,), normalisation=nn.BatchNorm1d)


def check(model: Any, batch_size: int, ranks: int = 1, calls: int = 10_000, batches_per_call: int = 1) -> None:
    """Check the 1,266 digits for training; `calls` are those that the run makes in an epoch."""
    data = Digits(batch_size=batch_size)
    data.prepare_data()
    data.batches_per_call = batches_per_call
    trainer: Any = SimpleNamespace(datamodule=data, world_size=ranks, num_training_batches=calls)
    _check_batch_statistics(trainer, model)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 1, "calls": 4}, r"\(1,266 examples, data.batch_size=1\)"),
        ({"batch_size": 115, "calls": 12}, r"\(1,266 examples, data.batch_size=115\)"),
        ({"batch_size": 115, "calls": 6, "batches_per_call": 2}, "data.batch_size=115"),
        ({"batch_size": 158, "calls": 5, "ranks": 2}, r"\(633 examples a rank, data.batch_size=158\)"),
    ],
)
def test_a_batch_of_one_is_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(NORMALISED, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 633},
        {"batch_size": 158},  # the last batch has two
        {"batch_size": 115, "calls": 11},  # limit_train_batches leaves the last batch out
        {"batch_size": 115, "ranks": 2},
    ],
)
def test_other_batches_are_not(settings: dict[str, int]) -> None:
    check(NORMALISED, **settings)


def test_a_model_without_a_batch_norm_takes_batches_of_one() -> None:
    check(MLP((3,), (5,), normalisation=nn.LayerNorm), batch_size=1)
