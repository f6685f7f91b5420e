"""Steps of any environment that `vae-lightning record` has recorded; read by NumPy alone."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data.module import Split
from vae_lightning.data.transitions import AsWholeNumbers, Transitions
from vae_lightning.noise import derive_seed
from vae_lightning.storage.recordings import Recording, read_about, read_recording
from vae_lightning.storage.transforms import BatchTransform, Draw
from vae_lightning.types import Batch, UserError

_WHITE = 255


class AsShares(BatchTransform):
    """Turn bytes of images into float32 in [0, 1]: `x` and `state`."""

    changes = frozenset({"x", "state"})

    def apply(self, batch: Batch, draw: Draw) -> Batch:
        return {name: batch[name].float() / _WHITE for name in self.changes}


class Recorded(Transitions):
    """Steps of an environment from a folder that `vae-lightning record ENV --output FOLDER` has written.

    A state is a vector, float32 [D], an image, float32 [C, H, W] in [0, 1], or a whole number below `vocabulary`. Whole
    episodes are in `train`, `val` or `test`, by a draw that depends on the number of episodes alone.

    Args:
        data_dir: The folder of the recording.
        val_share: The share of episodes in val; at least one is.
        test_share: The share of episodes in test; at least one is.
        kwargs: Arguments of `Transitions`.

    Raises:
        UserError: if the shares leave nothing, or if the folder holds no recording.
    """

    def __init__(
        self, data_dir: str = "data/recorded", *, val_share: float = 0.1, test_share: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise UserError(
                f"Recorded: val_share is {val_share} and test_share {test_share}; both must be above 0, and their sum "
                "below 1"
            )
        self.val_share, self.test_share = val_share, test_share
        self.about = read_about(Path(self.data_dir))
        self.x_shape, self.num_actions = self.about.shape, self.about.num_actions
        if self.about.kind == "discrete":
            self.vocabulary = self.about.num_states
        self._recording: Recording | None = None

    @property
    def recording(self) -> Recording:
        """All that was recorded; read and checked at the first use."""
        if self._recording is None:
            self._recording = read_recording(Path(self.data_dir))
        return self._recording

    @property
    def cap(self) -> int:
        """The length at which the environment cuts an episode; the longest recorded one if it cuts none."""
        return self.about.max_episode_steps or int(self.recording.lengths.max())

    def episodes(self, split: Split) -> np.ndarray:
        """Return the numbers of the episodes of a split, in order: int64 [E].

        Args:
            split: `train`, `val` or `test`.

        Raises:
            UserError: if there are too few episodes for three splits.
        """
        total = len(self.recording.lengths)
        num_val, num_test = (max(1, round(share * total)) for share in (self.val_share, self.test_share))
        if num_val + num_test >= total:
            raise UserError(
                f"{self.data_dir}: {total} episodes; train, val and test need one each: record more steps, or shorter "
                "episodes by --env_args max_episode_steps=100"
            )
        order = np.random.default_rng(derive_seed(total)).permutation(total)
        parts = np.split(order, [total - num_val - num_test, total - num_test])
        return np.sort(parts[("train", "val", "test").index(split)])

    def transitions(self, split: Split) -> dict[str, Tensor]:
        recording = self.recording
        episode = np.arange(len(recording.lengths)).repeat(recording.lengths)  # of each step
        done = np.zeros(len(episode), np.float32)
        done[(recording.lengths.cumsum() - 1)[recording.terminated]] = 1
        steps = np.isin(episode, self.episodes(split)).nonzero()[0]
        rows = steps + episode[steps]  # each episode has one observation more than it has steps
        fields = {"x": recording.observations[rows + 1], "state": recording.observations[rows]}
        fields |= {"action": recording.actions[steps], "reward": recording.rewards[steps], "done": done[steps]}
        return {name: torch.from_numpy(values) for name, values in fields.items()}

    def batch_transform(self, split: Split) -> BatchTransform | None:
        return {"image": AsShares(), "vector": None, "discrete": AsWholeNumbers()}[self.about.kind]

    def num_starts(self, split: Split) -> int:
        return len(self.episodes(split))

    def start(self, split: Split, index: int) -> Tensor:
        episodes, lengths = self.episodes(split), self.recording.lengths
        if not 0 <= index < len(episodes):
            raise UserError(f"{self.data_dir}: {split} has no episode {index}; it has 0 .. {len(episodes) - 1}")
        first = int(lengths[: episodes[index]].sum()) + int(episodes[index])
        state = torch.from_numpy(self.recording.observations[first : first + 1])[0]
        return state.float() / _WHITE if self.about.kind == "image" else state

    def environment(self, split: Split, index: int) -> tuple[str, dict[str, Any]]:
        return self.about.environment, dict(self.about.arguments)

    def is_valid(self, state: Tensor) -> Tensor:
        """Return whether vectors are finite and in the range of train, widened by its width to both sides: bool [B].

        Images and whole numbers are valid if they are finite and below `vocabulary`.

        Args:
            state: The states, [B, *x_shape].
        """
        if self.about.kind == "discrete":
            return (state >= 0) & (state < self.vocabulary)
        if self.about.kind == "image":
            return super().is_valid(state)
        low, high = (bound.to(state) for bound in self._range)
        width = high - low
        return ((state >= low - width) & (state <= high + width)).all(1)  # false for NaN

    @cached_property
    def _range(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value of each number of the states of train, [D] each."""
        fields = self.transitions("train")
        low, high = torch.minimum(fields["state"], fields["x"]), torch.maximum(fields["state"], fields["x"])
        return low.amin(0), high.amax(0)

    def num_real_transitions(self) -> int:
        """Return the number of all recorded steps, those of test included: somebody took them in the real world."""
        return len(self.recording.actions)

    def describe_coverage(self) -> str:
        fields = self.examples("train").fields
        counts = fields["action"].bincount(minlength=self.num_actions).tolist()
        facts = f"train shows {len(self.episodes('train')):,} episodes, its actions {counts} times"
        if self.about.kind == "discrete":
            pairs = len((fields["state"] * self.num_actions + fields["action"]).unique())
            facts += f", {pairs:,} of {self.vocabulary * self.num_actions:,} pairs of a state and an action"
        return f"{facts}; {super().describe_coverage()}"

    def show(self, x: Tensor) -> Tensor | list[str]:
        """Return images [n, C, H, W], or a line with the numbers of each state.

        Args:
            x: The states, [n, *x_shape].
        """
        if self.about.kind == "image":
            return x
        if self.about.kind == "discrete":
            return [f"state {number}" for number in x.tolist()]
        return ["  ".join(f"{value:.3f}" for value in row) for row in x.tolist()]
