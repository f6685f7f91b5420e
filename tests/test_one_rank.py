"""Two processes with a fault on one: both do the same or both end, and the first error is printed."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.forks import start_python
from tests.helpers import DIGITS, REPOSITORY, clean_environment, read_csv
from tests.runs.test_signals import LIMIT, ranks

FIT = ("fit", "-c", DIGITS, "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.logger=false")
SHORT = ("--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.num_sanity_val_steps=0")

PLANTED = """
import os
import torch
from vae_lightning.models import VAE

rank, steps = int(os.environ.get("LOCAL_RANK", "0")), []
training_step, on_train_batch_end = VAE.training_step, VAE.on_train_batch_end

def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}

def step(self, batch, batch_idx):
    self.before = weights(self)
    if rank == 1 and self.global_step in (3, 4):
        FAULT
    return training_step(self, batch, batch_idx)

def end(self, *args):
    steps.append(any(not torch.equal(value, self.before[name]) for name, value in weights(self).items()))

VAE.training_step, VAE.on_train_batch_end = step, end
VAE.on_train_end = lambda self: torch.save((steps, weights(self)), f"FOLDER/rank{rank}.pt")

from vae_lightning.__main__ import console
console()
"""


class Result(NamedTuple):
    """The exit code of a command on two ranks, its standard error, and the time of its end."""

    code: int
    err: str
    end: float


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command line with a fault in the second rank's training; no process is left afterwards."""

    def run(fault: str, *args: str) -> Result:
        script = tmp_path / "planted.py"
        script.write_text(PLANTED.replace("FAULT", fault).replace("FOLDER", str(tmp_path)))
        name = f"planted-{os.getpid()}"
        command = [str(script), *FIT, *args, f"--runs_dir={tmp_path}", f"--run_id={name}"]
        env = {**clean_environment(), "PYTHONPATH": str(REPOSITORY)}
        process = start_python(*command, cwd=REPOSITORY, env=env)
        try:
            _, err = process.communicate(timeout=240)  # imports beside other processes may take most of it
            end = time.time()
            time.sleep(0.2)
            assert ranks(tmp_path / name) == []
        finally:
            process.kill()
            for pid in ranks(tmp_path / name):
                os.kill(pid, signal.SIGKILL)
        assert process.returncode is not None
        return Result(process.returncode, err, end)

    return run


def test_a_batch_of_nan_on_one_rank_is_a_step_for_neither(run: Run, tmp_path: Path) -> None:
    """Both ranks skip the step, it is counted once, and the weights stay equal on both ranks and finite."""
    result = run('batch = {**batch, "x": batch["x"] * torch.nan}', *SHORT)
    assert result.code == 0, result.err
    (steps, weights), (others, other_weights) = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert steps == others == [step not in (3, 4) for step in range(10)]
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name])
        assert value.isfinite().all()
    (path,) = tmp_path.rglob("metrics.csv")
    skipped = [float(row["train/skipped_steps"]) for row in read_csv(path) if "train/skipped_steps" in row]
    assert skipped == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.slow
def test_an_exception_on_one_rank_is_heard_and_ends_both(run: Run, tmp_path: Path) -> None:
    """Both ranks end within the limit, with an exit code other than 0."""
    result = run('open("FOLDER/raised", "w"); raise RuntimeError("planted on rank 1")', "--trainer.max_epochs=100000")
    assert result.code != 0
    assert result.end - (tmp_path / "raised").stat().st_mtime < LIMIT
    first, *_ = re.findall(r"^(?:\[rank\d\]: )?(\w+Error: .*)$", result.err, re.MULTILINE)
    assert first == "RuntimeError: planted on rank 1", result.err  # not the other rank's error, a closed connection
    assert "Traceback" in result.err.partition(first)[0]
