"""The choice of the run: named, newest, complete, restarted, locked; and the settings that may change on resume."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from tests.helpers import DIGITS, REPOSITORY, only, read_csv
from vae_lightning.__main__ import main
from vae_lightning.cli.run_settings import experiment_of
from vae_lightning.runs import folder as runs
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.runs.ownership import lock_run, owner
from vae_lightning.types import UserError

QUICK = ("fit", "-c", DIGITS, "--trainer.logger=false", "--trainer.accelerator=cpu", "--pictures.every_n_epochs=0")
SMALL = ("--data.batch_size=500", "--trainer.log_every_n_steps=1", "--model.encoder.hidden_sizes=[8]")
Run = Callable[..., int]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Arguments for two epochs of three steps, in a folder of the test."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv(runs._CHOSEN, "")  # a run sets this variable for its ranks; monkeypatch resets it

    def fit(*args: object) -> int:
        limit = () if any("max_epochs" in str(arg) for arg in args) else ("--trainer.max_epochs=2",)
        return main([*QUICK, *SMALL, *limit, f"--runs_dir={tmp_path}", *map(str, args)])

    return fit


def digest(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_named_run_goes_on_and_once_complete_is_left_alone(
    fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vae" / "digits" / "mine"
    assert fit("--run_id=mine") == 0
    before = digest(folder)
    for again in (["--run_id=mine"], ["--ckpt_path=last"], [f"--ckpt_path={folder}"], []):
        if not again:
            monkeypatch.setenv(runs.RUN_ID, "mine")
        capsys.readouterr()
        assert fit(*again) == 0
        assert "mine: already complete, after 6 steps; nothing was changed" in capsys.readouterr().out
        assert digest(folder) == before

    capsys.readouterr()
    assert fit("--ckpt_path=last", "--trainer.max_epochs=3", "--model.optimizer.lr=0.5") == 0
    output = capsys.readouterr().out
    assert "mine: goes on from last.ckpt, step 6\n" in output
    assert "(there -> here): model.optimizer.lr: 0.001 -> 0.5; trainer.max_epochs: 2 -> 3\n" in output
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5  # the new value took effect and is saved
    assert [int(row["step"]) for row in read_csv(folder / "metrics.csv") if "train/loss" in row] == list(range(9))
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 3


def test_the_seconds_of_a_fit_are_those_of_all_its_starts(fit: Run, tmp_path: Path) -> None:
    """Otherwise `train` on a run that `fit` has ended would report a time of 0."""
    assert fit("--run_id=timed") == 0
    folder = tmp_path / "vae" / "digits" / "timed"
    path = folder / "checkpoints" / "last.ckpt"
    contents = torch.load(path, weights_only=True)
    assert 0 < contents["callbacks"]["RunFolder"]["seconds"] < 600
    contents["callbacks"]["RunFolder"]["seconds"] = 5000.0
    WholeFiles().save_checkpoint(contents, path)
    assert (
        main(["train", *QUICK[1:], *SMALL, "--trainer.max_epochs=2", f"--runs_dir={tmp_path}", "--run_id=timed"]) == 0
    )
    assert 5000 <= json.loads((folder / "results.json").read_text())["seconds"]["fit"] < 5600


REFUSED = {
    "seed": (["--seed_everything=1"], "other data or another seed: seed 0 -> 1"),
    "data": (
        ["--data.binarisation=threshold"],
        "other data or another seed: data.binarisation none -> threshold; begin",
    ),
    "schedule": (
        ["--model.scheduler=torch.optim.lr_scheduler.StepLR", "--model.scheduler.step_size=1"],
        "its own optimizer and scheduler",
    ),
    "optimizer": (["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1"], "its own optimizer and scheduler"),
    "size": (["--model.latent_size=3"], r"does not fit the model of the config"),
}


def test_what_a_run_may_change_when_it_goes_on(fit: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Each change is refused or printed; none is ignored."""
    assert fit("--run_id=mine") == 0
    for args, says in REFUSED.values():
        capsys.readouterr()
        assert fit("--run_id=mine", "--trainer.max_epochs=3", *args) in (1, 2)
        assert re.search(says, capsys.readouterr().err)
    capsys.readouterr()
    loud = ("--data.batch_size=600", "--trainer.precision=bf16-mixed", "--trainer.accumulate_grad_batches=2")
    assert fit("--run_id=mine", "--trainer.max_epochs=3", *loud) == 0
    output = capsys.readouterr().out
    for what in ("batch_size 500 -> 600", "precision 32-true -> bf16-mixed", "accumulate_grad_batches 1 -> 2"):
        assert re.search(rf"^NOT EXACT: .*{what}", output, re.MULTILINE)


