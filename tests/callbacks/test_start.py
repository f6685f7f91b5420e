"""Notes before the first step: few images, a batch larger than the set, no validation in the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.__main__ import main

FIT = ("fit", "-c", DIGITS, "--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1")
SMALL = ("--model.encoder.hidden_sizes=[8]", "--model.decoder.hidden_sizes=[8]")
EACH = "--trainer.check_val_every_n_epoch=1"
STEP = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", EACH)
LARGE = ("--model.encoder.hidden_sizes=[1024]", "--model.decoder.hidden_sizes=[1024]")
EPOCH = 20  # steps

NEVER = "no validation in this run, and so no best.ckpt: trainer.{} is {}, and the first one comes after {} "
CASES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "nothing": ((*SMALL, *STEP), None),
    "no-such-limit": ((*SMALL, *STEP, "--trainer.max_steps=20"), None),
    "epochs": ((*SMALL, "--trainer.max_epochs=4", "--trainer.limit_train_batches=1"), NEVER.format("max_epochs", 4, 5)),
    "epochs-after-the-last-validation": (
        (*SMALL, "--trainer.max_epochs=7", "--trainer.limit_train_batches=1"),
        "no validation after the last 2 of 7 epochs: best.ckpt, which is tested, cannot hold them; ",
    ),
    "whole-intervals": ((*SMALL, "--trainer.max_epochs=5", "--trainer.limit_train_batches=1"), None),
    "steps": ((*SMALL, EACH, "--trainer.max_steps=3"), NEVER.format("max_steps", 3, EPOCH)),
    "steps-of-several-batches": (
        (*SMALL, EACH, "--trainer.max_steps=3", "--trainer.accumulate_grad_batches=5"),
        NEVER.format("max_steps", 3, EPOCH // 5),
    ),
    "several-steps-a-call": (
        (*SMALL, EACH, "--trainer.max_steps=4", "--speed.steps_per_call=4"),
        NEVER.format("max_steps", 4, EPOCH),
    ),
    "within-the-epoch": ((*SMALL, EACH, "--trainer.max_steps=3", "--trainer.val_check_interval=2"), None),
    "none-wanted": ((*SMALL, "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"), None),
    "batch": (
        (*SMALL, *STEP, "--data.batch_size=5000"),
        "data.batch_size is 5000 and there are 1266 training images: an epoch is one step on all of them; ",
    ),
    "beta": (
        (*SMALL, *STEP, "--model.objective.beta=0"),
        "best.ckpt would be the best by val/elbo, but the loss leaves out the KL of z: ",
    ),
    "beta-and-monitor": (
        (*SMALL, *STEP, "--model.objective.beta=0", "--checkpoint.monitor=val/loss", "--checkpoint.mode=min"),
        None,
    ),
    "weights": ((*LARGE, *STEP, "--model.latent_size=600"), "1,266 training images for 2.0 M weights: the model may "),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_seldom_meant_is_said_at_the_start(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    args, note = CASES[case]
    assert main([*FIT, *args, f"--runs_dir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    signs = ("no validation", "data.batch_size is", "training images for", "would be the best by")
    notes = [line for line in lines if any(sign in line for sign in signs)]
    assert len(notes) == (note is not None), notes
    if note is not None:
        assert notes[0].startswith(note)
    validated = "best.ckpt" in {path.name for path in tmp_path.rglob("*.ckpt")}
    assert validated == (case != "none-wanted" and "no validation in" not in (note or ""))
