"""Our weights in pythae's VAE, so that pythae's `get_nll` can be timed and compared on the same model."""

from __future__ import annotations

import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor

from vae_lightning import models


class Encoder(BaseEncoder):
    def __init__(self, model: models.VAE) -> None:
        super().__init__()
        self.encoder, self.posterior = model.encoder, model.posterior

    def forward(self, x: Tensor) -> ModelOutput:
        q_z = self.posterior(self.encoder(x))
        return ModelOutput(embedding=q_z.mean, log_covariance=2 * q_z.stddev.log())


class Decoder(BaseDecoder):
    def __init__(self, model: models.VAE) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.decoder(z)))


def wrap(model: models.VAE) -> VAE:
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    wrapped = VAE(config, encoder=Encoder(model), decoder=Decoder(model)).to(model.device).eval()
    wrapped.device = model.device
    return wrapped
