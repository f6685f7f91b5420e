"""traverse, interpolate, manifold, animate, and the images, labels and temperatures of reconstruct and sample."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import DIGITS, REPOSITORY, only, read_picture
from vae_lightning.__main__ import main
from vae_lightning.data import Digits
from vae_lightning.models import CVAE, VAE
from vae_lightning.models.dimensions import dimensions
from vae_lightning.models.loading import load_model
from vae_lightning.pictures import Picture, interpolation, samples, save, save_png, scatter, traversals
from vae_lightning.pictures.grids import evaluating
from vae_lightning.storage.examples import Images
from vae_lightning.storage.loader import first_images
from vae_lightning.verbs import sample as sample_verb

TINY = ("--trainer.max_epochs=4", "--trainer.logger=false", "--nll.num_samples=2", "--trainer.accelerator=cpu")
PICTURES = ("--trainer.check_val_every_n_epoch=1", "--pictures.every_n_epochs=1", "--pictures.num_images=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a VAE of the digits, with pictures of each of its four epochs."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.delenv("VAE_LIGHTNING_RUN_ID", raising=False)
        assert main(["train", "-c", DIGITS, "--model.latent_size=3", *TINY, *PICTURES, f"--runs_dir={folder}"]) == 0
    return only(folder, "vae/digits/*")


def stored(name: str, tmp_path: Path) -> Path:
    """A run of another model, as it was stored, in a folder of its own."""
    return Path(shutil.copytree(REPOSITORY / "tests" / "checkpoints" / name, tmp_path / name))


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """Test image 5 as a PNG file."""
    pixels = Digits().images("test").pixels[5, 0].numpy().astype(int)
    Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(tmp_path / "five.png")
    return tmp_path / "five.png"


def test_traverse_has_a_row_for_each_live_dimension(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traverse", str(run), "--num_images=100", "--steps=5", "--gif"]) == 0
    png, gif = run / "images" / "traverse.png", run / "images" / "traverse.gif"
    assert capsys.readouterr().out == f"{png}\n{gif}\n"
    model, x = load_model(run / "checkpoints" / "best.ckpt"), first_images(Digits().test_dataloader(), 100)
    rows = sum(not one.is_dead for one in dimensions(model, x))
    assert rows == 3
    assert read_picture(png).shape[1] == 24 + 16 + rows * 60 + 8
    with Image.open(gif) as moving:
        assert moving.n_frames == 22  # type: ignore[attr-defined]


def test_the_middle_of_each_row_is_the_start(run: Path) -> None:
    """A row that reaches nowhere has one image; a row that reaches far has two different ends."""
    model, x = load_model(run / "checkpoints" / "best.ckpt"), first_images(Digits().test_dataloader(), 100)
    picture, moved = (traversals(model, None, x, 0, "t", steps=15, reach=reach) for reach in (1e-6, 2))
    assert picture.still is not None
    assert moved.still is not None
    margin = picture.still.shape[2] - (15 * 58 + 2)
    cells = [
        [one[:, 42 + 60 * row : 98 + 60 * row, left : left + 56].float() for left in (margin + 2, margin + 814)]
        for one in (picture.still, moved.still)
        for row in range(3)
    ]
    assert all((first - last).abs().max() <= 1 for first, last in cells[:3])
    assert all((first - last).abs().max() > 10 for first, last in cells[3:])


@pytest.mark.parametrize("name", ["cvae", "dlgm", "hvae", "faces"])
def test_every_model_that_decodes_answers(name: str, tmp_path: Path) -> None:
    """These models have had two steps of training, so that some of their dimensions may be dead."""
    folder, latent = stored(name, tmp_path), {"dlgm": "z1", "hvae": "z2"}.get(name, "z")
    label = ["--label=3"] if name == "cvae" else []
    out = [f"--output={tmp_path / 'a.png'}"]
    chosen = ["--latent", latent, "--dimensions", "0", "1", "--num_images=60", *label]
    assert main(["traverse", str(folder), *chosen, *out]) == 0
    assert read_picture(tmp_path / "a.png").shape[1] > 2 * 60
    between = ["--between", "0", "1"]
    assert main(["interpolate", str(folder), *between, *label, *out]) == 0
    assert main(["manifold", str(folder), "--latent", latent, "--side=4", "--num_images=60", *label, *out]) == 0
    assert read_picture(tmp_path / "a.png").float().std() > 0


def test_a_way_begins_and_ends_at_the_two_images(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert main(["interpolate", str(run), "--between", "0", "5", "--steps=4", f"--output={out}"]) == 0
    picture = read_picture(out)
    margin = picture.shape[2] - (4 * 58 + 2)
    pixels = Digits().images("test").pixels[[0, 5], 0].float() / 16 * 255
    for image, column in zip(pixels, (0, 3), strict=True):
        left = margin + 2 + 58 * column
        cell = picture[0, 42:98, left : left + 56].float()
        assert torch.allclose(cell, image.round().repeat_interleave(7, 0).repeat_interleave(7, 1), atol=1)


def test_a_file_and_the_test_image_that_it_holds_give_one_picture(run: Path, digit: Path, tmp_path: Path) -> None:
    outputs = []
    for image in ("5", str(digit)):
        for verb in (["reconstruct", "--images", image], ["traverse", "--image", image]):
            outputs.append(tmp_path / f"{len(outputs)}.png")
            assert main([verb[0], str(run), *verb[1:], f"--output={outputs[-1]}"]) == 0
    first, second, third, fourth = (path.read_bytes() for path in outputs)
    assert first == third
    assert second == fourth
    assert first != second


def test_files_and_numbers_stand_in_the_order_that_they_were_given_in(run: Path, digit: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert main(["reconstruct", str(run), "--images", "7", str(digit), "7", f"--output={out}"]) == 0
    picture = read_picture(out)
    margin = picture.shape[2] - (3 * 58 + 2)
    cells = [picture[:, 26:82, margin + 2 + 58 * i : margin + 58 + 58 * i] for i in range(3)]
    assert torch.equal(cells[0], cells[2])
    assert not torch.equal(cells[0], cells[1])


def test_a_file_of_another_size_is_resized_aloud(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (60, 40), "red").save(photo)
    assert main(["reconstruct", str(run), "--images", str(photo), f"--output={tmp_path / 'a.png'}"]) == 0
    assert capsys.readouterr().out.startswith(f"{photo}: 60 x 40 pixels, cropped and resized to 8 x 8\n")


def test_points_have_the_colour_of_their_class() -> None:
    points, labels = torch.tensor([[0.5, 0.5], [-0.5, -0.5], [5.0, 5.0]]), torch.tensor([0, 3, 1])
    picture = scatter(points, labels, ["a", "b", "c", "d"], (-1, 1, -1, 1), 201)
    left = 74
    assert picture[:, 50, left + 150].tolist() == [31, 119, 180]
    assert picture[:, 150, left + 50].tolist() == [214, 39, 40]
    inside = picture[:, :200, left + 1 : left + 200]
    assert not (inside == torch.tensor([255, 127, 14])[:, None, None]).all(0).any()  # outside of the frame


def test_a_temperature_makes_samples_alike(run: Path) -> None:
    model = load_model(run / "checkpoints" / "best.ckpt")
    spreads = []
    for temperature in (1.0, 1e-4):
        picture = samples(model, None, 9, 0, "", temperature)
        assert picture.still is not None
        cells = [picture.still[0, 26:82, 2 + 58 * i : 58 + 58 * i].float() for i in range(9)]
        spreads.append(torch.stack(cells).std(0).mean().item())
    assert spreads[1] < 1 < spreads[0]


def test_samples_of_a_label(tmp_path: Path) -> None:
    folder = stored("cvae", tmp_path)
    out = tmp_path / "a.png"
    assert main(["sample", str(folder), "--label=3", "--num_images=4", f"--output={out}"]) == 0
    model = load_model(folder / "checkpoints" / "last.ckpt")
    assert isinstance(model, CVAE)
    expected = samples(model, None, 4, 0, "samples, label 3, last.ckpt", label=torch.full((4,), 3))
    assert expected.still is not None
    assert torch.equal(read_picture(out), expected.still)
    other = samples(model, None, 4, 0, "samples, label 3, last.ckpt", label=torch.full((4,), 4))
    assert other.still is not None
    assert not torch.equal(other.still, expected.still)


def test_samples_are_written_as_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those that the picture of the same seed shows, of each label its own, also in several parts."""
    folder, out = stored("cvae", tmp_path), tmp_path / "new" / "a.npz"
    model = load_model(folder / "checkpoints" / "last.ckpt")
    assert isinstance(model, CVAE)
    assert main(["sample", str(folder), "--label=3", "--num_images=5", "--seed=2", f"--output={out}"]) == 0
    with np.load(out) as found, evaluating(model, 2):
        assert np.array_equal(found["x"], model.sample_given(torch.full((5,), 3)).numpy())
        assert found["label"].tolist() == [3] * 5
    monkeypatch.setattr(sample_verb, "_AT_ONCE", 2)
    assert main(["sample", str(folder), "--label=3", "--num_images=5", f"--output={out}"]) == 0
    with np.load(out) as found:
        assert found["x"].shape == (5, 1, 8, 8)
        assert len(np.unique(found["x"], axis=0)) == 5


