"""A training step of MONet beside a plain loop of the same network: `python -m benchmarks.monet_step`.

`ours` is a fit of configs/monet/scenes.yaml by Lightning's trainer: loader, trace, objective, clipping, optimizer and
logging. `plain` is a loop over tensors in memory whose loss is written out in a few lines, with the same networks,
weights, batch size, clipping and optimizer. The two take turns. A step's time is processor time of one thread, and the
ratio is that of the medians over the steps of all rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import conditions, machine
from vae_lightning.__main__ import keep_memory
from vae_lightning.data import ProceduralScenes
from vae_lightning.distributions import Family
from vae_lightning.models import MONet

CONFIG = Path(__file__).parent.parent / "configs/monet/scenes.yaml"
ALLOWED = 1.3
WARM_UP = 5  # steps of each round that are not counted
BETA = GAMMA = 0.5
CLIP = 1000.0


def from_config(num_images: int) -> tuple[MONet, ProceduralScenes]:
    """Return the model and the data of configs/monet/scenes.yaml, with a constant learning rate.

    Args:
        num_images: The number of training images, in place of that of the file.
    """
    config = yaml.safe_load(CONFIG.read_text())
    parser = ArgumentParser()
    parser.add_subclass_arguments(MONet, "model")
    parser.add_class_arguments(ProceduralScenes, "data")
    data = {**config["data"]["init_args"], "num_images": [num_images, 16, 16]}
    size = data["image_size"]
    settings = {**config["model"]["init_args"], "image_shape": [3, size, size], "scheduler": None}
    built = parser.instantiate_classes(
        parser.parse_object(
            {"model": {"class_path": config["model"]["class_path"], "init_args": settings}, "data": data}
        )
    )
    return built.model, built.data


class Clock(pl.Callback):
    """The processor time of each training step, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())


def ours(num_steps: int) -> list[float]:
    """The seconds of each step of a fit."""
    torch.manual_seed(0)
    model, data = from_config(20_000)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=num_steps,
            limit_val_batches=0,
            accelerator="cpu",
            gradient_clip_val=CLIP,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(model, data)
    return [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]


def loss_of(model: MONet, x: Tensor) -> Tensor:
    """The loss of the paper by its formulas alone: -log p(x) under attended masks + beta KL + gamma KL of the masks."""
    left, masks = torch.zeros_like(x[:, :1]), []
    for _ in range(model.num_slots - 1):
        logit = model.attention(torch.cat((x, left.clamp(min=-10)), 1))
        masks.append(left + F.logsigmoid(logit))
        left = left + F.logsigmoid(-logit)
    log_m = torch.cat((*masks, left), 1)  # [B, S, H, W]
    m = log_m.exp()[:, :, None]
    mean, raw = model.encoder(torch.cat((m * x[:, None], m), 2)).chunk(2, -1)  # [B, S, D] each
    scale = F.softplus(raw) + 1e-3
    features = model.decoder(mean + scale * torch.randn_like(mean))  # [B, S, C + 1, H, W]
    sigma = model.sigma(None)[:, None, None]
    squares = (x[:, None] - features[:, :, :3].sigmoid()).square().sum(2)
    log_n = -0.5 * squares / sigma**2 - 3 * (sigma.log() + 0.5 * math.log(2 * math.pi))
    log_p = (log_m + log_n).logsumexp(1).sum((1, 2))
    kl = 0.5 * (mean**2 + scale**2 - 1 - 2 * scale.log()).sum((1, 2))
    kl_masks = (log_m.exp() * (log_m - features[:, :, 3].log_softmax(1))).sum((1, 2, 3))
    return (BETA * kl + GAMMA * kl_masks - log_p).mean()


def plain(num_steps: int) -> list[float]:
    """The seconds of each step of the loop."""
    torch.manual_seed(0)
    model, data = from_config(20_000)
    x = data.load("train").fields["x"]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    seconds = []
    for _ in range(num_steps):
        start = time.process_time()
        batch = x[torch.randint(len(x), (data.batch_size,))].float() / 255
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        seconds.append(time.process_time() - start)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monet_step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="steps of each contender in a round; default: 40")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    args = parser.parse_args(arguments)
    keep_memory()
    Family.validate_args = False  # as for users
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(args.rounds):
        seconds["ours"] += ours(args.steps)[WARM_UP:]
        seconds["plain"] += plain(args.steps)[WARM_UP:]
    medians = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    command = ["python", "-m", "benchmarks.monet_step", *(sys.argv[1:] if arguments is None else arguments)]
    header = {"measured": time.strftime("%Y-%m-%d %H:%M"), "command": shlex.join(command), **conditions()}
    ratio = medians["ours"] / medians["plain"]
    results = {"machine": machine(), "header": header, "step_ms": medians, "ratio": ratio, "allowed": ALLOWED}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "monet_step.json").write_text(json.dumps(results, indent=1) + "\n")
    print(
        f"ours {medians['ours']:.1f} ms, plain {medians['plain']:.1f} ms a step: {ratio:.2f} times (at most {ALLOWED})"
    )
    return 0 if ratio <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
