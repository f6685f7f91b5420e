"""Laws of networks: shapes for any image and any leading dimensions. To add a network, add one row to NETWORKS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from vae_lightning.networks import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    GatedMLP,
    LadderMLP,
    ResidualMLP,
    ResNetDecoder,
    ResNetEncoder,
    SpatialBroadcast,
    UNet,
)
from vae_lightning.types import Network, NetworkRecipe, Shape, UserError

IMAGES: list[Shape] = [(1, 28, 28), (3, 64, 64), (1, 8, 8), (2, 7, 13), (3, 1, 5)]
NETWORKS: dict[str, tuple[NetworkRecipe, bool, bool]] = {  # recipe, reads an image, writes an image
    "MLP": (partial(MLP, hidden_sizes=(16, 8)), True, True),
    "affine": (partial(MLP, hidden_sizes=()), True, False),
    "gated MLP": (partial(GatedMLP, hidden_sizes=(16, 8)), True, True),
    "ladder MLP": (partial(LadderMLP, width=3), True, False),
    "convolutional encoder": (partial(ConvEncoder, channels=(4, 8), hidden_size=16), True, False),
    "convolutional decoder": (partial(ConvDecoder, channels=(4, 8), hidden_size=16), False, True),
    "residual encoder": (partial(ResNetEncoder, channels=(4, 8), hidden_size=16), True, False),
    "residual decoder": (partial(ResNetDecoder, channels=(4, 8), hidden_size=16), False, True),
    "residual perceptron": (partial(ResidualMLP, hidden_size=16, num_blocks=3), True, True),
}
CONVOLUTIONS = [name for name in NETWORKS if name.endswith(("encoder", "decoder"))]


@pytest.mark.parametrize("image_shape", IMAGES)
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes(name: str, image_shape: Shape) -> None:
    """[*leading, *in_shape] -> [*leading, *out_shape].

    Each entry is computed by itself, and gradients reach every weight.
    """
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


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("maps", [(6, 2, 2), (6, 3, 2)])
def test_convolutions_take_features_in_maps(name: str, maps: Shape) -> None:
    """Features [5, 2, 2] of an image halved twice come from convolutions alone; other sizes use the hidden layer."""
    recipe, reads_image, _ = NETWORKS[name]
    image_shape = (1, 8, 7)
    in_shape, out_shape = (image_shape, maps) if reads_image else (maps, image_shape)
    network = recipe(in_shape, out_shape)
    assert network(torch.randn(2, 3, *in_shape)).shape == (2, 3, *out_shape)
    assert any(isinstance(layer, torch.nn.Linear) for layer in network.layers) == (maps == (6, 3, 2))


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


def test_a_ladder_s_layer_is_its_formula() -> None:
    """h' = leaky ReLU((W h + b - mean) / sd), then an affine map; 2 min(3, 5) = 6 hidden units."""
    network = LadderMLP((3,), (5,), width=2, num_layers=1).double()
    (_, first, _, _, last), x = network.layers, torch.randn(3, dtype=torch.float64)
    h = first.weight @ x + first.bias
    assert h.shape == (6,)
    normal = (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(network(x), last.weight @ torch.where(normal > 0, normal, 0.01 * normal) + last.bias)


@pytest.mark.parametrize(
    "network",
    [
        MLP((3,), (5,), hidden_sizes=(6,), activation=nn.LeakyReLU, normalisation=nn.BatchNorm1d),
        LadderMLP((3,), (5,), width=2, num_layers=1, normalisation=nn.BatchNorm1d),
    ],
)
def test_a_batch_norm_is_over_the_batch_in_training_alone(network: Network) -> None:
    """Over all leading dimensions, with K samples as with one; in evaluation an output depends on its input alone."""
    (_, first, norm, _, last), x = network.double().layers, torch.randn(4, 7, 3, dtype=torch.float64)
    h = first(x)
    normal = (h - h.mean((0, 1))) / (h.var((0, 1), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(network(x), last(nn.functional.leaky_relu(normal)))
    torch.testing.assert_close(norm.running_mean, 0.1 * h.mean((0, 1)))
    network.eval()
    torch.testing.assert_close(network(x)[1, 2], network(x[1, 2]))


@pytest.mark.parametrize("decoder", [ConvDecoder, ResNetDecoder])
def test_decoder_reaches_every_pixel(decoder: type[ConvDecoder] | type[ResNetDecoder]) -> None:
    """No pixel of an image of odd size stays constant."""
    images = torch.stack([decoder((4,), (1, 9, 11), channels=(4, 4))(torch.randn(4)) for _ in range(8)])
    assert (images.std(0) > 0).all()


@pytest.mark.parametrize(
    "recipe",
    [
        partial(MLP, hidden_sizes=(0,)),
        partial(GatedMLP, hidden_sizes=(0,)),
        partial(LadderMLP, width=0),
        partial(LadderMLP, num_layers=0),
        partial(ConvEncoder, channels=()),
        partial(ConvEncoder, channels=(0,)),
        partial(ResNetEncoder, channels=()),
        partial(ResNetEncoder, num_blocks=0),
        partial(ResidualMLP, num_blocks=0),
        partial(ResidualMLP, hidden_size=0),
    ],
)
def test_impossible_sizes_are_refused(recipe: NetworkRecipe) -> None:
    with pytest.raises(UserError):
        recipe((1, 8, 8), (4,))


def test_a_layer_that_its_normalisation_would_silence_is_refused() -> None:
    with pytest.raises(UserError, match="layer of one unit"):
        LadderMLP((1,), (4,), width=1)


@pytest.mark.parametrize("encoder", [ConvEncoder, ResNetEncoder])
def test_a_convolution_of_a_vector_is_refused(encoder: NetworkRecipe) -> None:
    with pytest.raises(UserError, match="use an MLP"):
        encoder((8,), (4,))


@pytest.mark.parametrize("num_blocks", [1, 8])
def test_a_deep_residual_network_starts_with_a_signal(num_blocks: int) -> None:
    """At any depth, input and output are of order one, and gradients are as large at both ends."""
    network = ResidualMLP((32,), (32,), hidden_size=64, num_blocks=num_blocks)
    y = network(torch.randn(256, 32))
    assert 0.05 < y.std() < 5
    y.square().sum().backward()
    first, last = (layer.weight.grad for layer in (network.layers[1], network.layers[-1]))  # type: ignore[index, union-attr]
    assert 0.05 < first.norm() / last.norm() < 20  # type: ignore[union-attr]


class Embedded(MLP):
    """An MLP of the embeddings of word numbers [T]."""

    takes_integers = True

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__((*in_shape, 3), out_shape)
        self.in_shape = in_shape
        self.layers = torch.nn.Sequential(torch.nn.Embedding(5, 3), self.layers)


def test_whole_numbers_are_refused_in_one_line_unless_the_network_takes_them() -> None:
    words = torch.tensor([[0, 4], [1, 2]])
    with pytest.raises(UserError, match=r"^MLP: its input is int64 \[2, 2\]; it takes floating-point numbers, such as"):
        MLP((2,), (4,))(words)
    assert Embedded((2,), (4,))(words).shape == (2, 4)


def test_a_size_that_differs_between_batches_is_refused() -> None:
    with pytest.raises(UserError, match=r"^MLP: in_shape \(-1, 3\) .* give the shape of one step"):
        MLP((-1, 3), (4,))


@pytest.mark.parametrize(
    ("recipe", "in_shape", "out_shape"),
    [
        (partial(UNet, channels=(4, 6, 8), hidden_size=16), (2, 8, 12), (3, 8, 12)),
        (partial(UNet, channels=(4,), hidden_size=16), (2, 3, 5), (1, 3, 5)),
        (partial(SpatialBroadcast, channels=(6, 4)), (5,), (3, 8, 12)),
    ],
    ids=["U-Net", "one block", "spatial broadcast"],
)
def test_networks_of_sizes_that_can_be_halved(recipe: NetworkRecipe, in_shape: Shape, out_shape: Shape) -> None:
    network = recipe(in_shape, out_shape).double()
    x = torch.randn(2, 3, *in_shape, dtype=torch.float64)
    y = network(x)
    assert y.shape == (2, 3, *out_shape)
    torch.testing.assert_close(network(x[1, 2]), y[1, 2])  # no image knows the others of its batch
    assert not list(network.buffers()) or not any("running" in name for name, _ in network.named_buffers())
    y.square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_a_pixel_of_a_u_net_reads_the_whole_image_and_its_own_place() -> None:
    torch.manual_seed(0)
    network = UNet((1, 16, 16), (1, 16, 16), channels=(4, 4, 4), hidden_size=16).double()
    x = torch.randn(1, 16, 16, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x)[0, 3, 5], x)
    assert (slope.abs() > 0).all()
    assert slope[0, 1:6, 3:8].abs().mean() > 3 * slope[0, 8:].abs().mean()


def test_a_broadcast_vector_is_drawn_by_place() -> None:
    """The first maps hold z at each place beside its row and column from -1 to 1."""
    network = SpatialBroadcast((2,), (1, 8, 8), channels=(4, 4))
    maps = network.layers[1](torch.tensor([[5.0, 7.0]]))  # type: ignore[index]
    assert maps.shape == (1, 4, 2, 2)
    assert maps[0, :, 0, 1].tolist() == [5, 7, -1, 1]
    assert maps[0, :, 1, 1].tolist() == [5, 7, 1, 1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: UNet((1, 12, 16), (1, 12, 16)),
            "UNet: images of 12 x 16 pixels: 4 blocks halve them 3 times, so heigh",
        ),
        (
            lambda: UNet((1, 8, 8), (1, 8, 8)),
            "UNet: images of 8 x 8 pixels: 4 blocks halve them 3 times, so height and",
        ),
        (lambda: UNet((8,), (1, 8, 8)), r"UNet: maps \(8,\) to \(1, 8, 8\); both must be \[channels, height, width\]"),
        (
            lambda: SpatialBroadcast((4,), (1, 10, 8)),
            "SpatialBroadcast: images of 10 x 8 pixels: 2 layers double their",
        ),
        (
            lambda: SpatialBroadcast((4,), (4,)),
            r"SpatialBroadcast: its output \(4,\) must be \[channels, height, width\]",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build: Callable[[], Network], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        build()
