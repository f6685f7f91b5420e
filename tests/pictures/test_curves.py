"""Line charts: every chart is XML, a value lies where its tick lies, gaps stay gaps, names are escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import pytest

from vae_lightning.pictures import line_chart
from vae_lightning.pictures.curves import tick_labels, ticks

SVG = "{http://www.w3.org/2000/svg}"
NAN = math.nan


def curves(svg: str) -> list[list[tuple[float, float]]]:
    """Return the pixels of each line of a chart."""
    lines = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    return [[tuple(map(float, p.split(","))) for p in line.attrib["points"].split()] for line in lines]  # type: ignore[misc]


def texts(svg: str) -> dict[str, tuple[float, float]]:
    """Return the place of each text of a chart."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}text")
    return {text.text or "": (float(text.attrib["x"]), float(text.attrib["y"])) for text in found}


def test_a_value_lies_at_its_tick() -> None:
    svg = line_chart({"y": [(0, -200), (20, -100), (40, 0)]}, y_label="y")
    (first, second, third), *_ = curves(svg)
    places = texts(svg)
    assert [first[0], second[0], third[0]] == pytest.approx([places[name][0] for name in ("0", "20", "40")], abs=8)
    assert [p[1] + 4 for p in (first, second)] == pytest.approx([places[name][1] for name in ("-200", "-100")])
    assert first[1] > second[1] > third[1] > 0  # a greater value is higher
    assert second == pytest.approx(((first[0] + third[0]) / 2, (first[1] + third[1]) / 2), abs=0.02)
    assert 0 < first[0] < third[0] <= 480
    assert first[1] <= 300


@pytest.mark.parametrize(
    "series",
    [
        {},
        {"empty": []},
        {"nothing finite": [(0.0, NAN), (1.0, math.inf)]},
        {"one point": [(3.0, 5.0)]},
        {"constant": [(0.0, 1e-3), (1e6, 1e-3)]},
        {"tiny": [(0.0, 1e-12), (1e-9, 3e-12)], "huge": [(0.0, 1e15), (1.0, -1e15)]},
        {"nearly equal": [(0.0, 1e6), (1.0, 1e6 + 1e-6)]},
        {"a<b & \"c\" 'd' \x00": [(0.0, 1.0), (1.0, 2.0)], "</svg>": [(0.0, 2.0)]},
        {f"a long name of a curve {i}": [(0.0, i), (1.0, -i)] for i in range(40)},
    ],
    ids=lambda series: next(iter(series), "none")[:12],
)
def test_every_chart_is_xml(series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    root = ElementTree.fromstring(line_chart(series, "a <title>", "x & y", '"y"'))
    numbers = [
        float(value) for part in root.iter() for key, value in part.attrib.items() if key in ("x", "y", "x1", "y2")
    ]
    assert all(map(math.isfinite, numbers))
    assert max(numbers) <= max(int(root.attrib["height"]), int(root.attrib["width"]))
    assert min(numbers) >= 0


def test_a_gap_stays_a_gap() -> None:
    svg = line_chart({"y": [(0, 1), (1, 2), (2, NAN), (3, 4), (4, math.inf), (5, 1), (6, 2)]})
    assert [len(line) for line in curves(svg)] == [2, 2]
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}circle"))) == 1  # the point between two gaps


def test_the_curves_of_a_chart_differ_in_colour_and_in_grey() -> None:
    svg = line_chart({str(i): [(0, i), (1, i)] for i in range(30)})
    lines = [line.attrib for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")]
    styles = [(line["stroke"], line.get("stroke-dasharray")) for line in lines]
    assert len(set(styles)) == 30
    assert len({dash for _, dash in styles[:5]}) == len({colour for colour, _ in styles[:6]}) - 1 == 5


def luminance(colour: str) -> float:
    """Return the relative luminance that WCAG 2 defines."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_each_colour_is_readable_on_white_and_on_black() -> None:
    svg = line_chart({str(i): [(0, i), (1, i)] for i in range(6)})
    for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline"):
        light = luminance(line.attrib["stroke"])
        assert 1.05 / (light + 0.05) >= 3
        assert (light + 0.05) / (luminance("#17181a") + 0.05) >= 3


def test_many_points_keep_their_extremes() -> None:
    points = [(float(i), math.sin(i)) for i in range(20000)]
    points[7777] = (7777.0, 9.0)
    points[12345] = (12345.0, -9.0)
    svg = line_chart({"y": points}, height=300)
    (line,) = curves(svg)
    assert len(line) <= 2 * 480
    assert len(svg) < 30_000
    (alone,) = curves(line_chart({"y": [(0.0, 9.0), (19999.0, -9.0)]}, height=300))
    assert min(y for _, y in line) == pytest.approx(alone[0][1])
    assert max(y for _, y in line) == pytest.approx(alone[1][1])
    assert [x for x, _ in line] == sorted(x for x, _ in line)


@pytest.mark.parametrize(
    ("low", "high", "most", "labels"),
    [
        (0, 1, 6, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-512, -83, 5, ["-500", "-400", "-300", "-200", "-100"]),
        (0, 60_000, 5, ["0", "20k", "40k", "60k"]),
        (0, 2.2e6, 5, ["0", "0.5M", "1.0M", "1.5M", "2.0M"]),
        (3.9997, 4.0001, 3, ["3.9998", "4.0000"]),
        (0, 2e-5, 3, ["0", "1e-05", "2e-05"]),
        (0.0998, 0.1, 5, ["0.0998", "0.09985", "0.0999", "0.09995", "0.1"]),
        (2e9, 2e9 + 20, 3, ["2e+09", "2.00000001e+09", "2.00000002e+09"]),
    ],
)
def test_ticks_are_round_and_told_apart(low: float, high: float, most: int, labels: list[str]) -> None:
    assert tick_labels(ticks(low, high, most)) == labels


def test_a_chart_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="100 x 50 pixels is too small"):
        line_chart({}, width=100, height=50)
