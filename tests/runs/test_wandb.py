"""Weights & Biases, recorded offline by a real run and read back from its files."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers import DIGITS, REPOSITORY, SECRET, TrainedRun, only, read_csv, read_picture, run_cli, trained_run
from vae_lightning.__main__ import main
from vae_lightning.runs.login import wandb_is_offline
from vae_lightning.types import UserError

HEADER, BLOCK = 7, 32768


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run with W&B offline and a secret in the environment."""
    return trained_run(tmp_path_factory.getbasetemp() / "trained")


@pytest.fixture(scope="module")
def records(trained: TrainedRun) -> list[Any]:
    """Every record of the run's .wandb file."""
    return records_in(trained.folder)


def records_in(folder: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    raw = only(folder, "wandb/offline-run-*/run-*.wandb").read_bytes()
    assert raw.startswith(b":W&B")
    return [Record.FromString(body) for body in leveldb_records(raw)]


def leveldb_records(raw: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: chunks [u32 crc, u16 length, u8 type] that do not cross blocks of 32 KiB."""
    position, parts = HEADER, b""
    while position + 7 <= len(raw):
        left = BLOCK - position % BLOCK
        if left < 7:  # no room for another chunk's header: the block's tail is padding
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, position)
        assert 1 <= kind <= 4, f"no chunk at {position}"
        body = raw[position + 7 : position + 7 + length]
        parts = body if kind in (1, 2) else parts + body  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            yield parts
        position += 7 + length


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or ".".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def of_kind(records: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def test_the_run_is_named_after_its_folder(trained: TrainedRun, records: list[Any]) -> None:
    (run,) = of_kind(records, "run")
    assert run.run_id == trained.folder.name
    assert run.display_name == f"vae/digits/{trained.folder.name}"
    assert run.project == "vae_lightning"
    assert [record.exit_code for record in of_kind(records, "exit")] == [0]


def test_the_history_has_the_keys_and_the_numbers_of_metrics_csv(trained: TrainedRun, records: list[Any]) -> None:
    history = [items(record.item) for record in of_kind(records, "history")]
    keys = {name for row in history for name in row}
    terms = ("loss", "elbo", "log_likelihood", "kl", "kl/z")
    assert {f"{stage}/{term}" for stage in ("train", "val", "test") for term in terms} <= keys
    assert {"epoch", "trainer/global_step", "train/beta", "train/images_per_second", "test/nll"} <= keys
    rows = read_csv(trained.folder / "metrics.csv")
    for name in ("train/loss", "val/elbo", "val/kl", "test/nll"):
        here = [(row["trainer/global_step"], row[name]) for row in history if name in row]
        there = [(int(row["step"]), float(row[name])) for row in rows if name in row]
        assert here == [(step, pytest.approx(value)) for step, value in there]


def test_the_config_is_the_whole_resolved_configuration(trained: TrainedRun, records: list[Any]) -> None:
    config: dict[str, Any] = {}
    for record in of_kind(records, "config"):
        config |= items(record.update)
    kept = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert {"model", "data", "trainer", "nll", "seed_everything"} <= set(kept)
    assert {name: config[name] for name in kept} == kept


@pytest.mark.parametrize("name", ["samples", "reconstructions"])
def test_the_pictures_are_those_of_the_folder(trained: TrainedRun, records: list[Any], name: str) -> None:
    media = only(trained.folder, f"wandb/offline-run-*/files/media/images/{name}_*.png")
    picture = read_picture(media)
    assert picture.float().std() > 5
    assert torch.equal(picture, read_picture(trained.folder / "images" / f"{name}-0002.png"))
    logged = [items(record.item) for record in of_kind(records, "history")]
    (shown,) = [row for row in logged if f"{name}.filenames" in row]
    assert shown[f"{name}.filenames"] == [f"media/images/{media.name}"]
    assert (shown[f"{name}.height"], shown[f"{name}.width"]) == tuple(picture.shape[1:])


def test_no_secret_of_the_environment_is_recorded(trained: TrainedRun) -> None:
    files = [path for path in trained.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_the_way_to_upload_it_is_printed_and_nothing_is_asked(trained: TrainedRun) -> None:
    folder = only(trained.folder, "wandb/offline-run-*")
    assert f"wandb sync {folder}" in trained.stdout
    assert "wandb:" not in trained.stdout + trained.stderr
    assert "api key" not in (trained.stdout + trained.stderr).lower()


# -- online or offline? -----------------------------------------------------------------------------------------------

LOCAL = {"WANDB_BASE_URL": "http://localhost:8080"}
NAMES = ("API_KEY", "BASE_URL", "IDENTITY_TOKEN_FILE", "MODE", "SILENT", "INIT_TIMEOUT")


def machine(host: str) -> str:
    """The entry that `wandb login` writes to the netrc file."""
    return f"machine {host}\n  login user\n  password {'0' * 40}\n"


@pytest.mark.parametrize(
    ("environment", "netrc", "offline"),
    [
        ({}, None, True),
        ({"WANDB_API_KEY": ""}, None, True),
        ({"WANDB_API_KEY": "0" * 40}, None, False),
        ({"WANDB_IDENTITY_TOKEN_FILE": "/token"}, None, False),
        ({}, machine("api.wandb.ai"), False),  # written by `wandb login` for the server of W&B
        ({}, machine("example.com"), True),
        (LOCAL, machine("localhost:8080"), False),
        (LOCAL, machine("api.wandb.ai"), True),
        ({}, "machine\nmachine machine password", True),
        ({"WANDB_MODE": ""}, None, True),
        ({"WANDB_MODE": "offline"}, None, True),
        ({"WANDB_MODE": "online"}, None, False),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40}, None, True),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "0" * 40}, None, True),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value).partition("\n")[0],
)
def test_online_where_a_login_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], netrc: str | None, offline: bool
) -> None:
    for name in NAMES:
        monkeypatch.setenv(f"WANDB_{name}", "")  # so that monkeypatch resets the variables that the function sets
        monkeypatch.delenv(f"WANDB_{name}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
        (tmp_path / "netrc").chmod(0o600)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_is_offline() is offline
    assert int(os.environ["WANDB_INIT_TIMEOUT"]) <= 60  # no long wait for a server that does not answer
    assert ("WANDB_SILENT" in os.environ) is offline


# -- variables of the environment -------------------------------------------------------------------------------------

ONE_STEP = ("fit", "-c", str(REPOSITORY / DIGITS), "--trainer.max_steps=1", "--trainer.limit_val_batches=0")
FLAG = "--trainer.logger.project=flag"


def test_project_and_entity_of_the_environment(tmp_path: Path) -> None:
    """The variables override the shipped defaults. The config has a project only if the user gave one there."""
    run_cli(*ONE_STEP, f"--runs_dir={tmp_path}", env={"WANDB_PROJECT": "mine", "WANDB_ENTITY": "us"})
    folder = only(tmp_path, "vae/digits/*")
    (run,) = of_kind(records_in(folder), "run")
    assert (run.project, run.entity) == ("mine", "us")
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]["init_args"]["project"] is None


@pytest.mark.parametrize(
    ("variable", "args", "project"),
    [
        (None, (), "vae_lightning"),
        ("mine", (), "mine"),
        ("", (), "vae_lightning"),
        ("mine", (FLAG,), "flag"),
        ("mine", ("-c", "own.yaml"), "own"),
        ("mine", ("-c", "own.yaml", FLAG), "flag"),
        ("mine", ("--trainer.logger=WandbLogger",), "mine"),
    ],
)
def test_what_the_user_says_wins_over_the_environment(
    variable: str | None,
    args: tuple[str, ...],
    project: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(_: Any, init_args: dict[str, Any]) -> None:
        raise UserError(str(init_args["project"]))

    monkeypatch.setattr("vae_lightning.cli.lightning.start_wandb", stop)
    monkeypatch.chdir(tmp_path)
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "own"}}
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    assert main([*ONE_STEP, *args]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"vae-lightning: error: {project}"


@pytest.mark.parametrize("name", ["WANDB_DISABLED", "WANDB_MODE"])
def test_switched_off_by_the_environment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "true" if name == "WANDB_DISABLED" else "disabled")
    assert main([*ONE_STEP, f"--runs_dir={tmp_path}"]) == 0
    assert {path.name for path in only(tmp_path, "vae/digits/*").iterdir()}.isdisjoint({"wandb"})


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"WANDB_BASE_URL": "not a url"}, "base_url 'not a url' (WANDB_BASE_URL): Input should be a valid URL"),
        ({"WANDB_BASE_URL": "not a url", "WANDB_API_KEY": "0" * 40}, "base_url 'not a url' (WANDB_BASE_URL)"),
        ({"WANDB_MODE": "sometimes"}, "WANDB_MODE is 'sometimes'; it must be one of online, offline"),
        ({"WANDB_INIT_TIMEOUT": "long"}, "init_timeout 'long' (WANDB_INIT_TIMEOUT): Input should be a valid number"),
        ({"WANDB_PROJECT": "a/b"}, "Invalid project name 'a/b'"),
    ],
    ids=str,
)
def test_a_variable_that_cannot_be_is_named_in_one_line(variables: dict[str, str], line: str, tmp_path: Path) -> None:
    err = run_cli(*ONE_STEP, f"--runs_dir={tmp_path}", env=variables, expect=2).stderr
    (error,) = [text for text in err.splitlines() if "error" in text]
    assert error.startswith("vae-lightning: error: W")
    assert line in error
    assert "Traceback" not in err
