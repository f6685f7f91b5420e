"""The command line: LightningCLI, one folder for each run, W&B that never asks, and errors in one line."""

from __future__ import annotations

import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

# imported so that their classes have short names on the command line: --model.posterior=DiagonalNormal
from vae_lightning import data, distributions, models, networks, objectives  # noqa: F401
from vae_lightning.callbacks import (
    BestAndLast,
    ExactResume,
    FastNetworks,
    FiniteSteps,
    Pictures,
    ProgressLines,
    RunFolder,
    StartNotes,
    SteadyBar,
)
from vae_lightning.callbacks.checkpoint import own_checkpoints, place_checkpoints
from vae_lightning.cli.errors import Parser, check_configs, one_line
from vae_lightning.cli.overrides import with_own_defaults
from vae_lightning.cli.run_settings import choose_run, prepare_folder, prepare_wandb, set_precision, wandb_arguments
from vae_lightning.cli.summary import summary
from vae_lightning.cli.trainer_checks import CheckedSettings, check_settings, check_trainer, without_enums
from vae_lightning.data import ImageDataModule
from vae_lightning.data.base import SPLITS, Split
from vae_lightning.metrics import CollapseReport, Evaluation, MarginalLikelihood
from vae_lightning.metrics.predictions import describe, rows_of, save_arrays
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.loading import check_weights, differences
from vae_lightning.models.restoring import check_fits
from vae_lightning.runs import folder as runs
from vae_lightning.runs import signals
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.runs.differences import config_changes
from vae_lightning.runs.loggers import MetricsCSV, start_wandb
from vae_lightning.types import UserError


def find_defaults() -> Path:
    """`configs/defaults.yaml`: beside the package in a checkout, inside the package in a wheel."""
    here = Path(__file__).parents[1]  # the package
    for folder in (here.parent / "configs", here / "configs"):
        if (folder / "defaults.yaml").is_file():
            return folder / "defaults.yaml"
    raise UserError(
        f"defaults.yaml not found in {here.parent / 'configs'} or {here / 'configs'}; reinstall the package"
    )


