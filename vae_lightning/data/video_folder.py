"""A folder of the user's own clips as one data set: windows to train on, whole clips to test on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data.folders import (
    Splits,
    check_options,
    divide,
    join_names,
    name_of_cache,
    printable,
    split_folders,
)
from vae_lightning.data.module import SPLITS, DataModule, Split
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.storage.cache import (
    BrokenImagesError,
    Contents,
    Header,
    broken_chunks,
    fill_from,
    open_cache,
    prepare_cache,
    read_header,
)
from vae_lightning.storage.clips import Clip, Clips, list_clips, movie, num_frames
from vae_lightning.storage.decode import FILTER, Fit, decode, image_size
from vae_lightning.storage.examples import Examples, Windows, windows
from vae_lightning.storage.files import MissingFileError, read_file
from vae_lightning.storage.progress import Progress
from vae_lightning.storage.transforms import BatchTransform, Transform
from vae_lightning.types import UserError


@dataclass(frozen=True)
class _Film:
    """A clip and how many of its frames are taken."""

    clip: Clip
    length: int


class VideoFolder(DataModule):
    """The clips below `data_dir`: a folder of numbered frames for each clip, or a file (GIF, MP4, ...) for each.

    Use it to train models of video on clips of your own. A batch holds `x`, float32 [B, T, C, H, W] in [0, 1].
    Training and validation are on windows of `num_frames` frames that begin anywhere in a clip; a test is on whole
    clips, all cut to the length of the shortest one.

    The frames of a clip are images `000.png`, `001.png`, ... of one size, without a gap in their numbers. Folders of
    `data_dir` named `train`, `val` and `test` are the splits; a hash of the paths draws a missing one, as in
    `ImageFolder`: no clip is in two splits. Files other than GIF need the extra `video`. Frames are decoded once into a
    cache, which is then memory-mapped.

    Args:
        data_dir: The folder of the clips.
        height: H of the frames in the batch.
        width: W of the frames in the batch.
        channels: C: 1 (grey), 3 (RGB) or 4 (RGB with transparency).
        num_frames: T of a window.
        test_frames: T at test, the first frames of each clip; null for the length of the shortest clip of test.
        every_n_frames: Take every n-th frame, for films of many frames a second.
        fit: How a frame of another aspect ratio is fitted: crop (keep the middle), pad (black borders) or stretch.
        val_fraction: Share of the clips for validation, if there is no folder of validation clips.
        test_fraction: Share of the clips for testing, if there is no folder of test clips.
        splits: auto refuses folder names with two meanings; folders takes folders with names of splits as splits and
            leaves out clips beside them; fractions takes no folder as a split.
        cache_dir: The folder of the caches, which hold the decoded frames.
        batch_size: Number of windows in a training batch.
        eval_batch_size: Largest number of windows, or of whole clips, in an evaluation batch.
        kwargs: Arguments of `DataModule`.

    Raises:
        UserError: if an argument is outside its range.
    """

    def __init__(
        self,
        data_dir: str = "data/clips",
        height: int = 64,
        width: int = 64,
        channels: int = 3,
        num_frames: int = 8,
        test_frames: int | None = None,
        every_n_frames: int = 1,
        fit: Fit = "crop",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        splits: Splits = "auto",
        cache_dir: str = "data/cache",
        batch_size: int = 32,
        eval_batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, batch_size=batch_size, eval_batch_size=eval_batch_size, **kwargs)
        self.frame_shape = (channels, height, width)
        check_options("VideoFolder", self.frame_shape, fit, (val_fraction, test_fraction), splits)
        least = {"num_frames": (num_frames, 2), "every_n_frames": (every_n_frames, 1)}
        for name, (value, limit) in {**least, "test_frames": (2 if test_frames is None else test_frames, 2)}.items():
            if value < limit:
                raise UserError(f"VideoFolder: {name} is {value}; it must be at least {limit}")
        self.num_frames, self.test_frames, self.every_n_frames = num_frames, test_frames, every_n_frames
        self.fit: Fit = fit
        self.splits: Splits = splits
        self.fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
        self.cache_dir = str(Path(cache_dir).expanduser())
        self.x_shape = (num_frames if test_frames == num_frames else -1, *self.frame_shape)  # windows and whole clips

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache; clips of another size or rate have another folder."""
        every = f"-every{self.every_n_frames}" if self.every_n_frames > 1 else ""
        return Path(self.cache_dir) / f"{name_of_cache(self.data_dir, self.frame_shape, self.fit)}-clips{every}"

    def settings(self) -> dict[str, Any]:
        """Return the settings that change the decoded frames. The cache is stale if one of them has changed."""
        return {
            **{"fit": self.fit, "filter": FILTER, "fractions": list(self.fractions.values())},
            **{"splits": self.splits, "every": self.every_n_frames},
        }

    def prepare_data(self) -> None:
        """Make the cache if it is missing or stale. If the files of the clips are gone, an existing cache is used."""
        try:
            found = list_clips(Path(self.data_dir)) if Path(self.data_dir).is_dir() else None
            if found is None or not found.clips:
                raise MissingFileError(
                    f"{self.data_dir}: no clips there; point --data.data_dir at a folder that has a folder of frames "
                    "(000.png, 001.png, ...), or a file (.gif, .mp4, ...), for each clip"
                )
        except MissingFileError:
            if self._own_header() is None:
                raise
        else:
            self._make_cache(found)
        for split in SPLITS:
            self.load(split)  # reports clips that are too short now
        self.prints_notes = False  # a training that ends with a test calls this again

    def _make_cache(self, found: Clips) -> None:
        films = {film.clip.path.relative_to(self.data_dir).parts: film for film in self._films(found)}
        folder_by_split = split_folders(self.data_dir, list(films), self.splits, "clips")
        parts, note = divide(self.data_dir, list(films), folder_by_split, self.fractions, "clips")
        if self.prints_notes:
            print(f"{self.data_dir}: {note}", flush=True)
        counts: dict[str, int] = {split: sum(films[name].length for name in parts[split]) for split in SPLITS}
        names = list(chain.from_iterable(parts[split] for split in SPLITS))
        source = {"listing": found.digest, "clips": ["/".join(name) for name in names]}
        header = Header(self.frame_shape, counts, self.settings(), source)
        try:
            prepare_cache(self.cache_folder, header, partial(self._contents, [films[name] for name in names]))
        except BrokenImagesError as error:
            raise BrokenImagesError(error.problems, "replace such files, or remove their clips") from error

    def _films(self, found: Clips) -> list[_Film]:
        """The clips with their lengths. A note beside the cache keeps the lengths of files, which must be read."""
        note = self.cache_folder.with_name(f"{self.cache_folder.name}.lengths.json")
        try:
            known = json.loads(note.read_text())
            lengths = known["lengths"] if known["listing"] == found.digest else None
        except (OSError, ValueError, TypeError, KeyError):
            lengths = None
        if lengths is None:
            with Progress("counting frames", len(found.clips)) as progress:
                lengths = []
                for clip in found.clips:
                    lengths.append(-(-num_frames(clip) // self.every_n_frames))
                    progress.advance(1)
            if any(not clip.frames for clip in found.clips):
                self._write_note(note, json.dumps({"listing": found.digest, "lengths": lengths}))
        for clip, length in zip(found.clips, lengths, strict=True):
            if length < 2:
                frames = f"a clip with {length} frame{'s' * (length != 1)}"
                every = f" if one of {self.every_n_frames} is taken" if self.every_n_frames > 1 else ""
                raise UserError(f"{printable(str(clip.path))}: {frames}{every}; a clip has 2 or more")
        return [_Film(clip, length) for clip, length in zip(found.clips, lengths, strict=True)]

    def _write_note(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text.encode())
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); choose another folder with --data.cache_dir"
            ) from error

    def _contents(self, films: list[_Film]) -> Contents:
        """The frames of all clips, and for each frame the number of its clip."""
        items = [(film, frame) for film in films for frame in range(film.length)]
        numbers = np.repeat(np.arange(len(films)), [film.length for film in films])
        one_by_one = any(not film.clip.frames for film in films)  # a film is read from its start, so that one thread
        return Contents(fill_from(items, self._reader()), numbers, 1 if one_by_one else None)  # reads it only once

    def _reader(self) -> Callable[[tuple[_Film, int]], np.ndarray]:
        """A function from a film and the number of a frame to the frame's pixels, uint8 [C, H, W]."""
        frames_of = lru_cache(maxsize=1)(lambda path: movie(path, self.frame_shape, self.fit, self.every_n_frames))
        size_of = lru_cache(maxsize=64)(lambda path: image_size(read_file(path), str(path)))

        def read(item: tuple[_Film, int]) -> np.ndarray:
            film, frame = item
            if not film.clip.frames:
                frames: np.ndarray = frames_of(film.clip.path)
                if len(frames) != film.length:
                    wanted, found = film.length, len(frames)
                    raise UserError(f"{film.clip.path}: {wanted} frames are announced, and {found} can be read")
                return frames[frame]
            first, path = film.clip.frames[0], film.clip.frames[frame * self.every_n_frames]
            contents = read_file(path)
            (width, height), wanted_size = image_size(contents, str(path)), size_of(first)
            if (width, height) != wanted_size:
                raise UserError(
                    f"{path}: {width} x {height} pixels, but {first.name} has {wanted_size[0]} x {wanted_size[1]}; "
                    "the frames of a clip have one size"
                )
            return decode(contents, str(path), self.frame_shape, self.fit)

        return read

    def _own_header(self) -> Header | None:
        """The header of a whole cache with the present settings."""
        header = read_header(self.cache_folder)
        expected = (Header.version, self.frame_shape, self.settings())
        is_own = header is not None and (header.version, header.image_shape, header.settings) == expected
        return header if is_own else None

    def load(self, split: Split) -> Examples:
        """Map the clips of a split from the cache.

        Args:
            split: `train`, `val` or `test`.

        Raises:
            UserError: if there is no cache with the present settings, or if clips are too short.
        """
        if self._own_header() is None:
            raise UserError(f"{self.cache_folder}: no cache with these settings; call prepare_data to make the cache")
        images = open_cache(self.cache_folder, split)
        assert images.labels is not None
        _, lengths = images.labels.unique_consecutive(return_counts=True)
        least = self.num_frames if split != "test" else self.test_frames or int(lengths.min())
        self._check_lengths(split, lengths, least)
        fields = {"x": images.pixels}
        if split == "test":
            parts = Windows(least, lengths.cumsum(0) - lengths, torch.arange(len(lengths)), {"x"})
            examples = Examples(fields, images.mapping, windows=parts)
        else:
            examples = windows(fields, lengths, least, mapping=images.mapping)
        examples.check = partial(_check_frames, images.verify, examples)
        return examples

    def _check_lengths(self, split: Split, lengths: Tensor, least: int) -> None:
        names, short = self._names(split), (lengths < least).nonzero().flatten().tolist()
        if not short:
            return
        option = "num_frames" if split != "test" else "test_frames"
        found = join_names([f"{names[i]} ({int(lengths[i])})" for i in short], 3)
        what = "1 clip is" if len(short) == 1 else f"{len(short)} clips are"
        raise UserError(
            f"{self.data_dir}: {what} shorter than {least} frames: {found}; lower --data.{option}, or remove them"
        )

    def _names(self, split: Split) -> list[str]:
        """The path of each clip of a split below `data_dir`."""
        header = self._own_header()
        assert header is not None
        labels = open_cache(self.cache_folder, split).labels
        assert labels is not None
        return [str(name) for name in header.source["clips"][int(labels[0]) : int(labels[-1]) + 1]]

    def paths(self, split: Split) -> list[str] | None:
        """Return the folder or the file of the clip of each example of a split, in the order of the examples.

        Args:
            split: `train`, `val` or `test`.
        """
        parts, names = self.examples(split).windows, self._names(split)
        assert parts is not None
        return [str(Path(self.data_dir) / names[i]) for i in parts.sequence.tolist()]

    def batch_transform(self, split: Split) -> BatchTransform:
        return Transform()

    def check(self) -> list[str]:
        """Return the faults of the data, damaged chunks of the cache included, one line each."""
        return super().check() + broken_chunks(self.cache_folder)


def _check_frames(verify: Callable[[Tensor], None], examples: Examples, index: Tensor) -> None:
    """Check the frames of windows before they are read."""
    parts = examples.windows
    assert parts is not None
    frames = parts.start.cpu()[index, None] + torch.arange(parts.length)
    verify(frames.unique())
