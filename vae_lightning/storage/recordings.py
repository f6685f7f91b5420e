"""Recordings: steps of an environment in a folder, as NumPy's files and a small JSON file that says what they are.

    recording.json    the environment, its spaces, the seed, the policy and the versions; written last
    observations.npy  all observations, the episodes one after the other: an episode of T steps has T + 1 of them
    lengths.npy       T of each episode, int64 [E]
    terminated.npy    whether each episode ended for good; false if it was cut, bool [E]
    actions.npy       the actions of all steps, int64 [N], N the sum of the lengths
    rewards.npy       the rewards of all steps, float32 [N]

An observation is a vector, float32 [D], an image, uint8 [C, H, W], or a whole number, int64 [].
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from vae_lightning.runs.whole_files import whole_file, write_whole
from vae_lightning.types import Shape, UserError

Kind: TypeAlias = Literal["vector", "image", "discrete"]

DTYPES: Mapping[Kind, type] = {"vector": np.float32, "image": np.uint8, "discrete": np.int64}
"""The form in which observations of each kind are stored."""

_FORMAT = 1
_LARGEST = 2**31 - 1  # of a size
_MOST_ACTIONS = 2**16  # a model has an input for each
_NAME = "recording.json"
_ARRAYS: Mapping[str, type | None] = {  # None: the kind says it
    "observations": None,
    "lengths": np.int64,
    "terminated": np.bool_,
    "actions": np.int64,
    "rewards": np.float32,
}
# gymnasium would import the module before a colon, and GymV.. environments take the name of another one
_ID = re.compile(r"(?!GymV)([\w-]+/)?[\w.-]+")


@dataclass(frozen=True)
class About:
    """What was recorded, and how.

    Args:
        environment: The name of the environment in `gymnasium.make`.
        arguments: The keyword arguments of `gymnasium.make`.
        kind: What an observation is.
        shape: The shape of one observation.
        num_states: The number of different observations, if they are whole numbers; 0 otherwise.
        num_actions: The number of different actions.
        max_episode_steps: The length at which the environment cuts an episode; 0 if it cuts none.
        seed: The seed of the environment and of the policy.
        policy: The name of the policy.
        versions: The versions of the packages by name.
    """

    environment: str
    arguments: dict[str, Any]
    kind: Kind
    shape: Shape
    num_states: int
    num_actions: int
    max_episode_steps: int
    seed: int
    policy: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """Steps of an environment; the docstring of the file describes the arrays.

    Args:
        about: What was recorded, and how.
        observations: [N + E, *shape].
        lengths: int64 [E].
        terminated: bool [E].
        actions: int64 [N].
        rewards: float32 [N].
    """

    about: About
    observations: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray


def require_free_folder(folder: Path) -> None:
    """Refuse a folder that holds a recording, or files that are none of a recording's.

    Args:
        folder: The folder that a recording shall be written to.

    Raises:
        UserError: if something would be lost or mixed up.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder that does not exist yet")
    own = {f"{name}.npy" for name in _ARRAYS}
    others = sorted(file.name for file in folder.glob("[!.]*") if file.name not in own)
    if others:
        raise UserError(
            f"{folder}: holds {others[0]} already; nothing is replaced, give a folder that does not exist yet"
        )


def write_recording(folder: Path, recording: Recording) -> None:
    """Write a recording; the file that makes the folder a recording comes last.

    Args:
        folder: The folder, made if it does not exist.
        recording: What to write.

    Raises:
        UserError: if the folder holds other files, or cannot be written.
    """
    require_free_folder(folder)
    contents = (json.dumps({"format": _FORMAT, **asdict(recording.about)}, indent=2) + "\n").encode()
    try:
        for name in _ARRAYS:
            with whole_file(folder / f"{name}.npy") as file:
                np.save(file, getattr(recording, name))
        write_whole(folder / _NAME, contents)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error


def read_about(folder: Path) -> About:
    """Read what was recorded, without the arrays.

    Args:
        folder: The folder of a recording.

    Raises:
        UserError: if there is no recording, or if its file is damaged or of another format.
    """
    path = folder / _NAME
    if not path.is_file():
        raise UserError(f"{path}: no such file; write a recording by vae-lightning record ENV --output {folder}")
    try:
        values = json.loads(path.read_text())
        if values.pop("format") != _FORMAT:
            raise ValueError(f"this release reads format {_FORMAT}")
        about = About(**{**values, "shape": tuple(values["shape"])})
        _check_about(about)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: is not the description of a recording ({reason}); record again") from error
    return about


