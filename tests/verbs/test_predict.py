"""`predict`: the mean and the scale of q(z|x) of every image of a split, in its order, with labels and paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import DIGITS, EPOCHS, REPOSITORY, TrainedRun, only, trained_run
from vae_lightning.__main__ import main
from vae_lightning.data import CelebA, Digits, ImageFolder
from vae_lightning.data.module import SPLITS, Split
from vae_lightning.distributions import (
    IAF,
    Binomial,
    Categorical,
    DiagonalNormal,
    FamilyRecipe,
    FullNormal,
    LinearIAF,
    LowRankNormal,
    RelaxedCategorical,
    VonMisesFisher,
)
from vae_lightning.models import HVAE, VAE, LatentVariableModel
from vae_lightning.models.codes import estimated, posterior_codes
from vae_lightning.models.loading import load_model
from vae_lightning.networks import MLP
from vae_lightning.noise import reseed
from vae_lightning.storage.transforms import Transform
from vae_lightning.synthetic import write_celeba_layout

COUNTS = {"train": 1266, "val": 176, "test": 355}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return trained_run(tmp_path_factory.getbasetemp() / "trained")


def predict(run: Path, *flags: str) -> dict[str, np.ndarray]:
    """The arrays that the command wrote; the file must be new and must load without pickles."""
    split = next((flag.partition("=")[2] for flag in flags if flag.startswith("--split=")), "test")
    path = run / f"predictions-{split}.npz"
    assert not path.exists()
    assert main(["predict", "-c", str(run / "config.yaml"), f"--ckpt_path={run}", *flags]) == 0
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


# -- which images, in which order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [*SPLITS, "all"])
def test_every_image_of_a_split_in_its_order(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    """The codes equal q(z|x) of all pixels of the data set at once."""
    run = trained.copy_to(tmp_path)
    arrays = predict(run, f"--split={split}")
    assert arrays.keys() == {"z_mean", "z_scale", "label", "split"}
    splits: Sequence[Split] = [one for one in SPLITS if split in (one, "all")]
    model, data = load_model(run / "checkpoints" / "best.ckpt"), Digits()
    assert isinstance(model, VAE)
    images = [data.images(one) for one in splits]
    with torch.no_grad():
        q = model.encode(torch.cat([one.pixels for one in images]).float() / 16)
    np.testing.assert_allclose(arrays["z_mean"], q.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(arrays["z_scale"], q.stddev, rtol=1e-4, atol=1e-5)
    assert np.array_equal(arrays["label"], np.concatenate([one.labels for one in images]))  # type: ignore[arg-type]
    assert arrays["split"].tolist() == [one for one in splits for _ in range(COUNTS[one])]
    shape = [sum(COUNTS[one] for one in splits), 8]
    path = run / f"predictions-{split}.npz"
    line = f"{path}: z_mean {shape}, z_scale {shape}, label {shape[:1]}, split {shape[:1]}\n"
    assert capsys.readouterr().out.endswith(line)
    assert not [path for path in run.iterdir() if path.suffix in (".pt", ".part")]


def test_training_images_are_binarised_as_in_evaluation_and_not_flipped(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy_to(tmp_path)
    arrays = predict(run, "--split=train", "--data.binarisation=dynamic", "--data.flip=true", "--data.batch_size=7")
    images = Digits().images("train")
    index = torch.arange(len(images.pixels))
    x = Transform(16, "dynamic")(images.pixels.clone(), index, seed=0, epoch=0, total=len(index))
    model = load_model(run / "checkpoints" / "best.ckpt")
    assert isinstance(model, VAE)
    with torch.no_grad():
        np.testing.assert_allclose(arrays["z_mean"], model.encode(x).mean, rtol=1e-4, atol=1e-5)


def test_a_part_of_a_split_is_its_beginning(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy_to(tmp_path)
    arrays = predict(run, "--split=all", "--trainer.limit_predict_batches=2", "--data.eval_batch_size=10")
    assert arrays["split"].tolist() == ["train"] * 20 + ["val"] * 20 + ["test"] * 20
    labels = [Digits().images(split).labels[:20] for split in SPLITS]  # type: ignore[index]
    assert np.array_equal(arrays["label"], torch.cat(labels))


def test_a_sample_is_kept_where_asked_for(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy_to(tmp_path)
    arrays = predict(run, "--sample=true")
    assert arrays.keys() == {"z_mean", "z_scale", "z_sample", "label", "split"}
    noise = (arrays["z_sample"] - arrays["z_mean"]) / arrays["z_scale"]
    assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
    assert noise.std() == pytest.approx(1, abs=5 / math.sqrt(2 * noise.size))
    batches = noise.reshape(-1, 8)
    assert len(np.unique(batches.round(4), axis=0)) == len(batches)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--split=everything"], 2, "split"),
        (["--trainer.limit_predict_batches=0"], 1, "nothing was predicted: limit_predict_batches is 0"),
        (["--return_predictions=false"], 1, "return_predictions is false"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_gives_no_file_is_one_line(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    run = trained.copy_to(tmp_path)
    try:
        exit_code = main(["predict", "-c", str(run / "config.yaml"), f"--ckpt_path={run}", *flags])
    except SystemExit as error:
        exit_code = int(str(error.code))
    assert exit_code == code
    err = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(err) == 1
    assert message in err[0]
    assert not list(run.glob("predictions*"))


def test_a_file_that_cannot_be_written_is_one_line(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained.copy_to(tmp_path)
    (run / "predictions-test.npz").mkdir()
    assert main(["predict", "-c", str(run / "config.yaml"), f"--ckpt_path={run}"]) == 1
    assert f"{run / 'predictions-test.npz'}: cannot be written (Is a directory)" in capsys.readouterr().err


# -- paths and labels -----------------------------------------------------------------------------------------------


def write_photos(folder: Path, count: int = 30) -> None:
    """Grey images in two folders, one for each class; each image has another shade."""
    for number in range(count):
        path = folder / ("cats" if number % 3 else "dogs") / f"é {number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 8 * number, dtype=np.uint8)).save(path)


def folder_run(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos")
    config = tmp_path / "photos.yaml"
    data = f"{{data_dir: {tmp_path / 'photos'}, height: 8, width: 8, channels: 1, cache_dir: {tmp_path / 'cache'}}}"
    config.write_text(
        f"model: {{class_path: VAE, init_args: {{latent_size: 3, likelihood: ContinuousBernoulli}}}}\n"
        f"data: {{class_path: ImageFolder, init_args: {data}}}\n"
    )
    quick = ("--trainer.max_epochs=1", "--trainer.logger=false", f"--runs_dir={tmp_path / 'runs'}")
    assert main(["fit", "-c", str(config), *quick]) == 0
    return only(tmp_path, "runs/photos/*")


def test_the_path_and_the_label_of_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder_run(tmp_path)
    capsys.readouterr()
    arrays = predict(run, "--split=all")
    assert capsys.readouterr().out.count("split: val is 0.1 of all images") == 1
    assert sorted(arrays["path"]) == sorted(str(path) for path in (tmp_path / "photos").rglob("*.png"))
    assert arrays["path"].dtype.kind == "U"
    model = load_model(run / "checkpoints" / "best.ckpt")
    assert isinstance(model, VAE)
    for row, path in enumerate(arrays["path"]):
        x = torch.full((1, 1, 8, 8), np.array(Image.open(path))[0, 0] / 255)
        assert arrays["z_mean"][row] == pytest.approx(model.encode(x).mean[0].tolist(), rel=1e-3, abs=1e-5)
        assert arrays["label"][row] == ("dogs" in path)
    assert arrays["split"].tolist() == ["train"] * 24 + ["val"] * 3 + ["test"] * 3


def test_no_paths_where_the_files_are_gone_or_others(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    data = ImageFolder(str(tmp_path / "photos"), 8, 8, 1, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    assert {split: len(data.paths(split) or []) for split in SPLITS} == {"train": 24, "val": 3, "test": 3}
    write_photos(tmp_path / "photos", 31)
    assert data.paths("test") is None
    data.prepare_data()
    assert data.paths("test") is not None
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    assert data.paths("test") is None
    assert Digits().paths("test") is None


@pytest.mark.parametrize("archive", [True, False])
def test_the_names_of_celeba(tmp_path: Path, archive: bool) -> None:
    write_celeba_layout(tmp_path, 40, archive=archive)
    data = CelebA(str(tmp_path), size=8, verify=False)
    data.prepare_data()
    names = [f"{number:06d}.jpg" for number in range(1, 41)]
    paths = [Path(path) for split in SPLITS for path in data.paths(split) or []]
    assert sorted(path.name for path in paths) == names
    assert all(path.is_file() for path in paths) != archive
    assert len(data.paths("val") or []) == len(data.images("val").pixels)


# -- mean and scale of every kind of posterior ------------------------------------------------------------------------

TINY = partial(MLP, hidden_sizes=(16,))
CLOSED: dict[str, FamilyRecipe] = {
    "DiagonalNormal": DiagonalNormal,
    "FullNormal": FullNormal,
    "LowRankNormal": LowRankNormal,
    "Categorical": partial(Categorical, straight_through=True),
    "VonMisesFisher": VonMisesFisher,
    "LinearIAF": LinearIAF,
}
DRAWN: dict[str, FamilyRecipe] = {"IAF": IAF, "RelaxedCategorical": RelaxedCategorical}


def vae(posterior: FamilyRecipe) -> VAE:
    torch.manual_seed(1)
    likelihood = partial(Binomial, num_steps=16)
    return VAE((1, 8, 8), 4, encoder=TINY, decoder=TINY, posterior=posterior, likelihood=likelihood).eval()


def codes_and_draws(model: LatentVariableModel, name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[str]]:
    """The codes of four images; 20,000 draws of their latent [S, 4, D]; and which latents are estimated."""
    batch = {"x": Digits().images("test").pixels[:4].float() / 16}
    with torch.no_grad():
        trace = model.trace(batch)
        codes = posterior_codes(model.trace, batch, trace)
        draws = torch.cat([model.trace(batch, 1000).latents[name].z for _ in range(20)])
    return codes, draws, estimated(trace)


@pytest.mark.parametrize("family", [*CLOSED, *DRAWN])
def test_the_mean_and_the_scale_are_those_of_the_draws(family: str) -> None:
    reseed(torch.device("cpu"), 5)
    codes, draws, names = codes_and_draws(vae({**CLOSED, **DRAWN}[family]), "z")
    count = 64 if family in DRAWN else 20_000
    scale = draws.std(0)
    assert codes["z_mean"].shape == codes["z_scale"].shape == (4, 4)
    assert ((codes["z_mean"] - draws.mean(0)).abs() <= 5 * scale / math.sqrt(count)).all()
    torch.testing.assert_close(codes["z_scale"], scale, rtol=5 / math.sqrt(count), atol=1e-3)
    assert names == (["z"] if family in DRAWN else [])


@pytest.mark.parametrize("layer", ["z1", "z2"])
def test_a_layer_of_a_hierarchy_has_the_moments_over_the_layers_above(layer: str) -> None:
    """The moments belong to q(z1|x) of a Ladder, not to q(z1|x, z2) at one sample of z2."""
    torch.manual_seed(2)
    likelihood = partial(Binomial, num_steps=16)
    model = HVAE((1, 8, 8), (3, 2), decoder=TINY, transition=TINY, likelihood=likelihood)
    with torch.no_grad():  # so that z1 depends on z2
        for parameter in model.transitions.parameters():
            parameter.mul_(6)
    reseed(torch.device("cpu"), 6)
    codes, draws, names = codes_and_draws(model.eval(), layer)
    assert names == ["z1"]
    count = 64 if layer == "z1" else 20_000
    scale = draws.std(0)
    assert ((codes[f"{layer}_mean"] - draws.mean(0)).abs() <= 5 * scale / math.sqrt(count)).all()
    torch.testing.assert_close(codes[f"{layer}_scale"], scale, rtol=5 / math.sqrt(count), atol=1e-3)
    if layer == "z1":
        with torch.no_grad():
            inner = model.trace({"x": Digits().images("test").pixels[:4].float() / 16}).latents["z1"].q.stddev[0]
        assert (codes["z1_scale"] > 1.2 * inner).any()


def test_what_is_estimated_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    common = ("-c", DIGITS, *EPOCHS, "--trainer.max_epochs=1", "--trainer.logger=false", f"--runs_dir={tmp_path}")
    assert main(["fit", *common, "--model.posterior=IAF"]) == 0
    run = only(tmp_path, "vae/digits/*")
    caplog.clear()
    predict(run, "--split=all", "--trainer.limit_predict_batches=1")
    assert caplog.text.count("z: q(z|x) has no closed form; mean and scale are estimated from 64 draws") == 1


def test_from_python_it_returns_dicts(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", **quiet)
    batches = trainer.predict(vae(DiagonalNormal), datamodule=Digits(eval_batch_size=50))
    assert isinstance(batches, list)
    assert [set(batch) for batch in batches] == [{"z_mean", "z_scale", "label"}] * 8
    assert sum(len(batch["z_mean"]) for batch in batches) == COUNTS["test"]
