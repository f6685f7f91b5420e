"""Drawn sprites and faces: known places, areas and angles, and pictures that show their attributes."""

from __future__ import annotations

import io
import math
import zipfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vae_lightning.synthetic import faces as drawn_faces
from vae_lightning.synthetic.attributes import FACE_ATTRIBUTES, face_attributes
from vae_lightning.synthetic.faces import draw_faces, render_faces, write_celeba_layout
from vae_lightning.synthetic.scene import FAR, STYLE
from vae_lightning.synthetic.sprites import NUM_SPRITES, SPRITE_FACTORS, draw_sprites, sprite_factors

# -- Sprites ----------------------------------------------------------------------------------------------------------

AREAS = (21.0**2, math.pi * 14 * 7, 17.0**2 * (1 + math.pi / 4))  # pixels at scale 1: square, ellipse, heart


def some_factors(num: int = 300) -> Tensor:
    return sprite_factors(torch.randint(NUM_SPRITES, (num,), generator=torch.Generator().manual_seed(1)))


def moments(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Area [N], centroid (x, y) [N, 2] and covariance [N, 2, 2] of the bright pixels, in pixels."""
    light = pixels[:, 0].double().flatten(1) / 255
    centres = torch.arange(64) + 0.5
    places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).view(-1, 2).double()  # (x, y)
    area = light.sum(1)
    centroid = light @ places / area[:, None]
    centred = places - centroid[:, None]
    return area, centroid, torch.einsum("np,npi,npj->nij", light, centred, centred) / area[:, None, None]


def test_every_index_has_its_own_factors() -> None:
    factors = sprite_factors(torch.arange(NUM_SPRITES))
    assert NUM_SPRITES == 737_280
    expected = np.unravel_index(np.arange(NUM_SPRITES), tuple(SPRITE_FACTORS.values()))
    assert torch.equal(factors, torch.from_numpy(np.stack(expected, axis=1)))
    assert list(SPRITE_FACTORS) == ["shape", "scale", "orientation", "x", "y"]


def test_a_sprite_has_its_area_and_place() -> None:
    factors = some_factors()
    area, centroid, _ = moments(draw_sprites(factors))
    expected = torch.tensor(AREAS)[factors[:, 0]] * (0.5 + 0.1 * factors[:, 1]) ** 2
    torch.testing.assert_close(area, expected.double(), rtol=0.03, atol=0)  # corners are slightly round
    torch.testing.assert_close(centroid, factors[:, 3:] + 16.5, rtol=0, atol=0.06, check_dtype=False)


def test_an_ellipse_lies_along_its_orientation() -> None:
    factors = torch.tensor([[1, 5, k, 15, 15] for k in range(40)])
    _, _, covariance = moments(draw_sprites(factors))
    angle = torch.arange(40).double() * 2 * math.pi / 40
    axis = torch.stack((angle.cos(), angle.sin()), dim=1)
    along = torch.einsum("ni,nij,nj->n", axis, covariance, axis)
    torch.testing.assert_close(along, torch.full((40,), 14.0**2 / 4).double(), rtol=0.02, atol=0)  # a^2 / 4


@pytest.mark.parametrize(("shape", "steps", "other"), [(0, 10, 5), (1, 20, 10)])
def test_a_turn_by_the_angle_of_symmetry_changes_nothing(shape: int, steps: int, other: int) -> None:
    factors = torch.tensor([[shape, 4, k, 3, 20] for k in range(40)])
    pixels = draw_sprites(factors).int()
    assert (pixels - pixels.roll(steps, 0)).abs().max() <= 1
    assert (pixels - pixels.roll(other, 0)).abs().amax((1, 2, 3)).min() > 100


def test_a_heart_stands_on_its_tip() -> None:
    heart = draw_sprites(torch.tensor([[2, 5, 0, 15, 15]]))[0, 0, :, :63]  # symmetric about the centre of column 31
    assert (heart.int() - heart.flip(1).int()).abs().max() <= 1
    widths = (heart > 127).sum(1)
    rows = widths.nonzero().flatten()
    assert widths[rows[-1]] <= 2  # the tip
    assert widths.argmax() < rows.float().mean()
    assert not torch.equal(heart, draw_sprites(torch.tensor([[2, 5, 20, 15, 15]]))[0, 0, :, :63])


def test_sprites_are_whole_and_antialiased() -> None:
    pixels = draw_sprites(some_factors())
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (300, 1, 64, 64))
    assert (pixels.amax((1, 2, 3)) == 255).all()
    frame = torch.ones(64, 64, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    assert pixels[..., frame].max() == 0
    grey = (pixels > 0) & (pixels < 255)
    assert (grey[:, 0].sum((1, 2)) > 0).float().mean() > 0.95


def test_a_sprite_does_not_depend_on_its_batch() -> None:
    factors = some_factors(900)  # more than one chunk for each shape
    pixels, order = draw_sprites(factors), torch.randperm(900)
    assert torch.equal(draw_sprites(factors[order]), pixels[order])
    assert torch.equal(draw_sprites(factors[7:8]), pixels[7:8])


# -- Faces ------------------------------------------------------------------------------------------------------------

COLUMN = {name: k for k, name in enumerate(FACE_ATTRIBUTES)}
HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
NEVER_BOTH = [
    *combinations(HAIR_COLOURS, 2),
    *(("Bald", name) for name in (*HAIR_COLOURS, "Bangs", "Receding_Hairline", "Straight_Hair", "Wavy_Hair")),
    *(("No_Beard", name) for name in ("5_o_Clock_Shadow", "Goatee", "Mustache")),
    *(("5_o_Clock_Shadow", name) for name in ("Goatee", "Mustache")),
    *(("Wearing_Hat", name) for name in ("Bald", "Bangs", "Receding_Hairline")),
    ("Receding_Hairline", "Bangs"),
    ("Straight_Hair", "Wavy_Hair"),
    ("Young", "Gray_Hair"),
    ("Chubby", "Oval_Face"),
    ("Big_Nose", "Pointy_Nose"),
    ("Wearing_Necktie", "Wearing_Necklace"),
]


def faces(num: int, *on: str, **style: float) -> tuple[Tensor, Tensor]:
    """Attributes of young and shaven faces with brown hair, and `on`. Styles are random, except those in `style`."""
    attributes = torch.zeros(num, len(FACE_ATTRIBUTES), dtype=torch.uint8)
    attributes[:, [COLUMN[name] for name in ("Young", "No_Beard", "Brown_Hair", *on)]] = 1
    styles = torch.rand(num, len(STYLE), generator=torch.Generator().manual_seed(0))
    for name, value in style.items():
        styles[:, STYLE.index(name)] = value
    return attributes, styles


def toggled(attributes: Tensor, name: str) -> Tensor:
    attributes = attributes.clone()
    attributes[:, COLUMN[name]] ^= 1
    return attributes


def test_a_face_is_a_function_of_seed_and_index() -> None:
    """And not of other faces in its batch, whose last chunk is short, nor of a generator."""
    index, state = torch.arange(1000, 1075), torch.get_rng_state()
    pixels, attributes = draw_faces(index, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    order = torch.randperm(75)
    again, attributes_again = draw_faces(index[order], seed=3)
    assert torch.equal(again, pixels[order])
    assert torch.equal(attributes_again, attributes[order])
    for part in (slice(0, 1), slice(5, 8), slice(66, 75)):
        assert torch.equal(draw_faces(index[part], seed=3)[0], pixels[part])
    assert (draw_faces(index, seed=4)[0] != pixels).flatten(1).any(1).all()
    assert len(pixels.unique(dim=0)) == 75


def test_a_large_face_does_not_depend_on_its_batch_either() -> None:
    """An odd width, and chunks of a few faces."""
    pixels, _ = draw_faces(torch.arange(9), size=(109, 89))
    assert pixels.shape == (9, 3, 109, 89)
    assert torch.equal(draw_faces(torch.tensor([8]), size=(109, 89))[0], pixels[8:])
    assert torch.equal(draw_faces(torch.tensor([4, 2]), size=(109, 89))[0], pixels[[4, 2]])


def test_faces_use_their_range() -> None:
    pixels, attributes = draw_faces(torch.arange(64))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (64, 3, 64, 64))
    assert (attributes.dtype, attributes.shape, attributes.unique().tolist()) == (torch.uint8, (64, 40), [0, 1])
    assert (pixels.amax((1, 2, 3)).int() - pixels.amin((1, 2, 3)) > 120).float().mean() > 0.9
    assert pixels.float().std(0).min() > 15  # every pixel varies from face to face


def test_every_attribute_but_one_varies() -> None:
    share = face_attributes(torch.arange(5000)).double().mean(0)
    assert share[COLUMN["Attractive"]] == 0
    rest = torch.cat((share[: COLUMN["Attractive"]], share[COLUMN["Attractive"] + 1 :]))
    assert rest.min() > 0.02
    assert rest.max() < 0.98
    other = face_attributes(torch.arange(5000), seed=1).double().mean(0)
    torch.testing.assert_close(other, share, rtol=0, atol=0.04)


def test_attributes_do_not_contradict_each_other() -> None:
    on = face_attributes(torch.arange(20_000)).bool()
    assert [pair for pair in NEVER_BOTH if (on[:, COLUMN[pair[0]]] & on[:, COLUMN[pair[1]]]).any()] == []
    assert on[~on[:, COLUMN["Male"]], COLUMN["No_Beard"]].all()
    assert (~on[:, [COLUMN[name] for name in HAIR_COLOURS]].any(1) & ~on[:, COLUMN["Bald"]]).any()  # red hair


@pytest.mark.parametrize("name", FACE_ATTRIBUTES)
def test_an_attribute_shows(name: str) -> None:
    """A change of one attribute changes the picture noticeably, except for Attractive, which is not drawn."""
    attributes, style = faces(8, "Male") if name == "Sideburns" else faces(8)
    if name in HAIR_COLOURS or name == "Brown_Hair":
        attributes[:, COLUMN["Brown_Hair"]] = 0
    change = (render_faces(attributes, style).int() - render_faces(toggled(attributes, name), style)).abs()
    if name == "Attractive":
        assert change.max() == 0
    else:
        assert (change.amax((1, 2, 3)) > 8).all()


# The box (top, bottom, left, right) of a frontal face of 64 x 64 in which an attribute shows.
PLACES = {
    "Arched_Eyebrows": (22, 30, 16, 48),
    "Bags_Under_Eyes": (32, 42, 16, 48),
    "Bangs": (8, 34, 14, 50),
    "Big_Lips": (42, 54, 24, 40),
    "Big_Nose": (34, 46, 25, 39),
    "Bushy_Eyebrows": (23, 31, 16, 48),
    "Double_Chin": (46, 64, 18, 46),
    "Eyeglasses": (24, 41, 12, 52),
    "Goatee": (46, 62, 24, 40),
    "Heavy_Makeup": (25, 36, 17, 47),
    "High_Cheekbones": (32, 54, 12, 52),
    "Mouth_Slightly_Open": (41, 55, 22, 42),
    "Mustache": (40, 52, 24, 40),
    "Narrow_Eyes": (26, 40, 17, 47),
    "No_Beard": (32, 64, 14, 50),
    "Pointy_Nose": (28, 46, 26, 38),
    "Receding_Hairline": (8, 34, 16, 48),
    "Rosy_Cheeks": (34, 48, 14, 50),
    "Smiling": (40, 56, 22, 42),
    "Wearing_Earrings": (36, 50, 10, 54),
    "Wearing_Hat": (0, 34, 4, 60),
    "Wearing_Lipstick": (42, 54, 24, 40),
    "Wearing_Necklace": (54, 64, 22, 42),
    "Wearing_Necktie": (54, 64, 20, 44),
}
FRONTAL = dict.fromkeys(("shift_x", "shift_y", "scale", "roll", "yaw", "pitch"), 0.5)


@pytest.mark.parametrize("name", PLACES)
def test_an_attribute_shows_in_its_place(name: str) -> None:
    attributes, style = faces(8, **FRONTAL)
    change = render_faces(attributes, style).int() - render_faces(toggled(attributes, name), style)
    change = change.abs().sum((0, 1))
    top, bottom, left, right = PLACES[name]
    assert change[top:bottom, left:right].sum() > 0.97 * change.sum()


def colour(attributes: Tensor, style: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The mean red, green and blue within (top, bottom, left, right): [N, 3]."""
    top, bottom, left, right = box
    return render_faces(attributes, style)[:, :, top:bottom, left:right].float().mean((2, 3))


def test_hair_has_the_colour_of_its_attribute() -> None:
    """At the top of the head, black hair is darkest, gray hair has no hue, and blond hair is yellow."""
    pixels, attributes = draw_faces(torch.arange(400))
    shown = (attributes[:, COLUMN["Wearing_Hat"]] | attributes[:, COLUMN["Receding_Hairline"]]) == 0
    top = pixels[:, :, 12:17, 29:36].float().mean((2, 3))
    black, blond, brown, gray = (top[shown & (attributes[:, COLUMN[name]] == 1)] for name in HAIR_COLOURS)
    assert min(map(len, (black, blond, brown, gray))) > 20
    assert black.mean(1).quantile(0.9) < brown.mean(1).quantile(0.1)
    assert brown.mean(1).quantile(0.9) < gray.mean(1).quantile(0.1)
    assert (gray[:, 0] - gray[:, 2]).quantile(0.9) < 30
    assert (blond[:, 0] - blond[:, 2]).quantile(0.1) > 60


@pytest.mark.parametrize(
    ("name", "box", "direction"),
    [
        ("Pale_Skin", (30, 42, 28, 36), (1, 1, 1)),
        ("Rosy_Cheeks", (36, 44, 18, 24), (0, -1, 0)),
        ("Wearing_Lipstick", (45, 50, 28, 36), (0, -1, 0)),
        ("Bushy_Eyebrows", (22, 30, 18, 46), (-1, -1, -1)),
        ("5_o_Clock_Shadow", (50, 54, 26, 38), (-1, -1, -1)),
        ("Goatee", (50, 56, 29, 35), (-1, -1, -1)),
    ],
)
def test_an_attribute_has_its_colour(name: str, box: tuple[int, int, int, int], direction: tuple[int, ...]) -> None:
    """On light skin, the attribute makes each channel darker (-1) or lighter (1); 0 is not checked."""
    attributes, style = faces(8, skin=0.2, hair_length=0.9, **FRONTAL)
    change = colour(toggled(attributes, name), style, box) - colour(attributes, style, box)
    signs = torch.tensor(direction)
    assert change.abs().amax(1).min() > 1
    assert (change * signs)[:, signs != 0].ge(0).all()


def test_a_smile_lifts_the_corners_of_the_mouth() -> None:
    """The red of smiling lips is higher at the corners than in the middle, and higher than without a smile."""

    def lift(on: tuple[str, ...]) -> Tensor:
        attributes, style = faces(16, "Wearing_Lipstick", *on, skin=0.1, lip_hue=0.5, **FRONTAL)
        bare = toggled(attributes, "Wearing_Lipstick")
        red = (
            (render_faces(attributes, style).float() - render_faces(bare, style)).abs().sum(1)[:, 38:58]
        )  # [N, 20, 64]
        rows = torch.arange(20.0)[:, None]
        corner, middle = torch.cat((red[:, :, 27:29], red[:, :, 35:37]), dim=2), red[:, :, 31:33]
        return ((middle * rows).sum((1, 2)) / middle.sum((1, 2))) - ((corner * rows).sum((1, 2)) / corner.sum((1, 2)))

    assert (lift(("Smiling",)) > lift(())).all()
    assert (lift(("Smiling",)) > 0.2).all()


def test_blurry_is_smooth() -> None:
    attributes, style = faces(8)
    sharp, soft = (render_faces(a, style).float() for a in (attributes, toggled(attributes, "Blurry")))
    edges = [(x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3)) for x in (sharp, soft)]
    assert (edges[1] < 0.25 * edges[0]).all()
    assert (sharp.mean((1, 2, 3)) - soft.mean((1, 2, 3))).abs().max() < 1.5


