"""The encoder of a model without its decoder, for commands that take a model apart; Lightning's exports refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.distributions.paths import centre
from vae_lightning.models.looking import Looking
from vae_lightning.trace import drawing
from vae_lightning.types import Batch, UserError

_EXPORT = "vae-lightning export RUN --format {} writes its encoder and its decoder as two files"


class InParts(Looking):
    """A model whose encoder can be called without noise and without the decoder."""

    def infer(self, batch: Batch) -> Mapping[str, Distribution]:
        """Return q(z|x) of each latent by name, without noise: batch [B], or [1, B] if q depends on another latent.

        Such a q(z1|x, z2) is that at the mean of q(z2|x). A subclass overrides this if the encoder can run without the
        decoder; an exported encoder then has no weights of the decoder.

        Args:
            batch: The batch.

        Raises:
            UserError: if a latent exists in some examples only, or if its values are enumerated.
        """
        with drawing(centre_or_sample):
            latents = self.checked_trace(batch).latents
        odd = [name for name, latent in latents.items() if latent.enumerated or latent.exists is not None]
        if odd:
            raise UserError(
                f"{type(self).__name__}: some examples have no {', '.join(odd)}, or the values are enumerated, so "
                "there is no encoder from x to mean and scale"
            )
        return {name: latent.q for name, latent in latents.items()}

    def to_onnx(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise UserError with the command that exports: Lightning would export `forward` as one network."""
        raise UserError(f"to_onnx: {type(self).__name__} is two networks; {_EXPORT.format('onnx')}")

    def to_torchscript(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise UserError with the command that exports: TorchScript is deprecated in torch."""
        raise UserError(f"to_torchscript: torch.export has replaced TorchScript; {_EXPORT.format('pt2')}")


def centre_or_sample(q: Distribution) -> Tensor:
    """Return the mean of q, or one sample if q has no mean in closed form: what `drawing` takes.

    Args:
        q: The posterior of one latent.
    """
    value = centre(q)
    return q.rsample() if value is None else value
