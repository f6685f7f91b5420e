"""Decode image files of any kind to pixels of one shape, or refuse a file in one line that begins with its name.

PIL decodes. Its C code releases the GIL, and the functions here are pure, so that they may run on a pool of threads.
Sizes are not fitted by `ImageOps.fit` and `pad`, nor decoded by `Image.draft`: these give other pixels, and caches and
recorded numbers rest on the pixels.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.types import Shape, UserError

Fit: TypeAlias = Literal["crop", "pad", "stretch"]
"""If the aspects differ: cut both ends of the long side evenly, add black beside the short side evenly, or distort."""

FILTER = "bilinear, antialiased (PIL)"
"""How `decode` resizes. Headers of caches hold this text, because another filter makes other pixels and other FIDs."""
CROP_FILTER = "bilinear, antialiased (torch)"
"""How `decode_crop` resizes."""
MAX_PIXELS = 100_000_000
# fmt: off
IMAGE_SUFFIXES: frozenset[str] = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k",
})
# fmt: on
"""The endings, in lower case, of files that are read as images. The first bytes of a file decide its format."""

# PIL would otherwise try all formats that it knows, and pass PostScript in a .jpg file to Ghostscript
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000")
_MODES: Mapping[int, str] = {1: "L", 3: "RGB", 4: "RGBA"}
_ORIENTED = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})  # keys of `Image.info`
_TURNED = range(5, 9)  # orientations of EXIF that exchange width and height
_PIL = r"PIL\."
_SILENCE = ("ignore", None, Warning, re.compile(_PIL), 0)  # what `filterwarnings` inserts for `_PIL`
_silencing = threading.Lock()


class _ImageError(Exception):
    """The fault of a file and what was expected. The caller puts the file's name before the text."""


def decode(contents: bytes, name: str, shape: Shape, fit: Fit = "crop", grey_bits: int = 16) -> np.ndarray:
    """Decode an image file of any size and mode to uint8 [C, H, W] of `shape`.

    The orientation of EXIF is applied. If a file has several frames, the first is taken. Transparent pixels are laid on
    black; with C = 4 they stay transparent and are black beneath, like the borders of `pad`. A flipped bit is not
    noticed if the format has no checksum (JPEG). PIL's warnings are ignored in the whole process (see `_silence`).

    Args:
        contents: The bytes of the file.
        name: The file's name, for messages.
        shape: (C, H, W) with C = 1 (grey: ITU-R 601 luma), 3 (RGB) or 4 (RGBA).
        fit: Crop, pad or stretch if the file has another aspect than `shape`.
        grey_bits: 16-bit grey is scaled to 8 bits from 0 .. 2^grey_bits - 1.

    Raises:
        UserError: if the file is no whole image, has more than `MAX_PIXELS` pixels, or pixels without a fixed range.
            The message begins with `name`.
    """
    with _in_one_line(name, contents):
        return _pixels(_upright(_open(contents)), shape, fit, grey_bits)


def open_image(contents: bytes, name: str) -> Image.Image:
    """Read the header of an image file; its pixels, and further frames, are read when they are used.

    Args:
        contents: The bytes of the file.
        name: The file's name, for messages.

    Raises:
        UserError: if the file is no image. The message begins with `name`.
    """
    with _in_one_line(name, contents):
        return _open(contents)


def decode_image(image: Image.Image, name: str, shape: Shape, fit: Fit = "crop") -> np.ndarray:
    """Return the pixels of an image that is open, such as a frame of a film, as `decode` does: uint8 [C, H, W].

    Args:
        image: The image.
        name: Its name, for messages.
        shape: (C, H, W), as of `decode`.
        fit: As of `decode`.

    Raises:
        UserError: if the pixels cannot be read. The message begins with `name`.
    """
    with _in_one_line(name, b"image"):
        return _pixels(image, shape, fit)


def decode_crop(
    contents: bytes, name: str, box: tuple[int, int, int, int], shape: Shape, source_size: tuple[int, int]
) -> np.ndarray:
    """Decode the part `box` of an image to uint8 [C, H, W] of `shape`; for sets of aligned images of one size.

    The image is cropped before it is resized, so that no pixel outside the box contributes. The orientation of EXIF is
    not applied, because a box counts pixels as they are stored. simplejpeg decodes JPEGs to PIL's pixels, and torch
    resizes to PIL's pixels within one grey level; both together take half of PIL's time.

    Args:
        contents: The bytes of the file.
        name: The file's name, for messages.
        box: (left, upper, right, lower) in pixels of the file.
        shape: (C, H, W) with C = 1 (grey), 3 (RGB) or 4 (RGBA).
        source_size: (W, H) that the file must have.

    Raises:
        UserError: if `decode` would refuse the file, or if the file has another size than `source_size`.
    """
    channels, height, width = shape
    left, upper, right, lower = box
    with _in_one_line(name, contents):
        image = _jpeg(contents, source_size) if channels == 3 else None
        if image is None:
            image = _aligned(contents, _MODES[channels], source_size)
        # Torch takes twice as long for a view. numpy copies, because torch would wake OpenMP's threads for the copy.
        cropped = np.ascontiguousarray(image[upper:lower, left:right])
        resized = F.interpolate(_chw(cropped)[None], (height, width), mode="bilinear", antialias=True)
        pixels = resized[0].numpy()
        return _without_hidden_colours(pixels)


def image_size(contents: bytes, name: str) -> tuple[int, int]:
    """Return (W, H) of an image file as `decode` sees it, turned as EXIF says. The pixels are not read.

    Args:
        contents: The bytes of the file.
        name: The file's name, for messages.

    Raises:
        UserError: if the file is no image. The message begins with `name`.
    """
    with _in_one_line(name, contents):
        image = _open(contents)
        turned = False
        with contextlib.suppress(Exception):  # broken EXIF turns nothing
            turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return image.size[::-1] if turned else image.size


