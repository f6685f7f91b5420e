"""Planes of points: the directions of the largest variance, the place of each point, the manifold's title."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.pictures import beside, label_in_words, manifold, scatter, traversals
from vae_lightning.pictures import latents as drawing
from vae_lightning.pictures.planes import principal_directions

FRAME = 74  # where the frame of a scatter begins


def points_on(*scales: float) -> Tensor:
    """Points whose columns are uncorrelated, with these standard deviations."""
    z = torch.randn(200, len(scales), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.linalg.qr(z - z.mean(0))[0]
    return (z - z.mean(0)) * torch.tensor(scales, dtype=torch.float64)


def test_the_first_direction_has_the_largest_variance() -> None:
    z = points_on(1, 3, 2)
    directions, shares = principal_directions(z + 5)  # a shift has no direction
    torch.testing.assert_close(directions.abs(), torch.eye(3).double()[[1, 2, 0]], atol=2e-2, rtol=0)
    torch.testing.assert_close(shares, torch.tensor([9, 4, 1]).double() / 14, atol=2e-2, rtol=0)


def test_points_and_their_mirror_image_have_the_same_directions() -> None:
    z = points_on(1, 3, 2) @ torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())[0]
    first, second = principal_directions(z)[0], principal_directions(-z.flip(0))[0]
    torch.testing.assert_close(first, second)
    assert (first.gather(1, first.abs().argmax(1, keepdim=True)) > 0).all()


def test_the_first_axis_points_right_and_the_second_up() -> None:
    picture = scatter(torch.tensor([[0.8, 0.8]]), None, (), (-1, 1, -1, 1), 201)
    frame = picture[:, 1:200, FRAME + 1 : FRAME + 200]
    rows, columns = (frame.sum(0) < 3 * 255).nonzero().unbind(1)
    assert 10 <= rows.float().mean() <= 30  # 0.1 of 200 pixels from the top
    assert 170 <= columns.float().mean() <= 190


def test_without_limits_every_point_is_in_the_frame() -> None:
    picture = scatter(torch.tensor([[-3.0, 100.0], [7.0, -50.0]]), None, (), None, 101)
    dark = (picture[:, 1:100, FRAME + 1 : FRAME + 100].sum(0) < 3 * 255).nonzero()
    assert dark.amin(0).max() < 10
    assert dark.amax(0).min() > 90


def test_pictures_beside_each_other_keep_their_pixels() -> None:
    first, second = (torch.full((3, 20, width), colour, dtype=torch.uint8) for width, colour in ((200, 40), (30, 90)))
    picture = beside("t", first, second)
    assert picture[:, 26:46, 4:204].unique().tolist() == [40]
    assert picture[:, 26:46, 216:246].unique().tolist() == [90]
    assert beside("a title that is much longer than one picture of 30 pixels", second).shape[2] > 300


class Named:
    """Data with names of classes."""

    class_names = ("cat", "dog")


def test_a_label_is_shown_by_its_name() -> None:
    assert [label_in_words(Named(), i) for i in (0, 1, 2)] == ["class cat", "class dog", "label 2"]
    assert label_in_words(None, 3) == "label 3"


def test_titles_say_how_the_kl_was_computed_and_that_a_latent_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    patch = monkeypatch.setattr
    kept = drawing.beside, drawing.sheet
    patch(drawing, "beside", lambda title, *rest: (titles.append(title), kept[0](title, *rest))[1])
    patch(drawing, "sheet", lambda title, *rest: (titles.append(title), kept[1](title, *rest))[1])
    tiny = partial(MLP, hidden_sizes=[4])
    model = VAE((1, 4, 4), latent_size=3, encoder=tiny, decoder=tiny).eval()
    batch = {"x": torch.rand(6, 1, 4, 4)}
    traversals(model, None, batch, 0, "t", numbers=[0, 1])
    assert titles[-1].endswith("2 dimensions; KL of 6 images in closed form")
    with torch.no_grad():  # q(z|x) = N(0, 1) for every x
        for parameter in model.encoder.parameters():
            parameter.zero_()
        last = list(model.encoder.parameters())[-1]
        last[3:] = torch.tensor(1.0).expm1().log()  # softplus gives 1
    manifold(model, None, batch, 0, "t", side=2)
    assert titles[-1].endswith("; z is dead: each KL < 0.01 nats")
