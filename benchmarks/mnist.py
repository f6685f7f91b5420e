"""The MNIST contenders except ours and pythae, one per process: `python -m benchmarks.mnist reference --data_dir DIR`.

All contenders have one network, 784-400-20-400-784 (652,824 parameters), Adam 1e-3 and batch 128. Each recipe is
written anew; `reference` follows the VAE of pytorch/examples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.final import record_elbo
from benchmarks.loops import PlainLightning, Setting, bare_loop, device
from benchmarks.timing import EpochTimer, Stopwatch

BATCH_SIZE = 128
LEARNING_RATE = 1e-3

CEILINGS = {
    "float32": Setting(),
    "bf16": Setting(bf16=True),
    "compiled": Setting(compile=True),
    "compiled_bf16": Setting(bf16=True, compile=True),
}


class Net(nn.Module):
    """x [B, 784] -> logits of p(x|z) [B, 784], mu and log sigma^2 of q(z|x) [B, 20]."""

    def __init__(self, in_size: int = 784, hidden_size: int = 400, latent_size: int = 20) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_size, hidden_size)
        self.mu = nn.Linear(hidden_size, latent_size)
        self.log_var = nn.Linear(hidden_size, latent_size)
        self.decoder = nn.Sequential(nn.Linear(latent_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, in_size))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.hidden(x))
        return self.mu(h), self.log_var(h)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_var = self.encode(x)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
        return self.decoder(z), mu, log_var


def kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)), summed over the latents and the batch, in nats."""
    return -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum()


def recipe_terms(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms that the recipe minimises: cross-entropy of probabilities, and KL, summed over the batch."""
    x = images.flatten(1)
    logits, mu, log_var = net(x)
    return F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum"), kl(mu, log_var)


def terms_per_image(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """`recipe_terms`, divided by the number of images."""
    reconstruction, divergence = recipe_terms(net, images)
    return reconstruction / len(images), divergence / len(images)


# -- contenders ------------------------------------------------------------------------------------------------------


def reference(args: argparse.Namespace) -> None:
    """The recipe: torchvision, ToTensor and DataLoader; the loss is read at each step and printed at each tenth."""
    where = device()
    loader = _loader(args, **({"num_workers": 1, "pin_memory": True} if where.type == "cuda" else {}))
    net = Net().to(where)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    watch = Stopwatch()
    watch.start()
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for step, (images, _) in enumerate(loader):
            optimizer.zero_grad()
            loss = sum(recipe_terms(net, images.to(where)), torch.zeros((), device=where))
            loss.backward()
            total += loss.item()
            optimizer.step()
            if step % 10 == 0:
                print(f"epoch {epoch} [{step * BATCH_SIZE}/{len(loader.dataset)}] {loss.item() / len(images):.4f}")  # type: ignore[arg-type]
            watch.step(len(images))
        print(f"epoch {epoch}: mean loss {total / len(loader.dataset):.4f}")  # type: ignore[arg-type]
        watch.end_epoch()
    watch.write()
    record_elbo(lambda x: recipe_terms(net, x), args.data_dir, args.pixels, where)


def plain_lightning(args: argparse.Namespace) -> None:
    """Train with the Trainer's default logger and checkpoints, and with the tqdm bar (rich is an extra)."""
    net = Net()
    model = PlainLightning(net, terms_per_image, LEARNING_RATE)
    trainer = pl.Trainer(max_epochs=args.epochs, callbacks=[EpochTimer(), TQDMProgressBar()])
    trainer.fit(model, _loader(args))
    model.to(device())
    record_elbo(lambda x: recipe_terms(net, x), args.data_dir, args.pixels, model.device)


def ceiling(args: argparse.Namespace) -> None:
    """Train on bytes on the device with one gather per batch, logits and fused Adam; pixels above 127 become 1."""
    setting, where = CEILINGS[args.setting], device()
    torch.set_float32_matmul_precision(setting.matmul_precision)
    pixels = datasets.MNIST(args.data_dir, train=True).data.flatten(1).to(where)
    net = Net().to(where)

    def step_loss(x: Tensor) -> Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=setting.bf16):
            outputs = net(x)
        logits, mu, log_var = (output.float() for output in outputs)
        return (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl(mu, log_var)) / len(x)

    compiled: Callable[[Tensor], Tensor] = torch.compile(step_loss) if setting.compile else step_loss
    watch = bare_loop(compiled, net, pixels, _above_half, BATCH_SIZE, args.epochs, LEARNING_RATE)
    watch.write()
    record_elbo(lambda x: recipe_terms(net, x), args.data_dir, "threshold", where)


def _above_half(pixels: Tensor) -> Tensor:
    return (pixels > 127).float()


def _loader(args: argparse.Namespace, **options: Any) -> DataLoader[Any]:
    steps: list[Callable[..., Any]] = [transforms.ToTensor()]
    if args.pixels == "threshold":
        steps.append(lambda x: (x > 0.5).float())
    data = datasets.MNIST(args.data_dir, train=True, transform=transforms.Compose(steps))
    return DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, **options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", nargs="?", choices=("reference", "plain_lightning", "ceiling"))
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pixels", choices=("grey", "threshold"), default="grey")
    parser.add_argument("--setting", choices=tuple(CEILINGS), default="float32")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    {"reference": reference, "plain_lightning": plain_lightning, "ceiling": ceiling}[args.contender](args)


if __name__ == "__main__":
    main()
