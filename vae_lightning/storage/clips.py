"""Clips on disk: folders of numbered frames, and files of moving pictures.

A GIF is read by Pillow. Any other file of moving pictures needs the package av (extra `video`), which brings FFmpeg.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from vae_lightning.storage.decode import IMAGE_SUFFIXES, Fit, decode_image, open_image
from vae_lightning.storage.files import list_folder, read_file
from vae_lightning.types import Shape, UserError

MOVIE_SUFFIXES = frozenset({".gif", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv"})
"""The endings, in lower case, of files that are a clip each."""
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Clip:
    """One clip.

    Args:
        path: The folder of the frames, or the file.
        frames: The files of the frames in order; empty for a file of moving pictures.
    """

    path: Path
    frames: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Clips:
    """The clips below a folder.

    Args:
        clips: In the order of their paths.
        digest: Changes if a name, a size or a time of change of a file does.
        others: The number of other files, by their ending.
    """

    clips: Sequence[Clip]
    digest: str
    others: Counter[str]


def list_clips(folder: Path) -> Clips:
    """Return the clips below a folder: each folder that holds frames, and each file of moving pictures.

    Args:
        folder: The folder, searched with all folders below it.

    Raises:
        UserError: if frames lie beside the clips, have no numbers, or if a number is missing or there twice. The
            message begins with the folder of the frames.
    """
    files, digest, others = list_folder(folder, IMAGE_SUFFIXES | MOVIE_SUFFIXES)
    frames: dict[Path, list[Path]] = defaultdict(list)
    found = []
    for file in files:
        if file.suffix.lower() in MOVIE_SUFFIXES:
            found.append(Clip(file))
        else:
            frames[file.parent].append(file)
    if folder in frames:
        raise UserError(
            f"{folder}: {frames[folder][0].name} lies there and not in the folder of a clip; put the frames of each "
            "clip into a folder of its own"
        )
    found += [Clip(place, _in_order(place, several)) for place, several in frames.items()]
    return Clips(sorted(found, key=lambda clip: clip.path), digest, others)


def _in_order(place: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """The frames of a clip by the last number of each name, which must be consecutive."""
    numbers: dict[int, Path] = {}
    for file in files:
        digits = _NUMBER.findall(file.stem)
        if not digits:
            raise UserError(f"{place}: {file.name} has no number; the frames of a clip are 000.png, 001.png, ...")
        first = numbers.setdefault(int(digits[-1]), file)
        if first != file:
            raise UserError(f"{place}: {first.name} and {file.name} have the same number; a frame is one file")
    order = sorted(numbers)
    for before, after in pairwise(order):
        if after != before + 1:
            what = f"frame {before + 1} is" if after == before + 2 else f"frames {before + 1} to {after - 1} are"
            raise UserError(
                f"{place}: {what} missing between {numbers[before].name} and {numbers[after].name}; add them, or "
                "number the frames without a gap"
            )
    return tuple(numbers[number] for number in order)


def num_frames(clip: Clip) -> int:
    """Return the number of frames of a clip.

    Args:
        clip: The clip.

    Raises:
        UserError: if a file cannot be read, or av is missing. The message begins with the file.
    """
    if clip.frames:
        return len(clip.frames)
    if clip.path.suffix.lower() == ".gif":
        return int(getattr(open_image(read_file(clip.path), str(clip.path)), "n_frames", 1))
    try:
        with _opened(clip.path) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except UserError:
        raise
    except Exception as error:  # FFmpeg's errors have many classes
        raise _unreadable(clip.path, error) from error


def movie(path: Path, shape: Shape, fit: Fit, step: int = 1) -> np.ndarray:
    """Return the frames of a file of moving pictures, uint8 [T, C, H, W].

    Args:
        path: The file.
        shape: (C, H, W).
        fit: Crop, pad or stretch if the frames have another aspect than `shape`.
        step: Every how many frames one is taken, from the first.

    Raises:
        UserError: if the file cannot be read, or av is missing. The message begins with the file.
    """
    try:
        images = _gif_frames(path) if path.suffix.lower() == ".gif" else _video_frames(path)
        found = [decode_image(image, str(path), shape, fit) for i, image in enumerate(images) if i % step == 0]
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return np.stack(found)


def _gif_frames(path: Path) -> Iterator[Image.Image]:
    for frame in ImageSequence.Iterator(open_image(read_file(path), str(path))):
        yield frame.copy()


def _video_frames(path: Path) -> Iterator[Image.Image]:
    with _opened(path) as container:
        for frame in container.decode(video=0):
            yield frame.to_image()


def _opened(path: Path) -> Any:
    """Open a file by av, which is imported here because few users have it."""
    try:
        import av  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: clips in files need the package av, which is not installed: pip install 'vae_lightning[video]', "
            "or save the frames as folders of images"
        ) from error
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise UserError(f"{path}: no video in it")
    return container


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path}: cannot be read as a clip ({type(error).__name__}: {reason})")
