"""What is settled before a run's model and data are built: its run and folder, its precision, W&B."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vae_lightning.runs import container, folder
from vae_lightning.runs.checkpoint_form import check_whole_fit
from vae_lightning.runs.folder import Complete, Run
from vae_lightning.runs.login import wandb_is_disabled, wandb_is_offline
from vae_lightning.runs.trust import refuse_address
from vae_lightning.types import UserError

# -- which run ---------------------------------------------------------------------------------------------------------


def choose_run(given: Namespace, verb: str, then_test: bool) -> Run:
    """The run that a command belongs to, a new one or one that goes on; `given.ckpt_path` becomes its checkpoint.

    Args:
        given: the parsed command line of the verb; `experiment` and `ckpt_path` are filled in.
        verb: fit, validate, test or predict.
        then_test: whether a test follows the fit.

    Raises:
        Complete: if the run has ended already.
        UserError: if the checkpoint is missing, damaged, or holds less than a fit goes on from.
    """
    if given.ckpt_path is not None:
        refuse_address(given.ckpt_path)
    given.experiment = given.experiment or experiment_of(given.config)
    if verb == "fit":
        run = folder.choose_run(given, given.experiment)
        if run.contents is not None:
            check_whole_fit(run.contents, str(run.path))
        _end_if_complete(run, given, then_test)
    elif given.ckpt_path is None:
        raise UserError(f"{verb} needs --ckpt_path: weights that were never trained have no result")
    else:
        path = folder.best_checkpoint(Path(given.ckpt_path))
        run = folder.run_of_checkpoint(path, folder.new_folder(given, given.experiment))
    given.ckpt_path = str(run.path) if run.path else None
    return run


def _end_if_complete(run: Run, given: Namespace, then_test: bool) -> None:
    """Leave a run alone that has ended; `train` may have been stopped between its fit and its test.

    Results that are older than the checkpoint belong to a shorter run, which was made longer afterwards.
    """
    results, path = run.folder / "results.json", run.path
    tested = not then_test or (
        results.is_file() and path is not None and results.stat().st_mtime_ns >= path.stat().st_mtime_ns
    )
    limits = (given.trainer.max_epochs, given.trainer.max_steps)
    if run.contents is not None and tested and folder.is_complete(run.contents, *limits):
        raise Complete(
            f"{run.folder}: already complete, after {run.step} steps; nothing was changed. To train it "
            "further, raise --trainer.max_epochs; for a new run, leave out --ckpt_path and --run_id"
        )


def experiment_of(configs: list[Any] | None) -> str:
    """vae/mnist for configs/vae/mnist.yaml; the bare name for a file that lies elsewhere."""
    if not configs:
        return "unnamed"
    path = Path(os.path.normpath(str(configs[-1]))).with_suffix("")
    parts = path.parts
    return "/".join(parts[parts.index("configs") + 1 :]) if "configs" in parts else path.name


# -- its folder --------------------------------------------------------------------------------------------------------


def prepare_folder(place: Path, runs_dir: Path) -> None:
    """Make sure that the run's folder can be written to, and say so if it will be lost with a container.

    Raises:
        UserError: if it cannot be written to.
    """
    _make_writable(place)
    said = container.unmounted_warning(runs_dir)
    if said and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        print(said, flush=True)


def _make_writable(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()  # a name of its own: other ranks may ask at the same time
        with suppress(OSError):
            place.rmdir()  # where it is empty: a run that ends before it begins leaves nothing
    except OSError as error:
        raise UserError(
            f"{place}: cannot be written ({error.strerror}); choose another folder by --runs_dir"
        ) from error


# -- precision ---------------------------------------------------------------------------------------------------------


def set_precision(given: Namespace, verb: str) -> None:
    """Fill in the networks' precision and that of float32 products; tests always take the highest for products."""
    given.trainer.precision = given.trainer.precision or _best_precision(given.trainer.accelerator)
    on_gpu = torch.cuda.is_available() and given.trainer.accelerator in ("auto", "gpu", "cuda")
    if not torch.cuda.is_available():
        # Lightning has each optimizer step ask the driver: 3 % of a small step
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    given.matmul_precision = given.matmul_precision or ("high" if on_gpu else "highest")
    torch.set_float32_matmul_precision(given.matmul_precision if verb == "fit" else "highest")


def _best_precision(accelerator: Any) -> str:
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 and accelerator in ("auto", "gpu", "cuda") else "32-true"


# -- W&B ---------------------------------------------------------------------------------------------------------------


def prepare_wandb(given: Namespace, verb: str, place: Path) -> None:
    """Let each W&B logger of the config write to the run's folder, under its id, and offline if there is no login."""
    if verb != "fit" or wandb_is_disabled():
        given.trainer.logger = False  # results.json records a test by itself
    for init_args in wandb_arguments(given.trainer.logger):
        init_args.save_dir, init_args.id = str(place), place.name
        init_args.name = f"{given.experiment}/{place.name}"
        init_args.project = init_args.project or os.environ.get("WANDB_PROJECT") or "vae_lightning"
        init_args.offline = init_args.offline or wandb_is_offline()


def wandb_arguments(spec: Any) -> list[Namespace]:
    """The arguments of each W&B logger in `trainer.logger`: one class, several, or true or false."""
    specs = spec if isinstance(spec, list) else [spec]
    return [s.init_args for s in specs if isinstance(s, Namespace) and s.class_path.endswith("WandbLogger")]