class CLI(LightningCLI):
    """fit, validate, test, predict; with `then_test`, a fit is followed by a test of its best checkpoint."""

    def __init__(self, args: list[str], then_test: bool = False) -> None:
        self.then_test = then_test
        defaults = {"default_config_files": [str(find_defaults())]}
        super().__init__(
            LatentVariableModel,
            ImageDataModule,
            args=args,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False, **{verb: dict(defaults) for verb in self.subcommands()}},
        )

    # -- arguments -------------------------------------------------------------------------------------------------

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--runs_dir", default="runs", help="the folder of all runs: a run is <runs_dir>/<experiment>/<run id>"
        )
        parser.add_argument(
            "--experiment",
            type=str | None,
            help="the folder of the run below runs_dir; null: the path of the config file below configs/",
        )
        parser.add_argument(
            "--run_id", type=str | None, help="name of the run, which begins, or goes on from its last checkpoint"
        )
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"] | None,
            help="precision of float32 products in a fit (torch.set_float32_matmul_precision); null: high (TF32) on a "
            "GPU, else highest. A test always takes the highest",
        )
        parser.add_lightning_class_args(BestAndLast, "checkpoint")
        parser.add_lightning_class_args(FiniteSteps, "finite")
        parser.add_lightning_class_args(FastNetworks, "speed")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(MarginalLikelihood, "nll")
        parser.add_lightning_class_args(Evaluation, "evaluation")
        parser.add_lightning_class_args(CollapseReport, "collapse")
        parser.link_arguments("data.image_shape", "model.init_args.image_shape", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            which = "the split whose images are encoded, in order and without flips, into predictions-<split>.npz"
            parser.add_argument("--split", type=Literal["train", "val", "test", "all"], default="test", help=which)
            parser.add_argument("--sample", type=bool, default=False, help="also write one sample of q(z|x)")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse as Lightning does, without the warning that arguments were given: here they always are."""
        check_configs(args)
        self.config = without_enums(parser.parse_args(with_own_defaults(args)))
        check_settings(self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the settings of the checkpoint replace those of the command line."""

    # -- one run, one folder ----------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """What a run needs before its model and data are built, step by step."""
        verb = self.config.subcommand
        given = self.config[verb]
        self.run = choose_run(given, verb, self.then_test)
        self.folder = self.run.folder
        self.config_text = self._dump(given)
        prepare_folder(self.folder, Path(given.runs_dir).expanduser())
        given.trainer.default_root_dir = str(self.folder)
        set_precision(given, verb)
        prepare_wandb(given, verb, self.folder)
        if verb != "fit":  # a test needs the weights alone, and the file holds those that EMA averaged
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")

    def _dump(self, given: Namespace) -> str:
        """The configuration without the settings of this run alone, so that another run can start from it."""
        kept = given.clone()
        for name in ("config", "ckpt_path", "run_id", "weights_only"):
            kept.pop(name, None)
        parser = self._parser(self.config.subcommand)
        return str(parser.dump(kept, skip_none=False, skip_validation=True))

    def instantiate_classes(self) -> None:
        """If one of our constructors raised UserError, raise that instead of jsonargparse's type error."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            mistake: BaseException | None = error
            while mistake is not None and not isinstance(mistake, UserError):
                mistake = mistake.__cause__
            if mistake is None and "Union subtypes" in str(error):  # of a union it keeps the text alone
                mistake = UserError(one_line(str(error)))
            raise (mistake or error) from None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        given = self.config_init[self.config.subcommand].trainer
        place_checkpoints(given.callbacks or [], self.folder / "checkpoints")
        loggers = list(given.logger) if isinstance(given.logger, list) else [given.logger] if given.logger else []
        if self.config.subcommand == "fit":
            specs = iter(wandb_arguments(self.config[self.config.subcommand].trainer.logger))
            loggers = [
                start_wandb(logger, next(specs).as_dict()) if isinstance(logger, WandbLogger) else logger
                for logger in loggers
                if isinstance(logger, Logger)  # `true` is Lightning's own CSV file, and we have one
            ]
            loggers.append(MetricsCSV(self.folder / "metrics.csv", self.run.step))
        callbacks: list[pl.Callback] = [RunFolder(self.config_text), ExactResume(), StartNotes(), CheckedSettings()]
        has_bar = any(isinstance(callback, ProgressBar) for callback in given.callbacks or [])
        if given.enable_progress_bar is None:
            given.enable_progress_bar = has_bar or sys.stdout.isatty()
        if not given.enable_progress_bar:
            callbacks.append(ProgressLines())
        elif not has_bar:
            callbacks.append(SteadyBar())
        given.callbacks = [*(given.callbacks or []), *callbacks]
        plugins = given.plugins if isinstance(given.plugins, list) else [given.plugins] if given.plugins else []
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, WholeFiles()]
        trainer = super().instantiate_trainer(logger=loggers, plugins=plugins, **kwargs)
        check_trainer(trainer, self.model)
        if self.config.subcommand == "fit" and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"callbacks   {', '.join(type(one).__name__ for one in trainer.callbacks)}", flush=True)  # type: ignore[attr-defined]
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            start_ranks = signals.with_signals_blocked()(launcher._call_children_scripts)
            launcher._call_children_scripts = start_ranks  # type: ignore[method-assign]
        return trainer

    def after_instantiate_classes(self) -> None:
        if self.run.contents is None:
            return
        check_fits(self.run.path, self.run.contents, self.model)
        check_weights(self.run.contents, self.folder if self.run.path is None else self.run.path)
        config = self.folder / "config.yaml"
        if self.config.subcommand == "fit" and config.is_file():
            changed = config_changes(config, self.config_text)
        else:
            changed = differences(self.run.contents, self.model)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            if self.config.subcommand == "fit":
                print(f"{self.folder}: goes on from {Path(self.run.path or '').name}, step {self.run.step}", flush=True)
            if changed:
                print(f"not as the checkpoint's own run (there -> here): {'; '.join(changed)}", flush=True)
        self.run = replace(self.run, contents=None)  # Lightning reads the file again: not two copies for a whole run

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except UserError as error:
            error.exit_code = 1
            raise
        except (SIGTERMException, signals.Stopped, RuntimeError):
            if not signals.requested():
                raise  # an error of its own, and not of a connection that another rank has closed because of the signal
            launcher = self.trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signals.requested())  # each takes the first signal alone
            self._say_stopped()
            raise signals.Stopped(signals.requested()) from None

    def _say_stopped(self) -> None:
        """Print where the run stopped, and the flag that continues it."""
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            last = self.folder / "checkpoints" / "last.ckpt"
            where = "nothing was trained yet" if self.config.subcommand == "fit" else "no result was written"
            if self.config.subcommand == "fit" and last.is_file():
                where = f"{last} has step {self.trainer.global_step}; --ckpt_path last goes on from it"
            print(f"{signal.Signals(signals.requested()).name}: stopped; {where}", flush=True)

    def after_fit(self) -> None:
        if signals.requested():  # after the last step
            raise signals.Stopped(signals.requested())
        if self.then_test and not self.trainer.interrupted:
            best = getattr(own_checkpoints(self.trainer), "best_model_path", "")  # none without a validation
            if not best and self.trainer.global_step == 0:
                raise UserError("nothing was trained (max_epochs, max_steps or limit_train_batches is 0): not tested")
            torch.set_float32_matmul_precision("highest")
            if not best and (self.folder / "checkpoints").is_dir():  # a trial (fast_dev_run) has none
                best = str(runs.best_checkpoint(self.folder))
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
        if self.trainer.is_global_zero:
            print(summary(self.trainer, self.folder, self.config_text), flush=True)

    def predict(self, **kwargs: Any) -> None:
        """Predict and write the predictions to a file; Lightning would return them and write nothing."""
        given = self.config.predict
        splits: tuple[Split, ...] = SPLITS if given.split == "all" else (given.split,)
        self.datamodule.predicted_splits, self.model.predicts_samples = splits, given.sample
        found: list[Any] = self.trainer.predict(**kwargs) or []
        found = found if len(splits) > 1 else [found]
        if not all(found):
            raise UserError("nothing was predicted: limit_predict_batches is 0, or return_predictions is false")
        # where the ranks can exchange them; one has no need to, and a GPU may not hold them all
        device = self.trainer.strategy.root_device if self.trainer.world_size > 1 else torch.device("cpu")
        parts = [rows_of(batches, device) for batches in found]
        if self.trainer.is_global_zero:
            path = self.folder / f"predictions-{given.split}.npz"
            named = [describe(rows, self.datamodule, split) for rows, split in zip(parts, splits, strict=True)]
            arrays = save_arrays(path, named)
            print(f"{path}: {', '.join(f'{name} {list(values.shape)}' for name, values in arrays.items())}", flush=True)

    def after_test(self) -> None:
        if self.trainer.is_global_zero:
            print(summary(self.trainer, self.folder, self.config_text), flush=True)


class DataCLI(CLI):
    """Read a command line as `fit` does and keep the recipe of the data set; nothing is built or run."""

    def before_instantiate_classes(self) -> None:
        self.recipe: dict[str, Any] = self.config[self.config.subcommand].data.as_dict()

    def instantiate_classes(self) -> None: ...

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...
