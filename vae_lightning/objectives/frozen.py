"""A network that an objective looks through and does not train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Frozen(nn.Module):
    """A network with fixed weights, such as the features of a perceptual loss or a classifier.

    An objective holds it as an attribute: `self.features = Frozen(network)`. Gradients pass through it to its input.
    Its weights are neither trained, averaged nor saved, and it stays in evaluation mode; it moves with the model to a
    device and to a dtype. A checkpoint does not hold the weights, so the objective's constructor must build the same
    network each time: from a file, or with a generator of its own. A model that is loaded may take 512 MiB beside a
    multiple of its saved weights, and the network counts.

    Args:
        network: The network; its parameters no longer require a gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._held = [
            network.eval().requires_grad_(False)
        ]  # in a list, because an attribute would register it as a submodule

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._held[0](*args, **kwargs)

    def extra_repr(self) -> str:
        return repr(self._held[0])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Frozen:
        super()._apply(fn, recurse)
        self._held[0]._apply(fn, recurse)  # device and dtype, which are all that the network shares with the model
        return self