def test_within_an_epoch_another_batch_size_is_refused(fit: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The remaining images of such an epoch could not be found."""
    assert fit("--run_id=mine", "--trainer.max_steps=4") == 0
    assert fit("--run_id=mine", "--trainer.max_steps=9", "--data.batch_size=100") == 1
    assert "from within an epoch (1 batches seen" in capsys.readouterr().err


def test_last_of_nothing_is_refused(fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--ckpt_path=last"], ["--ckpt_path=last", "--run_id=none"], [f"--ckpt_path={tmp_path}"]):
        assert fit(*args) == 2
        assert re.search(r"no run with a checkpoint|no checkpoint in", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_in_one_process_hands(fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "vae" / "digits" / "mine"
    lock = lock_run(folder)
    assert owner(folder)["pid"] == os.getpid()
    assert fit("--run_id=mine") == 1
    assert f"mine: another process is training this run (host {owner(folder)['host']}" in capsys.readouterr().err
    lock.close()
    lock_run(folder).close()


def write(folder: Path, step: int, job: str | None = None) -> Path:
    """Make a run's folder with a checkpoint."""
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    hparams = {"_class_path": "vae_lightning.models.VAE"}
    torch.save({"state_dict": {}, "hyper_parameters": hparams, "global_step": step}, path)
    (folder / ".owner.json").write_text(json.dumps({"job": job}))
    os.utime(path, ns=(step, step))
    return folder


def settings_in(tmp_path: Path, **settings: Any) -> Any:
    from jsonargparse import Namespace

    return Namespace(**{"runs_dir": str(tmp_path), "run_id": None, "ckpt_path": None, **settings})


def test_a_process_that_its_launcher_started_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted process resumes the newest run of its job, not of another job, without a flag."""
    mine = write(tmp_path / "e" / "mine", 5, "17/2")
    write(tmp_path / "e" / "other", 9, "18/2")
    monkeypatch.delenv(runs._CHOSEN, raising=False)
    for name, value in (("SLURM_JOB_ID", "17"), ("SLURM_ARRAY_TASK_ID", "2"), ("SLURM_RESTART_COUNT", "0")):
        monkeypatch.setenv(name, value)
    assert runs.choose_run(settings_in(tmp_path), "e").contents is None  # the first time: a new run
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert runs.choose_run(settings_in(tmp_path), "e").folder == mine
    assert runs.choose_run(settings_in(tmp_path, ckpt_path="last"), "e").folder == tmp_path / "e" / "other"
    monkeypatch.setenv("SLURM_JOB_ID", "19")
    assert runs.choose_run(settings_in(tmp_path), "e").contents is None


def test_the_ranks_that_lightning_starts_take_the_first_ones_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "e" / "a", 5)
    monkeypatch.setenv(runs._CHOSEN, "")
    chosen = runs.choose_run(settings_in(tmp_path, ckpt_path="last"), "e")
    write(tmp_path / "e" / "b", 6)
    monkeypatch.setenv("LOCAL_RANK", "1")
    again = runs.choose_run(settings_in(tmp_path, ckpt_path="last"), "e")
    assert (again.folder, again.path, again.step) == (chosen.folder, chosen.path, 5)


def test_a_finished_run_is_complete_under_its_own_limits_and_lower_ones() -> None:
    progress = {"epoch_progress": {"current": {"processed": 4}}}
    state = {"callbacks": {"BestAndLast": {"complete": [4, -1]}}, "loops": {"fit_loop": progress}, "global_step": 80}
    limits = {(4, -1): True, (3, -1): True, (5, -1): False, (None, -1): False, (None, 80): True, (None, 81): False}
    assert {limit: runs.is_complete(state, *limit) for limit in limits} == limits
    early = {**state, "callbacks": {"BestAndLast": {"complete": [200, -1]}}}  # stopped by a callback
    assert runs.is_complete(early, 200, -1)
    unfinished = {**state, "callbacks": {"BestAndLast": {"complete": []}}}
    assert not runs.is_complete(unfinished, 4, -1)


def test_metrics_csv_is_cut_to_what_the_checkpoint_has_seen(tmp_path: Path) -> None:
    from vae_lightning.runs.loggers import MetricsCSV

    path = tmp_path / "metrics.csv"
    path.write_text("step,a,b\n0,1.5,\n1,,2.5\n2,3.5,\n2,,4.5\n3,5.5,\n4,6.")  # the last row is incomplete
    logger = MetricsCSV(path, start=2)
    logger.log_metrics({"a": 7.5}, step=2)
    assert path.read_text().splitlines() == ["step,a,b", "0,1.5,", "1,,2.5", "2,7.5,"]
    assert only(tmp_path, "*") == path


def test_a_damaged_checkpoint_that_is_named_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e" / "a", 5) / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"last\.ckpt: not a readable checkpoint: torn off after"):
        runs.choose_run(settings_in(tmp_path, ckpt_path=str(path)), "e")


@pytest.mark.parametrize("name", ["a", "a b", "2026-01-01_x.y", "lr=1e-3+seed@2", "x" * 128, "läuft", "..a"])
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_names_of_runs(name: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "variable":
        monkeypatch.setenv(runs.RUN_ID, name)
    settings = Namespace(run_id=name if by == "flag" else None, runs_dir="runs")
    if name.startswith("."):
        with pytest.raises(UserError, match="--run_id"):
            runs.new_folder(settings, "vae/digits")
    else:
        assert runs.new_folder(settings, "vae/digits") == Path("runs/vae/digits") / name


BAD = [
    "a:b",
    "a;b",
    "a,b",
    "a#b",
    "a?b",
    "a/b",
    "a%b",
    "a\\b",
    "a\nb",
    " a",
    "a ",
    "../..",
    "..",
    ".",
    ".a",
    "-a",
    "ä" * 65,
]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leads_elsewhere_or_that_wandb_refuses_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--run_id {name[:80]!r}: it names a folder and a W&B run")):
        runs.new_folder(Namespace(run_id=name, runs_dir="runs"), "vae/digits")


@pytest.mark.parametrize("name", ["a:;,#?/b", "../..", "x" * 300])
def test_it_is_refused_in_one_line_before_anything_is_written(
    name: str, fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(f"--run_id={name}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vae-lightning: error: --run_id {name[:80]!r}: it names a folder and a W&B run")
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_lies_below_the_folder_of_all_runs(
    fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("../elsewhere", "a/../../b", str(tmp_path / "there")):
        assert fit(f"--experiment={name}") == 2
        assert f"--experiment {name}: it names a folder below runs_dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_is_named_by_the_path_that_its_config_really_has() -> None:
    assert experiment_of(["configs/vae/mnist.yaml"]) == "vae/mnist"
    assert experiment_of(["configs/vae/../mine.yaml"]) == "mine"
    assert experiment_of(["configs/../mine.yaml"]) == "mine"