def check_shape(shape: Shape) -> None:
    """Check that images can be decoded to `shape`.

    Args:
        shape: (C, H, W).

    Raises:
        UserError: unless C is 1, 3 or 4 and H, W are positive.
    """
    if len(shape) != 3 or shape[0] not in _MODES or min(shape) < 1:
        raise UserError(
            f"image shape {tuple(shape)}: expected (C, H, W) with C = 1 (grey), 3 (RGB) or 4 (RGBA) and positive H, W"
        )


def is_web_page(contents: bytes) -> bool:
    """Whether a file is HTML, whatever its name. Servers send HTML in place of a file that they refuse to send.

    Args:
        contents: The bytes of the file; the first 1,024 are enough.
    """
    start = contents[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head"))


def _open(contents: bytes) -> Image.Image:
    """Read the header of an image. The pixels are read later."""
    _silence()
    image = Image.open(io.BytesIO(contents), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise _ImageError(f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS:,}")
    return image


def _chw(pixels: np.ndarray) -> Tensor:
    """View [H, W, C] as [C, H, W], without a copy."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _aligned(contents: bytes, mode: str, size: tuple[int, int]) -> np.ndarray:
    """Decode an image by PIL and refuse another size (W, H) than `size`: uint8 [H, W, C]."""
    image = _open(contents)
    if image.size != size:
        actual = f"{image.width} x {image.height}"
        raise _ImageError(f"{actual} pixels, expected {size[0]} x {size[1]} like the rest of the set")
    return np.atleast_3d(np.array(_in_mode(image, mode)))


def _jpeg(contents: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """Decode a whole colour JPEG of this size (W, H): uint8 [H, W, 3]. None for other files, which PIL decodes."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(contents)
        if (width, height) != size or colours not in ("YCbCr", "RGB"):
            return None
        return simplejpeg.decode_jpeg(contents, "RGB")
    except ValueError:  # a broken file
        return None


def _silence() -> None:
    """Ignore PIL's warnings, which are about odd metadata and not about the pixels.

    The filter stays in front for the whole process. `warnings.catch_warnings` could not be used here, because it
    restores one list for all threads, and the warnings of a thread that still decodes would appear. If a caller's
    `catch_warnings` has removed the filter, the next call inserts it again.
    """
    if warnings.filters[:1] != [_SILENCE]:
        with _silencing:  # `filterwarnings` removes an equal filter before it inserts one
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
    """Convert the image to PIL's `mode` L, RGB or RGBA. For L and RGB, transparent pixels are laid on black."""
    if image.mode == "F":
        raise _ImageError("floating-point pixels, which have no fixed range; expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        image = _eight_bits(image, grey_bits)
    if image.mode == "LAB":  # PIL converts LAB to RGB only
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
    """round(255 v / (2^grey_bits - 1)) for 16-bit grey v; PIL's own conversion clips at 255.

    A value that the file calls transparent is compared before the scaling, which maps several values to one.
    """
    values, white = np.asarray(image).astype(np.int32), 2**grey_bits - 1
    if values.min() < 0 or values.max() > white:
        raise _ImageError(f"grey values {values.min()} to {values.max()}, expected {grey_bits} bits: 0 to {white}")
    grey = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is None:
        return grey
    opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(opaque)))


def _fitted(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Resize the image to `size` (W, H), cropped, padded or stretched."""
    if fit == "stretch":
        return _resize(image, size)
    ratios = size[0] / image.width, size[1] / image.height
    scale = max(ratios) if fit == "crop" else min(ratios)
    scaled = round(image.width * scale), round(image.height * scale)
    if min(scaled) < 1:
        raise _ImageError(f"{image.width} x {image.height} pixels shrink to {scaled[0]} x {scaled[1]}; use `crop`")
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    if fit == "crop":  # in one pass: the box whose pixels a resize to `scaled` and a crop of whole pixels would keep
        across, down = image.width / scaled[0], image.height / scaled[1]
        right, lower = min(image.width, (left + size[0]) * across), min(image.height, (top + size[1]) * down)
        return _resize(image, size, (left * across, top * down, right, lower))
    canvas = Image.new(image.mode, size)
    canvas.paste(_resize(image, scaled), (-left, -top))
    return canvas


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR, box)  # change `FILTER` with this line


def _pixels(image: Image.Image, shape: Shape, fit: Fit, grey_bits: int = 16) -> np.ndarray:
    """The pixels in the mode and the size of `shape`, as uint8 [C, H, W], in memory of their own."""
    channels, height, width = shape
    image = _fitted(_in_mode(image, _MODES[channels], grey_bits), (width, height), fit)
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)
    return _without_hidden_colours(pixels.transpose(2, 0, 1).copy())  # [C, H, W]


def _without_hidden_colours(pixels: np.ndarray) -> np.ndarray:
    """Set pixels of an RGBA image to black if they are fully transparent."""
    return pixels * (pixels[3:] > 0) if len(pixels) == 4 else pixels


@contextlib.contextmanager
def _in_one_line(name: str, contents: bytes) -> Iterator[None]:
    """Raise a UserError that begins with the file's name for whatever the file makes PIL raise."""
    try:
        yield
    except Exception as error:  # a broken file can raise any exception in PIL's parsers
        raise UserError(f"{name}: {_reason(error, contents)}") from error


def _reason(error: Exception, contents: bytes) -> str:
    """The fault of a file in one line, without the file's name."""
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
