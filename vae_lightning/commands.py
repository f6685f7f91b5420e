"""The verbs behind `vae-lightning`: Lightning's own, and the ones that look at a trained model."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException

from vae_lightning.callbacks.pictures import reconstruction_grid, sample_grid, save_png
from vae_lightning.checkpoints import load_model, refuse_foreign_classes
from vae_lightning.data import ImageDataModule
from vae_lightning.data.base import SPLITS
from vae_lightning.data.cache import BrokenImagesError
from vae_lightning.runs import Complete, is_started_by_lightning
from vae_lightning.signals import Stopped
from vae_lightning.types import Batch, UserError

NAMES = {"sample": "samples", "reconstruct": "reconstructions"}
LIGHTNING_VERBS = ("train", "fit", "validate", "test", "predict")


def run(args: list[str]) -> int:
    """Run one command; a user's mistake ends in one line: 2 where it was found before the run, 1 during it."""
    _quieten()
    verb, rest = args[0], args[1:]
    try:
        if verb in LIGHTNING_VERBS:
            from vae_lightning.cli import CLI

            CLI(["fit" if verb == "train" else verb, *rest], then_test=verb == "train")
        elif verb == "check-data":
            from vae_lightning.cli import DataCLI

            _check(DataCLI(["fit", *rest]).spec)
        elif verb in NAMES:
            _draw(verb, rest)
        else:
            known = ", ".join((*LIGHTNING_VERBS, "check-data", *NAMES))
            raise UserError(f"unknown command {verb!r}; known: {known} (vae-lightning --help)")
    except Stopped as stopped:
        # Lightning kills all ranks where one that it has started seems to have failed: the first one would not get to
        # its end. Nobody else reads the exit code of these.
        return 0 if is_started_by_lightning() else 128 + stopped.signum
    except Complete as complete:
        print(complete, flush=True)
    except UserError as error:
        print(f"vae-lightning: error: {error}", file=sys.stderr)
        return error.exit_code
    except MisconfigurationException as error:  # Lightning's own word for a Trainer setting that cannot be
        print(f"vae-lightning: error: trainer: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.partition(' ')[2]}: {message}")


def _draw(verb: str, args: list[str]) -> None:
    what = NAMES[verb]
    parser = _Parser(prog=f"vae-lightning {verb}", description=f"write a picture of {what} as PNG")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or the folder of a run: its best one")
    parser.add_argument("--num_images", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help=f"default: images/{what}.png in the run's folder")
    given = parser.parse_args(args)
    if given.num_images < 1:
        raise UserError(f"--num_images is {given.num_images}; it must be at least 1")
    if given.checkpoint.is_dir():
        given.checkpoint = given.checkpoint / "checkpoints" / "best.ckpt"
    output = given.output or given.checkpoint.absolute().parent.parent / "images" / f"{what}.png"
    model = load_model(given.checkpoint)
    if verb == "sample":
        grid = sample_grid(model, given.num_images, given.seed)
    else:
        grid = reconstruction_grid(model, _test_batch(given.checkpoint, given.num_images), given.seed)
    try:
        save_png(grid, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another file by --output") from error
    print(output)


def _check(spec: dict[str, Any]) -> None:
    """Prepare the data set, read all of it, and say what it is; a line for each thing that is wrong with it."""
    data = _build_data(spec)
    try:
        data.prepare_data()
        problems = data.check()
    except BrokenImagesError as error:
        problems = error.problems
    if problems:
        print(*problems, sep="\n", flush=True)
        refusal = UserError(f"{spec['class_path'].rpartition('.')[2]}: {len(problems)} problems, listed above")
        refusal.exit_code = 1
        raise refusal
    for split in SPLITS:
        images = data.images(split)
        label = "" if images.labels is None else f", labels {list(images.labels.shape[1:]) or 'one'} an image"
        count, mean = len(images.pixels), images.pixels[::97].float().mean() / images.max_value
        print(f"{split}: {count:,} images {list(data.image_shape)}, mean pixel {mean:.3f}{label}", flush=True)


def _build_data(spec: dict[str, Any]) -> ImageDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    data: ImageDataModule = parser.instantiate_classes(parser.parse_object({"data": spec})).data
    return data


def _test_batch(checkpoint: Path, n: int) -> Batch:
    """The first n test images of the data set that the checkpoint's run was trained on."""
    config = checkpoint.absolute().parent.parent / "config.yaml"
    if not config.is_file():
        raise UserError(f"{config} not found: it names the data set; a checkpoint must stay in its run's folder")
    try:
        spec = yaml.safe_load(config.read_text())["data"]
        refuse_foreign_classes(spec["class_path"], config)
        data = _build_data(spec)
    except (yaml.YAMLError, KeyError, TypeError, argparse.ArgumentError) as error:
        raise UserError(f"{config}: names no data set that can be built: {' '.join(str(error).split())}") from error
    data.prepare_data()
    data.setup("test")
    return {name: values[:n] for name, values in next(iter(data.test_dataloader())).items()}


def _quieten() -> None:
    """Lightning's notes on itself, and warnings about what this template does on purpose."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: not _is_note(record.getMessage()))
    notes = (".*does not have many workers.*", ".*LeafSpec.*", "Checkpoint directory .* exists and is not empty")
    for text in notes:
        warnings.filterwarnings("ignore", message=text)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls what jsonargparse has renamed


def _is_note(text: str) -> bool:
    starts = (
        *("💡", "GPU available", "TPU available", "HPU available", "Seed set to", "`Trainer.fit` stopped"),
        *("Restoring states from", "Restored all states", "Loaded model weights", "`weights_only` was not"),
    )
    return text.startswith(starts)
