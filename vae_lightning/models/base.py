"""The base class of every model: verbs, steps and logging. A subclass defines `trace` and `sample`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from lightning.pytorch.core.saving import _default_map_location
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from vae_lightning.distributions import noise_scale, num_steps
from vae_lightning.models.batches import check_batch, check_labels, range_note
from vae_lightning.models.building import load
from vae_lightning.models.codes import DRAWS, estimated, predictions
from vae_lightning.models.optimization import Optimized, OptimizerRecipe, SchedulerRecipe
from vae_lightning.models.pace import LogInterval, Speedometer
from vae_lightning.models.parts import InParts
from vae_lightning.models.restoring import check_restored
from vae_lightning.models.seeded import Seeded
from vae_lightning.models.trace_checks import check_trace, describe_bound, note_of_untrained
from vae_lightning.objectives import ELBO, ObjectiveRecipe
from vae_lightning.recipes import arguments, defaults, to_plain
from vae_lightning.runs.trust import check_checkpoint, read_checkpoint, trust
from vae_lightning.trace import Trace, distribution_name
from vae_lightning.types import Batch, Shape, UserError

LossAndTerms: TypeAlias = Callable[[Batch, int], tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]


class LatentVariableModel(Optimized, Seeded, InParts):
    """A model with latent variables. To add a model, subclass this and define `trace` and `sample`.

    A subclass never calls `self.log`. Metrics are nats per example: `{train,val,test}/{loss,elbo,log_likelihood,kl,
    kl/<latent>}`, and the terms that the objective adds. `train/` metrics are those of the batch at each logging step;
    `val/` and `test/` metrics are means over examples, independent of the batch size and of the number of devices.
    `sigma` is logged if the likelihood is Gaussian, `beta` in training.

    Args:
        objective: The loss; `ELBO` unless given.
        optimizer: The optimizer, called with the model's parameters.
        scheduler: The schedule of the learning rate, called with the optimizer; None for a constant rate.
        scheduler_interval: Whether the scheduler steps after each epoch or after each optimizer step.
    """

    def __init__(
        self,
        objective: ObjectiveRecipe = ELBO,
        optimizer: OptimizerRecipe = torch.optim.Adam,
        scheduler: SchedulerRecipe | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, scheduler, scheduler_interval)
        self.objective = objective()
        self._stages_checked: set[str] = set()
        self._bounds_described: set[str] = set()
        self.likelihood_name = ""  # the name of p(x|z) in the run's last lines; set at the first trace
        self.untrained_kl: list[str] = []  # the latents whose KL has no say in the loss; set at the first trace
        self._loaders_checked: set[tuple[str | None, int]] = set()
        self._speed = Speedometer()
        self.loaded_step = 0  # of the checkpoint that the weights are from
        self.compiled: LossAndTerms | None = None  # `loss_and_terms` after torch.compile; None if it is not compiled

    on_unused_latent: ClassVar[str] = ""
    """What the report on latents says of a collapsed latent in place of the general remedy, if this model knows better:
    a remedy of its own, or when it is no fault."""

    measures: ClassVar[tuple[str, ...]] = ()
    """Numbers of the test, without `test/`, that say how good the model is beside or in place of its bound.

    A run's last lines, `runs`, `compare`, `report` and the card of an exported model show them first.
    """

    next_verb: ClassVar[str] = "sample"
    """The command that a user of the trained model types next; a run's last line names it."""

    @property
    def bound_note(self) -> str:
        """What the loss was and what `elbo` is, for models whose loss is no bound; one of a run's last lines."""
        return note_of_untrained(self.untrained_kl)

    predicts_samples = False
    """Whether `predict` returns one sample of q(z|x) beside the mean and the scale."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Return means of p(x|z) with z ~ p(z): [n, C, H, W]. To add pixel noise, sample from p(x|z) itself."""

    def panes(self, trace: Trace) -> Mapping[str, Tensor | list[str] | tuple[str, Tensor]]:
        """Return rows to draw below each original and its reconstruction, by caption; none unless overridden.

        Use this for what a model reads off x, such as masks or boxes. It is called in evaluation mode.

        Args:
            trace: The trace of B examples, with one sample.

        Returns:
            For each caption images [B, C, H, W] or clips [B, T, C, H, W] in [0, 1], maps of segments (whole numbers
            [B, H, W], drawn in fixed colours), or one text for each example; or the name of a field and values
            [B, ...], which the data module's `show_field` turns into one of these.
        """
        return {}

    def scenes(self, data: object) -> Mapping[str, Tensor | list[str]]:
        """Return pictures that are no function of a trace, such as roll-outs, by name; none unless overridden.

        It is called in evaluation mode.

        Args:
            data: The data module; None if the loaders came without one.

        Returns:
            For each name images [n, C, H, W] or clips [n, T, C, H, W] in [0, 1], or n texts, for any n.
        """
        return {}

    def adapt_to(self, state: Mapping[str, Tensor]) -> None:
        """Give buffers that hold data the shapes of saved ones; nothing unless overridden.

        It is called before saved weights are compared with the model's. A model whose weights fit data of any size, and
        which keeps some of its data, overrides this.

        Args:
            state: The saved weights and buffers by name.
        """

    # -- batches ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self._loaders_checked.clear()  # another call of the trainer may use other loaders

    def _apply_batch_transfer_handler(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Move a batch as Lightning does, and check the first batch of each loader.

        The check comes after every hook that may change the batch, and before any callback sees the batch.
        """
        batch = super()._apply_batch_transfer_handler(batch, device, dataloader_idx)
        if self._trainer is not None:
            loader = (self._trainer.state.stage, dataloader_idx)
            if loader not in self._loaders_checked:
                self._loaders_checked.add(loader)
                self._check_loader(batch)
        return batch

    def _check_loader(self, batch: Any) -> None:
        grouped = self.multi_step is not None and self.trainer.training
        if grouped and not (isinstance(batch, list) and batch):
            raise UserError(
                "speed.steps_per_call: the training loader yields single batches; leave steps_per_call at 1"
            )
        first = batch[0] if grouped else batch
        images, shape = (self._shape_argument(name) for name in ("image_shape", "x_shape"))
        stage = getattr(self.trainer.state.stage, "value", "")  # str() of a stage contains the class's name
        # x has been converted by the plugin
        wanted = self.trainer.precision_plugin.convert_input(torch.empty(0).type(self.dtype))
        check_batch(first, images, shape, wanted.dtype, stage)
        check_labels(first, self.hparams.get("num_classes"), stage)
        note = range_note(first["x"]) if images else None
        if note and (self.trainer.training or self.trainer.state.fn != "fit"):
            rank_zero_info(note)

    @property
    def is_of_images(self) -> bool:
        """Whether the model is built for images; messages speak of examples where it is not."""
        return self._shape_argument("image_shape") is not None

    def _shape_argument(self, name: str) -> Shape | None:
        """The shape that the model was built for, by the name of its argument; None if it has no such argument."""
        value = self.hparams.get(name)
        return None if value is None else tuple(value)

    # -- steps ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch | list[Batch], batch_idx: int) -> Tensor | None:
        if isinstance(batch, list):
            assert self.multi_step is not None
            return self.multi_step(batch, batch_idx)
        return self.training_loss(batch, batch_idx, self.trainer.is_last_batch)[0]

    def training_loss(self, batch: Batch, index: int, is_last: bool) -> tuple[Tensor, bool]:
        """Return the loss of one training batch, and whether the step was logged.

        Args:
            batch: The batch, on the model's device.
            index: The number of the batch in its epoch, from 0; the noise is a function of this number.
            is_last: Whether the batch is the last one of its epoch.
        """
        self._check_before_compiled(batch)
        self.seed_training_step(index)
        loss, terms, scalars = (self.compiled or self.loss_and_terms)(batch, self.objective_step)
        is_due = self._log_interval.is_due(self.trainer, self.multi_step, index, is_last)
        if is_due:
            rate = self._speed.read()
            speed = {} if rate is None else {"images_per_second": rate * self.trainer.world_size}
            self._log("train", terms, {**scalars, **self.objective.coefficients(self.global_step), **speed})
        self._speed.images += len(batch["x"])
        return loss, is_due

    def loss_and_terms(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss, the objective's terms (each [B]) and other values to log; training and evaluation use this.

        The function reads nothing but the networks and the objective, so that torch.compile can compile it whole.

        Args:
            batch: The batch, on the model's device.
            step: The step that the objective's schedules see.
        """
        trace_of = self.trace if torch.compiler.is_compiling() else self.checked_trace
        trace = trace_of(batch, self.objective.num_samples, step if self.training else None)
        if not torch.compiler.is_compiling():
            self._check_once(trace)
        with torch.autocast(batch["x"].device.type, enabled=False):
            terms = self.objective(trace, step)
        loss = terms["loss"].mean()
        # Multiply by 1 + 0 * loss (1, or NaN if the loss is not finite). A bad loss then gives a bad gradient, which
        # the all-reduce spreads to every rank.
        return loss * (1 + 0 * loss.detach()), terms, self._scalars(trace)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        _, terms, scalars = self.loss_and_terms(batch, self.objective_step)
        self._log("val", terms, scalars)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the objective's terms of every image, each [B]: callbacks compute standard errors from them."""
        _, terms, scalars = self.loss_and_terms(batch, self.objective_step)
        self._log("test", terms, scalars)
        return terms

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return `predictions`: mean and scale of q(z|x), a sample if `predicts_samples`, what is found, the label."""
        trace = self.checked_trace(batch)
        if batch_idx == dataloader_idx == 0 and (names := estimated(trace)):
            rank_zero_info(
                f"{', '.join(names)}: q(z|x) has no closed form; mean and scale are estimated from {DRAWS} draws"
            )
        return predictions(type(self).__name__, self.trace, batch, trace, self.predicts_samples)

    @torch.no_grad()
    def _check_before_compiled(self, batch: Batch) -> None:
        """Check a stage's first trace before a compiled step, which has no checks; leave batch statistics unchanged."""
        if self.compiled is None or str(self.trainer.state.stage) in self._stages_checked:
            return
        training = [module for module in self.modules() if module.training]
        self.eval()
        self._check_once(self.checked_trace(batch, self.objective.num_samples, self.objective_step))
        for module in training:
            module.training = True

    @property
    def objective_step(self) -> int:
        """The step that the objective's schedules see: in a fit the present step, else the step of the checkpoint."""
        return self.global_step if self.trainer.state.fn == "fit" else self.loaded_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None:
            check_restored(checkpoint, self, self.trainer)
        super().on_load_checkpoint(checkpoint)
        self.loaded_step = int(checkpoint.get("global_step", 0))

    def _check_once(self, trace: Trace) -> None:
        """At the first batch of a stage, check the trace; print how each KL is computed, again only if it differs."""
        stage = str(self.trainer.state.stage)
        if stage in self._stages_checked:
            return
        self._stages_checked.add(stage)
        check_trace(type(self).__name__, self.state_dict(), trace)
        self.likelihood_name = distribution_name(trace.p_x)
        self.untrained_kl = self.objective.untrained_kl(trace.latents)
        bound = describe_bound(
            self.likelihood_name, trace, self.untrained_kl
        )  # of more in training, if evaluation hides the labels
        if bound not in self._bounds_described:
            name = getattr(self.trainer.state.stage, "value", "")
            rank_zero_info(f"{name}: {bound}" if self._bounds_described else bound)
            self._bounds_described.add(bound)

    # -- logging ----------------------------------------------------------------------------------------------------

    def _log(self, stage: str, terms: dict[str, Tensor], scalars: Mapping[str, float | Tensor]) -> None:
        # Lightning averages this integer over the ranks and rounds; the factor world_size keeps unequal counts exact
        batch_size = len(terms["loss"]) * self.trainer.world_size
        values = {name: term.detach().mean() for name, term in terms.items()}
        values |= {name: value for name, value in scalars.items() if name != "steps"}  # type: ignore[misc]
        if "steps" in scalars:  # nats per step, the mean over all steps: long examples weigh more
            steps = int(scalars["steps"])
            # a batch without any step (all hidden) has weight 0; x / 0 would make the mean of the epoch NaN
            value, weight = terms["elbo"].detach().sum() / max(steps, 1), steps * self.trainer.world_size
            self.log(f"{stage}/elbo_per_step", value, batch_size=weight, sync_dist=True)
        shown = "loss" if self.untrained_kl else "elbo"
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, batch_size=batch_size, sync_dist=True, prog_bar=name == shown)

    @staticmethod
    def _scalars(trace: Trace) -> dict[str, Tensor]:
        """Values of the whole batch: the likelihood's sigma, and the number of steps of its sequences."""
        sigma, steps = noise_scale(trace.p_x), num_steps(trace.p_x)
        values = {} if sigma is None else {"sigma": sigma.detach()}
        return values if steps is None else {**values, "steps": steps.expand(trace.p_x.batch_shape)[0].sum()}

    # -- epochs -----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._log_interval = LogInterval(self.trainer)
        self._begin_epoch()  # in a run resumed within an epoch, Lightning does not call on_train_epoch_start
        self._schedule_on_plateau()  # nor in a run resumed at the last step of an epoch

    def on_train_epoch_start(self) -> None:
        self._begin_epoch()
        self._schedule_on_plateau()

    def _begin_epoch(self) -> None:
        self._speed.start()
        self._log_interval.begin_epoch(self.trainer, self.multi_step)

    def on_train_epoch_end(self) -> None:
        self._speed.stop()

    def on_train_end(self) -> None:
        self._log_interval.end_fit(self.trainer)

    def on_validation_start(self) -> None:
        self._speed.stop()
        self._rng_state = torch.get_rng_state()
        if self.multi_step is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.multi_step.count(self.global_step - 1)

    def on_validation_end(self) -> None:
        """Restore the generator that validation has reseeded: a user's shuffling DataLoader draws its order from it."""
        torch.set_rng_state(self._rng_state)
        self._speed.start()

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
        """Load a model from a file of plain data that names classes of trusted packages only.

        No other class is imported and no pickle is opened. `LatentVariableModel.load_from_checkpoint` loads a model of
        any class.

        Args:
            checkpoint_path: The file, on this machine.
            map_location: The device of the weights; None for the device that they were saved from.
            hparams_file: Not supported; the hyper-parameters are in the checkpoint.
            strict: Whether the names of the weights must match; None for the model's `strict_loading`.
            weights_only: Ignored; the file is always read as plain data.
            trusted: Names of your own packages whose classes the checkpoint may name; the package of the class that
                this is called on is always trusted.
            kwargs: Hyper-parameters that replace those of the checkpoint.

        Raises:
            UserError: if the file is not such a checkpoint, or if the model cannot be built.
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
        """Store recipes as plain data, in the form of Lightning's command line, so that both kinds load alike.

        Lightning does not find the defaults behind `**kwargs`; the defaults of this class are added here.
        """
        cls = type(self)
        known = arguments(cls).keys()
        # Lightning adds None for each link of the command line whose target this model does not have
        own = {name: value for name, value in hp.items() if name in known or value is not None}
        passed_on = {name: value for name, value in defaults(LatentVariableModel).items() if name in known - hp.keys()}
        hparams = to_plain({**own, **passed_on}, "model")
        kept = {"_class_path": f"{cls.__module__}.{cls.__qualname__}", **hparams}
        super()._set_hparams({**kept, "_instantiator": "lightning.pytorch.cli.instantiate_module"})
