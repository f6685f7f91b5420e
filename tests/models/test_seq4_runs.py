"""SEQ4 from the command line: training, resuming, two devices, bf16, both arms, tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests.helpers import REPOSITORY, only, run_cli
from vae_lightning.__main__ import main

TINY = (
    *("--data.num_pairs=20", "--data.num_unlabelled=60", "--data.num_val=6", "--data.num_test=10"),
    *("--data.batch_size=16", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"),
    *("--nll.num_samples=2", "--pictures.num_images=4", "--trainer.accelerator=cpu", "--model.latent_length=6"),
)


def place(tmp_path: Path) -> tuple[str, ...]:
    """Flags for runs in a folder of this test."""
    return (f"--runs_dir={tmp_path / 'runs'}", "--trainer.logger=false")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(REPOSITORY)

    def run(run_id: str, *flags: str, verb: str = "fit") -> Path:
        name = f"--run_id={run_id}"
        assert main([verb, "-c", "configs/seq4/toy.yaml", *place(tmp_path), name, *TINY, *flags]) == 0
        return only(tmp_path / "runs", f"**/{run_id}")

    return run


def weights(run: Path) -> dict[str, Tensor]:
    return dict(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


def metrics(run: Path) -> dict[str, float]:
    return dict(yaml.safe_load((run / "results.json").read_text())["metrics"])


@pytest.mark.slow
def test_a_run_has_scores_and_tables_and_says_what_is_no_bound(
    train: Callable[..., Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = train("whole", verb="train")
    assert (
        "train: likelihood Classes; KL by latent: sentence closed form; elbo and nll are of x, sentence" in caplog.text
    )
    assert "costs in the loss alone: inverse, language, reading" in caplog.text
    assert "the KL of sentence has weight 0 in the loss, so elbo, kl and nll say nothing" in caplog.text
    out = capfd.readouterr().out
    assert "objective ELBO with K = 1, beta 0" in out
    assert "test        exact_match " in out
    assert re.search(r"^next +\S*vae-lightning translate \S+best\.ckpt$", out, re.MULTILINE)
    assert "epoch 2/2  val/cost/reading " in out
    assert not re.search(r"\b(elbo|nll|kl) -?\d", out)
    found = metrics(run)
    assert main(["score", str(run)]) == 2
    assert "say nothing of the model; test_values.npz" in capfd.readouterr().err
    names = ("exact_match", "round_trip", "bleu/x", "bleu/sentence", "length_ratio/latent", "nats_per_token/x")
    assert all(f"test/{name}" in found for name in names)
    table = (run / "images" / "reconstructions-0002.txt").read_text()
    assert "latent sentence" in table
    assert "read from the sentence" in table
    assert (run / "images" / "attention-0002.png").is_file()
    assert " => " in (run / "images" / "samples-0002.txt").read_text()
    assert main(["sample", str(run), "--num_images=3"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["true", "false"])
def test_a_run_resumes_in_an_epoch(train: Callable[..., Path], arm: str) -> None:
    quiet = ("--pictures.num_images=0", f"--data.use_unlabelled={arm}")
    expected = weights(train("whole", *quiet))
    train("half", *quiet, "--trainer.max_steps=7")
    assert all(torch.equal(value, expected[name]) for name, value in weights(train("half", *quiet)).items())


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["true", "false"])
def test_two_ranks(tmp_path: Path, arm: str) -> None:
    flags = (*TINY, "--pictures.num_images=0", f"--data.use_unlabelled={arm}", "--trainer.devices=2", "--run_id=two")
    run_cli("train", "-c", "configs/seq4/toy.yaml", *place(tmp_path), *flags)
    run = only(tmp_path / "runs", "**/two")
    both = metrics(run)
    args = ("-c", run / "config.yaml", f"--ckpt_path={run}", "--trainer.devices=1", "--trainer.logger=false")
    run_cli("test", *args)
    alone = metrics(run)
    for name in ("exact_match", "token_accuracy", "bleu/x", "bleu/sentence", "round_trip", "nats_per_token/x"):
        assert both[f"test/{name}"] == pytest.approx(alone[f"test/{name}"], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("network", ["GRUTranslator", "TransformerTranslator"])
def test_bf16_gives_nearly_the_losses_of_full_precision(train: Callable[..., Path], network: str) -> None:
    """The densities are float32 in both; a step of two epochs each."""
    quiet = ("--pictures.num_images=0", f"--model.reader={network}", f"--model.writer={network}")
    full, half = (
        metrics(train(name, *quiet, f"--trainer.precision={name}", verb="train")) for name in ("32-true", "bf16-mixed")
    )
    for name in ("nats_per_token/x", "nats_per_token/sentence"):
        assert half[f"test/{name}"] == pytest.approx(full[f"test/{name}"], rel=0.05)
