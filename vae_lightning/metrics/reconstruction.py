"""The similarity of a reconstruction to its image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vae_lightning.data import DataModule
from vae_lightning.metrics.evaluator import Evaluator, Finding
from vae_lightning.metrics.latents import with_stderr
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import Batch


class Reconstruction(Evaluator):
    """MSE = |x - E[x|z]|^2 / pixels, PSNR = -10 log10 MSE in dB, and SSIM (Wang et al. 2004), z ~ q(z|x), by image.

    Each is averaged over images; a pixel is one number of a channel. torchmetrics computes the last two, for pixels in
    [0, 1]. The reference is the x that the model sees: the binarised image if the data are binarised. SSIM has a
    Gaussian window of 11 x 11 pixels, so smaller images have no SSIM.
    """

    units: ClassVar[Mapping[str, str]] = {"mse": "squared pixels", "psnr": "dB", "ssim": "1 at best"}

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        if trace.x.dim() != 4 or not trace.x.is_floating_point():
            return f"x is not an image [C, H, W]: its shape is {list(trace.x.shape[1:])}"
        return None if trace.reconstruction() is not None else "p(x|z) does not know its mean"

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        self._mse = MeanAndError().to(model.device)
        self._psnr, self._ssim = MeanAndError().to(model.device), MeanAndError().to(model.device)
        self._has_ssim = False

    def update(self, trace: Trace, batch: Batch) -> None:
        mean = trace.reconstruction()  # [B, C, H, W]
        assert mean is not None  # see why_not_applicable
        self._mse.update((mean - trace.x).double().square().flatten(1).mean(1))
        self._psnr.update(peak_signal_noise_ratio(mean, trace.x, 1.0, reduction="none", dim=(1, 2, 3)))
        self._has_ssim = min(trace.x.shape[2:]) >= 11
        if self._has_ssim:
            ssim = structural_similarity_index_measure(mean, trace.x, reduction="none", data_range=1.0)
            assert isinstance(ssim, Tensor)
            self._ssim.update(ssim)

    def compute(self) -> dict[str, Finding]:
        found = {**with_stderr("mse", self._mse), **with_stderr("psnr", self._psnr)}
        return {**found, **(with_stderr("ssim", self._ssim) if self._has_ssim else {})}
