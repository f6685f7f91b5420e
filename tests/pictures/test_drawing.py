"""How x is shown, and what a model adds: `show`, `panes` and `scenes`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vae_lightning.distributions import Binomial
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.pictures import NoPictureError, draw, reconstructions, samples, scene, scenes_of, show, to_grid
from vae_lightning.pictures.shown import in_colours
from vae_lightning.trace import Trace
from vae_lightning.types import UserError


class Seeing(VAE):
    """Adds a row and two scenes; its mode and its random numbers are those of evaluation."""

    def panes(self, trace: Trace) -> Mapping[str, Tensor | list[str]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"mask": (trace.x > 0.5).float(), "count": [f"{int(x.sum())}" for x in trace.x]}

    def scenes(self, data: object) -> Mapping[str, Tensor | list[str]]:
        assert not self.training
        return {"roll-out": torch.rand(3, 4, 1, 8, 8), "story": ["once", "upon a time"]}


def model(kind: type[VAE] = Seeing) -> VAE:
    torch.manual_seed(0)
    tiny = partial(MLP, hidden_sizes=(16,))
    return kind((1, 8, 8), 4, encoder=tiny, decoder=tiny, likelihood=partial(Binomial, num_steps=16))


X = torch.arange(3 * 64).remainder(17).div(16).view(3, 1, 8, 8)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 4, 2, 8, 8)])
def test_images_and_clips_are_shown_as_they_are(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    assert show(None, x) is x


@pytest.mark.parametrize(("shape", "shown"), [((3, 64), (3, 1, 1, 64)), ((3, 5, 64), (3, 1, 5, 64))])
def test_a_signal_is_a_grey_image(shape: tuple[int, ...], shown: tuple[int, ...]) -> None:
    """Black is its smallest value and white its largest; a reconstruction has the colours of its original."""
    x = 10 * torch.randn(shape) - 5
    image = show(None, x)
    assert isinstance(image, Tensor)
    assert image.shape == shown
    assert (image.min(), image.max()) == (0, 1)
    half = show(None, x / 2 + x.min() / 2, like=x)
    assert isinstance(half, Tensor)
    torch.testing.assert_close(half, image / 2)
    constant = show(None, torch.full(shape, 3.0))
    assert isinstance(constant, Tensor)
    assert constant.isfinite().all()


@pytest.mark.parametrize(
    "x", [torch.ones(3), torch.ones(3, 1), torch.ones(3, 8).long(), torch.ones(3, 2, 2, 2, 2, 2), torch.ones(0, 8)]
)
def test_what_has_no_picture_has_none(x: Tensor) -> None:
    assert show(None, x) is None


def test_the_data_module_says_how_x_is_shown() -> None:
    data = SimpleNamespace(show=lambda x: [f"{value:.0f}" for value in x.sum((1, 2, 3))])
    assert show(data, torch.ones(2, 1, 8, 8)) == ["64", "64"]
    assert show(SimpleNamespace(show=lambda _: None), X) is None
    picture = reconstructions(model(), data, {"x": X}, 0, "title")
    assert picture.text is not None
    assert "original" in picture.text
    assert "reconstruction" in picture.text


@pytest.mark.parametrize("shown", [3, torch.ones(2, 1, 8, 8), torch.ones(3, 8), ["a"], [1, 2, 3], {"a": 1}])
def test_what_cannot_be_drawn_is_one_line(shown: Any) -> None:
    with pytest.raises(UserError, match=r"show\(x\) returned a .* for 3 examples; it returns images \[n, C, H, W\]"):
        show(SimpleNamespace(show=lambda _: shown), X)


def test_a_model_adds_rows() -> None:
    """Below original and reconstruction; texts go to the table."""
    picture = reconstructions(model(), None, {"x": X}, 0, "title")
    plain = reconstructions(model(VAE), None, {"x": X}, 0, "title")
    assert picture.still is not None
    assert plain.still is not None
    assert torch.equal(picture.still[:, : plain.still.shape[1] - 8, 95:], plain.still[:, :-8, 95:])
    mask = to_grid((X > 0.5).float())
    assert torch.equal(picture.still[:, -68:-8, -mask.shape[2] :], mask)
    assert picture.text is not None
    assert [line.split()[-1] for line in picture.text.splitlines()[2:]] == [f"{int(x.sum())}" for x in X]


def test_the_true_objects_stand_between_the_reconstruction_and_the_models_rows() -> None:
    """0 is grey. Maps of whole numbers are drawn in fixed colours, those of the truth and those of the model alike."""
    truth = torch.arange(3 * 64).remainder(9).view(3, 8, 8)

    class Finding(VAE):
        def panes(self, trace: Trace) -> Mapping[str, Tensor | list[str]]:
            return {"found": truth.flip(0).to(torch.uint8)}

    batch = {"x": X, "segmentation": truth.to(torch.uint8)}
    colours = in_colours(truth)
    assert [len(colours.movedim(1, -1)[truth == k].unique(dim=0)) for k in range(9)] == [1] * 9
    assert len(colours.movedim(1, -1).flatten(0, 2).unique(dim=0)) == 8  # object 8 has the colour of object 1
    assert colours[0, :, 0, 0].unique().numel() == 1
    expected, found = (to_grid(one) for one in (colours, in_colours(truth.flip(0))))
    picture = reconstructions(model(Finding), None, batch, 0, "title").still
    assert picture is not None
    windows = picture[:, :, -found.shape[2] :].unfold(1, found.shape[1], 1).movedim(1, 0).mT
    tops = [[top for top, one in enumerate(windows) if torch.equal(one, row)] for row in (expected, found)]
    assert [len(row) for row in tops] == [1, 1]
    assert tops[0] < tops[1]
    plain = reconstructions(model(VAE), None, {"x": X}, 0, "title").still
    odd = {"x": X, "segmentation": torch.rand(3, 8, 8)}  # shares are no map
    assert plain is not None
    assert torch.equal(reconstructions(model(VAE), None, odd, 0, "title").still, plain)


def test_what_x_has_no_picture_of_may_have_one_in_the_model() -> None:
    data = SimpleNamespace(show=lambda _: None)
    assert reconstructions(model(), data, {"x": X}, 0, "title").still is not None
    message = r"x of shape \[1, 8, 8\] has no picture; give the data module a show\(x\)"
    with pytest.raises(NoPictureError, match=message):
        reconstructions(model(VAE), data, {"x": X}, 0, "title")
    with pytest.raises(NoPictureError, match=message):
        samples(model(), data, 3, 0, "title")


def test_scenes_are_drawn_by_name() -> None:
    seeing = model()
    shown = scenes_of(seeing, None, 0)
    pictures = {name: scene(seeing, value, name, name) for name, value in shown.items()}
    assert pictures["roll-out"].frames is not None
    assert len(pictures["roll-out"].frames) == 4
    assert pictures["story"].text == "story\n\n1    once\n2    upon a time\n"
    with pytest.raises(UserError, match=r"scenes\(data\), odd returned a"):
        scene(seeing, torch.ones(3), "odd", "odd")


def test_every_mode_and_the_random_state_are_restored() -> None:
    """Also of a network that is in evaluation mode within a model that is trained."""
    seeing = model()
    seeing.decoder.eval()
    state = torch.get_rng_state()
    before = [module.training for module in seeing.modules()]
    reconstructions(seeing, None, {"x": X}, 0, "title")
    samples(seeing, None, 3, 0, "title")
    scenes_of(seeing, None, 0)
    assert [module.training for module in seeing.modules()] == before
    assert set(before) == {True, False}
    assert torch.equal(torch.get_rng_state(), state)


def test_classes_are_named_where_they_are_known() -> None:
    """A label below 0 is unknown; without names or labels there is no line of names."""
    names = SimpleNamespace(class_names=("zero", "one"))
    batch = {"x": X, "label": torch.tensor([1, -1, 0])}
    named = reconstructions(model(VAE), names, batch, 0, "title").still
    expected = draw("title", {"original": X, "reconstruction": X}, ["one", "?", "zero"]).still
    assert named is not None
    assert expected is not None
    assert torch.equal(named[:, 24:40], expected[:, 24:40])
    plain = reconstructions(model(VAE), names, {"x": X}, 0, "title").still
    assert plain is not None
    assert named.shape[1] == plain.shape[1] + 16
