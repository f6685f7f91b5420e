"""A VAE of a table: twelve real columns of the breast cancer data set, in units of the training rows' deviation."""

from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from vae_lightning.data import DataModule, Examples, Split
from vae_lightning.distributions import DiagonalNormal, StandardNormal
from vae_lightning.models import LatentVariableModel
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch

ROWS = {"train": slice(0, 400), "val": slice(400, 469), "test": slice(469, 569)}


class Tumours(DataModule):
    x_shape, num_classes, class_names = (12,), 2, ("malignant", "benign")

    def load(self, split: Split) -> Examples:
        table = load_breast_cancer()
        values, label = torch.tensor(table.data[:, :12]), torch.tensor(table.target)
        train = values[ROWS["train"]]
        x = ((values - train.mean(0)) / train.std(0)).float()
        return Examples({"x": x[ROWS[split]], "label": label[ROWS[split]]})

    def show(self, x: Tensor) -> list[str]:
        return [" ".join(f"{value:5.1f}" for value in row) for row in x.tolist()]


class TableVAE(LatentVariableModel):
    def __init__(self, x_shape: tuple[int, ...], latent_size: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.posterior, self.prior = DiagonalNormal((latent_size,)), StandardNormal((latent_size,))
        self.likelihood = DiagonalNormal(x_shape, sigma=0.5, learn_sigma=True)
        self.encoder = MLP(x_shape, self.posterior.param_shape, (64,))
        self.decoder = MLP((latent_size,), self.likelihood.param_shape, (64,))

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        q = self.posterior(self.encoder(batch["x"]))
        z = draw(q, num_samples)
        return Trace(batch["x"], self.likelihood(self.decoder(z)), {"z": Latent(z, q, self.prior())})

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.likelihood(self.decoder(self.prior().sample((n,)))).mean
