"""`check-data`: prints the size of a data set, or each problem, and trains nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, write_mnist
from vae_lightning.__main__ import main
from vae_lightning.data import CelebA
from vae_lightning.data.module import SPLITS
from vae_lightning.synthetic import write_celeba_layout

CELEBA = ("check-data", "-c", "configs/vae/celeba.yaml", "--data.verify=false")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_a_good_set_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_celeba_layout(tmp_path, 40, archive=True)
    assert main([*CELEBA, f"--data.data_dir={tmp_path}", f"--runs_dir={tmp_path / 'runs'}"]) == 0
    out = capsys.readouterr().out
    data = CelebA(str(tmp_path), verify=False)
    data.prepare_data()
    means = {split: data.images(split).pixels.double().mean() / 255 for split in SPLITS}
    assert f"train: 32 images [3, 64, 64], mean pixel {means['train']:.3f}" in out
    assert f"val: 4 images [3, 64, 64], mean pixel {means['val']:.3f}" in out
    assert "labels [40] an image" in out
    assert not (tmp_path / "runs").exists()


def test_all_that_is_wrong_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_celeba_layout(tmp_path, 40)
    images = tmp_path / "celeba" / "img_align_celeba"
    for number in (2, 5, 9, 11):
        shutil.copyfile(__file__, images / f"{number:06d}.jpg")
    assert main([*CELEBA, f"--data.data_dir={tmp_path}"]) == 1
    output = capsys.readouterr()
    for number in (2, 5, 9, 11):
        assert f"{number:06d}.jpg: not an image" in output.out
    assert output.err.strip() == "vae-lightning: error: CelebA: 4 problems, listed above"


def test_files_that_are_not_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_celeba_layout(tmp_path, 40)
    folder = tmp_path / "celeba" / "img_align_celeba"
    (folder / "000041.heic").touch()
    config = ("-c", "configs/vae/images.yaml", f"--data.cache_dir={tmp_path / 'cache'}")
    assert main(["check-data", *config, f"--data.data_dir={folder}"]) == 0
    assert f"{folder}: 1 files not read because of their endings (.heic 1)" in capsys.readouterr().out


def test_damage_to_the_cache_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_celeba_layout(tmp_path, 40)
    assert main([*CELEBA, f"--data.data_dir={tmp_path}"]) == 0
    with (tmp_path / "cache" / "celeba-64x64-center148" / "pixels.u8").open("r+b") as file:
        file.write(b"\1\2\3")
    assert main([*CELEBA, f"--data.data_dir={tmp_path}"]) == 1
    assert "images 0 .. 39 were damaged after they were written" in capsys.readouterr().out


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(b"<html>")
    arguments = ["-c", "configs/vae/mnist.yaml", f"--data.data_dir={tmp_path}", "--data.verify=false"]
    assert main(["check-data", *arguments]) == 1
    assert "test: " in (out := capsys.readouterr().out)
    assert "not an IDX file of bytes" in out


def test_an_unknown_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*CELEBA, "--data.colour=red"])
    assert caught.value.code == 2
    assert "colour" in capsys.readouterr().err


def test_a_setting_that_the_class_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = ("check-data", "-c", "configs/vae/digits.yaml", "--data=MultiDigits", "--data.max_digits=300")
    assert main([*config]) == 2
    assert capsys.readouterr().err == "vae-lightning: error: MultiDigits: max_digits is 300; it must be at most 255\n"
