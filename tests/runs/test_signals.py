"""Real signals and kills sent to real processes: the files that are left, and whether the run resumes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.forks import Forked, start_python
from tests.helpers import DIGITS, REPOSITORY, clean_environment, read_csv
from vae_lightning.__main__ import main
from vae_lightning.runs.checkpoint_io import check_whole

LONG = ("fit", "-c", DIGITS, "--trainer.max_epochs=20000", "--trainer.logger=false", "--trainer.accelerator=cpu")
TWO = ("--trainer.devices=2", "--trainer.log_every_n_steps=10")
LIMIT = 30.0  # the promised seconds from a signal to the end


class Process(NamedTuple):
    """A running command, in its own process group, and the folder of its run."""

    popen: Forked | subprocess.Popen[str]
    folder: Path

    def ranks(self) -> list[int]:
        """The ids of the processes, first rank first. A forked first rank has the command line of the fork server."""
        first = [self.popen.pid] if self.popen.poll() is None else []
        return [*first, *(pid for pid in ranks(self.folder) if pid not in first)]

    def wait_for(self, is_there: Callable[[], Any], seconds: float = 120) -> None:
        limit = time.monotonic() + seconds
        while not is_there():
            assert self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < limit, "nothing happened"
            time.sleep(0.05)

    def train(self, steps: int = 20) -> None:
        """Wait until a few steps have been trained and logged."""
        path = self.folder / "metrics.csv"
        self.wait_for(lambda: path.is_file() and any(int(row["step"]) >= steps for row in read_csv(path)))

    def end(self, start: float = 0.0) -> tuple[int, str, str]:
        """Exit code and output. The command and the processes that it started must end within LIMIT seconds.

        Args:
            start: Seconds that the command may take to start, if it had not yet.
        """
        out, err = self.popen.communicate(timeout=start + LIMIT)
        time.sleep(0.2)
        assert self.ranks() == []
        assert self.popen.returncode is not None
        return self.popen.returncode, out, err

    def stopped_by(self, signum: signal.Signals) -> int:
        """The step that the run prints at a clean stop. Checks the exit code and the checkpoint."""
        code, out, err = self.end()
        assert code == 128 + signum, err
        assert "Traceback" not in err
        (step,) = re.findall(rf"^{signum.name}: stopped; .*last.ckpt has step (\d+);", out, re.MULTILINE)
        assert self.last_step() == int(step)
        return int(step)

    def last_step(self) -> int:
        path = self.folder / "checkpoints" / "last.ckpt"
        check_whole(path)
        return int(torch.load(path, weights_only=True)["global_step"])


def ranks(folder: Path) -> list[int]:
    """The ids of the processes whose command line names this run, in ascending order."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"--run_id={folder.name}".encode() in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(pids)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*args: str, launcher: tuple[str, ...] = (), name: str = "run") -> Process:
        name = f"{name}-{os.getpid()}"
        program = (*(launcher or ("-m", "vae_lightning")), *(args or LONG))
        place = (f"--runs_dir={tmp_path}", f"--run_id={name}")
        popen = start_python(*program, *place, cwd=REPOSITORY, env=clean_environment(), new_session=True)
        started.append(Process(popen, tmp_path / "vae" / "digits" / name))
        return started[-1]

    yield start
    for process in started:
        for pid in process.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.popen.wait()


@pytest.mark.slow
def test_stopped_then_killed_then_stopped_the_same_command_goes_on(start: Callable[..., Process]) -> None:
    """Two SIGINTs, then a SIGKILL during saves, then a SIGTERM leave one run, one folder, one row for each step."""
    process = start(name="again")
    process.train()
    process.popen.send_signal(signal.SIGINT)
    process.popen.send_signal(signal.SIGINT)
    first = process.stopped_by(signal.SIGINT)

    process = start(*LONG, "--trainer.check_val_every_n_epoch=1", name="again")
    process.train(first + 60)
    process.popen.kill()
    assert f"goes on from last.ckpt, step {first}\n" in process.popen.communicate()[0]
    second = process.last_step()
    assert second > first
    names = {path.name for path in (process.folder / "checkpoints").iterdir()}
    unfinished = {name for name in names if name.endswith(".vae_lightning.part")}
    assert len(unfinished) <= 1  # the kill may come within a save
    assert names - unfinished <= {"last.ckpt", "previous.ckpt", "best.ckpt"}

    process = start(name="again")
    process.train(second + 20)
    process.popen.send_signal(signal.SIGTERM)
    assert process.stopped_by(signal.SIGTERM) > second
    steps = [int(row["step"]) for row in read_csv(process.folder / "metrics.csv") if "train/loss" in row]
    assert steps == list(range(19, steps[-1] + 1, 20))


def test_a_signal_before_training_ends_at_once(start: Callable[..., Process]) -> None:
    """A signal while data are prepared: there is nothing to save."""
    hang = "import time; from vae_lightning.data import Digits; Digits.prepare_data = lambda _: time.sleep(60) or 1;"
    hang = f"import sys; {hang} print('preparing', flush=True);"
    process = start(launcher=("-c", f"{hang} from vae_lightning.__main__ import console; console()"))
    assert process.popen.stdout is not None
    assert process.popen.stdout.readline() == "preparing\n"
    time.sleep(3)
    process.popen.send_signal(signal.SIGTERM)
    assert process.end()[0] == 143
    assert not (process.folder / "checkpoints").exists()


STUCK = """
import sys, time, signal, ctypes
from vae_lightning.runs import signals
signals.GRACE = 1.0
signals.install()
signals.set_polled(True)
print("stuck", flush=True)
while True: ctypes.CDLL(None).sleep(60)
"""


