"""Whether a trained model still uses its latents: what is measured of it. `verdict.py` says what that means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vae_lightning.distributions import given, known_pixels
from vae_lightning.metrics.estimate import mean_and_error
from vae_lightning.metrics.evaluation import Evaluation
from vae_lightning.metrics.evaluator import log_numbers
from vae_lightning.metrics.rows import SpreadRows
from vae_lightning.metrics.verdict import Verdict, judge, num_dead, of_each_latent
from vae_lightning.models import LatentVariableModel
from vae_lightning.noise import reseed
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch, UserError

_SWAP = 4  # a stream of noise; that of `Frechet` and those of the model's own steps are beside it
_ROWS_AT_ONCE = 100


class CollapseReport(pl.Callback):
    """At test: `verdict`, whether the latents are used, from one sample for each of `num_images` images and from what
    `Evaluation` has found; `findings`, its sentences on what is wrong.

    Logs `test/swap_cost`, E[log p(x|z)] less the same with z of another image, in nats, with its standard error, and
    for each latent whose q and p are products over dimensions `test/dead_dimensions/<latent>`, how many have a KL below
    0.01 nats an image.
    The images are spread over the test set and paired at random, so that a set sorted by class says no more and no less
    than a shuffled one; they are the same for any batch size and any number of ranks. 0 leaves the report out. A
    conditional model's condition is swapped with z.
    """

    def __init__(self, num_images: int = 1000) -> None:
        if num_images < 0:
            raise UserError(f"collapse: num_images is {num_images}; it must be at least 0 (0: no report)")
        self.num_images = num_images
        self._rows = SpreadRows(num_images)
        self._use: dict[str, Tensor] = {}
        self._evaluation: Evaluation | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Once all callbacks are through with the test; None where nothing was measured."""
        found = self._evaluation.found if self._evaluation else {}
        return judge(self._use, found) if self._use else None

    @property
    def findings(self) -> list[str]:
        return self.verdict.findings if self.verdict else []

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rows, self._use = SpreadRows(self.num_images), {}
        self._evaluation = next((c for c in trainer.callbacks if isinstance(c, Evaluation)), None)  # type: ignore[attr-defined]

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.num_images:
            size = getattr(trainer.test_dataloaders, "batch_size", None) or len(batch["x"])
            self._rows.add(batch, (batch_idx * trainer.world_size + trainer.global_rank) * size)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each rank measures all rows, with the same noise: they are few, and no rank then depends on the others."""
        assert isinstance(pl_module, LatentVariableModel)
        rows = self._rows.from_all_ranks()
        self._rows = SpreadRows(self.num_images)
        if len(rows.get("x", ())) < 2:  # one image has no other to swap with
            return
        self._use = measure(pl_module, rows)
        if self._use:
            cost = mean_and_error(self._use["swap_cost"])
            numbers = {"test/swap_cost": cost.mean, "test/swap_cost_stderr": cost.error}
            dead = of_each_latent("kl_by_dimension", self._use)
            numbers |= {f"test/dead_dimensions/{name}": num_dead(kl.mean(0)) for name, kl in dead.items()}
            log_numbers(pl_module, numbers)


@torch.no_grad()
def measure(model: LatentVariableModel, rows: Batch) -> dict[str, Tensor]:
    """`use_of_latents` of N rows, [N, ...] on the CPU, about a hundred at once; empty for a model without latents."""
    count = len(rows["x"])
    parts = torch.arange(count).tensor_split(-(-count // _ROWS_AT_ONCE))  # equal to one: of 2 rows or more
    found = []
    for number, index in enumerate(parts):
        reseed(model.device, _SWAP, number)
        trace = model.trace({name: values[index].to(model.device) for name, values in rows.items()})
        found.append(use_of_latents(trace) if trace.latents else {})
    return {name: torch.cat([use[name].double().cpu() for use in found]) for name in found[0]}


@torch.no_grad()
def use_of_latents(trace: Trace) -> dict[str, Tensor]:
    """What tells whether latents are used, for each example, K averaged: all [B, ...].

    `swap_cost`: log p(x_b|z_b) - log p(x_b|z_(b-1)), in nats, zero to the last digit where p(x|z) ignores z. No decoder
    is run for it: it is p(x|z_(b-1)) asked for the neighbour's image. `kl/<latent>` in nats. Where the distributions
    have them, `kl_by_dimension/<latent>`; `mean/<latent>` and `variance/<latent>` of q(z|x); and `scale/<latent>`, the
    standard deviation of q in the prior's.
    """
    other = trace.x.roll(-1, 0)
    p_x = given(trace.p_x, known_pixels(trace.p_x), other)
    neighbour = p_x.log_prob(other).roll(1, -1)  # [K, B]: log p(x_b|z_b-1)
    use = {"swap_cost": (trace.log_likelihood() - neighbour).mean(0)}
    use |= {f"kl/{name}": kl for name, kl in trace.kl().items()}
    use |= {f"kl_by_dimension/{name}": kl.flatten(1) for name, kl in trace.kl_by_dimension().items()}
    for name, latent in trace.latents.items():
        shape = latent.z.shape  # [K, B, *event]
        for kind, moment in _moments(latent):
            use[f"{kind}/{name}"] = moment.expand(shape).mean(0).flatten(1)
    return use


def _moments(latent: Latent) -> Iterator[tuple[str, Tensor]]:
    """Those that q and p know: a flow, say, knows none."""
    with suppress(NotImplementedError):
        yield "mean", latent.q.mean
    with suppress(NotImplementedError):
        yield "variance", latent.q.variance
    with suppress(NotImplementedError):
        yield "scale", latent.q.stddev / latent.p.stddev
