"""Drawn faces: x = layers of paint that show 40 attributes and 46 factors of style, all f(seed, index).

The faces stand in for CelebA (Liu et al. 2015, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html) if CelebA is not at
hand. They have its sizes and names of attributes, and the face lies in the same place. They are drawings, NOT CelebA.

A simpler face would lose labels: each of 39 attributes has its own mark in the picture, without which a conditional
model or a classifier could not learn it. Recorded numbers and published results also rest on these exact pixels.
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

_ALIGNED = (218, 178)  # height and width of CelebA's images
_STREAM = 0x57713  # the stream of randomness of the style; the attributes have another
_CHUNK_PIXELS = 2**18  # pixels drawn at once: some thirty planes of one MiB


def draw_faces(index: Tensor, seed: int = 0, size: tuple[int, int] = (64, 64)) -> tuple[Tensor, Tensor]:
    """(x, a) = f(seed, index[i]): images uint8 [N, 3, H, W] and their attributes uint8 [N, 40] in {0, 1}.

    Args:
        index: The numbers of the faces: int64 [N].
        seed: The seed of attributes and style.
        size: (height, width). A square shows the centre crop of the face of (218, 178), shrunk.
    """
    style = uniform16(index, len(STYLE), seed, _STREAM) / 65536
    attributes = face_attributes(index, seed)
    return render_faces(attributes, style, size), attributes


def render_faces(attributes: Tensor, style: Tensor, size: tuple[int, int] = (64, 64)) -> Tensor:
    """x = f(attributes, style): uint8 [N, 3, H, W]. Use this to choose the factors of a face.

    Args:
        attributes: uint8 [N, 40] in {0, 1}, columns as in `FACE_ATTRIBUTES`.
        style: float32 [N, len(STYLE)] in [0, 1), columns as in `STYLE`.
        size: (height, width).
    """
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
    """Write faces 0 .. num_images - 1 in CelebA's layout of files, for tests and demonstrations of `CelebA`.

    `folder/celeba` gets the images `img_align_celeba/000001.jpg`, ...; `list_eval_partition.txt` with the first 80 % as
    train (0), then 10 % val (1) and 10 % test (2); and `list_attr_celeba.txt`. The images are drawings, NOT CelebA; the
    file `NOT_CELEBA.txt` says so.

    Args:
        folder: The `data_dir` of `CelebA`.
        num_images: The number of faces.
        archive: Write the images into `img_align_celeba.zip` instead of a folder.
        seed: The seed of the faces.
        quality: The quality of the JPEG files, 1 to 95.
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
    # The lists are written last, so that their images are complete whenever they exist.
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
