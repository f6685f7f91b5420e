"""Canvases of objects: each a function of its number, every arrangement as probable as it should be, boxes tight."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from vae_lightning.data import Digits
from vae_lightning.synthetic import Glyphs, NoRoomError, cut_out, draw_canvases

DIGITS = cut_out(Digits().load("train").pixels, 16)


def digits(index: Tensor, **settings: int) -> dict[str, Tensor]:
    return draw_canvases(index, DIGITS, **{"canvas_size": 24, "max_objects": 2, **settings})  # type: ignore[arg-type]


def test_the_first_hundred_canvases_never_change() -> None:
    """Numbers measured on the canvases are compared over years."""
    canvases = digits(torch.arange(100))
    digest = hashlib.sha256()
    for name in ("x", "segmentation", "count", "boxes", "source"):
        digest.update(canvases[name].numpy().tobytes())
    assert digest.hexdigest() == "9bcd7c25a9613418cbf2d47a2594cef8271b2552228c3d5bedbf236389fef338"


def test_a_canvas_depends_on_its_number_and_the_seeds_alone() -> None:
    index = torch.tensor([2999, 5, 1024, 7])
    few, many = digits(index), digits(torch.arange(3000))
    for name, values in few.items():
        assert torch.equal(values, many[name][index]), name
    empty = digits((many["count"] == 0).nonzero()[:2, 0])
    assert not empty["x"].any()
    assert (empty["boxes"] == -1).all()
    other = draw_canvases(index, DIGITS, 24, 2, seeds=(0, 1))
    assert not torch.equal(other["x"], few["x"])


@pytest.mark.parametrize(("canvas_size", "max_objects", "gap"), [(24, 2, 0), (24, 3, 1), (40, 5, 2)])
def test_objects_stand_whole_in_disjoint_tight_boxes(canvas_size: int, max_objects: int, gap: int) -> None:
    canvases = digits(torch.arange(400), canvas_size=canvas_size, max_objects=max_objects, gap=gap)
    count, boxes, source = canvases["count"], canvases["boxes"].long(), canvases["source"]
    for i, (x, objects) in enumerate(zip(canvases["x"][:, 0], canvases["segmentation"], strict=True)):
        rest, taken = x.clone(), torch.zeros_like(x)
        assert objects.max() == count[i]
        for k in range(max_objects):
            if k >= count[i]:
                assert (boxes[i, k] == -1).all()
                assert source[i, k] == -1
                continue
            rows, columns = (objects == k + 1).nonzero().unbind(1)
            top, left, height, width = boxes[i, k].tolist()
            assert [top, left] == [rows.min(), columns.min()]
            assert [top + height - 1, left + width - 1] == [rows.max(), columns.max()]
            window = slice(top, top + height), slice(left, left + width)
            assert torch.equal(x[window], DIGITS.pixels[source[i, k], :height, :width])
            assert torch.equal(objects[window] == k + 1, DIGITS.ink[source[i, k], :height, :width])
            assert not taken[window].any()
            taken[max(0, top - gap) : top + height + gap, max(0, left - gap) : left + width + gap] = 1
            rest[window] = 0
        assert not rest.any()


def test_counts_digits_and_places_are_uniform() -> None:
    canvases = digits(torch.arange(30_000), max_objects=3)
    assert chisquare(torch.bincount(canvases["count"])).pvalue > 0.01
    source = canvases["source"]
    one = canvases["count"] == 1
    used = torch.bincount(source[one, 0], minlength=len(DIGITS.size))
    assert chisquare(used).pvalue > 0.01
    wide = one & (canvases["boxes"][:, 0, 3] == 6)  # 19 places for its left side
    assert chisquare(torch.bincount(canvases["boxes"][wide, 0, 1].long(), minlength=19)).pvalue > 0.01


def test_each_of_forty_thousand_objects_is_as_frequent_as_another() -> None:
    """Of numbers of 16 bits, some objects would get two and others one."""
    ink = torch.ones(40_000, 1, 1, dtype=torch.bool)
    glyphs = Glyphs(ink.to(torch.uint8), ink, torch.ones(len(ink), 2, dtype=torch.long))
    canvases = draw_canvases(torch.arange(20_000), glyphs, 3, 1)
    source = canvases["source"][canvases["count"] == 1, 0]
    gets_two = torch.bincount(torch.arange(2**16) * len(ink) >> 16) == 2
    share = gets_two.double().mean().item()
    assert abs(gets_two[source].double().mean().item() - share) < 3 * math.sqrt(share * (1 - share) / len(source))


def test_every_arrangement_has_its_probability() -> None:
    """Two objects of 1 x 1 or 2 x 2 on 3 x 3: p(objects) p(places) given that the boxes are disjoint, by enumeration.

    A new place for one object alone would give small objects more than that.
    """
    ink = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]]], dtype=torch.bool)
    glyphs = Glyphs(ink.to(torch.uint8), ink, torch.tensor([[1, 1], [2, 2]]))
    weights: Counter[tuple[int, ...]] = Counter()
    for first, second in product(range(2), repeat=2):
        places = [list(product(range(3 - size), repeat=2)) for size in (first, second)]
        for (a, b), (c, d) in product(*places):
            h, k = first + 1, second + 1
            if a + h <= c or c + k <= a or b + h <= d or d + k <= b:
                weights[first, second, a, b, c, d] += 1 / len(places[0]) / len(places[1])  # type: ignore[assignment]
    canvases = draw_canvases(torch.arange(60_000), glyphs, 3, 2, seeds=(3,))
    two = canvases["count"] == 2
    rows = torch.cat((canvases["source"], canvases["boxes"][:, :, :2].flatten(1).long()), 1)[two]
    seen = Counter(map(tuple, rows.tolist()))
    assert seen.keys() <= weights.keys()
    total = sum(weights.values())
    expected = [weight / total * int(two.sum()) for weight in weights.values()]
    assert chisquare([seen[key] for key in weights], expected).pvalue > 0.01


def test_pictures_are_shrunk_and_cut_to_their_ink() -> None:
    pixels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    pixels[0, 0, 2:4, 4:8] = torch.tensor([[200, 100, 60, 60], [100, 0, 60, 60]], dtype=torch.uint8)
    pixels[0, 0, 4, 4] = 100  # a mean of 25, which is dark
    pixels[2, 0, 7, 7] = 255
    glyphs = cut_out(pixels, 255, scale=2)
    assert glyphs.size.tolist() == [[1, 2], [1, 1]]  # the second picture has no ink
    assert glyphs.pixels.tolist() == [[[100, 60]], [[64, 0]]]
    assert glyphs.ink.tolist() == [[[True, True]], [[True, False]]]


def test_thirty_thousand_canvases_take_seconds() -> None:
    begin = time.process_time()
    digits(torch.arange(30_000))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("canvas_size", "max_objects", "says"),
    [(7, 1, "up to 8 x 7 pixels do not fit on 7 x 7"), (16, 9, "found no room on 16 x 16; 1,000 draws were tried")],
)
def test_objects_that_do_not_fit_are_refused(canvas_size: int, max_objects: int, says: str) -> None:
    with pytest.raises(NoRoomError, match=says):
        digits(torch.arange(100), canvas_size=canvas_size, max_objects=max_objects)
    with pytest.raises(NoRoomError, match="no object with ink"):
        draw_canvases(torch.arange(1), cut_out(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), 16), 24, 2)
