"""Measure whether a trained model uses its latents. `verdict.py` interprets the measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vae_lightning.distributions import given, known_pixels, seen_in_neighbour
from vae_lightning.metrics.estimate import mean_and_error
from vae_lightning.metrics.evaluation import Evaluation
from vae_lightning.metrics.evaluator import log_numbers, objects_from_all_ranks
from vae_lightning.metrics.rows import SpreadRows
from vae_lightning.metrics.verdict import Verdict, by_latent, judge, num_dead
from vae_lightning.models import LatentVariableModel
from vae_lightning.noise import reseed
from vae_lightning.trace import Latent, Trace, is_masked
from vae_lightning.types import Batch, UserError

_SWAP = 4  # a noise stream of its own, apart from those of `frechet.py` and of the model's steps
_ROWS_AT_ONCE = 100


class CollapseReport(pl.Callback):
    """Report at test whether the model uses its latents, from a sample of the test images.

    `verdict` combines these measurements with the results of `Evaluation`; `findings` holds one sentence for each
    problem. The callback logs two numbers:

    - `test/swap_cost`, with its standard error: E[log p(x|z)] minus the same with the z of another image, in nats.
    - `test/dead_dimensions/<latent>`: the number of dimensions with a KL below 0.01 nats per image, for each latent
      whose q and p factorise over dimensions.

    The images are spread over the test set and paired at random, so a set sorted by class gives the same result as a
    shuffled set. The images do not depend on the batch size or the number of ranks. In a conditional model the
    condition is swapped together with z.

    The report never ends a test: if it cannot be measured, on any rank, one line says why.

    Args:
        num_images: The number of test images to use; 0 turns the report off.
    """

    def __init__(self, num_images: int = 1000) -> None:
        if num_images < 0:
            raise UserError(f"collapse: num_images is {num_images}; it must be at least 0 (0: no report)")
        self.num_images = num_images
        self._rows = SpreadRows(num_images)
        self._use: dict[str, Tensor] = {}
        self._evaluation: Evaluation | None = None
        self._error: str | None = None
        self._on_unused = ""

    @property
    def verdict(self) -> Verdict | None:
        """The verdict, available after all callbacks have finished the test; None if nothing was measured."""
        found = self._evaluation.found if self._evaluation else {}
        return judge(self._use, found, self._on_unused) if self._use else None

    @property
    def findings(self) -> list[str]:
        """One sentence, with a remedy, for each problem of the latents."""
        return self.verdict.findings if self.verdict else []

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rows, self._use, self._error = SpreadRows(self.num_images), {}, None
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
        if not self.num_images or self._error is not None:
            return
        with self._keeping_errors():
            size = getattr(trainer.test_dataloaders, "batch_size", None) or len(batch["x"])
            self._rows.add(batch, (batch_idx * trainer.world_size + trainer.global_rank) * size)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each rank measures all rows with the same noise. The rows are few, and so every rank logs equal numbers."""
        assert isinstance(pl_module, LatentVariableModel)
        self._on_unused = pl_module.on_unused_latent
        numbers: dict[str, float] = {}
        if not self._has_failed(trainer):
            with self._keeping_errors():
                numbers = self._measured(pl_module)
            if not self._has_failed(trainer):
                log_numbers(pl_module, numbers)
        self._rows = SpreadRows(self.num_images)

    def _measured(self, model: LatentVariableModel) -> dict[str, float]:
        """Measure the rows of all ranks; return the numbers to log, none if there is nothing to measure."""
        rows = self._rows.from_all_ranks()
        if len(rows.get("x", ())) < 2:  # a swap needs two images
            return {}
        self._use = measure(model, rows)
        if not self._use:
            return {}
        cost = mean_and_error(self._use["swap_cost"])
        dead = by_latent("kl_by_dimension", self._use)
        return {
            **{"test/swap_cost": cost.mean, "test/swap_cost_stderr": cost.error},
            **{f"test/dead_dimensions/{name}": num_dead(kl.mean(0)) for name, kl in dead.items()},
        }

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._error = f"{type(error).__name__}: {' '.join(str(error).split())}"

    def _has_failed(self, trainer: pl.Trainer) -> bool:
        """Whether any rank has failed, which every rank must know: what is logged waits for all ranks."""
        errors = [error for error in objects_from_all_ranks(self._error) if error is not None]
        if errors:
            self._use, self._error = {}, errors[0]
            if trainer.is_global_zero:
                print(f"collapse: no report: {errors[0]}", flush=True)
        return bool(errors)


@torch.no_grad()
def measure(model: LatentVariableModel, rows: Batch) -> dict[str, Tensor]:
    """`use_of_latents` of N rows, each entry [N, ...] on the CPU; empty if the model has no latents.

    The rows are evaluated in parts of about a hundred.
    """
    count = len(rows["x"])
    parts = torch.arange(count).tensor_split(
        -(-count // _ROWS_AT_ONCE)
    )  # sizes differ by at most one, so each part has a pair
    found = []
    for number, index in enumerate(parts):
        reseed(model.device, _SWAP, number)
        trace = model.trace({name: values[index].to(model.device) for name, values in rows.items()})
        found.append(use_of_latents(trace) if trace.latents else {})
    return {name: torch.cat([use[name].double().cpu() for use in found]) for name in found[0]}


@torch.no_grad()
def use_of_latents(trace: Trace) -> dict[str, Tensor]:
    """Statistics of each example that show whether the latents are used, averaged over K: all [B, ...].

    - `swap_cost`: log p(x_b|z_b) - log p(x_b|z_(b-1)), in nats; exactly zero if p(x|z) ignores z. The decoder does not
      run again: the density p(x|z_(b-1)) of the trace is evaluated at the neighbour's image. Under a mask both are of
      the positions that the two images share.
    - `kl/<latent>`, in nats, and `kl_by_dimension/<latent>` if q and p factorise.
    - `mean/<latent>` and `variance/<latent>` of q(z|x), if q knows them.
    - `scale/<latent>`: the standard deviation of q divided by that of the prior, if both know it.
    """
    other, known = trace.x.roll(-1, 0), known_pixels(trace.p_x)
    p_x = given(seen_in_neighbour(trace.p_x, 1), known, other)
    neighbour = trace.mean(p_x.log_prob(other)).roll(1, -1)  # [B]: log p(x_b|z_b-1)
    own = trace.log_likelihoods()["x"]
    if is_masked(trace.p_x):
        own = given(seen_in_neighbour(trace.p_x, -1), known, trace.x).log_prob(trace.x)
    use = {"swap_cost": trace.mean(own) - neighbour}
    use |= {f"kl/{name}": kl for name, kl in trace.kl().items()}
    use |= {f"kl_by_dimension/{name}": kl.reshape(len(kl), -1) for name, kl in trace.kl_by_dimension().items()}
    for name, latent in trace.continuous().items():
        shape = latent.z.shape  # [K, B, *event]
        for moment_name, moment in _moments(latent):
            use[f"{moment_name}/{name}"] = trace.mean(moment.expand(shape)).reshape(shape[1], -1)
    return use


def _moments(latent: Latent) -> Iterator[tuple[str, Tensor]]:
    """The moments that q and p know; a flow, for example, knows none."""
    with suppress(NotImplementedError):
        yield "mean", latent.q.mean
    with suppress(NotImplementedError):
        yield "variance", latent.q.variance
    with suppress(NotImplementedError):
        yield "scale", latent.q.stddev / latent.p.stddev
