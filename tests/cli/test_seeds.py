"""`train --seeds`: one run a seed, each the run that its seed alone gives; mean and error; a call that goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forks import start_for_real
from tests.helpers import DIGITS, REPOSITORY, clean_environment, only
from vae_lightning.__main__ import main
from vae_lightning.cli import seeds as module
from vae_lightning.cli.seeds import _lines, over_seeds, without_seeds, write_seeds

SMALL = ("-c", DIGITS, "--trainer.logger=false", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1")
SMALL += ("--trainer.limit_test_batches=1", "--trainer.limit_val_batches=1", "--nll.num_samples=2")
SMALL += ("--trainer.check_val_every_n_epoch=1", "--evaluation.metrics=[]", "--pictures.num_images=1")


def test_mean_and_error_are_those_of_the_textbook() -> None:
    runs = [{"a": value, "a_stderr": 9.0, "b": unknown} for value, unknown in ((1.0, 1.0), (2.0, None), (6.0, 2.0))]
    found = over_seeds(runs)
    assert found["a"] == {"mean": 3.0, "stderr": pytest.approx(math.sqrt(7 / 3)), "values": [1.0, 2.0, 6.0]}
    assert found["b"] == {"mean": None, "stderr": None, "values": [1.0, None, 2.0]}
    assert found.keys() == {"a", "b"}
    assert over_seeds([{"a": 1.0}]) == {"a": {"mean": 1.0, "stderr": None, "values": [1.0]}}
    assert over_seeds([]) == {}


def test_a_bound_without_a_meaning_is_not_shown(tmp_path: Path) -> None:
    long = "nats_per_token/reconstruction"
    for seed in (0, 1):
        metrics = {"test/nll": 9e4, "test/kl/z": 9e4, f"test/{long}": 2.0 + seed, "test/exact_match": 0.5}
        facts = {"untrained_kl": ["z"], "loss_note": "no bound", "measures": ["exact_match", "other"]}
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "results.json").write_text(json.dumps({"metrics": metrics, **facts}))
    write_seeds(tmp_path, [0, 1])
    lines = [line.split() for line in _lines(tmp_path)[3:-1]]
    assert lines == [
        ["exact_match", "0.5000", "+-", "0.0000"],
        [long, "2.5000", "+-", "0.5000"],
        ["loss", "no", "bound"],
    ]


@pytest.mark.parametrize(
    "args", [["--seeds", "0", "1", "-c", "a"], ["-c", "a", "--seeds", "0", "1"], ["--seeds=0", "1", "-c", "a"]]
)
def test_the_numbers_go_with_the_flag(args: list[str]) -> None:
    assert without_seeds(args) == ["-c", "a"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The runs of the command happen in this process; their command lines are noted."""
    noted: list[list[str]] = []

    def run(args: list[str]) -> int:
        noted.append(args)
        return main(args)

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(module, "_run", run)
    return noted


def test_each_run_is_the_run_of_its_seed_and_the_same_command_goes_on(
    tmp_path: Path, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *SMALL, f"--runs_dir={tmp_path}", "--seeds", "3", "1"]
    assert main(command) == 0
    group = only(tmp_path, "vae/digits/seeds-*")
    written = json.loads((group / "seeds.json").read_text())
    assert (written["seeds"], written["missing"]) == ([3, 1], [])
    assert main(["train", *SMALL, f"--runs_dir={tmp_path}", "--run_id=alone", "--seed_everything=1"]) == 0
    alone = json.loads((tmp_path / "vae/digits/alone/results.json").read_text())["metrics"]
    assert written["metrics"]["test/elbo"]["values"][1] == alone["test/elbo"]
    assert len(set(written["metrics"]["test/elbo"]["values"])) == 2
    capsys.readouterr()
    # as if the command had been stopped in the test of its second run
    (group / "seed-1" / "results.json").unlink()
    (group / "seeds.json").unlink()
    ran.clear()
    assert main(command) == 0
    assert [args[-2:] for args in ran] == [["--run_id=seed-1", "--seed_everything=1"]]
    assert json.loads((group / "seeds.json").read_text())["metrics"] == written["metrics"]
    mean = written["metrics"]["test/elbo"]["mean"]
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("elbo  "))
    assert line.split()[1] == f"{mean:.2f}"
    # other settings are another group; within a group of one name they are refused, before a mean is taken over both
    ran.clear()
    assert main([*command, f"--run_id={group.name}", "--model.latent_size=3"]) == 2
    assert "a complete run of other settings (there -> here): model.latent_size: 8 -> 3" in capsys.readouterr().err
    assert len(ran) == 1


