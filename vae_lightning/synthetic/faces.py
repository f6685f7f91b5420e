"""Drawn faces: x = paint, layer upon layer, of 40 attributes and some fifty factors of style, all f(seed, index).

They stand in for CelebA (Liu et al. 2015, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html) where that is not at hand:
the same sizes, the same names of attributes, the face in the same place. They are drawings, NOT CelebA.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vae_lightning.noise import uniform16
from vae_lightning.synthetic.attributes import FACE_ATTRIBUTES, face_attributes
from vae_lightning.synthetic.layers import LAYERS
from vae_lightning.synthetic.scene import STYLE, make_scene

_ALIGNED = (218, 178)  # CelebA's height and width
_STREAM = 0x57713  # of randomness: not that of the attributes
_CHUNK_PIXELS = 2**18  # drawn at once: planes of a MiB, some thirty of them at a time


def draw_faces(index: Tensor, seed: int = 0, size: tuple[int, int] = (64, 64)) -> tuple[Tensor, Tensor]:
    """(x, a) = f(seed, index[i]): images uint8 [N, 3, H, W] and their attributes uint8 [N, 40] in {0, 1}.

    index: int64 [N]; size: (height, width). A square shows what the centre crop of (218, 178), shrunk, would show.
    """
    style = uniform16(index, len(STYLE), seed, _STREAM) / 65536
    attributes = face_attributes(index, seed)
    return render_faces(attributes, style, size), attributes


def render_faces(attributes: Tensor, style: Tensor, size: tuple[int, int] = (64, 64)) -> Tensor:
    """x = f(attributes, style): uint8 [N, 40] and float32 [N, len(STYLE)] in [0, 1) to uint8 [N, 3, H, W]."""
    height, width = size
    pixels = torch.empty(len(style), 3, height, width, dtype=torch.uint8, device=style.device)
    chunk = max(1, _CHUNK_PIXELS // (height * width))
    for start in range(0, len(style), chunk):
        rows = slice(start, start + chunk)
        scene = make_scene(attributes[rows], style[rows], height, width)
        for layer in LAYERS:
            layer.draw(scene)
        pixels[rows] = scene.rgb.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return pixels


def write_celeba_layout(
    folder: Path, num_images: int, *, archive: bool = False, seed: int = 0, quality: int = 95
) -> None:
    """Faces 0 .. num_images - 1 as JPEG files, their split and their attributes, where CelebA's would lie.

    `folder/celeba` gets `img_align_celeba/000001.jpg` and on, or with `archive` the file `img_align_celeba.zip` of the
    same; `list_eval_partition.txt`, the first 80 % train (0), 10 % val (1), 10 % test (2); `list_attr_celeba.txt`.
    These are drawings, NOT CelebA, as `NOT_CELEBA.txt` says: stand-ins for tests and demonstrations.
    """
    root = folder / "celeba"
    root.mkdir(parents=True, exist_ok=True)
    (root / "NOT_CELEBA.txt").write_text(
        "These faces are drawn by vae_lightning, in CelebA's layout. They are not CelebA.\n"
    )
    if archive:
        with zipfile.ZipFile(root / "img_align_celeba.zip", "w", zipfile.ZIP_STORED) as file:
            for name, contents in _jpegs(num_images, seed, quality):
                file.writestr(f"img_align_celeba/{name}", contents)
    else:
        (root / "img_align_celeba").mkdir(exist_ok=True)
        for name, contents in _jpegs(num_images, seed, quality):
            (root / "img_align_celeba" / name).write_bytes(contents)
    attributes = face_attributes(torch.arange(num_images), seed).tolist()
    # Last: where the lists are, the images are whole.
    (root / "list_attr_celeba.txt").write_text(_attribute_list(attributes))
    (root / "list_eval_partition.txt").write_text(_partition(num_images))


def _name(index: int) -> str:
    return f"{index + 1:06d}.jpg"


def _jpegs(num_images: int, seed: int, quality: int) -> Iterator[tuple[str, bytes]]:
    for chunk in torch.arange(num_images).split(64):
        images, _ = draw_faces(chunk, seed, _ALIGNED)
        for index, image in zip(chunk.tolist(), images.permute(0, 2, 3, 1).contiguous(), strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image.numpy()).save(buffer, "JPEG", quality=quality)
            yield _name(index), buffer.getvalue()


def _attribute_list(attributes: list[list[int]]) -> str:
    rows = (" ".join([_name(i), *(f"{2 * on - 1:2d}" for on in row)]) for i, row in enumerate(attributes))
    return "\n".join([str(len(attributes)), " ".join(FACE_ATTRIBUTES), *rows, ""])


def _partition(num_images: int) -> str:
    train, val = num_images * 8 // 10, num_images * 9 // 10
    return "".join(f"{_name(i)} {int(i >= train) + int(i >= val)}\n" for i in range(num_images))
