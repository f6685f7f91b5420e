"""Line charts as SVG: text that a browser draws, without a plotting library."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

# Each colour is readable on white and on black (contrast of at least 3). No two neighbours look alike to a reader who
# does not see red or green. The dashes tell the lines apart in grey; 6 colours and 5 dashes make 30 pairs.
_COLOURS = ("#2b7bba", "#d1600f", "#1d9168", "#b8589c", "#937200", "#7f6cc9")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4")
_FONT = 11  # pixels
_LETTER = 6.3  # pixels, the mean width of a letter of this size
_ROW = 17  # pixels, the height of a row of the legend
_SWATCH = 26  # pixels, the line before a name in the legend
_TICK_DISTANCE = {"x": 80, "y": 45}  # pixels, the least distance
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML has no place for


def escaped(text: object) -> str:
    """Return a text as HTML and XML can hold it: with entities, without control characters.

    Args:
        text: Any value; its `str` is taken.
    """
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)))


def line_chart(
    series: Mapping[str, Sequence[Point]],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    width: int = 480,
    height: int = 300,
) -> str:
    """Draw curves over each other: SVG text, for a page (`Page.chart`) or a file with the ending .svg.

    Each curve joins its points in the given order and has a gap where x or y is not finite. Axes and texts have the
    colour of the page's text. Where a curve has more points than the chart has pixels, its extremes stay.

    Args:
        series: The points (x, y) of each curve by its name; a name that differs from `y_label` stands in the legend.
        title: The text above the chart.
        x_label: The name and the unit of x.
        y_label: The name and the unit of y.
        width: Pixels.
        height: Pixels, without the legend, which adds a row for every few names.

    Raises:
        ValueError: if the chart is smaller than 120 x 100 pixels.
    """
    if width < 120 or height < 100:
        raise ValueError(f"a chart of {width} x {height} pixels is too small; give at least 120 x 100")
    finite = [point for points in series.values() for point in points if _is_finite(point)]
    left_to_right, bottom_to_top = _range([x for x, _ in finite], 0.0), _range([y for _, y in finite], 0.04)
    room = height - 42 - (20 if title else 0)
    y_ticks = ticks(*bottom_to_top, max(2, room // _TICK_DISTANCE["y"]))
    left = 14 + _LETTER * max(map(len, tick_labels(y_ticks)), default=0) + (16 if y_label else 0)
    x_axis = Axis(*left_to_right, left, width - 12)
    y_axis = Axis(*bottom_to_top, height - 42, 20 if title else 8)
    names = [name for name in series if len(series) > 1 or name not in ("", y_label)]
    rows = _legend_rows(names, width)
    parts = [
        *_axes(x_axis, y_axis, x_label, y_label),
        *(
            part
            for i, points in enumerate(series.values())
            for part in _curve(points, x_axis, y_axis, i, list(series)[i])
        ),
        *_legend(rows, list(series), height),
    ]
    if not finite:
        parts.append(_text((left + width) / 2, height / 2, "no values"))
    if title:
        parts.append(_text(width / 2, 13, title, extra=' font-weight="bold"'))
    return _document(parts, width, height + _ROW * len(rows), title or y_label or "chart")


@dataclass(frozen=True)
class Axis:
    """The straight line that takes values to pixels: `low` to `start`, `high` to `end`.

    Args:
        low: The least value of the axis.
        high: The greatest value.
        start: The pixel of the least value.
        end: The pixel of the greatest value.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten in [low, high]: at most `most`, but at least one.

    Args:
        low: The least value.
        high: The greatest value, above `low`.
        most: The greatest number of ticks, at least 2.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [step * i for i in range(first, last + 1)] or [low]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Write ticks with as many digits as tell them apart; thousands as k, millions as M.

    Args:
        values: The values of the ticks, at equal distances.
    """
    largest = max(map(abs, values), default=0.0)
    step = abs(values[1] - values[0]) if len(values) > 1 else largest
    if largest >= 1e9 or 0 < step < 1e-4:
        return [f"{value:.3g}" for value in values]
    unit, letter = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e4 else (1.0, "")
    digits = max(0, -math.floor(math.log10(step / unit) + 1e-9)) if step else 0
    return ["0" if value == 0 else f"{value / unit:.{digits}f}{letter}" for value in values]


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Return the least and the greatest value, apart from each other, with a margin as a share of their distance."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        spread = max(abs(low) * 0.1, 1e-3 if low else 1.0)
        return low - spread, high + spread
    return low - margin * (high - low), high + margin * (high - low)


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _axes(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> list[str]:
    """Draw the two axes, a faint line at each tick of y, the numbers and the names."""
    left, right, bottom, top = x_axis.start, x_axis.end, y_axis.start, y_axis.end
    parts = []
    y_ticks = ticks(y_axis.low, y_axis.high, max(2, int(bottom - top) // _TICK_DISTANCE["y"]))
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        at = y_axis(value)
        parts.append(_line(left, at, right, at, ' stroke-opacity="0.15"'))
        parts.append(_text(left - 5, at + 4, label, "end"))
    x_ticks = ticks(x_axis.low, x_axis.high, max(2, int(right - left) // _TICK_DISTANCE["x"]))
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        at = x_axis(value)
        parts.append(_line(at, bottom, at, bottom + 4))
        half = _LETTER * len(label) / 2  # a label at the right edge is moved, so that it stays in the picture
        parts.append(_text(min(at, right + 11 - half), bottom + 16, label))
    parts += [_line(left, bottom, right, bottom), _line(left, top, left, bottom)]
    if x_label:
        parts.append(_text((left + right) / 2, bottom + 33, x_label))
    if y_label:
        middle = (top + bottom) / 2
        parts.append(_text(12, middle, y_label, extra=f' transform="rotate(-90 12 {middle:.1f})"'))
    return parts


def _curve(points: Sequence[Point], x_axis: Axis, y_axis: Axis, index: int, name: str) -> Iterator[str]:
    """Draw each stretch without a gap as a line, and a point between two gaps as a dot."""
    colour, dash = _style(index)
    for stretch in _stretches(points):
        pixels = [(x_axis(x), y_axis(y)) for x, y in _thinned(stretch, 2 * int(x_axis.end - x_axis.start))]
        if len(pixels) == 1:
            (x, y), *_ = pixels
            yield f'<circle cx="{x:.2f}" cy="{y:.2f}" r="2.5" fill="{colour}"><title>{escaped(name)}</title></circle>'
            continue
        joined = " ".join(f"{x:.2f},{y:.2f}" for x, y in pixels)
        yield f'<polyline points="{joined}" stroke="{colour}"{dash}><title>{escaped(name)}</title></polyline>'


def _stretches(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Yield the points between two gaps."""
    stretch: list[Point] = []
    for point in points:
        if _is_finite(point):
            stretch.append(point)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _thinned(points: list[Point], most: int) -> list[Point]:
    """Return the first, the lowest, the highest and the last point of each group, if there are more than `most`."""
    if len(points) <= most:
        return points
    size = math.ceil(4 * len(points) / most)
    kept = []
    for start in range(0, len(points), size):
        group = range(start, min(start + size, len(points)))
        extremes = {group[0], group[-1], min(group, key=lambda i: points[i][1]), max(group, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(extremes)]
    return kept


def _style(index: int) -> tuple[str, str]:
    """Return the colour and the attribute of the dashes of a curve."""
    dash = _DASHES[index % len(_DASHES)]
    return _COLOURS[index % len(_COLOURS)], f' stroke-dasharray="{dash}"' if dash else ""


def _legend_rows(names: Sequence[str], width: int) -> list[list[str]]:
    """Break the names into rows that fit into the width; a name too long for a row has a row of its own."""
    rows: list[list[str]] = []
    used = float(width)
    for name in names:
        needed = _SWATCH + _LETTER * len(name) + 16
        if used + needed > width or not rows:
            rows.append([])
            used = 10.0
        rows[-1].append(name)
        used += needed
    return rows


def _legend(rows: Sequence[Sequence[str]], all_names: Sequence[str], top: float) -> Iterator[str]:
    """Draw the rows of the legend below the chart."""
    for i, row in enumerate(rows):
        x, y = 10.0, top + _ROW * i + 8
        for name in row:
            colour, dash = _style(all_names.index(name))
            yield f'<line x1="{x:.1f}" y1="{y}" x2="{x + _SWATCH - 6:.1f}" y2="{y}" stroke="{colour}"{dash}/>'
            yield _text(x + _SWATCH, y + 4, name, "start")
            x += _SWATCH + _LETTER * len(name) + 16


def _line(x1: float, y1: float, x2: float, y2: float, extra: str = "") -> str:
    at = f'x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"'
    return f'<line {at} stroke="currentColor" stroke-width="1"{extra}/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    at = f'x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"'
    return f'<text {at} fill="currentColor" stroke="none"{extra}>{escaped(text)}</text>'


def _document(parts: Sequence[str], width: int, height: int, name: str) -> str:
    """Put the parts into an SVG element, whose name a screen reader reads."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    style = f'font-family="sans-serif" font-size="{_FONT}" fill="none" stroke-width="1.8" stroke-linejoin="round"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escaped(name)}" {style}>']
    return "\n".join([*lines, *parts, "</svg>"])
