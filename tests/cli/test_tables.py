"""The table that `validate` prints has no number of a bound where the loss leaves the KL out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main

RUN = "tests/checkpoints/vae"


@pytest.mark.parametrize(("beta", "are_meant"), [(0, False), (1, True)])
def test_a_bound_without_meaning_is_not_in_the_table(
    beta: int, are_meant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    flags = ("--ckpt_path", RUN, f"--model.objective.beta={beta}", f"--runs_dir={tmp_path}", "--nll.num_samples=0")
    assert main(["validate", "-c", f"{RUN}/config.yaml", *flags, "--trainer.accelerator=cpu"]) == 0
    table = capsys.readouterr().out
    print(table)
    assert ("val/elbo" in table) == ("val/kl" in table) == are_meant
    assert "val/loss" in table
    assert "val/log_likelihood" in table
