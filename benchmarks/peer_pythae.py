"""pythae's VAE and trainer, with the others' network: `python -m benchmarks.peer_pythae --data_dir DIR`.

pythae is installed from its release (the `bench` extra). Its trainer loads float tensors item by item, reads the loss
at each step, draws a tqdm bar, and copies the model after each epoch that improves the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor
from torchvision import datasets

from benchmarks.final import record_elbo
from benchmarks.loops import device
from benchmarks.mnist import BATCH_SIZE, LEARNING_RATE, Net, arguments, recipe_terms
from benchmarks.timing import Stopwatch


class Encoder(BaseEncoder):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.hidden, self.mu, self.log_var = net.hidden, net.mu, net.log_var

    def forward(self, x: Tensor) -> ModelOutput:
        h = torch.relu(self.hidden(x.flatten(1)))
        return ModelOutput(embedding=self.mu(h), log_covariance=self.log_var(h))


class Decoder(BaseDecoder):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.layers = net.decoder

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)).view(-1, 1, 28, 28))


class Marks(TrainingCallback):
    """Set the marks of `EpochTimer` in pythae's hooks."""

    def __init__(self, watch: Stopwatch, num_images: int) -> None:
        self.watch, self.num_images = watch, num_images

    def on_train_begin(self, training_config: Any, **kwargs: Any) -> None:
        self.watch.start()

    def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
        self.watch.step(0)  # pythae does not say how many images the step had

    def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:
        self.watch.images = self.num_images
        self.watch.end_epoch()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    images = datasets.MNIST(args.data_dir, train=True)
    data = BaseDataset(images.data[:, None].float() / 255, images.targets)
    net, watch = Net(), Stopwatch()
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    training = BaseTrainerConfig(
        output_dir="pythae",
        num_epochs=args.epochs,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=BATCH_SIZE,
        optimizer_cls="Adam",
        seed=args.seed,
    )
    model = VAE(config, encoder=Encoder(net), decoder=Decoder(net))
    BaseTrainer(model, data, training_config=training, callbacks=[Marks(watch, len(data))]).train()
    watch.write()
    record_elbo(lambda x: recipe_terms(net, x), args.data_dir, "grey", device())


if __name__ == "__main__":
    main()
