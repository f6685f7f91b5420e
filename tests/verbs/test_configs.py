"""Configs by their short names, in a checkout, elsewhere and beside configs of one's own; the table of `configs`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.cli.lightning import DataCLI
from vae_lightning.runs import configs
from vae_lightning.runs.configs import config_file, experiment_of_config, header_entry, with_config_files
from vae_lightning.verbs.configs import needs


def test_a_short_name_is_the_shipped_file_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = (REPOSITORY / "configs/vae/mnist.yaml").read_text()
    for folder in (tmp_path, REPOSITORY):
        monkeypatch.chdir(folder)
        for name in ("vae/mnist", "vae/mnist.yaml", "configs/vae/mnist.yaml"):
            path = config_file(name)
            assert path is not None
            assert Path(path).read_text() == shipped
            assert experiment_of_config(path) == "vae/mnist"


def test_a_file_at_the_path_wins_then_the_configs_of_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/vae").mkdir(parents=True)
    (tmp_path / "configs/vae/mnist.yaml").touch()
    (tmp_path / "configs/first.yml").touch()
    (tmp_path / "vae").mkdir()  # a folder is no config
    assert config_file("vae/mnist") == "configs/vae/mnist.yaml"
    assert config_file("first") == "configs/first.yml"
    (tmp_path / "vae/mnist").touch()
    assert config_file("vae/mnist") == "vae/mnist"
    assert config_file("vae/digits") == str(REPOSITORY / "configs/vae/digits.yaml")


@pytest.mark.parametrize("name", ["", "../configs/vae/mnist", str(REPOSITORY / "configs/vae/mnist"), "vae", "a/b"])
def test_what_is_no_name_is_left_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file(name) is None
    assert with_config_files(["-c", name]) == ["-c", name]


def test_names_are_replaced_after_the_flag_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(REPOSITORY / "configs/vae/mnist.yaml")
    args = ["fit", "-c", "vae/mnist", "--config=vae/mnist", "--experiment", "vae/mnist", "--data.x=vae/mnist"]
    assert with_config_files(args) == ["fit", "-c", path, f"--config={path}", *args[4:]]


def test_the_command_line_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = DataCLI(["fit", "-c", "vae/digits", "--data.batch_size=7"]).config.fit
    assert (settings.data.class_path, settings.data.init_args.batch_size) == ("vae_lightning.data.Digits", 7)
    assert settings.trainer.max_epochs == 200


def test_an_installed_package_has_its_configs_inside_and_looks_at_none_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a package in site-packages lie the packages of others. The way there may lead through a `configs`."""
    package = tmp_path / "configs" / "site-packages" / "vae_lightning"
    for folder in (package, package.parent):
        (folder / "configs" / "vae").mkdir(parents=True)
        (folder / "configs" / "defaults.yaml").touch()
        (folder / "configs" / "vae" / "mine.yaml").touch()
    monkeypatch.setattr(configs, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path / "configs")
    path = config_file("vae/mine")
    assert path == str(package / "configs" / "vae" / "mine.yaml")
    assert experiment_of_config(path) == "vae/mine"


def test_the_head_of_a_config_is_read_whole() -> None:
    head = "# A.\n#\n# result  one\n#         two\n# cost     three\n#\n# result   not this\na: 1\n# cost   nor this\n"
    assert [header_entry(head, word) for word in ("result", "cost", "command")] == ["one two", "three", None]


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        ("{class_path: vae_lightning.data.Digits}", "nothing"),
        ("vae_lightning.data.ProceduralFaces", "nothing"),
        ("{class_path: vae_lightning.data.CIFAR10}", "a download"),
        ("{class_path: MNIST}", "a download"),
        ("{class_path: vae_lightning.data.SceneFolder}", "your images"),
        ("{class_path: vae_lightning.data.MultiDigits, init_args: {source: vae_lightning.data.MNIST}}", "a download"),
        ("{class_path: vae_lightning.data.MultiDigits}", "nothing"),
        ("{class_path: never_imported.Data}", "see the file"),
        ("{class_path: vae_lightning.data.Nothing}", "see the file"),
    ],
)
def test_what_a_config_needs_follows_from_its_data_set(data: str, answer: str) -> None:
    assert needs(yaml.safe_load(f"data: {data}")) == answer


def test_the_table_has_every_config_and_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("# result   42 nats\ndata: my_pkg.Mine\n")
    assert main(["configs"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    for path in (REPOSITORY / "configs").glob("*/*.yaml"):
        assert path.relative_to(REPOSITORY / "configs").with_suffix("").as_posix() in lines
    assert lines["mine"].split(maxsplit=1)[1] == "see the file  42 nats"
    assert "nothing" in lines["vae/digits"]
    assert "90.4 +- 1.0 nats" in lines["vae/digits"]
    assert max(map(len, said.splitlines())) <= 120
    assert main(["configs", "vae/digits"]) == 0
    assert capsys.readouterr().out == (REPOSITORY / "configs/vae/digits.yaml").read_text()
