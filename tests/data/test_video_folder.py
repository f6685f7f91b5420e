"""A folder of the user's own clips: windows and whole clips, stated splits, and a line for each fault."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers import REPOSITORY, only
from vae_lightning.__main__ import main
from vae_lightning.data import VideoFolder
from vae_lightning.storage.cache import BrokenImagesError
from vae_lightning.types import UserError


def frame(clip: int, number: int, size: tuple[int, int] = (12, 8)) -> Image.Image:
    """A frame of one colour: red tells the clip, green the number of the frame."""
    return Image.new("RGB", size, (10 * clip, 5 * number, 0))


def save_clip(folder: Path, clip: int = 0, length: int = 6, name: str = "{:03d}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(length):
        frame(clip, number).save(folder / name.format(number))


def save_film(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Write frames of 32 x 32 pixels, uint8 [32, 32, 3], as a film."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 32, 32
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for split, several in (("train", (1, 2, 3)), ("val", (4,)), ("test", (5, 6))):
        for clip in several:
            save_clip(tmp_path / "clips" / split / f"clip{clip}", clip, length=5 + clip)
    return tmp_path / "clips"


def prepared(folder: Path, **settings: Any) -> VideoFolder:
    chosen = {"height": 8, "width": 8, "num_frames": 4, "cache_dir": str(folder.parent / "cache"), **settings}
    data = VideoFolder(str(folder), **chosen)
    data.prepare_data()
    return data


def labels(x: Tensor) -> list[list[tuple[int, int]]]:
    """The clip and the number of each frame, read from the colours: bytes [B, T, C, H, W]."""
    return [[(int(pixel[0]) // 10, int(pixel[1]) // 5) for pixel in clip] for clip in x[:, :, :, 4, 4]]


def everything(data: VideoFolder, split: Any) -> list[list[tuple[int, int]]]:
    examples = data.examples(split)
    return labels(examples.select(torch.arange(len(examples)))["x"])


def test_windows_never_cross_clips_and_a_test_is_on_whole_clips(clips: Path) -> None:
    data = prepared(clips)
    wanted = [[(clip, start + i) for i in range(4)] for clip in (1, 2, 3) for start in range(5 + clip - 3)]
    assert everything(data, "train") == wanted
    assert everything(data, "val") == [[(4, start + i) for i in range(4)] for start in range(6)]
    assert everything(data, "test") == [[(clip, i) for i in range(10)] for clip in (5, 6)]  # the shortest has 10
    assert (data.x_shape, data.num_frames) == ((-1, 3, 8, 8), 4)
    assert everything(prepared(clips, test_frames=4), "test") == [[(clip, i) for i in range(4)] for clip in (5, 6)]


def test_a_batch_is_in_the_unit_interval(clips: Path) -> None:
    data = prepared(clips, batch_size=5, channels=1)
    batch = next(iter(data.train_dataloader()))
    assert batch["x"].shape == (5, 4, 1, 8, 8)
    assert batch["x"].dtype == torch.float32
    assert 0 <= batch["x"].min() < batch["x"].max() <= 1


def test_clips_without_folders_of_splits_are_drawn_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for clip in range(10):
        save_clip(tmp_path / "clips" / f"{clip}", clip)
    data = prepared(tmp_path / "clips", val_fraction=0.2, test_fraction=0.3)
    parts = [{clip for example in everything(data, split) for clip, _ in example} for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [5, 2, 3]
    assert set.union(*parts) == set(range(10))
    assert "split: val is 0.2 of all clips; test is 0.3 of all clips; drawn by a hash" in capsys.readouterr().out
    data.prepare_data()  # as a test after the training does
    assert capsys.readouterr().out == ""
    wanted = [str(tmp_path / "clips" / str(clip)) for clip in sorted(parts[2])]
    assert data.paths("test") == wanted


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Of numbers without leading zeros, after other numbers in the name, and that do not begin at 0."""
    for clip in range(3):
        save_clip(tmp_path / "clips" / f"c{clip}", clip, length=12, name="cam2_frame{}.png")
        (tmp_path / "clips" / f"c{clip}" / "cam2_frame0.png").unlink()
    data = prepared(tmp_path / "clips", num_frames=11)
    assert all(example == [(example[0][0], i) for i in range(1, 12)] for example in everything(data, "train"))


def test_every_second_frame(clips: Path) -> None:
    data = prepared(clips, every_n_frames=2, num_frames=3)
    assert everything(data, "val") == [[(4, 2 * (start + i)) for i in range(3)] for start in range(3)]


def test_the_cache_is_used_without_the_files_and_made_anew_when_they_change(clips: Path) -> None:
    before = everything(prepared(clips), "test")
    gone = clips.rename(clips.parent / "away")
    assert everything(prepared(clips), "test") == before
    gone.rename(clips)
    frame(9, 0).save(clips / "test" / "clip5" / "000.png")
    assert everything(prepared(clips), "test")[0][0] == (9, 0)


def test_damage_of_the_cache_is_found_in_a_window(clips: Path) -> None:
    data = prepared(clips)
    cache = data.cache_folder / "pixels.u8"
    with cache.open("r+b") as file:
        file.seek(3 * 3 * 64)
        file.write(b"\xff")
    with pytest.raises(UserError, match="were damaged after they were written"):
        next(iter(prepared(clips).train_dataloader()))
    assert any("damaged" in problem for problem in data.check())


