"""The files of a picture: PNG, animated GIF and text, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vae_lightning.pictures.drawing import Picture
from vae_lightning.pictures.encoding import gif_bytes, png_bytes
from vae_lightning.runs.whole_files import write_whole


def save(picture: Picture, path: str | Path) -> list[Path]:
    """Write a picture: pixels as PNG, moving pixels also as GIF, texts as a table. Returns the files.

    Args:
        picture: The picture.
        path: The PNG file; the other files have its name with the ending .gif or .txt.
    """
    path = Path(path)
    if path.suffix in (".gif", ".txt"):
        path = path.with_suffix(".png")
    written = []
    if picture.still is not None:
        save_png(picture.still, path)
        written.append(path)
    if picture.frames is not None:
        written.append(path.with_suffix(".gif"))
        save_gif(picture.frames, written[-1])
    if picture.text is not None:
        written.append(path.with_suffix(".txt"))
        write_whole(written[-1], picture.text.encode())
    return written


def save_png(grid: Tensor, path: Path) -> None:
    """Write a picture as a PNG file, whole or not at all.

    Args:
        grid: uint8 [3, H, W].
        path: The file.
    """
    write_whole(path, png_bytes(grid))


def save_gif(frames: Tensor, path: Path, milliseconds: int = 150) -> None:
    """Write a moving picture as an animated GIF that starts again at its end.

    Args:
        frames: uint8 [T, 3, H, W].
        path: The file.
        milliseconds: How long each frame is shown.
    """
    write_whole(path, gif_bytes(frames, milliseconds))
