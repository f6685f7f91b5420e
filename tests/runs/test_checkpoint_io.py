"""Checkpoint files are written whole or not at all, and a damaged file is refused."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import REPOSITORY, clean_environment
from vae_lightning.runs import folder as runs
from vae_lightning.runs.checkpoint_io import BEST, LAST, PREVIOUS, WholeFiles, check_whole
from vae_lightning.types import UserError


def contents(step: int, size: int = 3000) -> dict[str, Any]:
    return {
        "state_dict": {"w": torch.full((size,), float(step))},
        "hyper_parameters": {"_class_path": "vae_lightning.models.VAE"},
        "global_step": step,
        "optimizer_states": [],
        "pytorch-lightning_version": "2.6.6",
    }


def step_of(path: Path) -> int:
    loaded = WholeFiles().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["w"], torch.full_like(loaded["state_dict"]["w"], loaded["global_step"]))
    return int(loaded["global_step"])


def test_it_is_torchs_file_with_its_digest_as_the_zip_comment(tmp_path: Path) -> None:
    path = tmp_path / "deep" / LAST
    WholeFiles().save_checkpoint(contents(3), path)
    assert step_of(path) == 3
    assert torch.load(path, weights_only=True)["global_step"] == 3  # torch reads the file without our code
    assert zipfile.ZipFile(path).comment.startswith(b"sha256:")
    assert [p.name for p in path.parent.iterdir()] == [LAST]


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        WholeFiles().save_checkpoint(contents(step), tmp_path / LAST)
        WholeFiles().save_checkpoint(contents(step), tmp_path / BEST)
    assert step_of(tmp_path / LAST) == 3
    assert step_of(tmp_path / PREVIOUS) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [BEST, LAST, PREVIOUS]


def test_the_last_one_is_never_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file system has links, the old file has both names until the rename."""
    path, replaced = tmp_path / LAST, []
    WholeFiles().save_checkpoint(contents(1), path)

    def replace(part: Path, target: Path) -> Path:
        replaced.append((part.name, step_of(path), step_of(tmp_path / PREVIOUS)))
        return rename(part, target)

    rename = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    WholeFiles().save_checkpoint(contents(2), path)
    assert [(part.startswith(f".{LAST}."), *steps) for part, *steps in replaced] == [(True, 1, 1)]
    assert (step_of(path), step_of(tmp_path / PREVIOUS)) == (2, 1)


