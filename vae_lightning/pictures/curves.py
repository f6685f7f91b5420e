"""Charts of curves and bars as SVG: text that a browser draws, without a plotting library."""

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
    finite = [point for points in series.values() for point in points if _is_finite(point)]
    x_range, y_range = _range([x for x, _ in finite], 0.0), _range([y for _, y in finite], 0.04)
    x_axis, y_axis = _place_axes(x_range, y_range, title, y_label, width, height)
    names = list(series)
    rows = _legend_rows([name for name in names if len(names) > 1 or name not in ("", y_label)], width)
    parts = [*_draw_y(x_axis, y_axis, y_label), *_draw_x(x_axis, y_axis), *_draw_names(x_axis, y_axis, title, x_label)]
    for i, (name, points) in enumerate(series.items()):
        parts += _curve(points, x_axis, y_axis, i, name)
    parts += _legend(rows, names, height)
    if not finite:
        parts.append(_text((x_axis.start + x_axis.end) / 2, height / 2, "no values"))
    return _document(parts, width, height + _ROW * len(rows), title or y_label or "chart")


def bar_chart(
    values: Mapping[str, float],
    errors: Sequence[float | None] = (),
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    width: int = 480,
    height: int = 300,
) -> str:
    """Draw a bar for each value, from zero, with a line of two standard errors to either side: SVG text.

    Args:
        values: The values by the name below the bar; names without room are left out. A value that is not finite has
            no bar.
        errors: The standard error of each value, None where it is unknown; empty if all are unknown.
        title: The text above the chart.
        x_label: What the names are.
        y_label: The name and the unit of the values.
        width: Pixels.
        height: Pixels.

    Raises:
        ValueError: if the chart is smaller than 120 x 100 pixels.
    """
    known = [error if error is not None and math.isfinite(error) else 0.0 for error in errors] or [0.0] * len(values)
    ends = [value + sign * 2 * e for value, e in zip(values.values(), known, strict=True) for sign in (-1, 1)]
    low, high = _range([0.0, *(end for end in ends if math.isfinite(end))], 0.0)
    x_axis, y_axis = _place_axes((0.0, max(1.0, len(values))), (low, high), title, y_label, width, height)
    parts = [*_draw_y(x_axis, y_axis, y_label), *_draw_names(x_axis, y_axis, title, x_label)]
    each = (x_axis.end - x_axis.start) / max(1, len(values))
    room = math.ceil((_LETTER * max(map(len, values), default=0) + 4) / each)  # a name for each so many bars
    for i, ((name, value), error) in enumerate(zip(values.items(), known, strict=True)):
        middle = x_axis(i + 0.5)
        if math.isfinite(value):
            top, bottom = sorted((y_axis(value), y_axis(0.0)))
            at = f'x="{middle - 0.35 * each:.2f}" y="{top:.2f}" width="{0.7 * each:.2f}" height="{bottom - top:.2f}"'
            parts.append(f'<rect {at} fill="{_COLOURS[0]}"><title>{escaped(name)}: {value:.4g}</title></rect>')
            if error:
                parts.append(_line(middle, y_axis(value - 2 * error), middle, y_axis(value + 2 * error)))
        if i % room == 0:
            parts.append(_text(middle, y_axis.start + 16, name))
    return _document(parts, width, height, title or y_label or "chart")


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
        tries = ([f"{value:.{digits}g}" for value in values] for digits in range(3, 18))
        return next(labels for labels in tries if len(set(labels)) == len(set(values)))
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


def _place_axes(
    x_range: tuple[float, float], y_range: tuple[float, float], title: str, y_label: str, width: int, height: int
) -> tuple[Axis, Axis]:
    """Return the axes of a chart, with room for the texts around them."""
    if width < 120 or height < 100:
        raise ValueError(f"a chart of {width} x {height} pixels is too small; give at least 120 x 100")
    y_axis = Axis(*y_range, height - 42, 22 if title else 8)
    longest = max(map(len, tick_labels(_y_ticks(y_axis))))
    left = 14 + _LETTER * longest + (16 if y_label else 0)
    return Axis(*x_range, left, width - 12), y_axis


def _y_ticks(y_axis: Axis) -> list[float]:
    return ticks(y_axis.low, y_axis.high, max(2, int(y_axis.start - y_axis.end) // _TICK_DISTANCE["y"]))


def _draw_y(x_axis: Axis, y_axis: Axis, label: str) -> list[str]:
    """Draw the axis of y, its name, and a faint line with its number at each tick."""
    left, right, middle = x_axis.start, x_axis.end, (y_axis.start + y_axis.end) / 2
    parts = [_line(left, y_axis.start, left, y_axis.end)]
    values = _y_ticks(y_axis)
    for value, number in zip(values, tick_labels(values), strict=True):
        parts.append(_line(left, y_axis(value), right, y_axis(value), ' stroke-opacity="0.15"'))
        parts.append(_text(left - 5, y_axis(value) + 4, number, "end"))
    if label:
        parts.append(_text(12, middle, label, extra=f' transform="rotate(-90 12 {middle:.1f})"'))
    return parts


def _draw_x(x_axis: Axis, y_axis: Axis) -> list[str]:
    """Draw the numbers of x, each below a short line."""
    parts = []
    values = ticks(x_axis.low, x_axis.high, max(2, int(x_axis.end - x_axis.start) // _TICK_DISTANCE["x"]))
    for value, number in zip(values, tick_labels(values), strict=True):
        at = x_axis(value)
        half = _LETTER * len(number) / 2  # a number at the right edge is moved, so that it stays in the picture
        parts.append(_line(at, y_axis.start, at, y_axis.start + 4))
        parts.append(_text(min(at, x_axis.end + 11 - half), y_axis.start + 16, number))
    return parts


def _draw_names(x_axis: Axis, y_axis: Axis, title: str, x_label: str) -> list[str]:
    """Draw the axis of x, its name, and the title."""
    middle = (x_axis.start + x_axis.end) / 2
    parts = [_line(x_axis.start, y_axis.start, x_axis.end, y_axis.start)]
    parts += [_text(middle, y_axis.start + 33, x_label)] if x_label else []
    return parts + ([_text(middle, 13, title, extra=' font-weight="bold"')] if title else [])


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