def test_animate_joins_the_epochs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["animate", str(run)]) == 0
    images = run / "images"
    assert capsys.readouterr().out == f"{images / 'reconstructions.gif'}\n{images / 'samples.gif'}\n"
    with Image.open(images / "samples.gif") as moving:
        assert moving.n_frames == 4  # type: ignore[attr-defined]
        moving.seek(3)
        last = torch.from_numpy(np.array(moving.convert("RGB"))).permute(2, 0, 1).float()
    assert (last - read_picture(images / "samples-0004.png").float()).abs().mean() < 4  # 256 colours
    out = tmp_path / "one.gif"
    assert main(["animate", str(run), "--picture=samples", f"--output={out}"]) == 0
    assert out.read_bytes() == (images / "samples.gif").read_bytes()


def test_a_picture_shows_itself_in_a_notebook(run: Path, tmp_path: Path) -> None:
    model, x = load_model(run / "checkpoints" / "best.ckpt"), first_images(Digits().test_dataloader(), 20)
    a, b = ({name: values[i : i + 1] for name, values in x.items()} for i in (0, 1))
    picture = interpolation(model, Digits(), a, b, 0, "t")
    assert picture.still is not None
    save_png(picture.still, tmp_path / "a.png")
    assert picture._repr_png_() == (tmp_path / "a.png").read_bytes()
    assert save(picture, str(tmp_path / "b.png")) == [tmp_path / "b.png"]
    assert picture._repr_html_() is None
    assert re.fullmatch(r"Picture\(still=uint8 \[3, \d+, \d+\]\)", repr(picture))
    both = Picture(None, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "1 < 2")
    assert both._repr_png_() is None
    page = both._repr_html_()
    assert page is not None
    assert page.startswith('<img src="data:image/gif;base64,R0lGOD')
    assert "<pre>1 &lt; 2</pre>" in page


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["traverse", "--latent=z9"], "VAE has no latent z9 to move; it has z|did you mean z"),
        (["traverse", "--latent=z", "--dimensions", "3"], r"z has no dimension 3; they are 0 \.\. 2"),
        (["traverse", "--steps=1"], "--steps is 1; it must be at least 2"),
        (["traverse", "--rows=0"], "--rows is 0"),
        (["traverse", "--num_images=0"], "--num_images is 0; it must be at least 2"),
        (["traverse", "--num_images=1"], "--num_images is 1; it must be at least 2"),
        (["traverse", "--reach=-1"], "--reach is -1"),
        (["traverse", "--image=355"], r"355: no such file, and no such test image: these are 0 \.\. 354"),
        (["traverse", "--image=-1"], "-1: no such file, and no such test image"),
        (["traverse", "--image=nothing.png"], "nothing.png"),
        (["traverse", "--label=3"], "--label: VAE is not conditioned on a label; leave the flag out"),
        (["sample", "--label=3"], "--label: VAE is not conditioned on a label"),
        (["sample", "--temperature=0"], "temperature is 0.0; it must be above 0"),
        (["interpolate", "--between", "0"], "--between has 1 image; a way has two ends: give two"),
        (["interpolate", "--between", "0", "1", "2"], "--between has 3 images"),
        (["interpolate", "--between", "0", "1", "--steps=1"], "--steps is 1"),
        (["interpolate"], "required: --between"),
        (["manifold", "--latent=y"], "VAE has no latent y"),
        (["manifold", "--side=1"], "--side is 1"),
        (["reconstruct", "--images", "400"], "400: no such file, and no such test image"),
        (["animate", "--picture=sample"], r"no pictures sample-<epoch>.png \(did you mean samples\?\)"),
        (["animate", "--output=a.gif"], "--output takes one picture: choose it by --picture, of reconstructions"),
        (["animate", "--milliseconds=1"], "--milliseconds is 1"),
        (["traverse", "--output=a.pdf"], r"--output a\.pdf: .* ends in \.png or \.gif or \.txt was expected"),
        (["sample", "--output=a.npy"], r"--output a\.npy: .* \.npz was expected"),
        (["reconstruct", "--output=a.jpg"], r"--output a\.jpg: "),
        (["manifold", "--output=a.svg"], r"--output a\.svg: "),
        (["interpolate", "--between", "0", "1", "--output=a.jpg"], r"--output a\.jpg: "),
        (["impute", "--output=a.npz"], r"--output a\.npz: "),
        (["animate", "--picture=samples", "--output=a.mp4"], r"--output a\.mp4: .* ends in \.gif was expected"),
        (["report", "--output=a.pdf"], r"--output a\.pdf: .* ends in \.html or \.htm was expected"),
        (["compare", "--output=a.csv"], r"--output a\.csv: .* \.html or"),
        (["score", "--output=a.json"], r"--output a\.json: .* \.npz or \.csv or \.parquet was expected"),
        (["traverse", "--output=/proc/no/a.png"], r"/proc/no/a\.png: cannot be written"),
        (["interpolate", "--between", "0", "1", "--output=/proc/no/a.png"], "cannot be written"),
        (["manifold", "--side=2", "--output=/proc/no/a.png"], "cannot be written"),
        (["animate", "--picture=samples", "--output=/proc/no/a.gif"], r"/proc/no/a\.gif: cannot be written"),
    ],
)
def test_a_mistake_is_one_line(run: Path, args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([args[0], str(run), *args[1:]]) == 2
    assert re.fullmatch(f"vae-lightning: error: .*({says}).*\n", capsys.readouterr().err)


@pytest.mark.parametrize("verb", [["traverse"], ["interpolate", "--between", "0", "1"], ["manifold"]])
def test_a_model_without_a_decoder_of_z_names_the_verbs_that_serve(
    run: Path, verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(VAE, "decode")
    assert main([verb[0], str(run), *verb[1:]]) == 2
    says = "VAE has no decode(latents), which draws x at chosen latents; vae-lightning reconstruct and sample serve"
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        (["traverse"], "empty"),
        (["interpolate", "--between", "0", "1"], "empty"),
        (["manifold"], "unknown"),
        (["reconstruct"], "empty"),
        (["reconstruct", "--images", "0"], "unknown"),
    ],
)
def test_a_run_without_test_images_is_one_line(
    run: Path, verb: list[str], kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(_: Digits, split: str) -> Any:
        if kind == "unknown":
            raise KeyError(split)
        return Images(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), max_value=16)

    monkeypatch.setattr(Digits, "load", load)
    assert main([verb[0], str(run), *verb[1:]]) == 2
    assert "Digits has no test images, and the picture needs some" in capsys.readouterr().err


