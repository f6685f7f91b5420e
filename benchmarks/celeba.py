"""The contenders at CelebA's shape, one per process: `python -m benchmarks.celeba ceiling --data_dir DIR`.

Our CLI is started by `benchmarks.ours`. All contenders have one network: our ConvEncoder and ConvDecoder, four
stride-2 convolutions each way, 64 latents, a Gaussian likelihood with sigma 0.1, Adam 1e-3. `benchmarks.celeba_data`
writes the folder `--data_dir`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.celeba_data import training_files, write_layout
from benchmarks.loops import PlainLightning, Setting, bare_loop, device
from benchmarks.mnist import kl
from benchmarks.timing import EpochTimer, record
from vae_lightning.__main__ import keep_memory
from vae_lightning.data import CelebA
from vae_lightning.networks import ConvDecoder, ConvEncoder

LATENT_SIZE = 64
SIGMA = 0.1
LEARNING_RATE = 1e-3
CHANNELS, HIDDEN_SIZE = (32, 64, 128, 256), 320
CELEBA_SIZE = 202_599

CEILINGS = {
    "float32": Setting(),
    "channels_last": Setting(channels_last=True),
    "bf16_channels_last": Setting(bf16=True, channels_last=True),
    "bf16_channels_last_compiled": Setting(bf16=True, channels_last=True, compile=True),
}


class Net(nn.Module):
    """x [B, 3, 64, 64] -> the mean of p(x|z) [B, 3, 64, 64], mu and log sigma^2 of q(z|x) [B, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ConvEncoder((3, 64, 64), (2 * LATENT_SIZE,), CHANNELS, HIDDEN_SIZE)
        self.decoder = ConvDecoder((LATENT_SIZE,), (3, 64, 64), CHANNELS, HIDDEN_SIZE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_var = self.encoder(x).chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
        return self.decoder(z), mu, log_var


def loss_terms(x: Tensor, mean: Tensor, mu: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """-log N(x; mean, SIGMA^2) and KL, in nats per image."""
    constant = math.log(SIGMA) + 0.5 * math.log(2 * math.pi)
    reconstruction = 0.5 * ((x - mean) / SIGMA).square().sum() + constant * x.numel()
    return reconstruction / len(x), kl(mu, log_var) / len(x)


# -- JPEG files, one by one --------------------------------------------------------------------------------------------


class Jpegs(Dataset[Tensor]):
    """Decode with PIL, crop the central 148 x 148, resize to 64 x 64 (antialiased bilinear), ToTensor."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [transforms.CenterCrop(148), transforms.Resize((64, 64)), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            x: Tensor = self.transform(image.convert("RGB"))
        return x


def jpeg_lightning(args: argparse.Namespace) -> None:
    """Train with 2 persistent workers, because an epoch is too short to start workers each time."""
    loader = DataLoader(
        Jpegs(training_files(args.data_dir)),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )
    trainer = pl.Trainer(max_epochs=args.epochs, callbacks=[EpochTimer(), TQDMProgressBar()], precision=args.precision)
    trainer.fit(PlainLightning(Net(), lambda net, x: loss_terms(x, *net(x)), LEARNING_RATE), loader)


# -- the ceiling -------------------------------------------------------------------------------------------------------


def ceiling(args: argparse.Namespace) -> None:
    """Train on bytes on the device. They are stored in the layout of the network, [N, H, W, C] or [N, C, H, W]."""
    setting, where = CEILINGS[args.setting], device()
    net = Net().to(where)
    if setting.channels_last:
        net = net.to(memory_format=torch.channels_last)
    forward: Callable[..., Any] = torch.compile(net) if setting.compile else net

    def step_loss(x: Tensor) -> Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=setting.bf16):
            outputs = forward(x)
        mean, mu, log_var = (output.float() for output in outputs)
        return sum(loss_terms(x, mean, mu, log_var), torch.zeros((), device=where))

    pixels = _resident(training_files(args.data_dir)).to(where)
    if setting.channels_last:
        pixels = pixels.permute(0, 2, 3, 1).contiguous()
    to_float = _channels_last if setting.channels_last else _scaled
    bare_loop(step_loss, net, pixels, to_float, args.batch_size, args.epochs, LEARNING_RATE).write()
    record(parameters=sum(p.numel() for p in net.parameters()))


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def _channels_last(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255


def _resident(files: list[Path]) -> Tensor:
    data = Jpegs(files)
    return torch.stack([(data[i] * 255).round().to(torch.uint8) for i in range(len(data))])


# -- data alone --------------------------------------------------------------------------------------------------------


def data_module(data_dir: Path, batch_size: int = 64) -> pl.LightningDataModule:
    """Our data module, with its public arguments."""
    return CelebA(data_dir=str(data_dir), batch_size=batch_size, verify=False)


def data_jpeg(args: argparse.Namespace) -> None:
    """Measure on one core: open, decode, crop, resize, ToTensor."""
    torch.set_num_threads(1)
    data = Jpegs(training_files(args.data_dir))
    _record_cost(args.epochs, lambda: sum(1 for i in range(len(data)) if data[i].shape))


def data_ours(args: argparse.Namespace) -> None:
    """Measure float batches of our training loader on one core, in a process set up like the CLI's."""
    keep_memory()
    torch.set_num_threads(1)
    module = data_module(args.data_dir, args.batch_size)
    module.prepare_data()
    module.setup("fit")
    loader: Iterable[dict[str, Tensor]] = module.train_dataloader()
    _record_cost(10 * args.epochs, lambda: sum(len(batch["x"]) for batch in loader))


def _record_cost(passes: int, one_pass: Callable[[], int]) -> None:
    """Record medians over all passes but the first: `image_us` by the clock, `image_cpu_us` of processor time."""
    costs, cpu_costs = [], []
    for _ in range(passes + 1):
        since, cpu_since = time.perf_counter(), time.process_time()
        count = one_pass()
        costs.append((time.perf_counter() - since) / count * 1e6)
        cpu_costs.append((time.process_time() - cpu_since) / count * 1e6)
    cpu_us = statistics.median(cpu_costs[1:])
    record(image_us=statistics.median(costs[1:]), image_cpu_us=cpu_us, passes_us=costs)


def prepare(args: argparse.Namespace) -> None:
    """Measure the preparation of two sizes, fit t(N) = fixed + N cost, and extrapolate to all of CelebA."""
    pool, seconds = args.data_dir.parent / "pool", []
    pool_size = len(list(pool.glob("*.jpg")))
    sizes = [pool_size // 5, pool_size]
    with tempfile.TemporaryDirectory(dir=args.data_dir.parent) as folder:
        for size in sizes:
            module = data_module(write_layout(Path(folder) / str(size), pool, size))
            since = time.perf_counter()
            module.prepare_data()
            seconds.append(time.perf_counter() - since)
    cost = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    fixed = seconds[0] - sizes[0] * cost
    record(sizes=sizes, seconds=seconds, fixed_s=fixed, image_us=1e6 * cost, all_s=fixed + CELEBA_SIZE * cost)


def cache(args: argparse.Namespace) -> None:
    """Prepare the folder that the contenders train on, so that no start-up time contains the preparation."""
    data_module(args.data_dir).prepare_data()


CONTENDERS: dict[str, Callable[[argparse.Namespace], None]] = {
    function.__name__: function for function in (jpeg_lightning, ceiling, data_jpeg, data_ours, prepare, cache)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=tuple(CONTENDERS))
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--setting", choices=tuple(CEILINGS), default="float32")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    CONTENDERS[args.contender](args)


if __name__ == "__main__":
    main()
