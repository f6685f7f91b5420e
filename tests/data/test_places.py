"""Data sets and runs work in folders with blanks, quotes and other scripts in their names, and behind links."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import DIGITS, REPOSITORY, only, write_mnist
from vae_lightning.__main__ import main
from vae_lightning.data import MNIST, ImageFolder
from vae_lightning.synthetic import write_celeba_layout


@pytest.fixture(params=["mit Leerzeichen", "quote's & データ", "link"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / str(request.param)
    if request.param == "link":
        (tmp_path / "behind").mkdir()
        folder.symlink_to(tmp_path / "behind")
    else:
        folder.mkdir()
    return folder


def test_data_is_read_and_cached_there(place: Path) -> None:
    arrays = write_mnist(place / "MNIST" / "raw")
    mnist = MNIST(str(place), verify=False)
    mnist.prepare_data()
    assert torch.equal(mnist.images("test").pixels[:, 0], torch.from_numpy(arrays["t10k-images-idx3-ubyte"]))
    write_celeba_layout(place / "faces", 12)
    faces = ImageFolder(str(place / "faces"), height=16, width=16, cache_dir=str(place / "cache"))
    faces.prepare_data()
    assert sum(len(faces.images(split).pixels) for split in ("train", "val", "test")) == 12  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")  # the command line ignores warnings, too
def test_a_run_is_kept_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "behind the link").mkdir()
    place = tmp_path / "quote's & データ"
    place.symlink_to(tmp_path / "behind the link")
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.check_val_every_n_epoch=1"]
    short += ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1"]
    assert main(["fit", "-c", DIGITS, f"--runs_dir={place}", *short]) == 0
    run = only(place, "vae/digits/*")
    assert main(["sample", str(run), "--num_images=2"]) == 0
    assert (run / "images" / "samples.png").is_file()
