"""The command line: LightningCLI, one folder for each run, W&B that never asks, and errors in one line."""

from __future__ import annotations

import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
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
from vae_lightning.cli.ending import write_report
from vae_lightning.cli.errors import Parser, check_configs, one_line
from vae_lightning.cli.help import INIT_FROM, SEEDS
from vae_lightning.cli.links import drop_untold, model_class, told
from vae_lightning.cli.overrides import with_own_defaults
from vae_lightning.cli.run_settings import (
    choose_run,
    find_defaults,
    keep_init_from,
    prepare_folder,
    prepare_wandb,
    set_precision,
    wandb_arguments,
)
from vae_lightning.cli.summary import leave_out_of_tables, summary
from vae_lightning.cli.trainer_checks import CheckedSettings, check_settings, check_trainer, without_enums
from vae_lightning.data import DataModule
from vae_lightning.data.module import SPLITS, TOLD, Split
from vae_lightning.metrics import CollapseReport, Evaluation, MarginalLikelihood
from vae_lightning.metrics.predictions import describe, rows_of, save_arrays
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.loading import check_weights, differences
from vae_lightning.models.restoring import check_fits
from vae_lightning.models.starting import start_from
from vae_lightning.runs import folder as runs
from vae_lightning.runs import signals
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.runs.configs import with_config_files
from vae_lightning.runs.differences import changes_of_test_data, config_changes
from vae_lightning.runs.loggers import MetricsCSV, start_wandb
from vae_lightning.runs.trust import read_checkpoint
from vae_lightning.types import UserError

LINKED_CALLBACKS: dict[str, type[pl.Callback]] = {
    "checkpoint": BestAndLast,
    "finite": FiniteSteps,
    "speed": FastNetworks,
    "pictures": Pictures,
    "nll": MarginalLikelihood,
    "evaluation": Evaluation,
    "collapse": CollapseReport,
}
"""The callbacks that every run has, by the key of their arguments: `--checkpoint.monitor=val/loss`."""

_SEED_HELP = "the seed of the initial weights, of the order of the training images, and of the noise"
_CKPT_HELP = {
    True: "the run to resume: a run's folder or a checkpoint; last: the newest run of this experiment",
    False: "the weights: a run's folder (its best checkpoint), or a checkpoint",
}


