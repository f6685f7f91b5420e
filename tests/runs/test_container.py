"""In a container: a run that would be lost says so, and a user without a home gets a private one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.forks import start_for_real
from tests.helpers import DIGITS, REPOSITORY, clean_environment, run_cli
from vae_lightning.runs import container

SHORT = ("fit", "-c", DIGITS, "--trainer.max_steps=1", "--trainer.logger=false")


def test_a_run_that_would_be_lost_says_so_at_its_start(tmp_path: Path) -> None:
    here = run_cli(*SHORT, f"--runs_dir={tmp_path}").stdout
    assert "WARNING" not in here
    output = run_cli(*SHORT, f"--runs_dir={tmp_path}", env={container.IMAGE: "1"}).stdout
    if container.is_mounted(tmp_path):
        pytest.skip("the folder of temporary files is a mount of its own")
    assert output.startswith(f"WARNING: {tmp_path} exists in this container alone: the run is lost")
    assert f'docker run -v "$PWD/runs:{tmp_path}"' in output


def test_what_lies_below_a_mount_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(container.IMAGE, "1")
    monkeypatch.setattr(os.path, "ismount", lambda place: Path(place) in (Path("/"), tmp_path))
    assert container.unmounted_warning(tmp_path / "runs") is None
    assert container.unmounted_warning(tmp_path) is None
    assert container.unmounted_warning(tmp_path.parent / "runs") is not None  # a mount at the root alone does not count
    monkeypatch.delenv(container.IMAGE)
    assert container.unmounted_warning(tmp_path.parent / "runs") is None


def test_a_user_without_a_home_gets_a_private_one_that_does_not_stay(tmp_path: Path) -> None:
    code = (
        "import os; from vae_lightning.runs.container import give_home; give_home();"
        "open(os.environ['HOME'] + '/cache', 'w').close();"
        "print(os.environ['HOME'], oct(os.stat(os.environ['HOME']).st_mode))"
    )
    for variables in ({"HOME": str(tmp_path / "absent")}, {"HOME": ""}):
        process = start_for_real("-c", code, cwd=REPOSITORY, env={**clean_environment(), **variables})
        home, mode = process.communicate()[0].split()
        assert stat.S_IMODE(int(mode, 8)) == 0o700
        assert not Path(home).exists()
    process = start_for_real("-c", code, cwd=REPOSITORY, env={**clean_environment(), "HOME": str(tmp_path)})
    assert process.communicate()[0].split()[0] == str(tmp_path)  # a home that can be written is kept