def _check_about(about: About) -> None:
    """Raise ValueError if a value cannot be right. The name must not make gymnasium import a module."""
    numbers = (*about.shape, about.num_states, about.num_actions, about.max_episode_steps, about.seed)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a size or a number is not a whole number of at least 0")
    if max(*about.shape, about.num_states, about.max_episode_steps, 0) > _LARGEST or about.num_actions > _MOST_ACTIONS:
        raise ValueError(f"a size is above {_LARGEST:,}, or num_actions above {_MOST_ACTIONS:,}")
    if not isinstance(about.policy, str) or not isinstance(about.versions, dict):
        raise ValueError("policy is no text, or versions are no table")
    if not all(isinstance(version, str) for version in about.versions.values()):
        raise ValueError("a version is no text")
    if not _ID.fullmatch(about.environment) or not isinstance(about.arguments, dict):
        raise ValueError(f"environment {about.environment!r} is not a plain name, or its arguments have none")
    dimensions = {"vector": 1, "image": 3, "discrete": 0}
    if about.kind not in dimensions or len(about.shape) != dimensions[about.kind] or 0 in about.shape:
        raise ValueError(f"kind {about.kind!r} with shape {list(about.shape)}")
    if not about.num_actions or (about.kind == "discrete") != (about.num_states > 0):
        raise ValueError(f"num_actions {about.num_actions}, num_states {about.num_states}")


def read_recording(folder: Path) -> Recording:
    """Read a recording, and check that all its numbers are possible.

    Args:
        folder: The folder of a recording.

    Raises:
        UserError: with the file and the first fault in it.
    """
    about = read_about(folder)
    arrays = {name: _read_array(folder / f"{name}.npy", dtype or DTYPES[about.kind]) for name, dtype in _ARRAYS.items()}
    recording = Recording(about, **arrays)
    fault = _fault(recording)
    if fault:
        raise UserError(f"{folder / fault[0]}.npy: {fault[1]}; record again")
    return recording


def _read_array(path: Path, dtype: type) -> np.ndarray:
    try:
        _check_size(path)
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a foreign file can break NumPy's reader in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: cannot be read as an array ({reason}); record again") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"{path}: holds {found}; it must hold {np.dtype(dtype)}; record again")
    return array


def _check_size(path: Path) -> None:
    """Raise ValueError unless a file is as large as its header says: NumPy takes the memory before it reads."""
    if not path.is_file():
        raise ValueError("no such file")
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        needed, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
    if needed != there and not dtype.hasobject:  # NumPy itself refuses objects, which are pickled
        raise ValueError(f"{there:,} bytes of values; {dtype} {list(shape)} has {needed:,}")


def _fault(recording: Recording) -> tuple[str, str] | None:
    """The name of the first array with a fault, and the fault."""
    about, lengths = recording.about, recording.lengths
    if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1:
        return "lengths", "an episode has at least one step, and there is at least one"
    if lengths.max() > recording.actions.size:  # else the sum could overflow
        return "lengths", f"an episode has {lengths.max():,} steps, but there are {recording.actions.size:,} actions"
    steps, episodes = int(lengths.sum()), len(lengths)
    shapes = {
        "observations": (steps + episodes, *about.shape),
        "terminated": (episodes,),
        "actions": (steps,),
        "rewards": (steps,),
    }
    for name, shape in shapes.items():
        if (found := getattr(recording, name).shape) != shape:
            return name, f"has the shape {list(found)}; {episodes} episodes of {steps:,} steps need {list(shape)}"
    if (fault := _outside(recording.actions, about.num_actions)) is not None:
        return (
            "actions",
            f"step {fault} has the action {recording.actions[fault]}, outside 0 .. {about.num_actions - 1}",
        )
    if not np.isfinite(recording.rewards).all():
        return "rewards", f"step {int(np.isfinite(recording.rewards).argmin())} has no finite reward"
    observations = recording.observations
    if about.kind == "vector" and not (finite := np.isfinite(observations).all(1)).all():
        return "observations", f"row {int(finite.argmin())} is not finite"
    if about.kind == "discrete" and (fault := _outside(observations, about.num_states)) is not None:
        return "observations", f"row {fault} is {observations[fault]}, outside 0 .. {about.num_states - 1}"
    return None


def _outside(values: np.ndarray, limit: int) -> int | None:
    """The first place where a value is not in 0 .. limit - 1; None if there is none."""
    wrong = (values < 0) | (values >= limit)
    return int(wrong.argmax()) if wrong.any() else None