def test_gifs_are_clips(tmp_path: Path) -> None:
    for clip in range(1, 4):
        frames = [frame(clip, number) for number in range(6)]
        (tmp_path / "clips").mkdir(exist_ok=True)
        frames[0].save(tmp_path / "clips" / f"{clip}.gif", save_all=True, append_images=frames[1:])
    data = prepared(tmp_path / "clips", num_frames=6)
    found = [everything(data, split) for split in ("train", "val", "test")]
    assert sorted(example for part in found for example in part) == [[(c, i) for i in range(6)] for c in (1, 2, 3)]


def test_films_are_clips(tmp_path: Path) -> None:
    """Grey films of lossy compression: each frame is one level, which rises."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for clip in range(3):
        save_film(folder / f"{clip}.mp4", [np.full((32, 32, 3), 30 * number, np.uint8) for number in range(7)])
    data = prepared(folder, num_frames=7, channels=1)
    x = data.examples("test").select(torch.tensor([0]))["x"][0, :, 0].float().mean((1, 2))
    torch.testing.assert_close(x, 30.0 * torch.arange(7), atol=4, rtol=0)


@pytest.mark.slow
def test_stove_stopped_within_an_epoch_of_films_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 windows are five steps an epoch; the stop is after the second step of the second epoch."""
    monkeypatch.chdir(REPOSITORY)
    for clip, split in enumerate(("train", "train", "train", "val", "test")):
        (tmp_path / "clips" / split).mkdir(parents=True, exist_ok=True)
        frames = np.zeros((9, 32, 32, 3), np.uint8)
        for number in range(9):
            frames[number, clip : clip + 8, number : number + 8] = frames[number, 20:28, clip : clip + 8] = 255
        save_film(tmp_path / "clips" / split / f"{clip}.mp4", frames)
    flags = ("-c", "stove/billiards", "--data=VideoFolder", f"--data.data_dir={tmp_path / 'clips'}")
    flags += ("--data.height=32", "--data.width=32", "--data.channels=1", "--data.num_frames=4", "--data.batch_size=4")
    flags += (f"--data.cache_dir={tmp_path / 'cache'}", "--model.num_objects=2", "--trainer.max_epochs=2")
    flags += ("--trainer.accelerator=cpu", "--trainer.logger=false", "--pictures.num_images=0")

    def weights(run_id: str, *more: str) -> dict[str, Tensor]:
        assert main(["fit", *flags, f"--runs_dir={tmp_path / 'runs'}", f"--run_id={run_id}", *more]) == 0
        last = only(tmp_path / "runs", f"**/{run_id}") / "checkpoints" / "last.ckpt"
        return dict(torch.load(last, weights_only=True)["state_dict"])

    expected = weights("whole")
    assert len(prepared(tmp_path / "clips", height=32, width=32, channels=1).examples("train")) == 18
    stopped = weights("half", "--trainer.max_steps=7")
    assert not all(torch.equal(value, expected[name]) for name, value in stopped.items())
    assert all(torch.equal(value, expected[name]) for name, value in weights("half").items())


def test_a_film_without_the_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"film")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"a\.mp4: clips in files need the package av, .*pip install 'vae_lightning\["):
        prepared(tmp_path / "clips")


def broken(folder: Path, fault: str) -> None:
    """Spoil a folder of good clips."""
    first = folder / "train" / "clip1"
    if fault == "gap":
        (first / "003.png").unlink()
    elif fault == "twice":
        frame(1, 2).save(first / "2.png")
    elif fault == "no number":
        frame(1, 2).save(first / "cover.png")
    elif fault == "size":
        frame(1, 2, (8, 8)).save(first / "002.png")
    elif fault == "one frame":
        save_clip(folder / "train" / "clip7", length=1)
    elif fault == "short":
        save_clip(folder / "train" / "clip7", length=3)
    elif fault == "beside":
        frame(1, 2).save(folder / "000.png")
    elif fault == "no image":
        (first / "002.png").write_text("text")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("gap", r"train/clip1: frame 3 is missing between 002\.png and 004\.png; add them, or number the frames"),
        ("twice", r"train/clip1: 002\.png and 2\.png have the same number; a frame is one file"),
        ("no number", r"train/clip1: cover\.png has no number; the frames of a clip are 000\.png, 001\.png"),
        ("size", r"1 unusable image: .*train/clip1/002\.png: 8 x 8 pixels, but 000\.png has 12 x 8; the frames of a"),
        ("one frame", "train/clip7: a clip with 1 frame; a clip has 2 or more"),
        ("short", r"1 clip is shorter than 4 frames: train/clip7 \(3\); lower --data\.num_frames, or remove them"),
        ("beside", r"clips: 000\.png lies there and not in the folder of a clip; put the frames of each clip into"),
        ("no image", r"1 unusable image: .*002\.png: not an image.*; replace such files, or remove their clips"),
    ],
)
def test_a_fault_is_one_line(clips: Path, fault: str, message: str) -> None:
    broken(clips, fault)
    with pytest.raises((UserError, BrokenImagesError), match=message) as error:
        prepared(clips)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 1}, "VideoFolder: num_frames is 1; it must be at least 2"),
        ({"channels": 2}, "VideoFolder: channels x height x width is 2 x 8 x 8; channels must be 1, 3 or 4"),
        ({"every_n_frames": 8}, "train/clip1: a clip with 1 frame if one of 8 is taken; a clip has 2 or more"),
        ({"test_frames": 11}, r"1 clip is shorter than 11 frames: test/clip5 \(10\); lower --data\.test_frames"),
    ],
)
def test_a_wrong_argument_is_one_line(clips: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(clips, **settings)


def test_an_empty_folder_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clips: no clips there; point --data\.data_dir at a folder that has"):
        prepared(tmp_path / "clips")