def test_a_face_that_looks_left_mirrors_one_that_looks_right() -> None:
    attributes, style = faces(24, glasses_kind=0.9, backdrop_y=0.5)
    mirrored = style.clone()
    for name in ("backdrop_x", "light", "shift_x", "roll", "yaw", "gaze_x", "parting"):
        mirrored[:, STYLE.index(name)] = 1 - style[:, STYLE.index(name)]
    right, left = render_faces(attributes, style).float(), render_faces(attributes, mirrored).float()
    assert (right - left.flip(3)).abs().mean((1, 2, 3)).max() < 2.5  # the glint in the eyes and single hairs differ
    assert (right - left).abs().mean((1, 2, 3)).median() > 8


def test_layers_stay_within_their_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window saves work and cuts nothing off, whatever the pose."""
    index = torch.arange(160)
    windowed, _ = draw_faces(index)
    wide = tuple(layer._replace(top=-FAR, bottom=FAR, side=FAR) for layer in drawn_faces.LAYERS)
    assert wide != drawn_faces.LAYERS
    monkeypatch.setattr(drawn_faces, "LAYERS", wide)
    assert torch.equal(draw_faces(index)[0], windowed)


def test_the_aligned_size_shows_the_same_faces() -> None:
    """The centre crop of 148 x 148, shrunk to 64 x 64 with antialiasing, is the drawing of 64 x 64."""
    index = torch.arange(40)
    aligned, small = draw_faces(index, size=(218, 178))[0], draw_faces(index)[0].float()

    def error(top: int) -> Tensor:
        crop = aligned[:, :, top : top + 148, 15:163].float()
        shrunk = F.interpolate(crop, size=(64, 64), mode="bilinear", antialias=True)
        return (shrunk - small).abs().mean((1, 2, 3)) / 255

    assert error(35).max() < 0.015
    assert error(40).mean() > 2 * error(35).mean()


# -- CelebA's layout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", [False, True])
def test_the_layout_holds_the_faces(tmp_path: Path, archive: bool) -> None:
    write_celeba_layout(tmp_path, 20, archive=archive, seed=5)
    root, names = tmp_path / "celeba", [f"{i:06d}.jpg" for i in range(1, 21)]
    if archive:
        with zipfile.ZipFile(root / "img_align_celeba.zip") as file:
            assert file.namelist() == [f"img_align_celeba/{name}" for name in names]
            assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_STORED}
            files = [file.read(name) for name in file.namelist()]
    else:
        assert sorted(path.name for path in (root / "img_align_celeba").iterdir()) == names
        files = [(root / "img_align_celeba" / name).read_bytes() for name in names]
    images = [Image.open(io.BytesIO(contents)) for contents in files]
    assert {(image.format, image.mode, image.size) for image in images} == {("JPEG", "RGB", (178, 218))}
    drawn, attributes = draw_faces(torch.arange(20), 5, (218, 178))
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    assert (pixels.float() - drawn).abs().mean((1, 2, 3)).max() < 4

    count, header, *lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    assert (int(count), header.split()) == (20, list(FACE_ATTRIBUTES))
    assert [line.split()[0] for line in lines] == names
    assert [[int(value) for value in line.split()[1:]] for line in lines] == (2 * attributes.int() - 1).tolist()
    assert {len(line) for line in lines} == {10 + 40 * 3}  # columns of one width, as in CelebA's file
    parts = [f"{name} {part}" for name, part in zip(names, [0] * 16 + [1] * 2 + [2] * 2, strict=True)]
    assert (root / "list_eval_partition.txt").read_text().splitlines() == parts
    assert "not CelebA" in (root / "NOT_CELEBA.txt").read_text()


def test_quality_is_that_of_the_files(tmp_path: Path) -> None:
    sizes = []
    for quality in (30, 95):
        write_celeba_layout(tmp_path / str(quality), 2, quality=quality)
        sizes.append((tmp_path / str(quality) / "celeba/img_align_celeba/000001.jpg").stat().st_size)
    assert 2 * sizes[0] < sizes[1]
