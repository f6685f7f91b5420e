"""Image files of every kind become known pixels of one shape, or one line that begins with the file's name."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from vae_lightning.data import decode as module
from vae_lightning.storage.decode import (
    FILTER,
    IMAGE_SUFFIXES,
    Fit,
    _aligned,
    _jpeg,
    check_shape,
    decode,
    decode_crop,
)
from vae_lightning.types import Shape, UserError

NAME = "a folder/fünf.jpg"
BOX, SIZE = (15, 35, 163, 183), (178, 218)  # CelebA's
BILINEAR = Image.Resampling.BILINEAR
CORNERS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8).reshape(2, 2, 3)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 178, height: int = 218, seed: int = 0) -> Image.Image:
    """Smooth colours and some noise."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([128 + 90 * np.sin(x / 17), 128 + 90 * np.cos(y / 23), (x + y) * 255 / (width + height)], -1)
    noise = np.random.default_rng(seed).normal(0, 6, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def flat(mode: str, colour: Any, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


def corners(width: int = 32, height: int = 48) -> Image.Image:
    """Red and green above blue and yellow."""
    return Image.fromarray(CORNERS).resize((width, height), Image.Resampling.NEAREST)


def corner_colours(pixels: np.ndarray) -> np.ndarray:
    """[4, 3], rounded: upper left, upper right, lower left, lower right."""
    return np.round(pixels[:, [2, 2, -3, -3], [2, -3, 2, -3]].T / 255).astype(int)


def refused(contents: bytes, shape: Shape = (3, 8, 8), fit: Fit = "crop") -> str:
    """The message of the refusal without the file's name."""
    with pytest.raises(UserError) as caught:
        decode(contents, NAME, shape, fit)
    text = str(caught.value)
    assert text.startswith(f"{NAME}: ")
    assert "\n" not in text
    return text.removeprefix(f"{NAME}: ")


def test_an_image_of_the_right_size_and_mode_is_not_changed() -> None:
    """The pixels are those of the file, in memory that can be written to."""
    image = photo(20, 30)
    pixels = decode(encode(image), NAME, (3, 30, 20))
    assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


# Modes


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), (255, 255, 255)),
        (flat("RGB", (10, 200, 30)), (10, 200, 30)),
        (flat("RGB", (10, 200, 30)).quantize(4), (10, 200, 30)),
        (flat("LA", (200, 255)), (200, 200, 200)),
        (flat("LA", (200, 0)), (0, 0, 0)),
        (flat("RGBA", (200, 100, 50, 0)), (0, 0, 0)),
        (flat("RGBA", (200, 100, 50, 51)), (40, 20, 10)),  # a fifth of the colour, on black
    ],
    ids=["grey", "1-bit", "rgb", "palette", "opaque-grey", "clear-grey", "clear", "veiled"],
)
@pytest.mark.parametrize("resized", [False, True])
def test_every_mode_becomes_rgb_grey_and_rgba(image: Image.Image, rgb: tuple[int, int, int], resized: bool) -> None:
    height, width = (9, 5) if resized else (4, 6)
    contents = encode(image)
    assert np.array_equal(decode(contents, NAME, (3, height, width), "stretch")[:, 1, 1], rgb)
    luma = np.dot(rgb, [0.299, 0.587, 0.114])
    grey = decode(contents, NAME, (1, height, width), "stretch")
    assert grey.shape == (1, height, width)
    assert abs(int(grey[0, 1, 1]) - luma) <= 1
    alpha = image.getpixel((0, 0))[-1] if image.mode in ("LA", "RGBA") else 255  # type: ignore[index]
    rgba = decode(contents, NAME, (4, height, width), "stretch")[:, 1, 1]
    assert rgba[3] == alpha
    assert np.abs(rgba[:3] * (alpha / 255) - rgb).max() <= 1


def test_transparent_pixels_show_no_hidden_colour() -> None:
    """Half of the image is transparent and bright red. After a resize no red shows, neither on black nor in RGBA."""
    image = flat("RGBA", (255, 0, 0, 0), (8, 8))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    for shape in [(3, 8, 8), (3, 5, 5), (4, 8, 8), (4, 5, 5)]:
        pixels = decode(encode(image), NAME, shape)
        assert pixels[0].max() == 0
        assert pixels[2, :, 0].min() == 255
        assert pixels[2, :, -1].max() == 0


