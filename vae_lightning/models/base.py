"""The thin base of every model: it owns the steps, the logging and the optimizer. A model says `trace` and `sample`."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributions import Distribution
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from vae_lightning.distributions import noise_scale, share_support
from vae_lightning.models.several import SeveralSteps
from vae_lightning.noise import reseed
from vae_lightning.objectives import ObjectiveRecipe
from vae_lightning.recipes import to_plain
from vae_lightning.trace import Trace, has_mean, kind
from vae_lightning.trust import TRUSTED, check_checkpoint, read_checkpoint
from vae_lightning.types import Batch, UserError

OptimizerRecipe: TypeAlias = Callable[[Iterable], Optimizer]
SchedulerRecipe: TypeAlias = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
LossAndTerms: TypeAlias = Callable[[Batch, int], tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]

_TRAIN, _EVALUATE = 0, 1  # streams of noise that never meet


class LatentVariableModel(pl.LightningModule):
    """A model with latent variables: a subclass has two verbs, `trace` and `sample`, and never calls `self.log`.

    Metrics are nats per example: `{train,val,test}/{loss,elbo,log_likelihood,kl,kl/<latent>}`, and what the objective
    adds. `train/` is the batch at each logging step; `val/` and `test/` are means over examples, whatever the batch
    size and the number of devices. `sigma` is logged where the likelihood is Gaussian, `beta` in training.
    """

    def __init__(
        self,
        objective: ObjectiveRecipe,
        optimizer: OptimizerRecipe,
        scheduler: SchedulerRecipe | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        self.objective = objective()
        self.optimizer, self.scheduler, self.scheduler_interval = optimizer, scheduler, scheduler_interval
        self._stages_checked: set[str] = set()
        self._speed = _Speedometer()
        self._loaded_step = 0
        self._loaded_values: dict[str, float] = {}
        self._epochs_scheduled = 0
        self.several: SeveralSteps | None = None  # set where `training_step` is given several batches at once
        self.compiled: LossAndTerms | None = None  # set where `loss_and_terms` is compiled

    @abstractmethod
    def trace(self, batch: Batch, num_samples: int = 1) -> Trace:
        """Run the model on `batch["x"]` with K = `num_samples` samples of the latents."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Means of p(x|z) with z ~ p(z): [n, C, H, W]. For the pixel noise, sample from p(x|z) itself."""

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        """p(x|z) at latents named as in a Trace, each [..., *event]; for a model whose p(x|z) needs nothing else."""
        raise UserError(f"{type(self).__name__} has no decode(latents): its p(x|z) is no function of z alone")

    # -- steps ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch | list[Batch], batch_idx: int) -> Tensor | None:
        if isinstance(batch, list):
            assert self.several is not None
            return self.several(batch, batch_idx)
        return self.loss_of(batch, batch_idx)[0]

    def loss_of(self, batch: Batch, index: int) -> tuple[Tensor, bool]:
        """The loss of the epoch's batch number `index`, with that batch's noise; and whether it was logged."""
        self._check_before_compiled(batch)
        self._reseed(self.global_rank, _TRAIN, self.current_epoch, index)
        loss, terms, scalars = (self.compiled or self.loss_and_terms)(batch, self.objective_step)
        interval = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_due = bool(interval) and (self.global_step + 1) % interval == 0
        if is_due:
            speed = {"images_per_second": self._speed.read() * self.trainer.world_size}
            self._log("train", terms, {**scalars, **self.objective.coefficients(self.global_step), **speed})
        self._speed.images += len(batch["x"])
        return loss, is_due

    def loss_and_terms(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The loss, the objective's terms [B] and what else is logged: all of a step's mathematics, in one function
        that looks at nothing but the networks, so that it can be compiled as one."""
        terms, trace = self._evaluate(batch, step)
        loss = terms["loss"].mean()
        # times 1, or NaN: a loss that is not finite has a gradient that is not, and the mean over ranks tells them all
        return loss * (1 + 0 * loss.detach()), terms, self._scalars(trace)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        terms, trace = self._evaluate(batch, self.objective_step)
        self._log("val", terms, self._scalars(trace))

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The objective's terms of every image [B], for whoever asks how far they spread."""
        terms, trace = self._evaluate(batch, self.objective_step)
        self._log("test", terms, self._scalars(trace))
        return terms

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One sample of each latent, the mean of p(x|z) there, and the label where there is one."""
        trace = self.trace(batch)
        latents = {name: latent.z[0] for name, latent in trace.latents.items()}
        labels = {name: batch[name] for name in ("label",) if name in batch}
        return {"reconstruction": trace.p_x.mean[0], **latents, **labels}

    def _evaluate(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Trace]:
        trace = self.trace(batch, self.objective.num_samples)
        if not torch.compiler.is_compiling():
            self._check_once(trace)
        with torch.autocast(batch["x"].device.type, enabled=False):
            return self.objective(trace, step), trace

    @torch.no_grad()
    def _check_before_compiled(self, batch: Batch) -> None:
        """A compiled step checks nothing: once in a stage this does, and leaves the networks' statistics alone."""
        if self.compiled is None or str(self.trainer.state.stage) in self._stages_checked:
            return
        training = [module for module in self.modules() if module.training]
        self.eval()
        self._check_once(self.trace(batch, self.objective.num_samples))
        for module in training:
            module.training = True

    @property
    def objective_step(self) -> int:
        """The step that schedules see: of the fit, or of the fit that the loaded checkpoint was saved in."""
        return self.global_step if self.trainer.state.fn == "fit" else self._loaded_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None:  # a model that was never fitted may be saved, too
            checkpoint["plateau"] = {"values": self._monitored(), "epochs": self._epochs_scheduled}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded_step = int(checkpoint.get("global_step", 0))
        plateau = checkpoint.get("plateau", {})
        self._loaded_values, self._epochs_scheduled = plateau.get("values", {}), plateau.get("epochs", 0)

    def _check_once(self, trace: Trace) -> None:
        """At the first batch of a stage: is x possible under p(x|z), z under p(z), and how is each KL computed?"""
        stage = str(self.trainer.state.stage)
        if stage in self._stages_checked:
            return
        self._stages_checked.add(stage)
        _check_likelihood(trace)
        for name, latent in trace.latents.items():
            if not share_support(latent.q, latent.p, latent.z):
                raise UserError(
                    f"latent {name}: its posterior {kind(latent.q)} and its prior {kind(latent.p)} are not over the "
                    "same space; give the posterior's own family as the prior (--model.prior=FamilyPrior "
                    "--model.prior.family=...), or on the sphere --model.prior=UniformSphere, with one group_size; a "
                    "latent whose prior has no such flag takes DiagonalNormal, or another posterior over R^D"
                )
        if len(self._stages_checked) == 1:
            kinds = ", ".join(f"{name} {latent.kl_estimator}" for name, latent in trace.latents.items())
            rank_zero_info(f"likelihood {kind(trace.p_x)}; KL by latent: {kinds}")

    # -- logging ----------------------------------------------------------------------------------------------------

    def _log(self, stage: str, terms: dict[str, Tensor], scalars: Mapping[str, float | Tensor]) -> None:
        # times world_size: Lightning averages this integer over the ranks, and rounds where they hold unequal counts
        batch_size = len(terms["loss"]) * self.trainer.world_size
        values = {**{name: term.detach().mean() for name, term in terms.items()}, **scalars}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, batch_size=batch_size, sync_dist=True, prog_bar=name == "elbo")

    @staticmethod
    def _scalars(trace: Trace) -> dict[str, Tensor]:
        sigma = noise_scale(trace.p_x)
        return {} if sigma is None else {"sigma": sigma.detach()}

    # -- noise: a function of (seed, epoch, batch, rank), so that ranks differ and a resumed run repeats; in evaluation
    # of (seed, batch) alone, whichever rank has that batch (see `ImageLoader`) ----------------------------------------

    def on_train_start(self) -> None:
        self._schedule_on_plateau()  # a run that goes on from an epoch's last step begins the next one without a word

    def on_train_epoch_start(self) -> None:
        self._speed.restart()
        self._schedule_on_plateau()

    def on_validation_start(self) -> None:
        self._rng_state = torch.get_rng_state()
        if self.several is not None and self.trainer.state.fn == "fit":
            self.several.count(self.global_step - 1)

    def on_validation_end(self) -> None:
        """A user's own shuffling DataLoader draws its order from here: not from the one state validation ends in."""
        torch.set_rng_state(self._rng_state)
        self._speed.restart()

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._reseed_evaluation(0, batch_idx)

    def on_test_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._reseed_evaluation(1, batch_idx)

    def on_predict_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._reseed_evaluation(2, batch_idx)

    def _reseed_evaluation(self, stage: int, batch_idx: int) -> None:
        batch = batch_idx * self.trainer.world_size + self.global_rank  # of those that one rank would have
        self._reseed(0, _EVALUATE, stage, batch)

    def _reseed(self, rank: int, *counters: int) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # where Lightning's seed_everything keeps it
        reseed(self.device, seed, rank, *counters)

    # -- optimizer and checkpoint -----------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizer = _fused(self.optimizer(self.parameters()))
            scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        except (TypeError, ValueError) as error:  # torch's word for a setting out of range
            raise UserError(f"optimizer or scheduler: {error}") from error
        if scheduler is None:
            return optimizer
        monitor = getattr(scheduler, "monitor", None)
        config = {"scheduler": scheduler, "interval": self.scheduler_interval, "monitor": monitor}
        if monitor and monitor.startswith("val/") and self.scheduler_interval == "epoch":
            config["frequency"] = self.trainer.check_val_every_n_epoch or 1  # when there is a new value to read
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """As Lightning's, but for a plateau by epoch: see `_schedule_on_plateau`."""
        if metric is None or self.scheduler_interval == "step":
            super().lr_scheduler_step(scheduler, metric)

    def _schedule_on_plateau(self) -> None:
        """The step of ReduceLROnPlateau after an epoch, taken as the next one begins.

        Lightning takes it after the epoch's last checkpoint is written, and takes none at the end of the epoch that a
        run goes on in: both would lose it.
        """
        values, epochs = self._monitored(), self.trainer.current_epoch
        is_new, self._epochs_scheduled = epochs > self._epochs_scheduled, epochs
        for config in self.trainer.lr_scheduler_configs:
            by_epoch = config.interval == "epoch" or self.several is not None
            due = is_new and epochs % config.frequency == 0
            if config.reduce_on_plateau and by_epoch and due and config.monitor in values:
                config.scheduler.step(values[config.monitor])  # type: ignore[arg-type]

    def _monitored(self) -> dict[str, float]:
        """What schedulers look at, as it was last: from before the checkpoint, where it has not been logged since."""
        monitors = {config.monitor for config in self.trainer.lr_scheduler_configs if config.monitor}
        metrics: dict[str, Any] = {**self._loaded_values, **(self.trainer.callback_metrics if monitors else {})}
        return {name: float(metrics[name]) for name in sorted(monitors & metrics.keys())}

    def on_fit_start(self) -> None:
        """Under 16-mixed the scaler takes its scale out of the gradient before that is clipped or its norm logged, with
        any optimizer: a fused one would do so in its step, too late, and Lightning refuses to clip then."""
        if self.trainer.precision == "16-mixed":
            for optimizer in self.trainer.optimizers:
                optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.several is not None:  # else Lightning does
            clip = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
            self.configure_gradient_clipping(optimizer, *clip)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, which refuses a fused optimizer under bf16-mixed though no scaler is in the way there."""
        if not gradient_clip_val:
            return  # 0, too, means no clipping: it would take the whole gradient away
        if self.trainer.precision == "16-mixed":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,  # noqa: ARG003
        **kwargs: Any,
    ) -> Self:
        """As Lightning's, for a file on this machine that holds plain data and names classes of trusted modules alone,
        or of the package of `cls`: nothing else in it is looked up, and no pickle is opened, whatever is asked for.
        """
        if hparams_file is not None:
            raise UserError(f"{hparams_file}: not read; the hyper-parameters are in the checkpoint")
        own = cls.__module__.partition(".")[0] + "."
        check_checkpoint(read_checkpoint(checkpoint_path), checkpoint_path, (*TRUSTED, own))
        return super().load_from_checkpoint(checkpoint_path, map_location, None, strict, True, **kwargs)

    def _set_hparams(self, hp: Any) -> None:
        """Keep recipes as plain data, in the form that Lightning's own CLI keeps them, so that both load alike."""
        cls = type(self)
        kept = {"_class_path": f"{cls.__module__}.{cls.__qualname__}", **to_plain(hp, "model")}
        super()._set_hparams({**kept, "_instantiator": "lightning.pytorch.cli.instantiate_module"})


