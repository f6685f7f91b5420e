"""The next process removes the parts of files that a killed process left, and removes nothing else."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.runs import whole_files
from vae_lightning.runs.whole_files import write_whole


def killed_while_writing(path: Path) -> Path:
    """The part of a file that a process left because it was killed within `write_whole`."""
    before = set(path.parent.glob(".*")) if path.parent.is_dir() else set()
    pid = os.fork()
    if not pid:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, b"half")
    os.waitpid(pid, 0)
    (part,) = set(path.parent.glob(".*")) - before
    return part


def test_the_next_writer_removes_what_killed_ones_have_left(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for name in ("results.json", "metrics.csv", "results.json"):
        killed_while_writing(tmp_path / name)
    (tmp_path / "film.part").write_bytes(b"a user's own")
    assert len(list(tmp_path.iterdir())) == 2  # each writer removes the part before its own
    write_whole(path, b"whole")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "results.json": b"whole",
        "film.part": b"a user's own",
    }


def test_a_part_stays_while_its_process_still_writes(tmp_path: Path) -> None:
    part = killed_while_writing(tmp_path / "a")
    with part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_whole(tmp_path / "b", b"other")
        assert part.exists()
    write_whole(tmp_path / "b", b"other")
    assert not part.exists()


def test_a_part_that_is_removed_before_it_is_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes the part between its creation and its lock."""
    locks: list[int] = []

    def flock(file: object, operation: int) -> None:
        locks.append(operation)
        if len(locks) == 1:
            monkeypatch.setattr(fcntl, "flock", lock)
            whole_files.remove_stale_parts(tmp_path)
            assert not list(tmp_path.iterdir())
            monkeypatch.setattr(fcntl, "flock", flock)
        lock(file, operation)  # type: ignore[arg-type]

    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    write_whole(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert len(locks) == 2


def test_a_run_that_goes_on_removes_what_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also parts of pictures and checkpoints whose names are never written again."""
    monkeypatch.chdir(REPOSITORY)
    folder = tmp_path / "vae" / "digits" / "x"
    left = [killed_while_writing(folder / name) for name in ("metrics.csv", "images/samples-0001.png")]
    left.append(killed_while_writing(folder / "checkpoints" / "last.ckpt"))
    assert all(path.is_file() for path in left)
    flags = ("--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.max_steps=1", f"--runs_dir={tmp_path}")
    assert main(["fit", "-c", DIGITS, *flags, "--run_id=x", "--pictures.every_n_epochs=100"]) == 0
    assert not list(folder.rglob("*.part"))
    assert (folder / "checkpoints" / "last.ckpt").is_file()
