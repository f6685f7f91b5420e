"""`vae-lightning impute`, and `sample` by class, from the command line on the digits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers import DIGITS, REPOSITORY, only, read_picture
from vae_lightning.__main__ import main
from vae_lightning.data import Digits
from vae_lightning.metrics import impute

QUICK = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1")
QUIET = (
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.logger=false",
    "--nll.num_samples=2",
    "--trainer.accelerator=cpu",
)
MODELS = {
    "VAE": ["--data.binarisation=threshold", "--model.likelihood=Bernoulli"],
    "DLGM": ["--model=DLGM", "--model.latent_sizes=[6,4]", "--model.posterior=RankOneNormal"],
    "CVAE": ["--model=CVAE", "--model.condition=ClassLabel", "--speed.steps_per_call=2"],
    "regression": [
        "--model=CVAE",
        "--model.condition=ImageColumns",
        "--model.condition.columns=[3]",
        "--model.latent_size=0",
    ],
}
NUMBERS = re.compile(r"(chain|mean image) +squared error (0\.\d{4}) \+- (0\.\d{4}) a missing pixel(, \d+\.\d% wrong)?")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each model: two steps of training, and a test."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.delenv("VAE_LIGHTNING_RUN_ID", raising=False)
        for name, args in MODELS.items():
            folder = tmp_path_factory.mktemp(name)
            assert main(["train", "-c", DIGITS, *args, *QUICK, *QUIET, f"--runs_dir={folder}"]) == 0
            runs[name] = only(folder, "vae/digits/*")
    return runs


@pytest.mark.parametrize("name", ["VAE", "DLGM", "CVAE"])
def test_impute_writes_a_picture_and_says_numbers(
    runs: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture has five rows for each ten images; the output has the errors of the chain and of the mean image."""
    corrected = ["--corrected"] if name in ("VAE", "DLGM") else []
    assert main(["impute", str(runs[name]), "--missing=0.8", "--steps=4", "--num_images=12", *corrected]) == 0
    output = capsys.readouterr().out.splitlines()
    picture = runs[name] / "images" / "imputations.png"
    assert output[0] == str(picture)
    assert output[1].startswith("12 images, 80% of pixels missing, 4 steps")
    assert ("accepted" in output[1]) == bool(corrected)
    rows = [NUMBERS.fullmatch(line) for line in output[2:]]
    assert [row and row[1] for row in rows] == ["chain", "mean image"]
    assert all(row and 0 < float(row[2]) < 1 and bool(row[4]) == (name == "VAE") for row in rows)
    image = read_picture(picture)
    margin = image.shape[2] - (10 * 58 + 2)
    assert image.shape[1] == 24 + 2 * (5 * 60 + 8)
    assert (image[:, 24:324, :margin] < 128).any()  # the captions of the rows
    observed, masked = (image[:, top : top + 56, margin + 2 : margin + 58] for top in (26, 86))
    assert (observed != masked).any()
    assert (masked[:, (masked == observed).all(0)] == observed[:, (masked == observed).all(0)]).all()


def test_the_images_are_spread_over_the_test_set(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are spread over the set and not the first ones, because a file may be sorted by class."""
    seen: list[Tensor] = []
    monkeypatch.setattr(
        "vae_lightning.verbs.impute.impute",
        lambda model, batch, *args: seen.append(batch["x"]) or impute(model, batch, *args),
    )
    assert main(["impute", str(runs["DLGM"]), "--steps=1", "--num_images=40"]) == 0
    images = Digits().images("test")
    (x,) = seen
    same = (x.flatten(1)[:, None] - images.pixels.flatten(1) / images.max_value).abs().amax(-1) < 1e-5  # [40, 355]
    rows = same.double().argmax(1)
    assert same.any(1).all()
    assert len(rows.unique()) == 40
    assert torch.histc(rows.double(), 4, 0, 354).min() >= 3


def test_the_error_of_one_image_is_not_known(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["impute", str(runs["DLGM"]), "--steps=1", "--num_images=1"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 2
    assert all(re.search(r"squared error 0\.\d{4} \+- \? a missing pixel", line) for line in lines)


def test_a_seed_repeats_an_imputation(runs: dict[str, Path], tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        args = ["impute", str(runs["DLGM"]), "--steps=2", "--num_images=5", f"--seed={seed}", f"--output={path}"]
        assert main(args) == 0
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", MODELS)
def test_samples_of_every_model(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    assert main(["sample", str(runs[name]), "--num_images=20", f"--output={tmp_path / 'a.png'}"]) == 0
    assert read_picture(tmp_path / "a.png").shape == (3, 24 + 2 * 60, 582)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("VAE", ["--missing=1"], r"missing pixels is 1\.0; it must be between 0 and 1"),
        ("VAE", ["--missing=much"], "invalid float value: 'much'"),
        ("VAE", ["--steps=0"], "steps is 0"),
        ("VAE", ["--num_images=0"], "--num_images is 0"),
        ("regression", [], "conditioned on cannot be missing"),
    ],
)
def test_a_mistake_is_one_line(
    runs: dict[str, Path], name: str, args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["impute", str(runs[name]), *args]) == 2
    assert re.fullmatch(f"vae-lightning: error: .*{says}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model=CVAE", "--model.condition=Nothing"], r"model\.condition: Nothing .*ClassLabel, ImageColumns"),
        (["--model=CVAE", "--model.condition=ImageColumns", "--model.condition.columns=[8]"], r"columns \[8\]"),
        (["--model=HVAE", "--model.inference=MLP"], r"model\.inference: MLP is no Inference"),
        (["--model=HVAE", "--model.latent_sizes=[]"], r"HVAE: latent_sizes \[\]"),
        (["--model=DLGM", "--model.latent_sizes=[3,0]"], r"DLGM: latent_sizes \[3, 0\]"),
        (["--model=DLGM", "--model.transition=Bernoulli"], r"model\.transition: Bernoulli is no Network"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the command line does the same
def test_a_mistake_in_a_model_is_one_line(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    try:
        code: object = main(["fit", "-c", DIGITS, *args, *QUICK, *QUIET, f"--runs_dir={tmp_path}"])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(errors) == 1
    assert re.search(f"^vae-lightning: error: .*{says}", errors[0])
