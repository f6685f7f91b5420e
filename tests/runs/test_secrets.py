"""A secret key stays in the environment, and the lock file fixes each installed package by its digest."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.helpers import DIGITS, REPOSITORY, TrainedRun, only, run_cli

KEY = "5ec3e7" + "ab" * 17
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
INSTRUCTIONS = [line for line in DOCKERFILE.splitlines() if line and not line.startswith(("#", " "))]
BAD_RELEASES = ("2.6.2", "2.6.3")  # of lightning: GHSA-w37p-236h-pfx3

# -- a run with a key whose server does not answer --------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_key(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    home = tmp_path_factory.mktemp("home")
    env = {"HOME": str(home), "WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:1", "WANDB_INIT_TIMEOUT": "2"}
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1")
    result = run_cli("fit", "-c", DIGITS, *short, f"--runs_dir={home / 'runs'}", env=env)
    return TrainedRun(only(home, "runs/vae/digits/*"), result.stdout, result.stderr)


def test_no_key_is_in_any_file_or_line_of_a_run(with_key: TrainedRun) -> None:
    """Search the configuration, checkpoints, W&B files and logs, the home folder, and the output."""
    files = [path for path in with_key.folder.parents[3].rglob("*") if path.is_file()]
    assert {".ckpt", ".yaml", ".csv", ".wandb", ".log"} <= {path.suffix for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in with_key.stdout + with_key.stderr


def test_a_server_that_does_not_answer_stops_no_training(with_key: TrainedRun) -> None:
    assert "W&B cannot be reached" in with_key.stdout
    assert "anonymous" not in with_key.stdout + with_key.stderr  # W&B warns of this argument, which Lightning passes
    assert "recorded offline; to upload it:" in with_key.stdout
    only(with_key.folder, "wandb/offline-run-*/run-*.wandb")
    assert (with_key.folder / "checkpoints" / "last.ckpt").is_file()


# -- the image --------------------------------------------------------------------------------------------------------


def test_nothing_that_could_hold_a_key_is_copied_into_the_image() -> None:
    first, *rest = (REPOSITORY / ".dockerignore").read_text().splitlines()[1:]
    assert first == "*"  # ignore all, then list the exceptions
    let_in = {line.removeprefix("!") for line in rest if line.startswith("!")}
    sources = [
        word
        for line in INSTRUCTIONS
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
        if not word.startswith("--")
    ]
    assert (
        let_in
        == set(sources)
        == {"requirements.lock", "pyproject.toml", "README.md", "LICENSE"}
        | {
            "vae_lightning",
            "configs",
        }
    )
    assert {"**/.*", "**/*.env", "**/*.ckpt"} <= set(rest)


def test_no_layer_of_the_image_takes_a_secret() -> None:
    named = " ".join(line for line in DOCKERFILE.splitlines() if line.startswith(("ARG", "ENV", "LABEL")))
    assert not re.search("key|token|secret|password|wandb", named, re.IGNORECASE)


def test_the_image_runs_as_nobody_special_and_passes_signals_on() -> None:
    assert INSTRUCTIONS[0].startswith("ARG BASE_IMAGE=")
    words = [line.split()[0] for line in INSTRUCTIONS]
    assert 'ENTRYPOINT ["vae-lightning"]' in INSTRUCTIONS  # no shell that would swallow signals
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert INSTRUCTIONS[words.index("USER")] == "USER vae"
    lock, code = (next(i for i, line in enumerate(INSTRUCTIONS) if text in line) for text in ("-r /src/", "COPY vae"))
    assert lock < code


# -- what is installed ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> dict[str, list[str]]:
    """The lines of each package in the lock, joined. A package may occur twice, with markers."""
    text = (REPOSITORY / "requirements.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    by_package: dict[str, list[str]] = {}
    for line in lines:
        by_package.setdefault(re.split(r"[=\[;@ ]", line, maxsplit=1)[0], []).append(line)
    return by_package


def test_every_package_is_locked_by_version_and_digest(locked: dict[str, list[str]]) -> None:
    assert len(locked) > 50
    for lines in locked.values():
        for line in lines:
            assert re.match(r"[a-z0-9._-]+==[^ ]+ ", line), line[:80]
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line[:80]
            assert "://" not in line, line[:80]  # no URL of an index or of a file


def test_the_lock_meets_what_the_project_asks_for(locked: dict[str, list[str]]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        for version in versions(locked, requirement.name.lower()):
            assert requirement.specifier.contains(version), (requirement, version)


def versions(locked: dict[str, list[str]], name: str) -> list[Version]:
    return [Version(re.split(r"[ ;]", line.partition("==")[2])[0]) for line in locked[name]]


def test_releases_known_to_be_bad_are_out(locked: dict[str, list[str]]) -> None:
    """Excludes releases with malware, and releases in which a checkpoint could run code or corrupt memory."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert {f"!={version}" for version in BAD_RELEASES} <= {str(part) for part in asked["lightning"]}
    for name in ("lightning", "pytorch-lightning"):
        assert all(version >= Version("2.6.6") for version in versions(locked, name))
    assert all(version >= Version("2.10") for version in versions(locked, "torch"))
    for package, version in (("lightning", "2.6.5"), ("torch", "2.9.1")):
        assert not asked[package].contains(version)
    assert not list(REPOSITORY.glob("uv.lock"))


def test_the_build_installs_from_the_lock_alone() -> None:
    for path in ("Makefile", "Dockerfile"):
        lines = [line for line in Path(REPOSITORY / path).read_text().splitlines() if " -r " in line]
        assert lines
        assert all("--require-hashes" in line and "requirements.lock" in line for line in lines)
