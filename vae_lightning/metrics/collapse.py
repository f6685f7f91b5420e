"""Whether a trained model still uses its latents: said in plain words, with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vae_lightning.distributions import Given
from vae_lightning.metrics.evaluator import log_alike, objects_from_all_ranks
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

COLLAPSED = 0.1  # nats an image: below it a latent, or its part in p(x|z), is as good as absent
DEAD = 0.01  # nats an image, of one dimension
NARROW, WIDE = 0.005, 10.0  # standard deviations of q(z|x), in the prior's: a floor of 1e-3 is met, or no bound is

_MORE_KL = (
    "warm the KL up (--model.objective=ELBO --model.objective.beta=LinearWarmup --model.objective.beta.num_steps=...), "
    "give it free bits (--model.objective=FreeBits), or lower beta"
)


class CollapseReport(pl.Callback):
    """At test: `findings`, sentences on latents that went unused, from one sample for each of `num_images` images.

    Logs `test/swap_cost`, E[log p(x|z)] less the same with z of another image, in nats, and for each latent whose q and
    p are products over dimensions `test/dead_dimensions/<latent>`, how many have a KL below 0.01 nats an image.
    In whole batches, the same ones for any number of ranks; 0 leaves the report out. A conditional model's condition is
    swapped with z.
    """

    def __init__(self, num_images: int = 1000) -> None:
        if num_images < 0:
            raise UserError(f"collapse: num_images is {num_images}; it must be at least 0 (0: no report)")
        self.num_images = num_images
        self.findings: list[str] = []
        self._sums: dict[str, Tensor] = {}
        self._count = self._size = 0

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sums, self._count, self._size, self.findings = {}, 0, 0, []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, LatentVariableModel)
        self._size = max(self._size, len(batch["x"]))
        size = getattr(trainer.test_dataloaders, "batch_size", None) or self._size
        before = (batch_idx * trainer.world_size + trainer.global_rank) * size  # those of the other ranks with them
        if before < self.num_images and len(batch["x"]) > 1:  # one image has no other to swap with
            trace = pl_module.trace(batch)
            for name, values in use_of_latents(trace).items() if trace.latents else ():
                self._sums[name] = self._sums.get(name, torch.tensor(0.0)) + values.double().sum(0).cpu()
            self._count += len(batch["x"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ranks = objects_from_all_ranks((self._sums, self._count))  # one may have had no pair, and knows no names
        count = sum(count for _, count in ranks)
        names = {name: None for sums, _ in ranks for name in sums}
        if not names:
            return
        totals = {name: torch.stack([sums[name] for sums, _ in ranks if name in sums]).sum(0) for name in names}
        means = {name: (total / count).float() for name, total in totals.items()}
        self.findings = diagnose(means)
        dead = {f"test/dead_dimensions/{name}": _dead(kl).float() for name, kl in _of("kl_by_dimension", means).items()}
        log_alike(pl_module, {"test/swap_cost": means["swap_cost"], **dead})


@torch.no_grad()
def use_of_latents(trace: Trace) -> dict[str, Tensor]:
    """What tells whether latents are used, for each example, K averaged: all [B, ...].

    `swap_cost`: log p(x_b|z_b) - log p(x_b|z_(b-1)), in nats, zero to the last digit where p(x|z) ignores z. No decoder
    is run for it: it is p(x|z_(b-1)) asked for the neighbour's image. `kl/<latent>` in nats; `kl_by_dimension/<latent>`
    and `scale/<latent>`, the standard deviation of q in the prior's, where the distributions have them.
    """
    other = trace.x.roll(-1, 0)
    p_x = trace.p_x.of(other) if isinstance(trace.p_x, Given) else trace.p_x
    neighbour = p_x.log_prob(other).roll(1, -1)  # [K, B]: log p(x_b|z_b-1)
    use = {"swap_cost": (trace.log_likelihood() - neighbour).mean(0)}
    use |= {f"kl/{name}": kl for name, kl in trace.kl().items()}
    use |= {f"kl_by_dimension/{name}": kl.flatten(1) for name, kl in trace.kl_by_dimension().items()}
    for name, latent in trace.latents.items():
        try:
            ratio = latent.q.stddev / latent.p.stddev
        except NotImplementedError:  # a flow's, say
            continue
        use[f"scale/{name}"] = ratio.expand(latent.z.shape).mean(0).flatten(1)
    return use


def diagnose(means: Mapping[str, Tensor]) -> list[str]:
    """Sentences on what `use_of_latents`, averaged over examples, says; none where all is well."""
    found = [
        f"{name} is not used: KL {kl.item():.2g} nats an image, q(z|x) has collapsed to the prior. Remedy: {_MORE_KL}"
        for name, kl in _of("kl", means).items()
        if kl < COLLAPSED
    ]
    cost = means["swap_cost"].item()
    if cost < COLLAPSED:
        found.append(
            f"the decoder ignores its latents: another image's z costs {cost:.2g} nats of log p(x|z). "
            f"Remedy: a decoder that cannot do without z (fewer or narrower layers), or {_MORE_KL}"
        )
    for name, kl in _of("kl_by_dimension", means).items():
        if _dead(kl) > 0 and means[f"kl/{name}"] >= COLLAPSED:
            found.append(
                f"{_dead(kl)} of {len(kl)} dimensions of {name} are dead (KL below {DEAD} nats an image): they do no "
                "harm, and a smaller latent would do. Remedy, if they are wanted: "
                "--model.objective=FreeBits --model.objective.per_dimension=true, or a warm-up of beta"
            )
    return found + [line for name, scale in _of("scale", means).items() for line in _saturated(name, scale)]


def _saturated(name: str, scale: Tensor) -> list[str]:
    narrow, wide = int((scale < NARROW).sum()), int((scale > WIDE).sum())
    found = []
    if narrow:
        found.append(
            f"{narrow} of {len(scale)} dimensions of {name} are all but deterministic (sigma of q(z|x) below {NARROW} "
            "of the prior's): samples of the prior may look like nothing. Remedy: a larger beta, or a larger or "
            "learned sigma of the likelihood"
        )
    if wide:
        found.append(
            f"{wide} of {len(scale)} dimensions of {name} have a q(z|x) more than {WIDE:.0f} times as wide as the "
            "prior: training has gone astray. Remedy: a lower learning rate, or --trainer.gradient_clip_val"
        )
    return found


def _dead(kl: Tensor) -> Tensor:
    return (kl < DEAD).sum()


def _of(kind: str, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries `<kind>/<latent>`, by latent."""
    return {name.removeprefix(f"{kind}/"): mean for name, mean in means.items() if name.startswith(f"{kind}/")}
