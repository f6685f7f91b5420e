"""JPEGs as large as CelebA's, in torchvision's layout: `python -m benchmarks.celeba_data FOLDER POOL_SIZE TRAIN_SIZE`.

`FOLDER/pool` holds all files; `FOLDER/train` is a data set of the first TRAIN_SIZE files.

The images are smooth blobs with a little grain. A file is as large as CelebA's on average (1.44 GB / 202,599 = 7.1 kB)
and takes about as long to decode. The images serve only to measure time; they do not show faces.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (178, 218)
HELD_OUT = 32  # images of validation, and as many of test


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    """The contents of `count` JPEG files."""
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 6, (4 * SIZE[1], 4 * SIZE[0], 1)).astype(np.float32)
    return [_jpeg(rng, grain) for _ in range(count)]


def _jpeg(rng: np.random.Generator, grain: np.ndarray) -> bytes:
    coarse = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
    top, left = rng.integers(0, 3 * SIZE[1]), rng.integers(0, 3 * SIZE[0])
    pixels = smooth + grain[top : top + SIZE[1], left : left + SIZE[0]]
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=72)
    return file.getvalue()


def write_pool(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number, contents in enumerate(jpegs(count), start=1):
        (folder / f"{number:06d}.jpg").write_bytes(contents)


def write_layout(data_dir: Path, pool: Path, count: int) -> Path:
    """Write `celeba/img_align_celeba/*.jpg` and `celeba/list_eval_partition.txt` with the first `count` of the pool.

    The files are copies, so that the data set has no cache yet.
    """
    names = sorted(path.name for path in pool.glob("*.jpg"))[:count]
    folder = data_dir / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for name in names:
        shutil.copyfile(pool / name, folder / name)
    splits = [0] * (len(names) - 2 * HELD_OUT) + [1] * HELD_OUT + [2] * HELD_OUT
    lines = [f"{name} {split}\n" for name, split in zip(names, splits, strict=True)]
    (data_dir / "celeba" / "list_eval_partition.txt").write_text("".join(lines))
    return data_dir


def training_files(data_dir: Path) -> list[Path]:
    lines = (data_dir / "celeba" / "list_eval_partition.txt").read_text().split("\n")
    rows = [line.split() for line in lines if line]
    return [data_dir / "celeba" / "img_align_celeba" / name for name, split in rows if split == "0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pool_size", type=int)
    parser.add_argument("train_size", type=int)
    args = parser.parse_args()
    write_pool(args.folder / "pool", args.pool_size)
    write_layout(args.folder / "train", args.folder / "pool", args.train_size)


if __name__ == "__main__":
    main()
