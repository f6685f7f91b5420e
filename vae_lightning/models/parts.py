"""A model in parts, q(z|x) alone and p(x|z) alone, for commands that use the encoder or the decoder by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn

import lightning.pytorch as pl
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.trace import Trace, at_means
from vae_lightning.types import Batch, UserError

_EXPORT = "vae-lightning export RUN --format {} writes its encoder and its decoder as two files"


class InParts(pl.LightningModule):
    """A model whose encoder and decoder can be called alone."""

    @abstractmethod
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        """Return the model's distributions at `batch["x"]`; `LatentVariableModel.trace` says more."""

    def infer(self, batch: Batch) -> Mapping[str, Distribution]:
        """Return q(z|x) of each latent by name, without noise: batch [B], or [1, B] if q depends on another latent.

        Such a q(z1|x, z2) is that at the mean of q(z2|x). A subclass overrides this if the encoder can run without the
        decoder; an exported encoder then has no weights of the decoder.

        Args:
            batch: The batch.

        Raises:
            UserError: if a latent exists in some examples only, or if its values are enumerated.
        """
        with at_means():
            latents = self.trace(batch).latents
        odd = [name for name, latent in latents.items() if latent.enumerated or latent.exists is not None]
        if odd:
            raise UserError(
                f"{type(self).__name__}: {', '.join(odd)} exist in some examples only, or are enumerated, so there is "
                "no encoder from x to their mean and scale"
            )
        return {name: latent.q for name, latent in latents.items()}

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        """Return p(x|z) at given latents; only models whose p(x|z) is a function of z and `conditions` define this.

        Args:
            latents: Tensors [..., *event] by the names of the Trace's latents, and the `conditions` by their names.

        Raises:
            UserError: if the model has no such function.
        """
        raise UserError(f"{type(self).__name__} has no decode(latents): its p(x|z) is not a function of z alone")

    def conditions(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what `decode` needs beside the latents, by name, [B, ...] each: nothing, unless overridden.

        Args:
            batch: The batch.
        """
        return {}

    def to_onnx(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise UserError with the command that exports: Lightning would export `forward` as one network."""
        raise UserError(f"to_onnx: {type(self).__name__} is two networks; {_EXPORT.format('onnx')}")

    def to_torchscript(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise UserError with the command that exports: TorchScript is deprecated in torch."""
        raise UserError(f"to_torchscript: torch.export has replaced TorchScript; {_EXPORT.format('pt2')}")