def test_runs_that_begin_from_other_weights_are_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[list[str]] = []

    def run(args: list[str]) -> int:
        noted.append(args)
        return 2  # nothing is trained

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.chdir(tmp_path)
    for start in ([], ["--init_from=a"], [f"--init_from={tmp_path}/a"], ["--init_from=b"]):
        main(["train", *SMALL, "--seeds", "0", "--runs_dir=runs", *start])
    groups = [arg for args in noted for arg in args if arg.startswith("--experiment=")]
    assert groups[1] == groups[2]
    assert len(set(groups)) == 3


def test_a_run_that_began_from_other_weights_is_not_counted_as_done(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name, text in (("config.yaml", "init_from: /a\n"), ("checkpoints/last.ckpt", ""), ("results.json", "{}")):
        (tmp_path / name).write_text(text)
    assert module._is_done(tmp_path, "init_from: /a\n")
    assert not module._is_done(tmp_path, "init_from: /b\n")
    assert not module._is_done(tmp_path, "init_from: null\n")


def test_a_failed_run_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)

    def run(args: list[str]) -> int:
        folder = next(tmp_path.joinpath("vae/digits").glob("*"), tmp_path / "vae/digits/g") / args[-2].split("=")[1]
        if args[-1].endswith("=1"):
            return 1
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"metrics": {"test/elbo": -float(args[-1][-1])}}))
        return 0

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "_check_config", lambda *_: None)
    assert main(["train", *SMALL, f"--runs_dir={tmp_path}", "--run_id=g", "--seeds", "0", "1", "2"]) == 1
    out, err = capsys.readouterr()
    assert "seeds       0, 2; missing: 1" in out
    assert "the run of seed 1 ended with exit code 1; the same command goes on with it" in err
    written = json.loads((tmp_path / "vae/digits/g/seeds.json").read_text())
    assert (written["missing"], written["metrics"]["test/elbo"]["mean"]) == ([1], -1.0)


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(
    ("args", "environment", "said"),
    [
        (["--seeds", "0", "0"], {}, "--seeds 0 0: give different numbers, each at least 0"),
        (["--seeds", "a"], {}, "seeds"),
        (["--seeds"], {}, "expected at least one argument"),
        (["--seeds", "0", "--ckpt_path=last"], {}, "leave out --ckpt_path"),
        (["--seeds", "0"], {"WORLD_SIZE": "2"}, "under torchrun or srun start a job for each seed"),
        (["--seeds", "0", "--model.latent_sise=3"], {}, "did you mean latent_size?"),
    ],
)
def test_a_mistake_is_one_line_before_any_run(
    args: list[str],
    environment: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        code: object = main(["train", *SMALL, f"--runs_dir={tmp_path}", *args])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_signal_reaches_the_run_which_saves_and_goes_on(tmp_path: Path) -> None:
    command = ["-m", "vae_lightning", "train", *SMALL[:3], "--trainer.max_epochs=100000", "--seeds", "0", "1"]
    command += [f"--runs_dir={tmp_path}", "--run_id=g"]
    place: dict[str, Any] = {"cwd": REPOSITORY, "env": clean_environment()}
    process = start_for_real(*command, **place)
    folder = tmp_path / "vae/digits/g/seed-0"
    wait_for((folder / "checkpoints" / "last.ckpt").is_file)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: stopped" in out
    assert "seed 1" not in out
    epoch = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    short = [*SMALL[:3], f"--trainer.max_epochs={epoch + 2}", "--nll.num_samples=2", "--run_id=g", "--seeds", "0"]
    again = start_for_real(
        "-m", "vae_lightning", "train", *short, f"--runs_dir={tmp_path}", cwd=REPOSITORY, env=clean_environment()
    )
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "goes on from last.ckpt" in out
    assert json.loads((folder.parent / "seeds.json").read_text())["missing"] == []