def _check_likelihood(trace: Trace) -> None:
    if not has_mean(trace.p_x):
        raise UserError(
            f"the likelihood {kind(trace.p_x)} does not know its mean, which reconstructions and samples are; choose "
            "one that does (--model.likelihood=DiagonalNormal or ContinuousBernoulli, Bernoulli for binarised pixels)"
        )
    value = trace.outside_support()
    if value is not None:
        raise UserError(
            f"the likelihood {kind(trace.p_x)} gives no probability to a pixel of value {value:.4g}, or an infinite "
            "density; choose Bernoulli for pixels of 0 and 1 (--data.binarisation=dynamic or threshold makes them "
            "such), or a likelihood for grey pixels (--model.likelihood=ContinuousBernoulli or DiagonalNormal, or "
            "Binomial or DiscretizedLogistic where its number of levels fits)"
        )


class _Speedometer:
    """Images per second since the last reading; restarted so that validation does not count."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.images, self.since = 0, time.perf_counter()

    def read(self) -> float:
        rate = self.images / (time.perf_counter() - self.since)
        self.restart()
        return rate


def _fused(optimizer: Optimizer) -> Optimizer:
    """With a step of one kernel where that was left open (None) and PyTorch has it: by itself it takes one for each
    operation on a GPU, and on a CPU one for each parameter too."""
    for group in optimizer.param_groups if isinstance(optimizer, (torch.optim.Adam, torch.optim.SGD)) else ():
        is_open = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
        if is_open and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"]):
            group["fused"] = True
    return optimizer


def layer_sizes(owner: str, latent_sizes: Sequence[int]) -> list[int]:
    """The sizes of the latents of a hierarchy, checked."""
    sizes = list(latent_sizes)
    if not sizes or min(sizes) < 1:
        raise UserError(f"{owner}: latent_sizes {sizes}: needs one positive size or more, the layer next to x first")
    return sizes
