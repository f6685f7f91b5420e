"""Pixels as the bytes of a PNG file or of an animated GIF."""

from __future__ import annotations

import io

from torch import Tensor


def png_bytes(grid: Tensor) -> bytes:
    """Return the bytes of a PNG file.

    Args:
        grid: uint8 [3, H, W].
    """
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy()).save(png, format="PNG")
    return png.getvalue()


def gif_bytes(frames: Tensor, milliseconds: int = 150) -> bytes:
    """Return the bytes of an animated GIF that starts again at its end.

    Args:
        frames: uint8 [T, 3, H, W].
        milliseconds: How long each frame is shown.
    """
    from PIL import Image

    images = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).quantize(256) for frame in frames]
    gif = io.BytesIO()
    images[0].save(gif, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return gif.getvalue()