def test_a_label_that_is_missing_or_unknown_is_one_line(
    tmp_path: Path, digit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(stored("cvae", tmp_path))
    for args, says in (
        (["reconstruct", folder, "--images", str(digit)], "is given the label of an image, and a file has none; add"),
        (["sample", folder, "--label=10"], "--label 10: no such class; the model knows 0 .. 9"),
        (["sample", folder, "--label=cat"], "--label cat: no such class"),
    ):
        assert main(args) == 2
        assert says in capsys.readouterr().err


def test_a_run_without_pictures_says_how_to_have_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored("vae", tmp_path)
    assert main(["animate", str(folder)]) == 2
    assert "no such folder; a run draws pictures there unless" in capsys.readouterr().err
    (folder / "images").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "images" / "samples-0001.png")
    assert main(["animate", str(folder)]) == 2
    assert "no picture of two epochs; train with --pictures.every_n_epochs=1" in capsys.readouterr().err
    (folder / "images" / "samples-0002.png").write_bytes(b"no picture")
    assert main(["animate", str(folder)]) == 2
    assert "samples-0002.png: cannot be read as a picture" in capsys.readouterr().err


def test_the_page_about_it_does_as_it_says(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and the lines of Python in docs/looking_at_latents.md."""
    page = (REPOSITORY / "docs" / "looking_at_latents.md").read_text()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    for line in commands.splitlines():
        assert main(shlex.split(line.replace("RUN", str(run)))[1:]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {"checkpoint": run / "checkpoints" / "best.ckpt"}
    exec(code, found)
    for name, shape in re.findall(r"^(\w+) = .*# \[(.*?)\]", code, re.MULTILINE):
        sizes = {"B": 200, "C": 1, "H": 8, "W": 8}
        assert list(found[name].shape) == [sizes.get(size) or int(size) for size in shape.split(", ")]
    assert found["z"]["z"].shape == (200, 3)
