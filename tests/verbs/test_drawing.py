"""`vae-lightning sample` and `reconstruct`: what they write, and what they say if there is nothing to draw."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from tests.helpers import REPOSITORY, read_picture
from vae_lightning.__main__ import main
from vae_lightning.data import Digits

VERBS = pytest.mark.parametrize("verb", ["sample", "reconstruct"])
NAMES = {"sample": "samples", "reconstruct": "reconstructions"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on the digits, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(REPOSITORY / "tests" / "checkpoints" / "vae", tmp_path / "runs" / "vae"))


def show_digits_as(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "show", lambda _, x: show(x), raising=False)


@VERBS
def test_nothing_to_draw_is_one_line(
    run: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_digits_as(lambda _: None, monkeypatch)
    assert main([verb, str(run), "--num_images=3"]) == 2
    line = "vae-lightning: error: x of shape [1, 8, 8] has no picture; give the data module a show(x)\n"
    assert capsys.readouterr().err.endswith(line)
    assert not (run / "images").exists()


@VERBS
def test_texts_are_written_as_a_table(
    run: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_digits_as(lambda x: ["a line"] * len(x), monkeypatch)
    assert main([verb, str(run), "--num_images=3"]) == 0
    table = run / "images" / f"{NAMES[verb]}.txt"
    assert capsys.readouterr().out == f"{table}\n"
    assert table.read_text().startswith(f"{NAMES[verb]}, last.ckpt\n\n1 ")
    assert table.read_text().count("a line") == {"sample": 3, "reconstruct": 6}[verb]


@VERBS
def test_clips_are_written_as_a_strip_and_as_a_moving_picture(
    run: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def as_clips(x: Tensor) -> Tensor:
        return torch.stack([x.roll(step, -1) for step in range(5)], 1)

    show_digits_as(as_clips, monkeypatch)
    assert main([verb, str(run), "--num_images=3", "--output=a.gif"]) == 0
    assert capsys.readouterr().out == "a.png\na.gif\n"
    assert read_picture(Path("a.png")).float().std() > 0
    with Image.open("a.gif") as gif:
        assert gif.n_frames == 5  # type: ignore[attr-defined]


def test_samples_of_images_need_no_run_folder(run: Path) -> None:
    """A checkpoint alone has no config.yaml that names its data."""
    checkpoint = shutil.copy(run / "checkpoints" / "last.ckpt", "alone.ckpt")
    assert main(["sample", str(checkpoint), "--num_images=3", "--output=a.png"]) == 0
    assert read_picture(Path("a.png")).float().std() > 0


def test_counts_of_a_model_without_objects_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "--counts=aggregate"]) == 2
    assert capsys.readouterr().err.endswith("error: --counts: VAE has no count of objects; AIR has one\n")


def test_what_a_data_set_refuses_is_said_in_its_own_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run / "config.yaml"
    spec = {"class_path": "vae_lightning.data.Recorded", "init_args": {"data_dir": "nowhere"}}
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "data": spec}))
    assert main(["reconstruct", str(run)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        f"vae-lightning: error: {config}: nowhere/recording.json: no such file; write a recording by"
    )
