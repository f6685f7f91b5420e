"""What every test has: argument checks of distributions on, a fixed seed, and no W&B account."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from vae_lightning.distributions import Family

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what jsonargparse has renamed
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the laws are the CPU's; tests that want a GPU say so


@pytest.fixture(autouse=True)
def _validate_distributions() -> Iterator[None]:
    """Families leave torch's checks off for speed; under test they are on."""
    Family.validate_args = True
    yield
    Family.validate_args = False


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "VAE_LIGHTNING_RUN_ID", "VAE_LIGHTNING_CHOSEN_RUN", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(0)
