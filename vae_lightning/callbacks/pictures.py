"""Pictures of a run: reconstructions beside their originals, samples from the prior, and the model's own scenes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from vae_lightning.metrics import Evaluation
from vae_lightning.models import LatentVariableModel, PredictsFrames
from vae_lightning.pictures import (
    NoPictureError,
    Picture,
    error_chart,
    reconstruction_grid,
    reconstructions,
    rollouts,
    sample_grid,
    samples,
    save,
    save_png,
    scene,
    scenes_of,
)
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.storage.loader import first_images, first_sequences
from vae_lightning.types import Batch, UserError

__all__ = ["Pictures", "reconstruction_grid", "sample_grid", "save_png"]  # functions that once were in this file


_NUM_CLIPS = 4  # of a picture of roll-outs


class Pictures(pl.Callback):
    """Writes `images/{reconstructions,samples}-<epoch>.png` and gives the pictures to W&B, TensorBoard and MLflow.

    The validation examples and the prior noise are the same each time, so that pictures of two epochs can be compared.
    Originals are above their reconstructions, the mean of p(x|z) at one z ~ q(z|x); samples are means of p(x|z) at
    z ~ p(z). Clips also make an animated GIF, and texts a table (.txt). The data module's `show` says what x looks
    like; the model's `panes` and `scenes` add rows and pictures.

    A model with `predict_frames` also makes `rollouts`: how it goes on after the first frames of validation clips.
    After a test it makes `rollouts_test`, of test clips, and `rollout_errors.svg`, the error over the predicted frame,
    where the truth is known.

    A picture never ends a run: what cannot be drawn is reported in one line, once.

    Args:
        every_n_epochs: The epochs between two pictures; 0 for pictures at the end of the fit only.
        num_images: The number of originals, and of samples; 0 for no pictures at all.
        seed: The seed of the noise.

    Raises:
        UserError: if a number is negative.
    """

    def __init__(self, every_n_epochs: int = 10, num_images: int = 50, seed: int = 0) -> None:
        if every_n_epochs < 0 or num_images < 0:
            raise UserError(
                f"pictures: every_n_epochs {every_n_epochs} and num_images {num_images} must not be negative; "
                "num_images=0 turns pictures off"
            )
        self.every_n_epochs, self.num_images, self.seed = every_n_epochs, num_images, seed
        self._drawn_at = -1
        self._said: set[str] = set()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._drawn_at != trainer.global_step and not trainer.interrupted:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: pl.Trainer, model: pl.LightningModule, epoch: int) -> None:
        assert isinstance(model, LatentVariableModel)
        self._drawn_at = trainer.global_step
        is_on = self.num_images and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        loaders = trainer.val_dataloaders
        if not is_on or loaders is None:
            return
        data, seed, at = getattr(trainer, "datamodule", None), self.seed, f"epoch {epoch}"

        def draw_reconstructions() -> Picture:
            batch = first_images(loaders, self.num_images)
            return reconstructions(model, data, batch, seed, f"reconstructions, {at}")

        self._keep("reconstructions", draw_reconstructions, trainer, epoch)
        draw_samples = partial(samples, model, data, self.num_images, seed, f"samples, {at}")
        self._keep("samples", draw_samples, trainer, epoch)
        if isinstance(model, PredictsFrames):
            self._keep("rollouts", partial(self._rollouts, model, data, loaders, at), trainer, epoch)
        with self._in_one_line():
            for name, shown in scenes_of(model, data, seed).items():
                self._keep(name, partial(scene, model, shown, name, f"{name}, {at}"), trainer, epoch)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_on = self.num_images and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not is_on or not isinstance(pl_module, LatentVariableModel) or not isinstance(pl_module, PredictsFrames):
            return
        data, loaders = getattr(trainer, "datamodule", None), trainer.test_dataloaders
        if loaders is not None:
            self._keep("rollouts_test", partial(self._rollouts, pl_module, data, loaders, "test"), trainer, None)
        evaluation = next((c for c in trainer.callbacks if isinstance(c, Evaluation)), None)  # type: ignore[attr-defined]
        chart = None if evaluation is None else error_chart(evaluation.found, "error of predictions; speed at the end")
        if chart is not None:
            with self._in_one_line():
                write_whole(Path(trainer.default_root_dir) / "images" / "rollout_errors.svg", chart.encode())

    def _rollouts(self, model: LatentVariableModel, data: object, loaders: Iterable[Batch], at: str) -> Picture:
        clips = first_sequences(loaders, min(self.num_images, _NUM_CLIPS))
        return rollouts(model, data, clips, self.seed, f"roll-outs, {at}")

    def _keep(self, name: str, draw: Callable[[], Picture], trainer: pl.Trainer, epoch: int | None) -> None:
        """Draw a picture, write its files, and give it to the loggers."""
        with self._in_one_line():
            picture = draw()
            file = re.sub(r"[^\w.-]+", "_", name)
            ending = "" if epoch is None else f"-{epoch:04d}"
            paths = save(picture, Path(trainer.default_root_dir) / "images" / f"{file}{ending}.png")
            for logger in trainer.loggers:
                _send(picture, paths, file, logger, trainer.global_step)

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Report any error in one line, each once: a user's `show`, a full disk or a logger must not end a long run."""
        try:
            yield
        except NoPictureError as error:
            self._say(f"pictures: {error}")
        except Exception as error:
            reason = " ".join(str(error).split())
            self._say(f"pictures: not drawn: {reason if isinstance(error, UserError) else _named(error, reason)}")

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            print(line, flush=True)


def _named(error: Exception, reason: str) -> str:
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _send(picture: Picture, paths: list[Path], name: str, logger: Logger, step: int) -> None:
    """Give a picture to the logger, if it is one that stores pictures; the moving picture if it can store one."""
    pixels = None if picture.still is None else picture.still.permute(1, 2, 0).numpy()  # [H, W, 3]
    moving = [str(path) for path in paths if path.suffix == ".gif"]
    if isinstance(logger, WandbLogger):
        if pixels is not None:
            logger.log_image(name, [pixels])
        if moving:
            logger.log_video(f"{name}_moving", moving)
        if picture.text is not None:
            logger.log_text(f"{name}_text", ["text"], [[line] for line in picture.text.splitlines()])
    elif isinstance(logger, TensorBoardLogger):
        if pixels is not None:
            logger.experiment.add_image(name, picture.still, step)
        if picture.text is not None:
            logger.experiment.add_text(name, f"```\n{picture.text}```", step)
    elif isinstance(logger, MLFlowLogger):
        if pixels is not None:
            logger.experiment.log_image(logger.run_id, pixels, f"{name}/{step:08d}.png")
        for path in moving:
            logger.experiment.log_artifact(logger.run_id, path, name)
        if picture.text is not None:
            logger.experiment.log_text(logger.run_id, picture.text, f"{name}/{step:08d}.txt")
