"""A project of one's own: what `new` writes works at once, and so does the one in examples/."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import yaml

from tests.forks import start_python
from tests.helpers import REPOSITORY, clean_environment, only, run_cli
from vae_lightning.__main__ import main
from vae_lightning.runs import trust
from vae_lightning.verbs import new

SMALL = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1"]
SMALL += ["--trainer.logger=false", "--nll.num_samples=2", "--trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that `new` has written."""
    folder = tmp_path_factory.mktemp("here")
    run_cli("new", "spots", cwd=folder)
    return folder / "spots"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example."""
    skip = shutil.ignore_patterns("runs", "__pycache__", ".pytest_cache")
    return Path(shutil.copytree(REPOSITORY / "examples/waveforms", tmp_path_factory.mktemp("a") / "x", ignore=skip))


@pytest.fixture(params=["own", "example"])
def project(request: pytest.FixtureRequest) -> Path:
    """Each of the two projects."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def python_of(folder: Path, *args: str) -> str:
    """Return the command that `make` runs, without `python`. Make finds this environment: it is the active one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**clean_environment(), "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["make", "-n", *args], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def run_python(folder: Path, args: list[str]) -> str:
    process = start_python(*args, cwd=folder, env=clean_environment())
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    return out


@pytest.mark.slow
def test_make_train_passes_at_once(project: Path) -> None:
    command = python_of(project, "train", f"ARGS={shlex.join(SMALL)}").strip()
    python, *args = shlex.split(command)
    assert python == "python"
    out = run_python(project, args)
    assert "elbo" in out
    run = only(project, "runs/*/*")
    assert (run / "results.json").is_file()
    # the package is trusted by the project's own table
    run_python(project, ["-m", "vae_lightning", "sample", str(run.relative_to(project)), "--num_images=2"])
    assert (run / "images" / "samples.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["pytest -q", "unittest discover -s tests"])
def test_make_test_passes_at_once(project: Path, runner: str) -> None:
    """By pytest if the environment has it, else by Python's own runner. The second is tried on one project."""
    assert f"python -m {runner}" in python_of(project, "test")
    if runner.startswith("pytest") or project.name == "spots":
        run_python(project, ["-m", *runner.split(), *(["-p", "no:cacheprovider"] if "pytest" in runner else [])])


def test_every_file_of_the_template_arrives_and_none_speaks_of_the_template(own: Path) -> None:
    found = {str(path.relative_to(own)) for path in own.rglob("*") if path.is_file() and "runs" not in path.parts}
    wanted = {place.format(name="spots") for place in new.PLACES.values()}
    assert wanted == {path for path in found if "cache" not in path}
    assert {path.name for path in new.TEMPLATES.iterdir() if path.is_file()} == set(new.PLACES)
    for place in wanted:
        text = (own / place).read_text()
        assert not any(word in text for word in ("templates", "my_project", "ORIGIN")), place
    assert yaml.safe_load((own / "configs/first.yaml").read_text())["model"]["class_path"] == "spots.model.MyVAE"


def test_without_the_package_make_builds_an_environment_from_where_it_came(own: Path, tmp_path: Path) -> None:
    """The active Python does not import vae_lightning: `.venv` is made, once, with the package from FROM."""
    folder = Path(shutil.copytree(own, tmp_path / "p", ignore=shutil.ignore_patterns("runs")))
    tools = tmp_path / "bin"
    tools.mkdir()
    log = tmp_path / "log"
    python = tools / "python3"
    copy = f'mkdir -p "$3/bin"; cp {python} "$3/bin/python"'
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\ncase "$1 $2" in "-c import vae_lightning") exit 1;; "-m venv") {copy};; esac\n'
    )
    python.chmod(0o755)
    (tools / "python").symlink_to(python)
    env = {"PATH": f"{tools}:/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["make", "train"], cwd=folder, env=env, check=True, capture_output=True)
    lines = [line for line in log.read_text().splitlines() if not line.startswith("-c import")]
    train = "-m vae_lightning train -c configs/first.yaml"
    install = f"-m pip install --quiet --disable-pip-version-check {new.origin()}"
    assert lines == ["-m venv .venv", install, train, train]
    shutil.rmtree(folder / ".venv")
    done = subprocess.run(["make", "train", "FROM="], cwd=folder, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "activate its environment, or give FROM=its-checkout-or-wheel" in done.stderr


def test_the_package_comes_from_its_checkout_its_wheel_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert new.origin() == str(REPOSITORY)
    monkeypatch.setattr(new, "PACKAGE", Path("/nowhere/vae_lightning"))
    for record, origin in (
        ('{"url": "file:///a%20b/v.whl"}', "/a b/v.whl"),
        ('{"url": "https://a.org/v.whl"}', "https://a.org/v.whl"),
        (None, "vae_lightning"),  # pip records no address of what it has by name
    ):
        found = SimpleNamespace(read_text=Mock(return_value=record))
        monkeypatch.setattr(new.importlib.metadata, "distribution", Mock(return_value=found))
        assert new.origin() == origin


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    trust._FINDER.places.clear()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-project", "such as my_project"),
        ("Faces", "such as faces"),
        ("class", "such as my_class"),
        ("3d", "such as my_3d"),
        ("a/b", "such as b"),
        ("größe", "such as gr_e"),
        ("", "such as my_project"),
        ("torch", "torch is the name of something else; take another, such as my_torch"),
        ("json", "such as my_json"),
        ("tests", "such as my_tests"),
        ("Tests", "such as my_tests"),
        ("there", "there exists; nothing was changed. Take another name, or another folder by --output"),
    ],
)
def test_a_name_that_does_not_do_is_one_line(
    here: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "there").mkdir()
    assert main(["new", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert [path.name for path in here.iterdir()] == ["there"]


def test_a_suggested_name_does() -> None:
    for name in ("my-project", "Faces", "class", "3d", "a/b", "größe", ""):
        with pytest.raises(new.UserError) as caught:
            new.check_name(name)
        new.check_name(str(caught.value).rpartition(" ")[2])


def test_a_folder_that_cannot_be_written_is_one_line_and_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").touch()
    assert main(["new", "spots", "--output=file/spots"]) == 2
    assert "choose a folder by --output" in capsys.readouterr().err
    monkeypatch.setattr(new, "filled", Mock(side_effect=OSError(28, "No space left on device")))
    assert main(["new", "spots", "--output=deep/spots"]) == 2
    assert "deep/spots: cannot be written (No space left on device)" in capsys.readouterr().err
    assert list((here / "deep").iterdir()) == []
