"""The choices before a run's model and data are built: the run, its folder, the precision, and W&B."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vae_lightning.runs import container, folder
from vae_lightning.runs.checkpoint_form import check_whole_fit
from vae_lightning.runs.configs import DEFAULTS, experiment_of_config, shipped_folder
from vae_lightning.runs.folder import Complete, Run
from vae_lightning.runs.login import wandb_is_disabled, wandb_is_offline
from vae_lightning.runs.trust import refuse_address
from vae_lightning.types import UserError

# -- the defaults of all runs --------------------------------------------------------------------------------------


def find_defaults() -> Path:
    """Return `configs/defaults.yaml`, which lies beside the package in a checkout and inside it in a wheel.

    Raises:
        UserError: if the file is missing.
    """
    path = shipped_folder() / DEFAULTS
    if not path.is_file():
        raise UserError(f"{path}: not found; reinstall the package")
    return path


# -- which run ---------------------------------------------------------------------------------------------------------


def choose_run(settings: Namespace, verb: str, then_test: bool) -> Run:
    """Return the run that a command belongs to, new or resumed, and put its checkpoint into `settings.ckpt_path`.

    Args:
        settings: the parsed command line of the verb; `experiment` and `ckpt_path` are filled in.
        verb: fit, validate, test or predict.
        then_test: whether a test follows the fit.

    Raises:
        Complete: if the run has ended already.
        UserError: if the checkpoint is missing, damaged, or holds less than a fit goes on from.
    """
    if settings.ckpt_path is not None:
        refuse_address(settings.ckpt_path)
    settings.experiment = settings.experiment or experiment_of(settings.config)
    if verb == "fit":
        run = folder.choose_run(settings, settings.experiment)
        if run.contents is not None:
            check_whole_fit(run.contents, str(run.path))
        _end_if_complete(run, settings, then_test)
    elif settings.ckpt_path is None:
        raise UserError(f"{verb} needs --ckpt_path: weights that were never trained have no result")
    else:
        path = folder.best_checkpoint(Path(settings.ckpt_path))
        run = folder.run_of_checkpoint(path, folder.new_folder(settings, settings.experiment))
    settings.ckpt_path = str(run.path) if run.path else None
    return run


def _end_if_complete(run: Run, settings: Namespace, then_test: bool) -> None:
    """Raise `Complete` if the run has ended: after its fit, or for `train` after its test.

    If the results are older than the checkpoint, they are those of a shorter fit, and the test is still to be done.
    """
    results, path = run.folder / "results.json", run.path
    tested = not then_test or (
        results.is_file() and path is not None and results.stat().st_mtime_ns >= path.stat().st_mtime_ns
    )
    limits = (settings.trainer.max_epochs, settings.trainer.max_steps)
    if run.contents is not None and tested and folder.is_complete(run.contents, *limits):
        raise Complete(
            f"{run.folder}: already complete, after {run.step} steps; nothing was changed. To train it "
            "further, raise --trainer.max_epochs; for a new run, leave out --ckpt_path and --run_id"
        )


def experiment_of(configs: list[Any] | None) -> str:
    """Return the experiment's name: vae/mnist for configs/vae/mnist.yaml, the bare name for a file outside configs/.

    Args:
        configs: The config files of the command line; the last one gives the name.
    """
    return experiment_of_config(str(configs[-1])) if configs else "unnamed"


def make_init_from_absolute(settings: Namespace) -> None:
    """Make `settings.init_from` absolute, so that it names one place, from whatever folder a command is given.

    Args:
        settings: The parsed command line of the command.

    Raises:
        UserError: if the path is an address.
    """
    if settings.init_from is not None:
        refuse_address(settings.init_from)
        settings.init_from = str(Path(settings.init_from).expanduser().absolute())


def keep_init_from(settings: Namespace, run: Run) -> None:
    """Make `settings.init_from` absolute for the record; of a resumed run, keep what its config.yaml has recorded.

    Args:
        settings: The parsed command line of the command.
        run: The run that the command belongs to.

    Raises:
        UserError: if the path is an address.
    """
    make_init_from_absolute(settings)
    config = run.folder / "config.yaml"
    if run.contents is None or not config.is_file():
        return
    recorded = (yaml.safe_load(config.read_text()) or {}).get("init_from")
    if settings.init_from not in (None, recorded) and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        print(f"{run.folder} goes on from its own checkpoint: --init_from {settings.init_from} is not read", flush=True)
    settings.init_from = recorded


# -- its folder --------------------------------------------------------------------------------------------------------


def prepare_folder(run_folder: Path, runs_dir: Path) -> None:
    """Check that the run's folder can be written to; print a warning if the folder will be lost with its container.

    Args:
        run_folder: The run's folder.
        runs_dir: The folder of all runs.

    Raises:
        UserError: if the run's folder cannot be written to.
    """
    _check_writable(run_folder)
    warning = container.unmounted_warning(runs_dir)
    if warning and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        print(warning, flush=True)


def _check_writable(run_folder: Path) -> None:
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(
            dir=run_folder
        ).close()  # a unique name, because other ranks may do this at the same time
        with suppress(OSError):
            run_folder.rmdir()  # fails unless the folder is empty; a run that ends before it begins leaves no folder
    except OSError as error:
        raise UserError(
            f"{run_folder}: cannot be written ({error.strerror}); choose another folder by --runs_dir"
        ) from error


# -- precision ---------------------------------------------------------------------------------------------------------


def set_precision(settings: Namespace, verb: str) -> None:
    """Choose the precision of networks and of float32 products if the user has not; a test always takes highest.

    Args:
        settings: The parsed command line of the command; `trainer.precision` and `matmul_precision` are filled in.
        verb: fit, validate, test or predict.
    """
    settings.trainer.precision = settings.trainer.precision or _best_precision(settings.trainer.accelerator)
    on_gpu = torch.cuda.is_available() and settings.trainer.accelerator in ("auto", "gpu", "cuda")
    if not torch.cuda.is_available():
        # Lightning sets it; torch then asks the driver at each optimizer step, which is 3 % of a small step
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    settings.matmul_precision = settings.matmul_precision or ("high" if on_gpu else "highest")
    torch.set_float32_matmul_precision(settings.matmul_precision if verb == "fit" else "highest")


def _best_precision(accelerator: Any) -> str:
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 and accelerator in ("auto", "gpu", "cuda") else "32-true"


# -- W&B ---------------------------------------------------------------------------------------------------------------


def prepare_wandb(settings: Namespace, verb: str, run_folder: Path) -> None:
    """Let each W&B logger of the config write to the run's folder, under the run's id; offline if there is no login.

    Args:
        settings: The parsed command line of the command; the loggers' arguments are filled in.
        verb: fit, validate, test or predict.
        run_folder: The run's folder.
    """
    if verb != "fit" or wandb_is_disabled():
        settings.trainer.logger = False  # results.json records a test by itself
    for init_args in wandb_arguments(settings.trainer.logger):
        init_args.save_dir, init_args.id = str(run_folder), run_folder.name
        init_args.name = f"{settings.experiment}/{run_folder.name}"
        init_args.project = init_args.project or os.environ.get("WANDB_PROJECT") or "vae_lightning"
        init_args.offline = init_args.offline or wandb_is_offline()


def wandb_arguments(loggers: Any) -> list[Namespace]:
    """Return the arguments of each W&B logger.

    Args:
        loggers: The setting `trainer.logger`: a class with its arguments, a list of these, true or false.
    """
    entries = loggers if isinstance(loggers, list) else [loggers]
    return [one.init_args for one in entries if isinstance(one, Namespace) and one.class_path.endswith("WandbLogger")]
