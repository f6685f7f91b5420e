"""Laws of networks: shapes for any image and any leading dimensions. To add a network: one row in NETWORKS."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vae_lightning.networks import MLP, ConvDecoder, ConvEncoder, GatedMLP
from vae_lightning.types import NetworkRecipe, Shape, UserError

IMAGES: list[Shape] = [(1, 28, 28), (3, 64, 64), (1, 8, 8), (2, 7, 13), (3, 1, 5)]
NETWORKS: dict[str, tuple[NetworkRecipe, bool, bool]] = {  # recipe, reads an image, writes an image
    "MLP": (partial(MLP, hidden_sizes=(16, 8)), True, True),
    "affine": (partial(MLP, hidden_sizes=()), True, True),
    "gated MLP": (partial(GatedMLP, hidden_sizes=(16, 8)), True, True),
    "convolutional encoder": (partial(ConvEncoder, channels=(4, 8), hidden_size=16), True, False),
    "convolutional decoder": (partial(ConvDecoder, channels=(4, 8), hidden_size=16), False, True),
}


@pytest.mark.parametrize("image_shape", IMAGES)
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes(name: str, image_shape: Shape) -> None:
    """[*leading, *in_shape] -> [*leading, *out_shape], each entry computed by itself; gradients reach every weight."""
    recipe, reads_image, writes_image = NETWORKS[name]
    in_shape, out_shape = image_shape if reads_image else (6,), image_shape if writes_image else (6,)
    network = recipe(in_shape, out_shape).double()
    x = torch.randn(2, 3, *in_shape, dtype=torch.float64)
    y = network(x)
    assert y.shape == (2, 3, *out_shape)
    torch.testing.assert_close(network(x[1, 2]), y[1, 2])
    assert network(x[:0]).shape == (0, 3, *out_shape)
    y.square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_affine_map_is_affine() -> None:
    network = MLP((3,), (2,), hidden_sizes=()).double()
    a, b = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(network(a) + network(b), network(a + b) + network(torch.zeros(3).double()))


def test_a_gated_layer_is_its_formula() -> None:
    """h' = (A h + a) sigmoid(B h + b), then an affine map."""
    network = GatedMLP((3,), (2,), hidden_sizes=(4,)).double()
    (_, gated, _, last), h = network.layers, torch.randn(3, dtype=torch.float64)
    a, b = (gated.weight @ h + gated.bias).chunk(2)
    torch.testing.assert_close(network(h), last.weight @ (a * torch.sigmoid(b)) + last.bias)


def test_decoder_reaches_every_pixel() -> None:
    """No pixel of an odd-sized image is left at a constant."""
    images = torch.stack([ConvDecoder((4,), (1, 9, 11), channels=(4, 4))(torch.randn(4)) for _ in range(8)])
    assert (images.std(0) > 0).all()


@pytest.mark.parametrize(
    "recipe",
    [
        partial(MLP, hidden_sizes=(0,)),
        partial(GatedMLP, hidden_sizes=(0,)),
        partial(ConvEncoder, channels=()),
        partial(ConvEncoder, channels=(0,)),
    ],
)
def test_impossible_sizes_are_refused(recipe: NetworkRecipe) -> None:
    with pytest.raises(UserError):
        recipe((1, 8, 8), (4,))


def test_a_convolution_of_a_vector_is_refused() -> None:
    with pytest.raises(UserError, match="use an MLP"):
        ConvEncoder((8,), (4,))