@pytest.mark.parametrize("transparency", [bytes([0, 255]), 0], ids=["bytes", "index"])
def test_a_palette_with_transparency(transparency: bytes | int) -> None:
    image = flat("P", 0)
    image.putpalette([250, 120, 60, 10, 20, 30])
    image.putpixel((5, 3), 1)
    pixels = decode(encode(image, transparency=transparency), NAME, (3, 4, 6))
    assert pixels[:, 0, 0].tolist() == [0, 0, 0]
    assert pixels[:, 3, 5].tolist() == [10, 20, 30]
    assert decode(encode(image, transparency=transparency), NAME, (4, 4, 6))[:, 0, 0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (9, 8, 7)), ("L", 9)])
def test_a_transparent_colour_is_laid_on_black(mode: str, key: Any) -> None:
    image = flat(mode, key)
    image.paste(200 if mode == "L" else (200, 200, 200), (0, 0, 3, 4))
    for shape in [(1, 4, 6), (3, 4, 6)]:
        pixels = decode(encode(image, transparency=key), NAME, shape)
        assert pixels[:, :, :3].min() == 200
        assert pixels[:, :, 3:].max() == 0


def test_cmyk_jpeg_has_the_colours_of_its_rgb() -> None:
    """PIL writes the inverted CMYK of Adobe, like Photoshop."""
    contents = encode(corners().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert b"Adobe" in contents
    pixels = decode(contents, NAME, (3, 48, 32))
    assert np.array_equal(corner_colours(pixels), CORNERS.reshape(4, 3) // 255)


def test_ycck_jpeg_is_not_taken_for_cmyk() -> None:
    """The same samples have other colours under Adobe's transform 2 (YCCK) than under 0 (CMYK)."""
    contents = encode(flat("CMYK", (0, 128, 128, 0), (16, 16)), "JPEG", quality=95, subsampling=0)
    at = contents.index(b"Adobe") + 11
    assert contents[at] in (0, 2)
    pixels = {flag: decode(contents[:at] + bytes([flag]) + contents[at + 1 :], NAME, (3, 16, 16)) for flag in (0, 2)}
    assert np.abs(pixels[0].astype(int) - pixels[2]).max() > 50


def ramp() -> np.ndarray:
    """Each 16-bit value once."""
    return np.arange(65536, dtype=np.uint16).reshape(256, 256)


def sixteen_bit_files() -> Iterator[tuple[str, bytes]]:
    yield "png", encode(Image.fromarray(ramp()))
    for kind, order in (("tiff-little", "<u2"), ("tiff-big", ">u2")):
        image = Image.frombytes("I;16" if order == "<u2" else "I;16B", (256, 256), ramp().astype(order).tobytes())
        yield kind, encode(image, "TIFF")
    yield "pgm", b"P5 256 256 65535\n" + ramp().astype(">u2").tobytes()
    yield "tiff-int32", encode(Image.fromarray(ramp().astype(np.int32)), "TIFF")


@pytest.mark.parametrize("contents", [pytest.param(file, id=kind) for kind, file in sixteen_bit_files()])
def test_sixteen_bits_are_scaled_not_clipped(contents: bytes) -> None:
    expected = np.round(ramp().astype(float) / 257)
    for channels in (1, 3):
        assert np.array_equal(decode(contents, NAME, (channels, 256, 256))[channels - 1], expected)


def test_a_transparent_value_of_sixteen_bits() -> None:
    values = np.full((4, 6), 51400, np.uint16)
    values[:, 3:] = 51401  # the same value in 8 bits
    pixels = decode(encode(Image.fromarray(values), transparency=51401), NAME, (1, 4, 6))
    assert pixels[0, 0].tolist() == [200, 200, 200, 0, 0, 0]


def test_lab_becomes_grey_too() -> None:
    pixels = decode(encode(flat("RGB", (10, 200, 30)).convert("LAB"), "TIFF"), NAME, (1, 4, 6))
    assert abs(int(pixels[0, 0, 0]) - 124) <= 5  # L* has 8 bits


def test_pixels_without_a_range_are_refused() -> None:
    assert "floating-point pixels" in refused(encode(flat("F", 0.5), "TIFF"))
    assert "grey values 0 to 70000, expected 16 bits" in refused(
        encode(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_give_the_same_pixels(kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    image = flat("RGB", (12, 130, 250), (16, 16))
    assert np.array_equal(decode(encode(image, kind, **options), NAME, (3, 16, 16))[:, 7, 7], (12, 130, 250))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first(kind: str) -> None:
    frames = [flat("RGB", colour, (16, 16)) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    options = {"lossless": True} if kind == "WEBP" else {}
    contents = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(contents)) as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    assert decode(contents, NAME, (3, 16, 16))[:, 8, 8].tolist() == [255, 0, 0]


# Orientation

TURNED = {  # which corner is shown at each of the four, by EXIF's definition of the 8 orientations
    1: [0, 1, 2, 3],
    2: [1, 0, 3, 2],
    3: [3, 2, 1, 0],
    4: [2, 3, 0, 1],
    5: [0, 2, 1, 3],
    6: [2, 0, 3, 1],
    7: [3, 1, 2, 0],
    8: [1, 3, 0, 2],
}


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    pixels = decode(encode(corners(), kind, exif=exif_of(orientation)), NAME, (3, 40, 40), "stretch")
    assert np.array_equal(corner_colours(pixels), CORNERS.reshape(4, 3)[TURNED[orientation]] // 255)


def test_a_turned_image_is_fitted_by_its_turned_sides() -> None:
    """An image of 32 x 48, turned by a right angle, is 48 x 32; `pad` adds black above and below it."""
    pixels = decode(encode(corners(), exif=exif_of(6)), NAME, (3, 48, 48), "pad")
    assert np.array_equal(pixels.any(axis=(0, 2)), [False] * 8 + [True] * 32 + [False] * 8)
    assert pixels.any(axis=(0, 1)).all()


def test_exif_behind_the_pixels_of_a_png() -> None:
    contents, exif = encode(corners()), exif_of(3).tobytes()[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    pixels = decode(contents[:-12] + chunk + contents[-12:], NAME, (3, 48, 32))
    assert np.array_equal(corner_colours(pixels), CORNERS.reshape(4, 3)[TURNED[3]] // 255)


def test_a_picture_is_turned_although_its_exif_cannot_be_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken tag beside a good orientation. Pillow rewrites the EXIF after it has turned the pixels."""
    contents = encode(corners(), exif=exif_of(6))

    def broken(*_: object) -> bytes:
        raise TypeError("a tag of another type")

    monkeypatch.setattr(Image.Exif, "tobytes", broken)
    pixels = decode(contents, NAME, (3, 40, 40), "stretch")
    assert np.array_equal(corner_colours(pixels), CORNERS.reshape(4, 3)[TURNED[6]] // 255)


def test_broken_exif_does_not_refuse_a_good_picture() -> None:
    """EXIF that is cut at any place, or has random bytes after `Exif`, causes neither an error nor a warning."""
    random, good = np.random.default_rng(0), exif_of(6).tobytes()
    cut = [good[:length] for length in range(6, len(good))]
    changed = [good[:6] + random.bytes(random.integers(1, 60)) for _ in range(50)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for exif in [*cut, *changed, *(good[:6] + b"II*\x00\x08\x00\x00\x00" + rest for rest in changed)]:
            for kind in ("JPEG", "PNG", "WEBP"):
                decode(encode(corners(16, 24), kind, exif=exif), NAME, (3, 8, 8))
    assert caught == []


# Fit


@pytest.mark.parametrize("size", [(40, 40), (100, 40), (40, 100), (33, 47), (7, 90), (64, 65)])
def test_crop_keeps_the_centre(size: tuple[int, int]) -> None:
    """Up to rounding, `crop` resizes until the short side fits and cuts whole pixels evenly."""
    image, (height, width) = photo(*size), (24, 32)
    scale = max(width / size[0], height / size[1])
    scaled = round(size[0] * scale), round(size[1] * scale)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    plain = image.resize(scaled, BILINEAR).crop((left, top, left + width, top + height))
    pixels = decode(encode(image), NAME, (3, height, width), "crop")
    assert np.abs(pixels.astype(int) - np.asarray(plain).transpose(2, 0, 1)).max() <= 1


def test_crop_without_a_change_of_scale_copies_pixels() -> None:
    """The image has one column too many; the crop is not blurred by half a pixel."""
    image = photo(33, 32)
    assert np.array_equal(decode(encode(image), NAME, (3, 32, 32)), np.asarray(image)[:, :32].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("size", "content"), [((40, 20), (20, 40)), ((20, 40), (40, 20)), ((40, 10), (10, 40)), ((80, 30), (15, 40))]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pad_has_black_and_even_borders(size: tuple[int, int], content: tuple[int, int], channels: int) -> None:
    pixels = decode(encode(flat("RGB", (255, 255, 255), size)), NAME, (channels, 40, 40), "pad")
    assert set(np.unique(pixels).tolist()) == {0, 255}
    for axis, length in zip((2, 1), content, strict=True):
        filled = np.flatnonzero(pixels.any(axis=(0, axis)))
        assert len(filled) == length
        assert filled[-1] - filled[0] + 1 == length
        assert abs(filled[0] - (39 - filled[-1])) <= 1
    assert np.array_equal(pixels[-1], pixels[0])  # in RGBA the borders are transparent


def test_stretch_is_a_plain_resize() -> None:
    image = photo(100, 40)
    plain = np.asarray(image.resize((32, 24), BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decode(encode(image), NAME, (3, 24, 32), "stretch"), plain)


def test_resizing_is_antialiased() -> None:
    """Stripes of one pixel become grey. Without antialiasing some would stay black or white."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    for fit in ("crop", "pad", "stretch"):
        pixels = decode(encode(stripes), NAME, (1, 8, 8), fit)
        assert np.abs(pixels[:, :, 1:-1].astype(int) - 127).max() <= 2
    assert "antialiased" in FILTER


def test_an_extreme_aspect() -> None:
    line = encode(flat("L", 255, (2000, 1)))
    assert "2000 x 1 pixels shrink to 64 x 0" in refused(line, (1, 64, 64), "pad")
    for fit in ("crop", "stretch"):
        assert decode(line, NAME, (1, 64, 64), fit).min() == 255


# Aligned sets


@pytest.mark.parametrize("box", [BOX, (15, 40, 163, 188), (0, 0, 178, 218), (57, 77, 121, 141)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_decode_crop_equals_pil_within_one_level(box: tuple[int, int, int, int], mode: str) -> None:
    contents = encode(photo().convert(mode), "JPEG", quality=95)
    with Image.open(io.BytesIO(contents)) as image:
        plain = np.asarray(image.convert("RGB").crop(box).resize((64, 48), BILINEAR))
    pixels = decode_crop(contents, NAME, box, (3, 48, 64), SIZE)
    difference = np.abs(pixels.astype(int) - plain.transpose(2, 0, 1))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01  # rounding


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_both_decoders_give_the_same_pixels(progressive: bool, subsampling: int) -> None:
    contents = encode(photo(), "JPEG", quality=80, progressive=progressive, subsampling=subsampling)
    fast = _jpeg(contents, SIZE)
    assert fast is not None
    assert np.array_equal(fast, _aligned(contents, "RGB", SIZE))


def test_other_files_than_whole_colour_jpegs_are_left_to_pil() -> None:
    whole = encode(photo(), "JPEG")
    others = [encode(photo(178, 217), "JPEG"), encode(photo().convert("L"), "JPEG"), encode(photo()), b"", whole[:300]]
    others += [whole[: len(whole) // 2], encode(photo().convert("CMYK"), "JPEG")]
    assert [_jpeg(contents, SIZE) for contents in others] == [None] * len(others)


def test_no_pixel_outside_of_the_box_contributes() -> None:
    image = flat("RGB", (255, 0, 0), SIZE)
    image.paste((0, 0, 255), BOX)
    pixels = decode_crop(encode(image), NAME, BOX, (3, 64, 64), SIZE)
    assert pixels.reshape(3, -1).max(axis=1).tolist() == [0, 0, 255]


def test_decode_crop_agrees_with_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    contents = encode(photo(), "JPEG", quality=95)
    with Image.open(io.BytesIO(contents)) as image:
        peer = np.asarray(transforms.Resize(64)(transforms.CenterCrop(148)(image.convert("RGB"))))
    pixels = decode_crop(contents, NAME, BOX, (3, 64, 64), SIZE)
    assert np.abs(pixels.astype(int) - peer.transpose(2, 0, 1)).max() <= 1


def test_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=f"^{NAME}: 178 x 217 pixels, expected 178 x 218"):
        decode_crop(encode(photo(178, 217)), NAME, BOX, (3, 64, 64), SIZE)


def test_decode_crop_names_a_broken_file() -> None:
    contents = encode(photo(), "JPEG")
    for broken in (b"", contents[: len(contents) // 2]):
        with pytest.raises(UserError, match=f"^{NAME}: .*expected a whole image"):
            decode_crop(broken, NAME, BOX, (3, 64, 64), SIZE)


# Broken files


def png(width: int, height: int, *, colour: int = 2) -> bytes:
    """A PNG of a few bytes whose header claims `width` x `height`."""
    chunks = b""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "empty, expected a whole image"),
        (b"\n<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded", "a web page, expected"),
        (b"\xef\xbb\xbf<HTML>", "a web page, expected"),
        (b"hello", "not an image, or one with a broken header: it begins with 68 65 6c 6c, expected"),
        (b"\x00" * 5000, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encode(photo())[:15], "not an image, or one with a broken header: it begins with 89 50 4e 47"),
        (png(50_000, 50_000), "2500000000 pixels, expected at most 100,000,000"),
        (png(10_001, 10_000), "10001 x 10000 pixels, expected at most 100,000,000"),  # PIL only warns of this size
        (png(10_000, 10_000, colour=0), "cannot be decoded .*truncated"),  # not too large, but its pixels are missing
        (png(2**31 - 1, 2**31 - 1), "4611686014132420609 pixels, expected at most"),
        (png(0, 5), "not an image"),
    ],
    ids=[
        "empty",
        "html",
        "html-with-mark",
        "text",
        "zeros",
        "postscript",
        "half-a-header",
        "bomb",
        "pil-warns",
        "largest",
        "enormous",
        "no-width",
    ],
)
def test_a_file_that_is_no_whole_image_is_named(contents: bytes, message: str) -> None:
    assert re.search(f"^{message}", refused(contents))


def test_a_bomb_is_found_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pixels(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", no_pixels)
    assert "decoded" in refused(png(9_999, 10_000, colour=0))
    for size in [(10_001, 10_000), (50_000, 50_000)]:
        assert "decoded" not in refused(png(*size))


def test_pil_is_left_as_it_is() -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    refused(png(50_000, 50_000))
    decode(encode(photo()), NAME, (3, 8, 8))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    contents = encode(photo(90, 120), kind)
    decode(contents, NAME, (3, 8, 8))
    assert "expected a whole image" in refused(contents[: int(part * len(contents))])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "MemoryError"),
        (struct.error("unpack\nrequires"), "error: unpack requires"),
        (AttributeError("x"), "AttributeError: x"),
    ],
)
def test_whatever_pil_raises_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    assert message in refused(encode(photo()))


def damaged(contents: bytes, count: int) -> Iterator[bytes]:
    """`count` damaged copies, the same in each run: some bytes changed or the end cut off, half in the header."""
    random = np.random.default_rng(0)
    for number in range(count):
        broken = bytearray(contents)
        if number % 3 == 2:
            broken = broken[: random.integers(len(broken))]
        else:
            limit = 200 if number % 2 else len(broken)
            for _ in range(random.integers(1, 5)):
                broken[random.integers(limit)] = random.integers(256)
        yield bytes(broken)


def with_metadata(kind: str) -> bytes:
    exif = exif_of(6)
    exif[ExifTags.Base.Make] = "Maker"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:01:01 00:00:00"
    return encode(photo(60, 80), kind, exif=exif)


@pytest.mark.parametrize(("kind", "count"), [("JPEG", 300), ("PNG", 300), ("TIFF", 100), ("GIF", 60), ("WEBP", 60)])
def test_damage_ends_in_pixels_or_in_one_line(kind: str, count: int) -> None:
    contents = with_metadata(kind) if kind != "GIF" else encode(photo(60, 80), kind)
    refusals = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for broken in damaged(contents, count):
            try:
                assert decode(broken, NAME, (3, 16, 16)).shape == (3, 16, 16)
            except UserError as error:
                assert str(error).startswith(f"{NAME}: ")  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
                refusals += 1
    assert caught == []
    assert count // 4 < refusals < count


def metadata_that_pil_warns_of() -> bytes:
    """A JPEG with a tag in its EXIF that points beyond the end of the EXIF."""
    tag = struct.pack("<HHII", ExifTags.Base.Make, 2, 1000, 5000)
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", 1) + tag + bytes(4)
    return encode(photo(), "JPEG", exif=exif)


def test_pil_does_warn_of_such_files() -> None:
    """The next test rests on this."""
    contents = io.BytesIO(metadata_that_pil_warns_of())
    with pytest.warns(UserWarning, match="Skipping tag|Truncated"), Image.open(contents) as image:
        image.getexif()


@pytest.mark.parametrize(
    "contents", [metadata_that_pil_warns_of(), png(9_500, 9_500, colour=0)], ids=["metadata", "pixels"]
)
def test_warnings_neither_leak_nor_refuse(contents: bytes) -> None:
    """Filters of the caller do not matter: warnings as errors or recorded, several times, in several threads."""
    expected = UserError if contents.startswith(b"\x89PNG") else None

    def run() -> str | None:
        try:
            decode(contents, NAME, (3, 8, 8))
        except UserError as error:
            return str(error)
        return None

    run()  # the filter exists already, but is not in front
    for action in ("error", "always", "error"):
        with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
            warnings.simplefilter(action)  # type: ignore[arg-type]
            messages = {future.result() for future in [pool.submit(run) for _ in range(16)]}
        assert caught == []
        assert all("truncated" in (text or "") for text in messages) if expected else messages == {None}


def test_other_warnings_are_not_silenced() -> None:
    decode(encode(photo()), NAME, (3, 8, 8))
    with pytest.warns(UserWarning, match="of the user's own"):
        warnings.warn("of the user's own", stacklevel=1)
    decode(encode(photo()), NAME, (3, 8, 8))
    with pytest.raises(DeprecationWarning):
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)


# The rest


def test_threads_give_the_same_as_one() -> None:
    files = [encode(photo(100 + i, 140 - i, i), kind) for i, kind in enumerate(["JPEG", "PNG", "WEBP", "GIF"] * 8)]

    def run(contents: bytes) -> np.ndarray:
        return decode(contents, NAME, (3, 32, 32))

    serial = [run(contents) for contents in files]
    assert len({pixels.tobytes() for pixels in serial}) == len(files)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert all(map(np.array_equal, pool.map(run, files), serial))


@pytest.mark.parametrize("shape", [(2, 8, 8), (0, 8, 8), (3, 8), (8, 8, 3), (3, 0, 8), (1, 8, -8), (1, 3, 8, 8), ()])
def test_other_shapes_are_refused(shape: Shape) -> None:
    with pytest.raises(UserError, match=rf"image shape {re.escape(str(shape))}: expected \(C, H, W\) with C = 1"):
        check_shape(shape)


def test_images_have_1_3_or_4_channels() -> None:
    for channels in (1, 3, 4):
        check_shape((channels, 5, 7))
        assert decode(encode(photo()), NAME, (channels, 5, 7)).shape == (channels, 5, 7)


def test_suffixes_are_those_of_formats_that_are_read() -> None:
    Image.init()
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
    assert {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES} <= set(module._FORMATS)
    assert {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".jp2"} <= IMAGE_SUFFIXES
