"""Speed on this machine: memory format, compilation, steps per call, and a progress bar without waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar

from vae_lightning.data import DataModule
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.multi_step import MultiStepTraining
from vae_lightning.runs.machine import compiler_name, find_compiler
from vae_lightning.types import Network, UserError


class FastNetworks(pl.Callback):
    """Makes the steps of a fit faster; the defaults are safe for every model.

    `channels_last` gives the same numbers up to rounding. On a CPU the gain depends on the processor: a bare float32
    loop of CelebA's shape went from 501 to 387 images/s on one and from 364 to 408 on another (benchmarks/results).
    `compile` keeps the noise and the names in checkpoints. A compiled run that is resumed equals an uninterrupted one
    up to rounding, not bit for bit, because the code is fitted to the sizes of the batches.
    `steps_per_call` gives the same weights; checkpoints and validation come between calls. A trial
    (`--trainer.fast_dev_run=true`) takes its few batches one by one.

    Args:
        compile: Compile networks, densities and objective into one function (torch.compile) for training, or each
            network alone if the objective does not allow one function. Takes up to a minute at the first batches.
        channels_last: Store the weights and images of convolutions as [N, H, W, C]; None for true on a GPU and false on
            a CPU.
        steps_per_call: The number of batches in one round of Lightning's loop; more than 1 for networks so small that
            the loop takes as long as they do.
    """

    def __init__(self, compile: bool = False, channels_last: bool | None = None, steps_per_call: int = 1) -> None:
        if steps_per_call < 1:
            raise UserError(f"speed: steps_per_call is {steps_per_call}; it must be at least 1")
        self.compile, self.channels_last, self.steps_per_call = compile, channels_last, steps_per_call
        self._multi_step: MultiStepTraining | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_per_call": self.steps_per_call,
            "cut": self._multi_step is not None and self._multi_step.ended_in_call,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse another steps_per_call: a checkpoint counts calls, so a fit would continue at another image."""
        if trainer.state.fn != "fit":
            return
        state = checkpoint["callbacks"].get(self.state_key, {})
        saved = state.get("steps_per_call", 1)
        if saved != self.steps_per_call:
            raise UserError(f"the checkpoint was written with --speed.steps_per_call={saved}; resume it with the same")
        if state.get("cut") and checkpoint["global_step"] != trainer.max_steps:
            raise UserError(
                "max_steps ended the run within a call of --speed.steps_per_call, and a resumed run would never "
                "see the other batches of that call; begin a new run, with a larger max_steps"
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.steps_per_call > 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(pl_module, LatentVariableModel)
            if not isinstance(data, DataModule):
                raise UserError("speed.steps_per_call needs a DataModule (trainer.fit(model, datamodule=...))")
            pl_module.multi_step = self._multi_step = MultiStepTraining(pl_module, trainer, self.steps_per_call)
            data.batches_per_call = self.steps_per_call
        networks = [network for network in pl_module.modules() if isinstance(network, Network)]
        device = trainer.strategy.root_device
        if self.channels_last or (self.channels_last is None and device.type == "cuda"):
            for network in networks:
                network.to(memory_format=torch.channels_last)
        if self.compile:
            assert isinstance(pl_module, LatentVariableModel)
            _compile(pl_module, networks, device)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Unlink the model from the compiled function and the trainer, so that it can be copied and pickled again."""
        if isinstance(pl_module, LatentVariableModel):
            pl_module.compiled = pl_module.multi_step = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set manual optimization only now: before, Lightning would not read the schedulers' settings."""
        pl_module.automatic_optimization = self._multi_step is None


def _compile(model: LatentVariableModel, networks: Sequence[Network], device: torch.device) -> None:
    if device.type == "cpu" and find_compiler() is None:
        raise UserError(
            f"speed: compile needs a C++ compiler and found no {compiler_name()}; install one (on Debian: apt install "
            "g++), or leave out --speed.compile"
        )
    torch._dynamo.config.optimize_ddp = False  # DDP's buckets would split the one function
    if model.objective.in_one_graph:
        model.compiled = torch.compile(model.loss_and_terms, options={"fallback_random": True})
        return
    torch._functorch.config.donated_buffer = False  # these objectives differentiate through a network twice
    for network in networks:
        network.compile()


class SteadyBar(RichProgressBar):
    """Lightning's progress bar, updated a few times a second and not at each step.

    Each update reads the metrics; on a GPU the host would wait for the end of each step.

    Args:
        seconds: The least time between two updates.
    """

    def __init__(self, seconds: float = 0.25) -> None:
        super().__init__()
        self.seconds = seconds
        self._last = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due() or batch_idx + 1 == trainer.num_training_batches:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
