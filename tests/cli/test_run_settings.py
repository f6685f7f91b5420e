"""The choices before a run's model and data are built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.__main__ import main


@pytest.fixture
def _own_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.parametrize(("verb", "precision"), [("fit", "medium"), ("train", "highest")])
def test_products_are_as_precise_as_asked_in_a_fit_and_as_possible_in_a_test(
    verb: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    flags = ("--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.max_steps=1", "--nll.num_samples=2")
    few = ("--trainer.limit_test_batches=1", "--pictures.num_images=1", f"--runs_dir={tmp_path}")
    assert main([verb, "-c", DIGITS, *flags, *few, "--matmul_precision=medium"]) == 0
    assert torch.get_float32_matmul_precision() == precision
