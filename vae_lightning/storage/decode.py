"""Image files of any kind as pixels of one shape, or refused in one line that begins with the file's name.

Decoding is PIL's, which releases the GIL in its C code: the functions are pure and may run on a pool of threads.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.types import Shape, UserError

Fit: TypeAlias = Literal["crop", "pad", "stretch"]
"""Where the aspect differs: cut the long side evenly, lay black beside the short side evenly, or distort."""

FILTER = "bilinear, antialiased (PIL)"
"""How `decode` resizes. It goes into the headers of caches: another filter makes other pixels, and other FIDs."""
CROP_FILTER = "bilinear, antialiased (torch)"
"""How `decode_crop` does."""
MAX_PIXELS = 100_000_000
# fmt: off
IMAGE_SUFFIXES: frozenset[str] = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k",
})
# fmt: on
"""The endings, in lower case, of the files that are taken for images; what they hold is told by their first bytes."""

# Named, because PIL would try all it knows, and hand PostScript in a .jpg to Ghostscript
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000")
_MODES: Mapping[int, str] = {1: "L", 3: "RGB", 4: "RGBA"}
_ORIENTED = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})  # where a file may state it
_PIL = r"PIL\."
_SILENCE = ("ignore", None, Warning, re.compile(_PIL), 0)  # the entry that `filterwarnings` makes of it
_silencing = threading.Lock()


class _ImageError(Exception):
    """What is wrong with a file, and what was expected; the file's name is put before it."""


def decode(contents: bytes, name: str, shape: Shape, fit: Fit = "crop", grey_bits: int = 16) -> np.ndarray:
    """An image file of any size and mode as uint8 [C, H, W] of `shape`.

    C is 1 (grey: ITU-R 601 luma), 3 (RGB) or 4 (RGBA). EXIF's orientation is applied; of several frames the first is
    taken; 16-bit grey is scaled to 8 bits, from 0 .. 2^grey_bits - 1. What is transparent is laid on black; with C = 4
    it stays transparent and is black beneath, as are the borders of `pad`. Raises a `UserError` that begins with `name`
    where the file is no whole image, has more than `MAX_PIXELS`, or pixels without a range. Flipped bits that a format
    has no checksum against (JPEG's) pass for an image. PIL's warnings are ignored, in the whole process (see
    `_silence`).
    """
    channels, height, width = shape
    mode = _MODES[channels]
    try:
        image = _in_mode(_upright(_open(contents)), mode, grey_bits)
        return _pixels(_fitted(image, (width, height), fit), shape)
    except Exception as error:  # PIL's parsers end a broken file in whatever they trip over
        raise UserError(f"{name}: {_reason(error, contents)}") from error


def decode_crop(
    contents: bytes, name: str, box: tuple[int, int, int, int], shape: Shape, source_size: tuple[int, int]
) -> np.ndarray:
    """The part `box` (left, upper, right, lower) of an image of `source_size` (W, H) as uint8 [C, H, W] of `shape`.

    For aligned sets. Crop first, then resize, so that nothing outside the box has a part in it. EXIF's orientation is
    not applied: a box is one of pixels as they are stored. Refuses what `decode` refuses, and other sizes. JPEGs
    are decoded by simplejpeg, to PIL's pixels, and resized by torch, to PIL's within one grey level: in half the time.
    Torch takes twice as long for a part that is a view of the whole, so the part is copied.
    """
    channels, height, width = shape
    left, upper, right, lower = box
    try:
        image = _jpeg(contents, source_size) if channels == 3 else None
        if image is None:
            image = _aligned(contents, _MODES[channels], source_size)
        part = np.ascontiguousarray(image[upper:lower, left:right])  # not by torch, which would wake OpenMP's threads
        resized = F.interpolate(_chw(part)[None], (height, width), mode="bilinear", antialias=True)
        pixels = resized[0].numpy()
        return _without_hidden_colours(pixels)
    except Exception as error:
        raise UserError(f"{name}: {_reason(error, contents)}") from error


def check_shape(shape: Shape) -> None:
    """Raise unless `shape` is a (C, H, W) that images can be decoded to."""
    if len(shape) != 3 or shape[0] not in _MODES or min(shape) < 1:
        raise UserError(
            f"image shape {tuple(shape)}: expected (C, H, W) with C = 1 (grey), 3 (RGB) or 4 (RGBA) and positive H, W"
        )


