"""The step that a model's own schedules read: the optimizer step in training, None in evaluation."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning.callbacks import FastNetworks
from vae_lightning.data import Digits
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.runs.machine import find_compiler
from vae_lightning.trace import Trace
from vae_lightning.types import Batch


class Scheduled(VAE):
    """Scales its samples by a schedule of the step, and notes each step outside a compiled graph."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        if not torch.compiler.is_compiling():
            self.seen.append(("train" if self.training else "evaluation", step))
        trace = super().trace(batch, num_samples, step)
        weight = torch.ones(len(batch["x"])) * (0 if step is None else step)
        return Trace(trace.x, trace.p_x, trace.latents, costs={"step": weight})

    seen: list[tuple[str, int | None]]


def fitted(*callbacks: pl.Callback) -> tuple[Scheduled, pl.Trainer]:
    network = partial(MLP, hidden_sizes=(4,))
    model = Scheduled((1, 8, 8), latent_size=2, encoder=network, decoder=network)
    model.seen = []
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = pl.Trainer(
        max_steps=4,
        limit_train_batches=4,
        limit_val_batches=1,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        enable_model_summary=False,
        accelerator="cpu",
        **settings,
    )
    trainer.fit(model, datamodule=Digits(batch_size=300, binarisation="threshold"))
    return model, trainer


def test_training_has_the_optimizer_step_and_evaluation_none() -> None:
    model, trainer = fitted()
    assert [step for stage, step in model.seen if stage == "train"] == [0, 1, 2, 3]
    assert {step for stage, step in model.seen if stage == "evaluation"} == {None}
    trainer.test(model, datamodule=Digits(binarisation="threshold"), verbose=False)
    assert {step for stage, step in model.seen if stage == "evaluation"} == {None}


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_compiled_step_reads_it_too() -> None:
    _, trainer = fitted(FastNetworks(compile=True))
    assert trainer.callback_metrics["train/cost/step"] == 3
    assert trainer.callback_metrics["val/cost/step"] == 0
