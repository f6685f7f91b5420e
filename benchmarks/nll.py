"""-log p(x) by importance sampling: `python -m benchmarks.nll ours --model FILE --data_dir DIR`.

All contenders evaluate one model (ours, 784-400-20-400-784, trained for an epoch by `train`) on the same test images,
with K samples per image.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.final import test_images
from benchmarks.loops import device
from benchmarks.timing import Stopwatch, record
from vae_lightning.__main__ import keep_memory
from vae_lightning.metrics.likelihood import log_marginal_likelihood
from vae_lightning.models import VAE

CHUNK_SIZE = 20  # the default of the CLI's `test`
SAMPLES_AT_ONCE = 100  # pythae's default
MARKS = 10  # parts of the images, each timed with its `exchange_us`; the first is warm-up


def new_model() -> VAE:
    return VAE((1, 28, 28), latent_size=20)


def train(args: argparse.Namespace) -> None:
    """Train for one epoch, after which the posterior differs from the prior."""
    from torchvision import datasets

    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    pixels = datasets.MNIST(args.data_dir, train=True).data[:, None]
    for index in torch.randperm(len(pixels)).split(128):
        trace = model.trace({"x": (pixels[index] > 127).float()})
        loss = (trace.kl()["z"] - trace.log_likelihood()[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), args.model)


def ours(model: VAE, images: Tensor, num_samples: int) -> float:
    """The method of `vae-lightning test`, in chunks of 20 samples."""
    return -log_marginal_likelihood(model, {"x": images}, num_samples, CHUNK_SIZE).mean().item()


@torch.no_grad()
def image_by_image(model: VAE, images: Tensor, num_samples: int) -> float:
    """The method of pythae's `get_nll`: each image runs 100 times through encoder and decoder, K / 100 times."""
    log_p = []
    for image in images:
        x = image.expand(SAMPLES_AT_ONCE, *image.shape)
        log_w = []
        for _ in range(num_samples // SAMPLES_AT_ONCE):
            mu, log_var = _posterior(model, x)
            noise = torch.randn_like(mu)
            z = mu + noise * torch.exp(0.5 * log_var)
            probabilities = torch.sigmoid(model.decoder(z)).flatten(1)
            log_p_x = -F.binary_cross_entropy(probabilities, x.flatten(1), reduction="none").sum(1)
            # the two normalising constants are equal
            log_w.append(log_p_x - 0.5 * z.square().sum(1) + 0.5 * (log_var + noise.square()).sum(1))
        all_log_w = torch.cat(log_w)
        log_p.append((torch.logsumexp(all_log_w, 0) - math.log(len(all_log_w))).item())
    return -sum(log_p) / len(log_p)


def _posterior(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    q_z = model.posterior(model.encoder(x))
    return q_z.mean, 2 * q_z.stddev.log()


def pythae(model: VAE, images: Tensor, num_samples: int) -> float:
    """pythae's own `get_nll` with our weights in its model. It returns log p(x) under the name nll."""
    from benchmarks.peer_pythae_nll import wrap

    with torch.no_grad():
        return -float(wrap(model).get_nll(images, num_samples, SAMPLES_AT_ONCE))


CONTENDERS: dict[str, Callable[[VAE, Tensor, int], float]] = {
    function.__name__: function for function in (ours, image_by_image, pythae)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=("train", *CONTENDERS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.contender == "train":
        train(args)
        return
    model = new_model()
    model.load_state_dict(torch.load(args.model, weights_only=True))
    model = model.to(device()).eval()
    images = test_images(args.data_dir, "threshold")[: args.num_images].to(device())
    keep_memory()  # all contenders have our allocator setting
    evaluate, parts = CONTENDERS[args.contender], images.chunk(MARKS)
    watch, total = Stopwatch(), 0.0
    watch.start()
    for part in parts:
        total += len(part) * evaluate(model, part, args.num_samples)  # the float waits for the device
        watch.step(len(part))
        watch.end_epoch()
    watch.write()
    record(nll=total / len(images))


if __name__ == "__main__":
    main()
