"""Numbers as text: the one form in which results go to the screen."""

from __future__ import annotations

import math
import re
from typing import SupportsFloat

_LARGE = 1e6


def number(value: SupportsFloat, places: int = 2) -> str:
    """With `places` decimals; with four digits and an exponent from a million on: -129.92, 7.863e+29."""
    value = float(value)
    return f"{value:.4g}" if abs(value) >= _LARGE else f"{value:z.{places}f}"  # z: no minus before a 0


def with_error(value: SupportsFloat, error: SupportsFloat | None, places: int = 2) -> str:
    """`value +- error`, with a question mark in the place of an error that is unknown (None or NaN)."""
    known = error is not None and not math.isnan(float(error))
    return f"{number(value, places)} +- {number(error, places) if known else '?'}"  # type: ignore[arg-type]


def in_words_of(text: str, is_of_images: bool) -> str:
    """The text, which speaks of images; with `example` in the place of `image` if the data are not images.

    Args:
        text: A line for the screen or for results.json.
        is_of_images: `LatentVariableModel.is_of_images`.
    """
    return text if is_of_images else re.sub(r"(?<![\w.-])image(s?)\b", r"example\1", text)


def value_and_error(value: float | None, error: float | None) -> str:
    """A number of a table with as many decimals as its error has meaning: `118.79 +- 1.44`; `8`; ? where unknown.

    Args:
        value: The number; None if unknown.
        error: Its standard error; None if unknown.
    """
    if value is None or math.isnan(value):
        return "?"
    if error is None or math.isnan(error):
        return f"{value:.0f}" if value == round(value) and abs(value) < _LARGE else f"{value:.4g}"
    places = 2 if not 0 < error < 0.1 else min(6, 1 - math.floor(math.log10(error)))
    return with_error(value, error, places)