def test_a_process_that_is_stuck_is_ended_by_force() -> None:
    """The process never reads the recorded signal, as in a collective operation whose other ranks are gone."""
    command = [sys.executable, "-c", STUCK]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    since = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LIMIT)
    assert 0.9 < time.monotonic() - since < 10
    assert process.returncode == 143
    assert "SIGTERM: no clean end within 1 s; ended by force" in err


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a checkpoint."""
    folder = tmp_path_factory.mktemp("weights")
    with contextlib.chdir(REPOSITORY):
        assert main([*LONG, "--trainer.max_steps=1", f"--runs_dir={folder}"]) == 0
    return next(folder.rglob("last.ckpt"))


SAMPLING = """
import sys, time
from vae_lightning.models import VAE
def sample(self, n):
    print("sampling", flush=True)
    time.sleep(60)
VAE.sample = sample
sys.argv[0:1] = ["vae-lightning", "sample"]
from vae_lightning.__main__ import console
console()
"""


def test_a_signal_while_samples_are_drawn_ends_at_once(weights: Path) -> None:
    """The folder gets no picture, whole or partial."""
    before = sorted(weights.parent.parent.rglob("*"))
    process = start_python("-c", SAMPLING, str(weights), cwd=REPOSITORY, env=clean_environment())
    assert process.stdout is not None
    assert process.stdout.readline() == "sampling\n", process.communicate()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert sorted(weights.parent.parent.rglob("*")) == before


# -- two ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signal_to_one_rank_or_to_all_stops_both(start: Callable[..., Process]) -> None:
    process = start(*LONG, *TWO, name="ranks")
    process.train()
    _, child = process.ranks()
    os.kill(child, signal.SIGTERM)
    first = process.stopped_by(signal.SIGTERM)

    process = start(*LONG, *TWO, name="ranks")
    process.train(first + 20)
    os.killpg(process.popen.pid, signal.SIGINT)
    assert process.stopped_by(signal.SIGINT) > first


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_takes_the_other_with_it(start: Callable[..., Process], victim: int) -> None:
    process = start(*LONG, *TWO, "--trainer.check_val_every_n_epoch=1")
    process.train(60)
    os.kill(process.ranks()[victim], signal.SIGKILL)
    assert process.end()[0] != 0
    assert process.last_step() >= 10


EVALUATING = """
import os, sys, time
sys.path.insert(0, {repository!r})
from vae_lightning.models import VAE
def on_test_epoch_end(self):
    os.write(1, f"\\nevaluating {{os.environ['LOCAL_RANK']}}\\n".encode())  # one write, because both ranks share a pipe
    time.sleep({seconds}[int(os.environ["LOCAL_RANK"])])
VAE.on_test_epoch_end = VAE.on_validation_epoch_end = on_test_epoch_end
from vae_lightning.__main__ import console
console()
"""


@pytest.mark.parametrize(
    ("verb", "victim", "seconds"),
    [("test", 1, (0, 60)), ("validate", 0, (60, 60))],
    ids=["the second, for which the first waits", "the first"],
)
def test_a_signal_to_one_rank_outside_of_training_ends_both(
    start: Callable[..., Process], weights: Path, tmp_path: Path, verb: str, victim: int, seconds: tuple[int, int]
) -> None:
    """Outside training the ranks have nothing to agree on and nothing to save."""
    script = tmp_path / "evaluating.py"
    script.write_text(EVALUATING.format(repository=str(REPOSITORY), seconds=seconds))
    process = start(verb, *LONG[1:], *TWO, f"--ckpt_path={weights}", launcher=(str(script),))
    assert process.popen.stdout is not None
    lines = (line for line in iter(process.popen.stdout.readline, "") if line.startswith("evaluating"))
    assert {next(lines), next(lines)} == {"evaluating 0\n", "evaluating 1\n"}
    os.kill(process.ranks()[victim], signal.SIGTERM)
    code, out, err = process.end()
    assert code == 143, err
    assert "Traceback" not in err
    assert "SIGTERM: stopped; no result was written" in out


STARTING = """
import os, signal, sys
if {early} and os.environ.get("LOCAL_RANK") == "1":
    os.kill(os.getpid(), signal.SIGINT)
sys.path.insert(0, {repository!r})
from vae_lightning.runs import signals
signals.GRACE = 5.0
from vae_lightning.__main__ import console
console()
"""


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False], ids=["before it has its handlers", "amid its imports"])
def test_a_signal_to_one_rank_while_it_starts_ends_both(
    start: Callable[..., Process], tmp_path: Path, early: bool
) -> None:
    """The first rank waits for the second rank in a call that no signal interrupts."""
    script = tmp_path / "starting.py"
    script.write_text(STARTING.format(repository=str(REPOSITORY), early=early))
    process = start(*LONG, *TWO, launcher=(str(script),))
    if not early:  # if early, the second rank may be gone before it is seen
        process.wait_for(lambda: len(process.ranks()) == 2)
        time.sleep(2)
        os.kill(process.ranks()[1], signal.SIGINT)
    code, _, err = process.end(start=60.0)  # two ranks import torch beside other tests
    assert code == 130, err
    assert "Traceback" not in err


def test_torchrun_passes_a_signal_on(start: Callable[..., Process]) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vae_lightning")
    process = start(*LONG, *TWO, launcher=launcher)
    process.train()
    process.popen.send_signal(signal.SIGTERM)
    code, out, _ = process.end()
    assert code != 0
    assert f"last.ckpt has step {process.last_step()};" in out
