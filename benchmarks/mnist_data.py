"""MNIST in torchvision's layout: the real files, or synthetic images of the same number and shape."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

FILES = {"train": 60_000, "t10k": 10_000}


def is_there(data_dir: Path) -> bool:
    return all((data_dir / "MNIST" / "raw" / f"{part}-images-idx3-ubyte").is_file() for part in FILES)


def write_synthetic(data_dir: Path, num_train: int = FILES["train"], num_test: int = FILES["t10k"]) -> None:
    """Write images of random grey blots, mostly black like digits, with as many bytes as MNIST."""
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", num_train), ("t10k", num_test)):
        coarse = np.maximum(rng.random((count, 7, 7), dtype=np.float32) * 2 - 1, 0)
        pixels = (255 * coarse.repeat(4, axis=1).repeat(4, axis=2)).astype(np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels.tobytes())
