"""`vae-lightning embed` and `score` on a split and on a folder of the user's own images."""

from __future__ import annotations

import csv
import re
import shlex
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

from tests.helpers import DIGITS, REPOSITORY, only, read_csv, read_picture
from vae_lightning.__main__ import main
from vae_lightning.data import Digits
from vae_lightning.data.own_files import OwnFiles
from vae_lightning.metrics.likelihood import importance_estimate
from vae_lightning.models.loading import load_model
from vae_lightning.types import Batch
from vae_lightning.verbs import _tables, embed

QUICK = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.logger=false", "--model.latent_size=3")
CHECKED = ("--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu")
MODELS = {"VAE": (), "CVAE": ("--model=CVAE",)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each model: two steps of training on the digits."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.delenv("VAE_LIGHTNING_RUN_ID", raising=False)
        for name, args in MODELS.items():
            folder = tmp_path_factory.mktemp(name)
            assert main(["fit", "-c", DIGITS, *args, *QUICK, *CHECKED, f"--runs_dir={folder}"]) == 0
            found[name] = only(folder, "vae/digits/*")
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve digits as files of two sizes, in folders of their classes, and two files that cannot be read."""
    folder, digits = tmp_path / "my photos", load_digits()
    for i in range(12):
        path = folder / str(digits.target[i]) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.round(digits.images[i] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels if i < 10 else pixels.repeat(3, 0).repeat(6, 1)).save(path)
    (folder / "0" / "broken.png").write_bytes(b"no image")
    (folder / "1" / "half.png").write_bytes((folder / "1" / "01.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(command: str, *args: object, expect: int = 0) -> None:
    assert main([command, *map(str, args)]) == expect


# -- embed ------------------------------------------------------------------------------------------------------------


def test_embed_writes_what_the_posterior_says(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run("embed", runs["VAE"], "--batch_size=50")
    output = runs["VAE"] / "embeddings-test.npz"
    assert f"table       {output}" in capsys.readouterr().out
    with np.load(output, allow_pickle=False) as arrays:
        found = dict(arrays)
    assert set(found) == {"index", "name", "source", "class_name", "label", "z_mean", "z_scale"}
    assert found["index"].tolist() == list(range(355))
    assert [str(label) for label in found["label"]] == found["class_name"].tolist()
    assert set(found["source"]) == {"test"}
    model = load_model(runs["VAE"] / "checkpoints" / "best.ckpt")
    q = model.encode(Digits().images("test").pixels / 16)
    torch.testing.assert_close(torch.from_numpy(found["z_mean"]), q.mean)  # type: ignore[union-attr]
    torch.testing.assert_close(torch.from_numpy(found["z_scale"]), q.stddev)  # type: ignore[union-attr]
    picture = read_picture(output.with_suffix(".png"))
    assert len(picture.flatten(1).unique(dim=1).T) > 10  # a colour for each class


def test_a_folder_gives_the_codes_of_its_images(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file has the code of its digit; files of another size are resized aloud, broken ones named and left out."""
    run("embed", runs["VAE"], "--folder", photos, "--batch_size=5", "--output", tmp_path / "a.csv")
    out = capsys.readouterr().out
    assert f"resized     2 of 14 files, such as {photos}/0/10.png: 48 x 24 pixels, cropped and resized to 8 x 8" in out
    assert "left out    2 of 14 files, which cannot be read:\n" in out
    assert f"            {photos}/0/broken.png: not an image" in out
    assert f"            {photos}/1/half.png: cannot be decoded" in out
    rows = read_csv(tmp_path / "a.csv")
    assert [row["name"] for row in rows] == sorted(map(str, photos.glob("*/[0-9]*.png")))
    assert all(row["class_name"] == Path(row["name"]).parent.name for row in rows)
    assert {row["source"] for row in rows} == {"my photos"}
    model, digits = load_model(runs["VAE"] / "checkpoints" / "best.ckpt"), load_digits()
    for row in rows:
        number = int(Path(row["name"]).stem)
        if number < 10:
            mean = model.encode(torch.from_numpy(digits.images[number]).float()[None, None] / 16).mean[0]  # type: ignore[union-attr]
            assert [float(row[f"z_mean_{i}"]) for i in range(3)] == pytest.approx(mean.tolist(), abs=1e-5)
    assert read_picture(tmp_path / "a.png").shape[0] == 3


def test_the_formats_hold_the_same_numbers(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    for ending in ("npz", "csv", "parquet"):
        run("embed", runs["VAE"], "--folder", photos, "--output", tmp_path / f"a.{ending}", "--batch_size=4")
    arrays = np.load(tmp_path / "a.npz", allow_pickle=False)
    with (tmp_path / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert list(lines[0]) == list(table)
    assert arrays["name"].tolist() == [line["name"] for line in lines] == table["name"]
    for i in range(3):
        column = arrays["z_scale"][:, i].tolist()
        assert column == table[f"z_scale_{i}"] == pytest.approx([float(line[f"z_scale_{i}"]) for line in lines])


def test_a_direction_of_no_variance_is_not_stretched() -> None:
    """Points on a line: the plane has one scale, and the axis says that it holds under 1 % of the variance."""
    z = torch.randn(50, 1, dtype=torch.float64) * torch.tensor([[1.0, 2.0, 3.0]])
    z[:, 0] += 1e-3 * torch.randn(50)
    plane, axes, _ = embed._plane(z, "z")
    assert axes == ("direction 1 (100%)", "dir. 2\n(<1%)")
    left, right, bottom, top = embed._one_scale(plane)
    assert right - left == pytest.approx(top - bottom)
    assert left < plane[:, 0].min() < plane[:, 0].max() < right


def test_a_spread_that_means_nothing_is_said_to_be_so() -> None:
    """The frame stretches any spread, so that a dead latent looks as if it had clusters."""
    z = torch.randn(50, 2, dtype=torch.float64)
    assert embed._idle(z, "z") == ""
    assert embed._idle(z * torch.tensor([1.0, 0.05]), "z").startswith("z 1 is not active: its mean varies by at most")
    assert embed._idle(z * 0.05, "z").startswith("z is not active: no mean varies by more than 0.01")
    assert embed._idle(torch.cat([z * 0.05, z], 1), "z") == ""  # the plane of four dimensions is that of the active two


def test_tables_of_both_commands_name_an_example_alike(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("embed", "score"):
        run(command, runs["VAE"], "--folder", photos, f"--output={tmp_path / command}.csv")
    both = [read_csv(tmp_path / f"{command}.csv") for command in ("embed", "score")]
    facts = [{tuple(row[name] for name in ("index", "name", "class_name")) for row in rows} for rows in both]
    assert facts[0] == facts[1]
    assert "an older picture is replaced" not in capsys.readouterr().out
    run("embed", runs["VAE"], "--folder", photos, f"--output={tmp_path}/embed.npz")
    run("embed", runs["VAE"], f"--output={tmp_path}/split.npz")
    out = capsys.readouterr().out
    assert f"an older picture is replaced: {tmp_path}/embed.png" in out
    assert "label one number\n" in out  # and not an empty list


def test_a_conditional_model_takes_the_label_from_the_folder_or_the_flag(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("embed", runs["CVAE"], "--folder", photos, "--output", tmp_path / "own.npz")
    own = np.load(tmp_path / "own.npz")
    assert own["label"].tolist() == [int(name) for name in own["class_name"]]
    run("embed", runs["CVAE"], "--folder", photos, "--label=7", "--output", tmp_path / "seven.npz")
    seven = np.load(tmp_path / "seven.npz")
    assert set(seven["label"]) == {7}
    assert not np.allclose(own["z_mean"], seven["z_mean"])
    (photos / "loose.png").write_bytes((photos / "1" / "01.png").read_bytes())
    capsys.readouterr()
    run("embed", runs["CVAE"], "--folder", photos, expect=2)
    assert "CVAE is given the label of an image: add --label" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "score"])
def test_one_batch_at_a_time_is_in_memory(
    runs: dict[str, Path], photos: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may be larger than memory: while a batch is read, at most the one before it is alive."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    original = OwnFiles.from_pixels

    def counted(self: OwnFiles, pixels: list[torch.Tensor], index: torch.Tensor) -> Batch:
        nonlocal most
        batch = original(self, pixels, index)
        alive.append(weakref.ref(batch["x"]))
        most = max(most, sum(one() is not None for one in alive))
        assert len(pixels) <= 2
        return batch

    monkeypatch.setattr(OwnFiles, "from_pixels", counted)
    run(command, runs["VAE"], "--folder", photos, "--batch_size=2", "--output", tmp_path / "a.csv")
    assert len(alive) >= 6
    assert most <= 2


@pytest.mark.parametrize("form", ["npz", "csv", "parquet"])
def test_a_table_larger_than_memory_is_written(form: str, tmp_path: Path) -> None:
    """64 MB of codes are written in less than 8 MB: the peak of what Python and numpy allocate is measured."""
    import tracemalloc

    size = 256 if form == "npz" else 16
    rows = {"z_mean": np.zeros((1000, size), np.float32), "file": ["a.png"] * 1000}
    repeats = 64 if form == "npz" else 4
    tracemalloc.start()
    with _tables.open_table(tmp_path / f"a.{form}", form) as table:
        for _ in range(repeats):
            table.add(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (8e6 if form == "npz" else 20e6)
    if form == "npz":
        assert np.load(tmp_path / "a.npz")["z_mean"].shape == (64_000, 256)


def test_a_table_that_is_interrupted_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("older")

    def interrupted() -> None:
        with _tables.open_table(path, "csv") as table:
            table.add({"a": np.zeros(3)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "older"
    assert [one.name for one in tmp_path.iterdir()] == ["a.csv"]


def test_the_plane_holds_the_two_largest_directions() -> None:
    """Points with standard deviations 3, 2 and 0.1 along rotated axes: the plane gives back the first two."""
    torch.manual_seed(0)
    own = torch.randn(2000, 3, dtype=torch.float64) * torch.tensor([3.0, 2.0, 0.1])
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    points, axes, share = embed._plane(own @ turn.T + 5, "z")
    for i in range(2):
        wanted = own[:, i] - own[:, i].mean()
        assert torch.corrcoef(torch.stack([points[:, i], wanted]))[0, 1].abs() > 0.99
        assert points[:, i].std().item() == pytest.approx(wanted.std().item(), rel=0.02)
    variance = own.var(0)  # near 9, 4 and 0.01
    assert axes[0] == f"direction 1 ({variance[0] / variance.sum():.0%})"
    assert share == "; the plane has 100% of the variance"
    two = torch.randn(5, 2)
    assert embed._plane(two, "z")[0] is two


# -- score ------------------------------------------------------------------------------------------------------------


def test_score_puts_the_most_unusual_image_first(
    runs: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (8, 8), 255).save(photos / "1" / "white.png")
    run("score", runs["VAE"], "--folder", photos, "--num_samples=5", "--output", tmp_path / "a.csv")
    rows = read_csv(tmp_path / "a.csv")
    out = capsys.readouterr().out
    assert rows[0]["name"] == f"{photos}/1/white.png"
    nll = [float(row["nll"]) for row in rows]
    assert nll == sorted(nll, reverse=True)
    assert all(-float(row["elbo"]) > float(row["nll"]) - 3 for row in rows)  # the ELBO is the looser bound
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.split() == ["-log", "p(x)", "ELBO", "name", "class"])
    assert re.fullmatch(rf" +{nll[0]:.2f} +-[\d.]+  {photos}/1/white.png  1", lines[header + 1])
    mean = f"{sum(nll) / len(nll):.2f}"
    assert re.search(rf"^mean        {mean} \+- [\d.]+ nats over 13 examples, K = 5$", out, re.MULTILINE)
    assert "left out    2 of 15 files" in out


def test_scores_are_those_of_the_test_and_a_seed_repeats_them(runs: dict[str, Path], tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.csv" for name in "abc"]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        run("score", runs["VAE"], "--num_samples=50", f"--seed={seed}", f"--output={file}")
    first, again, other = (file.read_text() for file in files)
    assert first == again
    assert first != other
    rows = {int(row["index"]): row for row in read_csv(files[0])}
    assert len(rows) == 355
    data, model = Digits(), load_model(runs["VAE"] / "checkpoints" / "best.ckpt")
    batch = next(iter(data.test_dataloader()))
    log_p = importance_estimate(model, batch, 50).log_p
    mine = torch.tensor([-float(rows[i]["nll"]) for i in range(len(log_p))], dtype=torch.float64)
    assert (log_p - mine).mean().abs() < 0.02 * log_p.mean().abs()
    assert rows[0]["class_name"] == str(batch["label"][0].item())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["embed", "--folder=/nowhere"], "/nowhere: there is no such folder"),
        (["embed", "--folder={empty}"], r"no images there \(it is empty\)"),
        (["embed", "--folder={broken}"], "none of its 1 images can be read"),
        (["embed", "--split=tset"], r"invalid choice: 'tset' .*\(did you mean test\?\)"),
        (["embed", "--split=val", "--folder=/tmp"], "not allowed with argument"),
        (["embed", "--output=a.txt"], r"ends in none of \.npz, \.csv, \.parquet"),
        (["embed", "--output=a.csv", "--format=npz"], "is a csv file, and --format is npz"),
        (["embed", "--output=/dev/null/a.npz"], "cannot be written"),
        (["embed", "--latent=y"], "the model has no such latent; it has z"),
        (["embed", "--label=3"], "--label is for --folder"),
        (["embed", "--folder={empty}", "--label=3"], "VAE is not conditioned on a label"),
        (["score", "--num_samples=0"], "--num_samples is 0"),
        (["score", "--batch_size=0"], "--batch_size is 0"),
    ],
)
def test_a_mistake_is_one_line(
    runs: dict[str, Path], args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"empty": tmp_path / "empty", "broken": tmp_path / "broken"}
    for place in places.values():
        place.mkdir()
    (places["broken"] / "a.jpg").write_bytes(b"no image")
    command, *flags = (arg.format(**places) for arg in args)
    run(command, runs["VAE"], *flags, expect=2)
    assert re.fullmatch(f"vae-lightning: error: .*{says}.*\n", capsys.readouterr().err)


def test_parquet_without_its_package_names_the_extra(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_tables, "find_spec", lambda _: None)
    run("embed", runs["VAE"], "--format=parquet", expect=2)
    assert "pip install 'vae_lightning[tables]'" in capsys.readouterr().err


# -- the page ---------------------------------------------------------------------------------------------------------

SMALL = (
    *("--data.height=8", "--data.width=8", "--model.latent_size=3", "--trainer.max_epochs=1", "--trainer.logger=false"),
    *("--model.encoder=MLP", "--model.decoder=MLP", "--nll.num_samples=2", "--data.batch_size=8"),
)


SHORT = (
    *("--data.height=16", "--data.width=16", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"),
    *("--trainer.logger=false", "--nll.num_samples=2"),
)


def test_the_page_of_own_photos_does_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and the lines of Python in docs/own_photos.md, on photos of two classes."""
    page = (REPOSITORY / "docs" / "own_photos.md").read_text()
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        place = tmp_path / "my_photos" / ("cats" if i % 2 else "dogs") / f"{i:03}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(place)
    (training, few, *others) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    assert main([*shlex.split(training)[1:], *SMALL]) == 0
    assert main([*shlex.split(few)[1:], *SHORT]) == 0
    folder = only(tmp_path, "runs/vae/images/photos")
    for line in "".join(others).splitlines():
        assert main(shlex.split(line.replace("RUN", str(folder)))[1:]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["plane"].shape == (40, 2)
    assert set(found["codes"]["class_name"]) == {"cats", "dogs"}
    for name in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE):
        assert set(re.findall(r"`(\w+)`", name)) <= {*found["codes"].files, "label"}
    assert len(read_csv(tmp_path / "scores.csv")) == 4
    assert len(read_csv(folder / "scores-my_photos.csv")) == 40
    assert parquet.read_table(tmp_path / "codes.parquet").num_rows == 32