class CLI(LightningCLI):
    """Runs fit, validate, test or predict, in Lightning's way: the whole run happens inside the constructor.

    Args:
        args: The command and its arguments.
        then_test: Whether a fit is followed by a test of its best checkpoint, as in `train`.
        trusted: The packages that `--trust` names, for the command line in the results.
    """

    def __init__(self, args: list[str], then_test: bool = False, trusted: Sequence[str] = ()) -> None:
        self.then_test = then_test
        verb = "train" if then_test else args[0]
        self.command = shlex.join(["vae-lightning", verb, *args[1:], *(f"--trust={name}" for name in trusted)])
        defaults = {"default_config_files": [str(find_defaults())]}
        super().__init__(
            LatentVariableModel,
            DataModule,
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
        """Add this package's own flags, those of `LINKED_CALLBACKS`, and the links between settings.

        Args:
            parser: The parser of one command.
        """
        parser._option_string_actions["--seed_everything"].help = _SEED_HELP
        parser.add_argument(
            "--runs_dir", default="runs", help="the folder of all runs: a run is <runs_dir>/<experiment>/<run id>"
        )
        parser.add_argument(
            "--experiment",
            type=str | None,
            help="the folder of the run below runs_dir; null: the path of the config file below configs/",
        )
        parser.add_argument(
            "--run_id", type=str | None, help="the name of the run; an existing run of this name is resumed"
        )
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"] | None,
            help="the precision of float32 matrix products in a fit (torch.set_float32_matmul_precision); null: high "
            "(TF32) on a GPU, highest on a CPU. A test always takes highest",
        )
        parser.add_argument("--init_from", type=str | None, help=INIT_FROM)
        if self.then_test:
            parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help=SEEDS)
        for key, callback in LINKED_CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        for name in TOLD:
            told = partial(self._told, name)
            parser.link_arguments("data", f"model.init_args.{name}", compute_fn=told, apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _told(self, name: str, source: DataModule) -> Any:
        """Return what the data tell the model's argument `name`, or the configuration's value if they do not say it."""
        model = self.config[self.config.subcommand].model
        settings = model.get("init_args") or Namespace()
        return told(name, source, model_class(model), settings.get(name))

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            split_help = "the split to encode, in order and without flips, into predictions-<split>.npz"
            parser.add_argument("--split", type=Literal["train", "val", "test", "all"], default="test", help=split_help)
            sample_help = "whether to write one sample of q(z|x) for each image, too"
            parser.add_argument("--sample", type=bool, default=False, help=sample_help)
        parser._option_string_actions["--ckpt_path"].help = _CKPT_HELP[subcommand == "fit"]
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse as Lightning does, without the warning that arguments were given: here they always are.

        Args:
            parser: The parser of all commands.
            args: The command and its arguments.
        """
        args = with_config_files(args)
        check_configs(args)
        self.config = without_enums(parser.parse_args(with_own_defaults(args)))
        check_settings(self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the settings of the checkpoint replace those of the command line."""

    # -- one run, one folder ----------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Choose the run, prepare its folder, and set precision and W&B, before the model and data are built."""
        verb = self.config.subcommand
        settings = self.config[verb]
        if settings.get("seeds"):
            raise UserError("seeds: a config has one seed_everything; give --seeds on the command line of train")
        self.run = choose_run(settings, verb, self.then_test)
        self.folder = self.run.folder
        keep_init_from(settings, self.run)
        self.config_text = self._dump(settings)
        prepare_folder(self.folder, Path(settings.runs_dir).expanduser())
        settings.trainer.default_root_dir = str(self.folder)
        set_precision(settings, verb)
        prepare_wandb(settings, verb, self.folder)
        if verb != "fit":  # a test needs only the weights; with EMA the file holds the averaged ones
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")

    def _dump(self, settings: Namespace) -> str:
        """Return the configuration without the settings of this run alone, so that another run can start from it."""
        kept = settings.clone()
        for name in ("config", "ckpt_path", "run_id", "weights_only", "seeds"):
            kept.pop(name, None)
        kept.data.init_args.pop("seed", None)  # linked to seed_everything
        drop_untold(kept.model)
        parser = self._parser(self.config.subcommand)
        return str(parser.dump(kept, skip_none=False, skip_validation=True, skip_link_targets=False))

    def instantiate_classes(self) -> None:
        """If one of our constructors raised UserError, raise that instead of jsonargparse's type error."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            mistake: BaseException | None = error
            while mistake is not None and not isinstance(mistake, UserError):
                mistake = mistake.__cause__
            if mistake is None and "Union subtypes" in str(
                error
            ):  # for a union type jsonargparse keeps only the text of the cause
                mistake = UserError(one_line(str(error)))
            raise (mistake or error) from None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer, with this package's callbacks, loggers and checkpoint files beside the user's."""
        settings = self.config_init[self.config.subcommand].trainer
        place_checkpoints(settings.callbacks or [], self.folder / "checkpoints")
        loggers = _as_list(settings.logger)
        if self.config.subcommand == "fit":
            specs = iter(wandb_arguments(self.config[self.config.subcommand].trainer.logger))
            loggers = [
                start_wandb(logger, next(specs).as_dict()) if isinstance(logger, WandbLogger) else logger
                for logger in loggers
                if isinstance(logger, Logger)  # `true` means Lightning's CSV file, which `MetricsCSV` replaces
            ]
            loggers.append(MetricsCSV(self.folder / "metrics.csv", self.run.step))
        callbacks: list[pl.Callback] = [
            RunFolder(self.config_text, self.command),
            ExactResume(),
            StartNotes(),
            CheckedSettings(),
        ]
        has_bar = any(isinstance(callback, ProgressBar) for callback in settings.callbacks or [])
        if settings.enable_progress_bar is None:
            settings.enable_progress_bar = has_bar or sys.stdout.isatty()
        if not settings.enable_progress_bar:
            callbacks.append(ProgressLines())
        elif not has_bar:
            callbacks.append(SteadyBar())
        settings.callbacks = [*(settings.callbacks or []), *callbacks]
        plugins = _as_list(settings.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, WholeFiles()]
        trainer = super().instantiate_trainer(logger=loggers, plugins=plugins, **kwargs)
        check_trainer(trainer, self.model)
        leave_out_of_tables(trainer)
        if self.config.subcommand == "fit" and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"callbacks   {', '.join(type(one).__name__ for one in trainer.callbacks)}", flush=True)  # type: ignore[attr-defined]
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            start_ranks = signals.with_signals_blocked()(launcher._call_children_scripts)
            launcher._call_children_scripts = start_ranks  # type: ignore[method-assign]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Check that data and checkpoint fit, and print the settings that differ from the checkpoint's."""
        if self.config.subcommand == "fit":
            self.datamodule.check_batch_size()
        if self.run.contents is None:
            self._start_weights(self.config[self.config.subcommand].init_from)
            return
        check_fits(self.run.path, self.run.contents, self.model)
        check_weights(self.run.contents, self.folder if self.run.path is None else self.run.path)
        config = self.folder / "config.yaml"
        if self.config.subcommand == "fit" and config.is_file():
            changed = config_changes(config, self.config_text)
        else:
            changed = differences(self.run.contents, self.model)
            changed += changes_of_test_data(config, self.config_text) if config.is_file() else []
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            if self.config.subcommand == "fit":
                print(f"{self.folder}: goes on from {Path(self.run.path or '').name}, step {self.run.step}", flush=True)
            if changed:
                print(f"not as the checkpoint's own run (there -> here): {'; '.join(changed)}", flush=True)
        self.run = replace(self.run, contents=None)  # Lightning reads the file again; this frees the first copy

    def _start_weights(self, run: str | None) -> None:
        """Load what fits of another run's weights into the new model of a fit, and print what does not fit."""
        if run is None or self.config.subcommand != "fit":
            return
        path = runs.best_checkpoint(run)
        checkpoint = read_checkpoint(path)
        check_weights(checkpoint, path)
        self.datamodule.check_start(checkpoint, path)
        started = start_from(self.model, checkpoint, path)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"init_from {path}, step {checkpoint['global_step']}: {started}", flush=True)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except UserError as error:
            error.exit_code = 1
            raise
        except (SIGTERMException, signals.Stopped, RuntimeError):
            if not signals.requested():
                raise  # a true error; at a signal another rank may close the connection, which is no error
            launcher = self.trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signals.requested())  # a rank ignores all signals after its first
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
        """Test the best checkpoint if the command is `train`, and print the summary."""
        if signals.requested():  # after the last step
            raise signals.Stopped(signals.requested())
        if self.then_test and not self.trainer.interrupted:
            best = getattr(own_checkpoints(self.trainer), "best_model_path", "")  # empty without a validation
            if not best and self.trainer.global_step == 0:
                raise UserError("nothing was trained (max_epochs, max_steps or limit_train_batches is 0): not tested")
            torch.set_float32_matmul_precision("highest")
            if not best and (self.folder / "checkpoints").is_dir():  # fast_dev_run writes no checkpoint
                best = str(runs.best_checkpoint(self.folder))
            try:
                self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
            except UserError as error:  # the training is not lost
                raise UserError(f"{error}; trained, but not tested: {self.folder}") from error
        self._end()

    def _end(self) -> None:
        """Write the report and print the summary."""
        report = write_report(self.trainer, self.folder)
        if self.trainer.is_global_zero:
            print(summary(self.trainer, self.folder, self.config_text, report), flush=True)

    def predict(self, **kwargs: Any) -> None:
        """Predict and write the predictions to a file; Lightning would return them and write nothing.

        Args:
            kwargs: The arguments of Lightning's `Trainer.predict`.
        """
        settings = self.config.predict
        splits: tuple[Split, ...] = SPLITS if settings.split == "all" else (settings.split,)
        self.datamodule.predicted_splits, self.model.predicts_samples = splits, settings.sample
        outputs: list[Any] = self.trainer.predict(**kwargs) or []
        outputs = outputs if len(splits) > 1 else [outputs]
        if not all(outputs):
            raise UserError("nothing was predicted: limit_predict_batches is 0, or return_predictions is false")
        # several ranks exchange the rows on their devices; a single one keeps them on the CPU, where they surely fit
        device = self.trainer.strategy.root_device if self.trainer.world_size > 1 else torch.device("cpu")
        parts = [rows_of(batches, device) for batches in outputs]
        if self.trainer.is_global_zero:
            path = self.folder / f"predictions-{settings.split}.npz"
            named = [describe(rows, self.datamodule, split) for rows, split in zip(parts, splits, strict=True)]
            arrays = save_arrays(path, named)
            print(f"{path}: {', '.join(f'{name} {list(values.shape)}' for name, values in arrays.items())}", flush=True)

    def after_test(self) -> None:
        """Write the report and print the summary."""
        self._end()


class DataCLI(CLI):
    """Reads a command line as `fit` does, and keeps the data set's recipe in `recipe`; nothing is built or run."""

    def before_instantiate_classes(self) -> None:
        """Keep the recipe of the data set."""
        self.recipe: dict[str, Any] = self.config[self.config.subcommand].data.as_dict()

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Check nothing."""

    def _run_subcommand(self, subcommand: str) -> None: ...


def _as_list(value: Any) -> list[Any]:
    """Return the loggers or plugins of a trainer's setting: a list, a single one, or none."""
    return value if isinstance(value, list) else [value] if value else []