def is_web_page(contents: bytes) -> bool:
    """Whether a file is HTML, whatever its name: what a server sends in place of a file that it does not give out."""
    start = contents[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head"))


def _open(contents: bytes) -> Image.Image:
    """The image with its header read; its pixels are read later."""
    _silence()
    image = Image.open(io.BytesIO(contents), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise _ImageError(f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS:,}")
    return image


def _chw(pixels: np.ndarray) -> Tensor:
    """A view of [H, W, C] as [C, H, W], without a copy."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _aligned(contents: bytes, mode: str, size: tuple[int, int]) -> np.ndarray:
    """An image of one size (W, H), by PIL: uint8 [H, W, C]."""
    image = _open(contents)
    if image.size != size:
        found = f"{image.width} x {image.height}"
        raise _ImageError(f"{found} pixels, expected {size[0]} x {size[1]}, as the set has")
    return np.atleast_3d(np.array(_in_mode(image, mode)))


def _jpeg(contents: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """A whole colour JPEG of this size (W, H): uint8 [H, W, 3]. None for all else, which PIL will judge."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(contents)
        if (width, height) != size or colours not in ("YCbCr", "RGB"):
            return None
        return simplejpeg.decode_jpeg(contents, "RGB")
    except ValueError:  # broken
        return None


def _silence() -> None:
    """Put a filter in front that ignores PIL's warnings: on odd metadata, which says nothing of the pixels.

    It stays, for the whole process: `warnings.catch_warnings` restores one list for all threads, and so would let the
    warnings of a thread that still decodes through. It is put back where a test's `catch_warnings` has removed it.
    """
    if warnings.filters[:1] != [_SILENCE]:
        with _silencing:  # to add a filter is to remove it first
            if warnings.filters[:1] != [_SILENCE]:
                warnings.filterwarnings("ignore", module=_PIL)


def _upright(image: Image.Image) -> Image.Image:
    """Load the pixels and turn them as EXIF says. Broken EXIF turns nothing, because the picture is good all the same.

    Pillow turns the pixels and then rewrites the EXIF. A broken tag can make the rewriting fail. In place, the pixels
    stay turned in this case.
    """
    image.load()  # a PNG may have its EXIF after its pixels
    if _ORIENTED & image.info.keys():  # else Pillow would search for EXIF: 3 % of the time of a small file
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
    return image


def _in_mode(image: Image.Image, mode: str, grey_bits: int = 16) -> Image.Image:
    """The image in PIL's `mode` L, RGB or RGBA, laid on black where it is transparent and `mode` is not."""
    if image.mode == "F":
        raise _ImageError("floating-point pixels, which have no fixed range; expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        image = _eight_bits(image, grey_bits)
    if image.mode == "LAB":  # of which PIL makes RGB alone
        image = image.convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    rgba = image.convert("RGBA")
    if mode == "RGBA":
        return rgba
    canvas = Image.new(mode, image.size)
    canvas.paste(rgba.convert(mode), mask=rgba.getchannel("A"))
    return canvas


def _eight_bits(image: Image.Image, grey_bits: int) -> Image.Image:
    """round(255 v / (2^grey_bits - 1)) of 16-bit grey v, where PIL's own conversion clips at 255. A transparent value
    keeps its mask."""
    values, white = np.asarray(image).astype(np.int32), 2**grey_bits - 1
    if values.min() < 0 or values.max() > white:
        raise _ImageError(f"grey values {values.min()} to {values.max()}, expected {grey_bits} bits: 0 to {white}")
    grey = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is None:
        return grey
    opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(opaque)))


def _fitted(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """The image at `size` (W, H)."""
    if fit == "stretch":
        return _resize(image, size)
    ratios = size[0] / image.width, size[1] / image.height
    scale = max(ratios) if fit == "crop" else min(ratios)
    scaled = round(image.width * scale), round(image.height * scale)
    if min(scaled) < 1:
        raise _ImageError(f"{image.width} x {image.height} pixels shrink to {scaled[0]} x {scaled[1]}; use `crop`")
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    if fit == "crop":  # the box of the whole pixels that a resize to `scaled` and a crop would keep, in one pass
        across, down = image.width / scaled[0], image.height / scaled[1]
        right, lower = min(image.width, (left + size[0]) * across), min(image.height, (top + size[1]) * down)
        return _resize(image, size, (left * across, top * down, right, lower))
    canvas = Image.new(image.mode, size)
    canvas.paste(_resize(image, scaled), (-left, -top))
    return canvas


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR, box)  # the one place where `FILTER` is meant


def _pixels(image: Image.Image, shape: Shape) -> np.ndarray:
    """uint8 [C, H, W], its own memory."""
    channels, height, width = shape
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)
    return _without_hidden_colours(pixels.transpose(2, 0, 1).copy())  # [C, H, W]


def _without_hidden_colours(pixels: np.ndarray) -> np.ndarray:
    return pixels * (pixels[3:] > 0) if len(pixels) == 4 else pixels


def _reason(error: Exception, contents: bytes) -> str:
    """What is wrong with the file, in one line without its name."""
    if isinstance(error, _ImageError):
        return str(error)
    expected = f"expected a whole image ({', '.join(_FORMATS)})"
    if not contents:
        return f"empty, {expected}"
    if is_web_page(contents):
        return f"a web page, {expected}"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image, or one with a broken header: it begins with {contents[:4].hex(' ')}, {expected}"
    if isinstance(error, Image.DecompressionBombError):
        return f"{' '.join(re.findall('[0-9]+ pixels', str(error))[:1])}, expected at most {MAX_PIXELS:,}"
    return f"cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())}), {expected}"