def test_file_and_folder_are_synced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before the rename, then the folder, so that the name means a whole file after a power cut."""
    calls: list[str] = []

    def fsync(descriptor: int) -> None:
        about = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(about.st_mode)
        assert is_folder or about.st_size == next(tmp_path.glob(f".{LAST}.*.part")).stat().st_size > 12_000
        calls.append("folder" if is_folder else "file")
        sync(descriptor)

    def replace(part: Path, target: Path) -> Path:
        calls.append("rename")
        check_whole(part)
        return rename(part, target)

    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    for _ in range(2):
        WholeFiles().save_checkpoint(contents(1), tmp_path / LAST)
    assert calls == ["file", "rename", "folder"] * 2


def test_a_damaged_one_does_not_take_the_place_of_the_one_before_it(tmp_path: Path) -> None:
    """A run resumed from `previous` rewrites `last`. Until the next save, `previous` must be kept."""
    for step in (1, 2):
        WholeFiles().save_checkpoint(contents(step), tmp_path / LAST)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-100])
    WholeFiles().save_checkpoint(contents(3), tmp_path / LAST)
    assert (step_of(tmp_path / PREVIOUS), step_of(tmp_path / LAST)) == (1, 3)


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    test_the_one_before_is_kept(tmp_path)


# -- damage -----------------------------------------------------------------------------------------------------------

DAMAGE = {
    "0 %": lambda _: b"",
    "10 %": lambda raw: raw[: len(raw) // 10],
    "50 %": lambda raw: raw[: len(raw) // 2],
    "99 %": lambda raw: raw[: len(raw) * 99 // 100],
    "html": lambda _: b"<html>quota exceeded</html>",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / LAST
    WholeFiles().save_checkpoint(contents(7), path)
    return path.read_bytes()


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_by_name(case: str, good: bytes, tmp_path: Path) -> None:
    path = tmp_path / LAST
    path.write_bytes(DAMAGE[case](good))
    with pytest.raises(UserError, match=r"last\.ckpt: not a readable checkpoint: "):
        check_whole(path)


def test_any_flipped_bit_is_found(good: bytes, tmp_path: Path) -> None:
    """Flips a bit in every 97th byte, and in each byte of the digest. torch reads most of them without an error."""
    path, missed = tmp_path / LAST, []
    positions = [*range(0, len(good) - 71, 97), *range(len(good) - 64, len(good))]
    for position in positions:
        raw = bytearray(good)
        raw[position] ^= 1 << position % 8
        path.write_bytes(raw)
        try:
            check_whole(path)
            missed.append(position)
        except UserError:
            continue
    assert missed == []
    assert len(positions) > 150


def test_a_file_without_our_digest_is_held_to_the_zips_own(tmp_path: Path) -> None:
    path = tmp_path / "older.ckpt"
    torch.save(contents(5), path)
    check_whole(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert torch.load(path, weights_only=True)  # torch does not notice
    with pytest.raises(UserError, match=r"older\.ckpt: .* has a wrong checksum"):
        check_whole(path)


@pytest.mark.parametrize(("damaged", "step"), [([LAST], 8), ([LAST, PREVIOUS], 6), ([PREVIOUS], 9)])
def test_the_previous_good_one_is_used_aloud(
    damaged: list[str], step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    for name, at in ((BEST, 6), (LAST, 8), (LAST, 9)):
        WholeFiles().save_checkpoint(contents(at), folder / name)
    for name in damaged:
        (folder / name).unlink()  # previous.ckpt may be a second name of the same file
        (folder / name).write_bytes(b"PK\x03\x04torn")
    run = runs.newest_run(tmp_path)
    assert run is not None
    assert run.step == step
    output = capsys.readouterr().out
    assert all((f"{name}: not a readable checkpoint" in output) == (LAST in damaged) for name in damaged)


def test_where_none_is_whole_all_are_named(tmp_path: Path) -> None:
    for name in (BEST, LAST):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"none of its checkpoints can be read: .*last\.ckpt: .*best\.ckpt: "):
        runs.newest_run(tmp_path)


# -- what cannot be written -------------------------------------------------------------------------------------------


@contextmanager
def small_files() -> Iterator[None]:
    """Limits files to 4 KB, like a full disk or a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def refused(path: Path, reason: str) -> None:
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=rf"last\.ckpt: the checkpoint cannot be written \({reason}\); last\.ckpt is sti"
    ):
        WholeFiles().save_checkpoint(contents(2), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [LAST]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    path = tmp_path / LAST
    WholeFiles().save_checkpoint(contents(1), path)
    return path


def test_no_room(first: Path) -> None:
    with small_files():
        refused(first, "File too large")


def test_a_full_disk() -> None:
    """A real full disk, 64 KB in memory, if the test may mount one."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a small disk")
        try:
            path = Path(folder) / LAST
            WholeFiles().save_checkpoint(contents(1), path)
            before = path.read_bytes()
            with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
                WholeFiles().save_checkpoint(contents(2, 30000), path)
            assert path.read_bytes() == before
            assert step_of(path) == 1
        finally:
            subprocess.run(["umount", folder], check=True)


def test_a_folder_that_may_not_be_written(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal of the system is simulated, because root may write anywhere."""

    def refuse(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "x" in mode and self.name.endswith(".part"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(self, mode, *args, **kwargs)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refuse)
    refused(first, "Permission denied")


def test_nothing_is_staged_elsewhere(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing or full $TMPDIR on another file system does not matter."""
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    WholeFiles().save_checkpoint(contents(2), first)
    assert step_of(first) == 2


# -- killed while saving ----------------------------------------------------------------------------------------------

FORKS = """
import os, random, sys, time
from pathlib import Path
import torch
from tests.runs.test_checkpoint_io import WholeFiles, contents, runs
folder, random_ = Path(sys.argv[1]), random.Random(0)
for kill in range(int(sys.argv[2])):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        step = 0 if kill == 0 else runs.newest_run(folder).step
        while True:
            step += 1
            WholeFiles().save_checkpoint(contents(step, 20_000), folder / "checkpoints" / "last.ckpt")
            os.write(writer, b".")
    os.read(reader, 1)  # one save is complete, others follow
    time.sleep(random_.uniform(0, 0.03))
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(reader), os.close(writer)
    run = runs.newest_run(folder)
    assert run.path.name == "last.ckpt", run.path
    assert (run.contents["state_dict"]["w"] == run.step).all()
    print(run.step, any((folder / "checkpoints").glob(".last.ckpt.*.part")), flush=True)
"""


def test_killed_fifty_times_while_saving(tmp_path: Path) -> None:
    """After each kill the newest checkpoint is whole and is `last.ckpt`. No incomplete file has a final name."""
    command = [sys.executable, "-c", FORKS, str(tmp_path), "50"]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    steps = [int(line.split()[0]) for line in result.stdout.splitlines()]
    assert len(steps) == 50
    assert steps == sorted(set(steps))
    assert "True" in result.stdout  # some kills left a half-written file beside the checkpoint
