"""Sheets and files: sane sizes for any shape, captions beside the pixels and never over them, GIFs and tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vae_lightning.pictures import Picture, draw, save, stack, to_grid
from vae_lightning.pictures.sizes import MAX_SIDE, cell_size, num_columns

SHAPES = [(1, 1, 64), (3, 512, 512), (1, 8, 8), (4, 32, 32), (1, 64, 1), (1, 1, 1000), (3, 218, 178), (2, 5, 300)]
TITLE = 24  # pixels above the first row


def pixels(picture: Picture) -> Tensor:
    assert picture.still is not None
    assert picture.still.dtype == torch.uint8
    return picture.still


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 7, 50, 400])
def test_a_picture_of_any_shape_fits_on_a_screen(shape: tuple[int, ...], count: int) -> None:
    """No side is much over the limit, with captions or without, also of many examples."""
    count = min(count, 50) if shape[-1] == 512 else count  # for the memory of the test
    x = torch.rand(count, 1, 1, 1).expand(count, *shape)
    captioned = pixels(draw("reconstructions, epoch 3", {"original": x, "reconstruction": x}, ["cat"] * count))
    for picture in (captioned, to_grid(x), stack(x, x) if count < 100 else captioned):
        assert max(picture.shape) <= 1.05 * MAX_SIDE
        assert picture.shape[0] == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_can_be_seen_and_keeps_its_proportions(shape: tuple[int, ...]) -> None:
    """Both sides change alike, unless a side would be thinner than 8 pixels."""
    height, width = shape[-2:]
    columns = num_columns(height, width, 50, 2)
    size = cell_size(height, width, MAX_SIDE / 2 / -(-50 // columns), MAX_SIDE / columns)
    assert min(size) >= 8
    assert max(size) >= 50
    if min(size) > 8:
        assert size[0] / size[1] == pytest.approx(height / width, rel=0.03)


def test_small_images_are_repeated_pixels_and_large_ones_means() -> None:
    small = torch.rand(1, 1, 8, 8)
    assert torch.equal(to_grid(small)[0, 2:-2:7, 2:-2:7], (small[0, 0] * 255).round().to(torch.uint8))
    large = torch.zeros(50, 1, 400, 400)
    large[..., ::2] = 1  # stripes of one pixel become grey
    assert (to_grid(large)[:, 20:100, 20:100] - 127.5).abs().max() < 20


def test_captions_stand_beside_the_rows_and_every_pixel_stays() -> None:
    x, y = torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8)
    picture = pixels(draw("reconstructions, epoch 3", {"original": x, "reconstruction": y}))
    margin = picture.shape[2] - (10 * 58 + 2)
    for row, images in enumerate((x, y)):
        top = TITLE + 60 * row
        assert torch.equal(picture[:, top : top + 60, margin:], to_grid(images[:10]))
        assert (picture[:, top : top + 60, :margin] < 128).any()  # the caption
        last = TITLE + 2 * 60 + 8 + 60 * row
        assert torch.equal(picture[:, last : last + 60, margin : margin + 2 * 58 + 2], to_grid(images[10:]))
    assert (picture[:, :TITLE] < 128).any()
    assert (picture[:, TITLE : TITLE + 60, :margin] != picture[:, TITLE + 60 : TITLE + 120, :margin]).any()


def test_the_class_stands_above_its_column() -> None:
    x = torch.rand(3, 1, 8, 8)
    first = pixels(draw("title", {"original": x}, ["cat", "dog", "cat"]))
    second = pixels(draw("title", {"original": x}, ["cat", "a very long name", "cat"]))
    margin = first.shape[2] - (3 * 58 + 2)
    assert torch.equal(first[:, TITLE + 16 : TITLE + 76, margin:], to_grid(x))
    rows, columns = (first != second).any(0).nonzero().unbind(1)
    assert TITLE <= rows.min() <= rows.max() < TITLE + 16
    assert margin + 58 <= columns.min() <= columns.max() < margin + 2 * 58  # a long name is cut


def test_rows_of_other_sizes_are_as_wide_as_their_column() -> None:
    """A mask of half the size stands below its original; a tall image keeps its proportions."""
    x, mask, tall = torch.rand(4, 3, 32, 32), torch.rand(4, 1, 16, 16), torch.zeros(4, 1, 400, 10)
    picture = pixels(draw("title", {"original": x, "mask": mask, "tall": tall}))
    margin = picture.shape[2] - (4 * 66 + 2)
    shown = picture[0, TITLE + 68 + 2 : TITLE + 68 + 66, margin + 2 : margin + 66]
    assert torch.equal(shown[::4, ::4], (mask[0, 0] * 255).round().to(torch.uint8))
    assert (picture[0, TITLE + 2 * 68 + 2 :, margin + 2 : margin + 66] == 0).sum() == 4 * 64 * round(10 * 256 / 400)


def test_values_that_are_no_colour_do_not_matter() -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 2.0]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    assert to_grid(x)[0, 30, 30::58].tolist() == [0, 255, 0, 255]


def moving() -> Tensor:
    """Five clips of a white square that moves one pixel down a frame: [5, 6, 1, 16, 16]."""
    clips = torch.zeros(5, 6, 1, 16, 16)
    for time in range(6):
        clips[:, time, :, time : time + 4, 4:8] = 1
    return clips


def test_clips_play_together_and_make_a_strip(tmp_path: Path) -> None:
    """Also a clip that stands still has a frame for each time, which says its number."""
    clips = moving()
    picture = draw("reconstructions, epoch 3", {"original": clips, "first": clips[:, :1], "mask": clips[:, 0]})
    paths = save(picture, tmp_path / "a.png")
    assert [path.name for path in paths] == ["a.png", "a.gif"]
    with Image.open(paths[1]) as gif:
        assert gif.format == "GIF"
        assert gif.n_frames == 6  # type: ignore[attr-defined]
        for time in range(6):
            gif.seek(time)
            shown = torch.from_numpy(np.array(gif.convert("RGB"))).permute(2, 0, 1)
            left, scale = shown.shape[2] - (5 * 66 + 2) + 2, 4
            for row, expected in enumerate((clips[0, time], clips[0, 0], clips[0, 0])):
                part = shown[0, TITLE + 2 + 68 * row :, left:][: 16 * scale : scale, : 16 * scale : scale]
                assert torch.equal(part, (expected[0] * 255).to(torch.uint8))
    still = pixels(picture)
    left = still.shape[2] - (6 * 66 + 2) + 2
    frames = [still[0, TITLE + 16 + 2 :, left + 66 * time :][:64:4, :64:4] for time in range(6)]
    assert torch.equal(torch.stack(frames), (clips[0, :, 0] * 255).to(torch.uint8))


def test_a_clip_that_does_not_move_has_all_its_frames(tmp_path: Path) -> None:
    save(draw("samples", {"": torch.rand(2, 1, 3, 8, 8).expand(2, 7, 3, 8, 8)}), tmp_path / "a.png")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 7  # type: ignore[attr-defined]


def test_texts_make_a_table(tmp_path: Path) -> None:
    rows = {"original": ["the cat sat", "two\nlines"], "reconstruction": ["the cat", ""]}
    paths = save(draw("reconstructions, epoch 3", rows, ["cat", "other"]), tmp_path / "a.png")  # type: ignore[arg-type]
    assert [path.name for path in paths] == ["a.txt"]
    assert paths[0].read_text() == (
        "reconstructions, epoch 3\n\n"
        "1 cat    original        the cat sat\n"
        "         reconstruction  the cat\n\n"
        "2 other  original        two\\nlines\n"
        "         reconstruction\n"
    )


def test_samples_of_texts_have_one_line_each() -> None:
    assert draw("samples, epoch 3", {"": ["a b", "c"]}).text == "samples, epoch 3\n\n1    a b\n2    c\n"
