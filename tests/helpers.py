"""Helpers for several tests: the command line in a process of its own, small data files, and reading pictures."""

from __future__ import annotations

import csv
import functools
import gzip
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.forks import Forked, start_for_real, start_python

REPOSITORY = Path(__file__).parent.parent
DIGITS = "configs/vae/digits.yaml"
EPOCHS = ("--trainer.check_val_every_n_epoch=1", "--nll.num_samples=4")
TRAIN = ("train", "-c", DIGITS, "--trainer.max_epochs=2", *EPOCHS)
SECRET = "planted-secret-3f9c"
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
AMAT_NAMES = ("binarized_mnist_train", "binarized_mnist_valid", "binarized_mnist_test")


def clean_environment() -> dict[str, str]:
    """Return this process's environment without variables of W&B, Lightning and ranks, which would change a run."""
    prefixes = ("WANDB_", "PL_", "VAE_LIGHTNING_", "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "NETRC": os.devnull, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_cli(
    *args: object,
    cwd: Path = REPOSITORY,
    env: Mapping[str, str] | None = None,
    expect: int | None = 0,
    start: Callable[..., Forked | subprocess.Popen[str]] = start_python,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m vae_lightning ARGS`; fail and show the output if the exit code is not `expect` (None: any code).

    The program is forked from a process that has imported the package; `start=start_for_real` starts a new interpreter.
    """
    program = ["-m", "vae_lightning", *(str(arg) for arg in args)]
    process = start(*program, cwd=cwd, env={**clean_environment(), **(env or {})})
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    if expect is not None and process.returncode != expect:
        raise AssertionError(f"exit code {process.returncode}: {' '.join(program)}\n{out}\n{err}")
    return subprocess.CompletedProcess(program, process.returncode or 0, out, err)


def only(folder: Path, pattern: str) -> Path:
    """Return the only path that matches; fail if no path matches, or more than one."""
    found = sorted(folder.glob(pattern))
    assert len(found) == 1, f"{folder}/{pattern}: expected one, found {found}"
    return found[0]


def read_picture(path: Path) -> Tensor:
    """Return a PNG as uint8 [3, H, W]."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array of bytes in the IDX format."""
    header = bytes([0, 0, 0x08, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, train: int = 60, test: int = 12, gz: bool = False) -> dict[str, np.ndarray]:
    """Write the four IDX files of a small MNIST to `folder`; return their contents by name."""
    random = np.random.default_rng(0)
    arrays = {}
    for name in IDX_NAMES:
        count = train if name.startswith("train") else test
        images = "images" in name
        arrays[name] = random.integers(0, 256 if images else 10, (count, 28, 28) if images else count, dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        raw = idx_bytes(array)
        (folder / f"{name}.gz" if gz else folder / name).write_bytes(gzip.compress(raw) if gz else raw)
    return arrays


def write_amat(path: Path, bits: np.ndarray) -> None:
    """Write rows of 0 and 1 as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in bits.tolist()))


def write_binarized_mnist(folder: Path, count: int = 12) -> dict[str, np.ndarray]:
    """Write the three text files of a small binarised MNIST to `folder`; return their contents by name."""
    random = np.random.default_rng(1)
    arrays = {name: random.integers(0, 2, (count, 784), dtype=np.uint8) for name in AMAT_NAMES}
    for name, bits in arrays.items():
        write_amat(folder / f"{name}.amat", bits)
    return arrays


@functools.cache
def trained_run(folder: Path) -> TrainedRun:
    """Run `train` on the digits for 2 epochs, without a W&B login and with a secret in its environment.

    The run is started for real, because most tests of the command line examine it as a user would have made it.
    """
    result = run_cli(*TRAIN, f"--runs_dir={folder}", env={"MY_SERVICE_TOKEN": SECRET}, start=start_for_real)
    return TrainedRun(only(folder, "vae/digits/*"), result.stdout, result.stderr)


class TrainedRun(NamedTuple):
    """A run's folder and the output of its command."""

    folder: Path
    stdout: str
    stderr: str

    def copy_to(self, folder: Path) -> Path:
        """Copy the run's folder for a test that continues the run: with its checkpoints, without its W&B files."""
        return Path(shutil.copytree(self.folder, folder / self.folder.name, ignore=shutil.ignore_patterns("wandb")))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file without their empty cells."""
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
