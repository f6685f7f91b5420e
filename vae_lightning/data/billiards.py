"""Clips of billiard balls, drawn from a seed: windows to train on, whole sequences to test on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data.module import SPLITS, DataModule, Split
from vae_lightning.runs.machine import available_memory
from vae_lightning.storage.examples import Examples, join, windows
from vae_lightning.storage.transforms import BatchTransform, Transform
from vae_lightning.synthetic import billiards
from vae_lightning.types import UserError


class Billiards(DataModule):
    """Balls that move in a box and bounce off its walls and each other, seen from above in black and white.

    Use it for models of video. A batch holds `x`, float32 [B, T, 1, S, S] in [0, 1], and the truth: `positions` and
    `velocities`, float32 [B, T, K, 2]. Coordinates run from -1 to 1, the column first and the row second; a velocity is
    the way of one frame. Training and validation are on windows of `num_frames` frames that begin anywhere in a
    sequence; a test is on whole sequences.

    Sequence i of a split depends on `billiards_seed` and i alone, not on the seed of the run. The frames are drawn at
    each start, in seconds. The rules are those of Kossen et al. 2020 (https://arxiv.org/abs/1910.02425).

    Args:
        data_dir: Not used; nothing is read or written.
        num_frames: T of a window.
        sequence_length: The number of frames of a whole sequence.
        num_sequences: The number of sequences of train, val and test.
        num_balls: K.
        image_size: S, height and width of a frame.
        billiards_seed: The seed of the sequences.
        batch_size: Number of windows in a training batch.
        eval_batch_size: Largest number of windows, or of sequences, in an evaluation batch.
        kwargs: Arguments of `DataModule`.

    Raises:
        UserError: if a number is too small, if the balls do not fit, or if the frames do not fit in memory.
    """

    def __init__(
        self,
        data_dir: str = "data",
        *,
        num_frames: int = 8,
        sequence_length: int = 100,
        num_sequences: tuple[int, int, int] = (1000, 100, 300),
        num_balls: int = 3,
        image_size: int = 32,
        billiards_seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, batch_size=batch_size, eval_batch_size=eval_batch_size, **kwargs)
        sizes = {"num_balls": num_balls, "image_size": image_size, "num_sequences": min(num_sequences)}
        for name, number in {**sizes, "num_frames": num_frames, "billiards_seed": billiards_seed}.items():
            smallest = 0 if name == "billiards_seed" else 1
            if number < smallest:
                raise UserError(f"Billiards: {name} is {number}; it must be at least {smallest}")
        if sequence_length < num_frames:
            raise UserError(f"Billiards: a window has {num_frames} frames, and a sequence only {sequence_length}")
        if num_balls > 4:
            raise UserError(f"Billiards: {num_balls} balls do not fit in the middle of the box; at most 4 do")
        self.num_frames, self.num_objects, self.image_size = num_frames, num_balls, image_size
        self.sequence_length, self.billiards_seed = sequence_length, billiards_seed
        self.num_sequences = dict(zip(SPLITS, num_sequences, strict=True))
        self.x_shape = (-1, 1, image_size, image_size)  # windows and whole sequences

    def load(self, split: Split) -> Examples:
        fields = self.sequences(split)
        if split == "test":
            return Examples(fields)
        joined = {name: join(values)[0] for name, values in fields.items()}
        return windows(joined, join(fields["x"])[1], self.num_frames)

    def sequences(self, split: Split) -> dict[str, Tensor]:
        """Return the whole sequences of a split: x as bytes [N, T, 1, S, S], positions and velocities [N, T, K, 2].

        Args:
            split: `train`, `val` or `test`.
        """
        count = self.num_sequences[split]
        needed, free = 3 * count * self.sequence_length * self.image_size**2, available_memory()
        if free is not None and needed > free:
            raise UserError(
                f"Billiards: {count:,} sequences take {needed / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB are "
                "free; lower --data.num_sequences"
            )
        numbers = [(self.billiards_seed, SPLITS.index(split), i) for i in range(count)]
        starts = billiards.draw_starts(numbers, self.num_objects)
        positions, velocities = billiards.simulate(*starts, self.sequence_length)
        unit = 2 / billiards.BOX
        fields = {
            "x": billiards.draw_balls(positions, self.image_size),
            "positions": (positions * unit - 1).astype(np.float32),
            "velocities": (velocities * unit).astype(np.float32),
        }
        return {name: torch.from_numpy(values) for name, values in fields.items()}

    def batch_transform(self, split: Split) -> BatchTransform:
        return Transform()
