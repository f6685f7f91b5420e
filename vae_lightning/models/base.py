"""The thin base of every model: it owns the steps and the logging. A model says `trace` and `sample`."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import torch
from lightning.pytorch.core.saving import _default_map_location
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.distributions import noise_scale, share_support
from vae_lightning.models.batches import check_batch, range_note
from vae_lightning.models.codes import DRAWS, estimated, posterior_codes
from vae_lightning.models.loading import load
from vae_lightning.models.optimization import Optimized, OptimizerRecipe, SchedulerRecipe
from vae_lightning.models.pace import LogInterval, Speedometer
from vae_lightning.models.weights import check_finite
from vae_lightning.noise import reseed
from vae_lightning.objectives import ObjectiveRecipe
from vae_lightning.recipes import to_plain
from vae_lightning.restoring import check_restored
from vae_lightning.trace import Trace, distribution_name, has_mean
from vae_lightning.trust import check_checkpoint, read_checkpoint, trust
from vae_lightning.types import Batch, UserError

LossAndTerms: TypeAlias = Callable[[Batch, int], tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]

_TRAIN, _EVALUATE = 0, 1  # streams of noise that never meet


class LatentVariableModel(Optimized):
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
        super().__init__(optimizer, scheduler, scheduler_interval)
        self.objective = objective()
        self._stages_checked: set[str] = set()
        self.likelihood_name = ""  # what the run's last lines call p(x|z): known from the first trace on
        self._loaders_checked: set[tuple[str | None, int]] = set()
        self._speed = Speedometer()
        self._loaded_step = 0
        self.compiled: LossAndTerms | None = None  # set where `loss_and_terms` is compiled

    predicts_samples = False
    """Whether `predict` keeps one sample of q(z|x) beside its mean and scale."""

    @abstractmethod
    def trace(self, batch: Batch, num_samples: int = 1) -> Trace:
        """Run the model on `batch["x"]` with K = `num_samples` samples of the latents."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Means of p(x|z) with z ~ p(z): [n, C, H, W]. For the pixel noise, sample from p(x|z) itself."""

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        """p(x|z) at latents named as in a Trace, each [..., *event]; for a model whose p(x|z) needs nothing else."""
        raise UserError(f"{type(self).__name__} has no decode(latents): its p(x|z) is no function of z alone")

    # -- batches ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self._loaders_checked.clear()  # another call of the trainer may bring other loaders

    def _apply_batch_transfer_handler(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """As Lightning's, and the first batch of each loader is checked: after all hooks that may change it, whoever
        has them, and before any callback sees it."""
        batch = super()._apply_batch_transfer_handler(batch, device, dataloader_idx)
        if self._trainer is not None:
            loader = (self._trainer.state.stage, dataloader_idx)
            if loader not in self._loaders_checked:
                self._loaders_checked.add(loader)
                self._check_loader(batch)
        return batch

    def _check_loader(self, batch: Any) -> None:
        grouped = self.several is not None and self.trainer.training
        if grouped and not (isinstance(batch, list) and batch):
            raise UserError(
                "speed.steps_per_call: the training loader yields single batches; leave steps_per_call at 1"
            )
        first, shape = batch[0] if grouped else batch, self.hparams.get("image_shape")
        stage = getattr(self.trainer.state.stage, "value", "")  # str() of it would be the class's name, too
        wanted = self.trainer.precision_plugin.convert_input(torch.empty(0).type(self.dtype))  # as x has been before
        check_batch(first, None if shape is None else tuple(shape), wanted.dtype, stage)
        note = range_note(first["x"])
        if note and (self.trainer.training or self.trainer.state.fn != "fit"):
            rank_zero_info(note)

    # -- steps ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch | list[Batch], batch_idx: int) -> Tensor | None:
        if isinstance(batch, list):
            assert self.several is not None
            return self.several(batch, batch_idx)
        return self.loss_of(batch, batch_idx, self.trainer.is_last_batch)[0]

    def loss_of(self, batch: Batch, index: int, is_last: bool) -> tuple[Tensor, bool]:
        """The loss of the epoch's batch number `index`, with that batch's noise; and whether it was logged."""
        self._check_before_compiled(batch)
        self._reseed(self.global_rank, _TRAIN, self.current_epoch, index)
        loss, terms, scalars = (self.compiled or self.loss_and_terms)(batch, self.objective_step)
        is_due = self._log_interval.is_due(self.trainer, self.several, index, is_last)
        if is_due:
            rate = self._speed.read()
            speed = {} if rate is None else {"images_per_second": rate * self.trainer.world_size}
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

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """The mean and the scale of q(z|x), as `posterior_codes` gives them, and the label where there is one.

        A sample beside them where `predicts_samples` is set.
        """
        trace = self.trace(batch)
        if batch_idx == dataloader_idx == 0 and (names := estimated(trace)):
            rank_zero_info(f"{', '.join(names)}: no closed form of q(z|x): mean and scale are those of {DRAWS} draws")
        labels = {name: batch[name] for name in ("label",) if name in batch}
        return {**posterior_codes(self, batch, trace, self.predicts_samples), **labels}

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None:
            check_restored(checkpoint, self, self.trainer)
        super().on_load_checkpoint(checkpoint)
        self._loaded_step = int(checkpoint.get("global_step", 0))

    def _check_once(self, trace: Trace) -> None:
        """At the first batch of a stage: is x possible under p(x|z), z under p(z), and how is each KL computed?"""
        stage = str(self.trainer.state.stage)
        if stage in self._stages_checked:
            return
        self._stages_checked.add(stage)
        check_finite(type(self).__name__, self.state_dict())
        _check_likelihood(trace)
        for name, latent in trace.latents.items():
            if not torch.isfinite(latent.z).all():
                raise UserError(
                    f"latent {name}: a sample of its posterior {distribution_name(latent.q)} is not finite, with "
                    "weights that are; "
                    "they are too large: train again with a smaller learning rate or --trainer.gradient_clip_val"
                )
            if not share_support(latent.q, latent.p, latent.z):
                raise UserError(
                    f"latent {name}: its posterior {distribution_name(latent.q)} and its prior "
                    f"{distribution_name(latent.p)} are not over the "
                    "same space; give the posterior's own family as the prior (--model.prior=FamilyPrior "
                    "--model.prior.family=...), or on the sphere --model.prior=UniformSphere, with one group_size; a "
                    "latent whose prior has no such flag takes DiagonalNormal, or another posterior over R^D"
                )
        self.likelihood_name = distribution_name(trace.p_x)
        if len(self._stages_checked) == 1:
            kinds = ", ".join(f"{name} {latent.kl_estimator}" for name, latent in trace.latents.items())
            rank_zero_info(f"likelihood {self.likelihood_name}; KL by latent: {kinds}")

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
        self._log_interval = LogInterval(self.trainer)
        self._begin_epoch()  # of a run that goes on in mid-epoch, the next hook does not
        self._schedule_on_plateau()  # a run that goes on from an epoch's last step begins the next one without a word

    def on_train_epoch_start(self) -> None:
        self._begin_epoch()
        self._schedule_on_plateau()

    def _begin_epoch(self) -> None:
        self._speed.start()
        self._log_interval.begin_epoch(self.trainer, self.several)

    def on_train_epoch_end(self) -> None:
        self._speed.stop()

    def on_train_end(self) -> None:
        self._log_interval.end_fit(self.trainer)

    def on_validation_start(self) -> None:
        self._speed.stop()
        self._rng_state = torch.get_rng_state()
        if self.several is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.several.count(self.global_step - 1)

    def on_validation_end(self) -> None:
        """A user's own shuffling DataLoader draws its order from here: not from the one state validation ends in."""
        torch.set_rng_state(self._rng_state)
        self._speed.start()

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

    # -- checkpoint ------------------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,  # noqa: ARG003
        trusted: Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """As Lightning's, for a file on this machine that holds plain data, and names classes of trusted modules alone.

        Nothing else in the file is looked up, and no pickle is opened, whatever is asked for. On `LatentVariableModel`
        it loads a model of any class.

        Args:
            trusted: names of packages of one's own whose classes the checkpoint may name; that of `cls` is one of them.
        """
        if hparams_file is not None:
            raise UserError(f"{hparams_file}: not read; the hyper-parameters are in the checkpoint")
        names = trust([*trusted, cls.__module__.partition(".")[0]], checkpoint_path)
        checkpoint = read_checkpoint(checkpoint_path, map_location or _default_map_location)
        check_checkpoint(checkpoint, checkpoint_path, names)
        model: Self = load(cls, checkpoint, checkpoint_path, names, strict, kwargs)
        device = next((value.device for value in checkpoint["state_dict"].values()), torch.device("cpu"))
        return model.to(device)

    def _set_hparams(self, hp: Any) -> None:
        """Keep recipes as plain data, in the form that Lightning's own CLI keeps them, so that both load alike."""
        cls = type(self)
        kept = {"_class_path": f"{cls.__module__}.{cls.__qualname__}", **to_plain(hp, "model")}
        super()._set_hparams({**kept, "_instantiator": "lightning.pytorch.cli.instantiate_module"})


def _check_likelihood(trace: Trace) -> None:
    if not has_mean(trace.p_x):
        raise UserError(
            f"the likelihood {distribution_name(trace.p_x)} does not know its mean, which reconstructions "
            "and samples are; choose "
            "one that does (--model.likelihood=DiagonalNormal or ContinuousBernoulli, Bernoulli for binarised pixels)"
        )
    value = trace.outside_support()
    if value is not None:
        raise UserError(
            f"the likelihood {distribution_name(trace.p_x)} gives no probability to a pixel of value {value:.4g}, or "
            "an infinite "
            "density; choose Bernoulli for pixels of 0 and 1 (--data.binarisation=dynamic or threshold makes them "
            "such), or a likelihood for grey pixels (--model.likelihood=ContinuousBernoulli or DiagonalNormal, or "
            "Binomial or DiscretizedLogistic where its number of levels fits)"
        )


def layer_sizes(owner: str, latent_sizes: Sequence[int]) -> list[int]:
    """The sizes of the latents of a hierarchy, checked."""
    sizes = list(latent_sizes)
    if not sizes or min(sizes) < 1:
        raise UserError(f"{owner}: latent_sizes {sizes}: needs one positive size or more, the layer next to x first")
    return sizes
