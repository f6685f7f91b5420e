"""The verbs behind `vae-lightning`: Lightning's own, and the ones that look at a trained model."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from vae_lightning.callbacks.pictures import reconstruction_grid, sample_grid, save_png, stack
from vae_lightning.checkpoints import load_model, local_checkpoint
from vae_lightning.data import ImageDataModule
from vae_lightning.data.base import SPLITS
from vae_lightning.data.cache import BrokenImagesError
from vae_lightning.data.loader import Images, first_images
from vae_lightning.fitting import (
    check_space,
    encode,
    fit_prior,
    own_prior,
    parse_args,
    report,
    save_prior,
    use_fitted_prior,
)
from vae_lightning.formatting import number, with_error
from vae_lightning.metrics import MeanAndError, SpreadRows, draw_missing, impute, missing_error
from vae_lightning.near import OneLineParser, hint
from vae_lightning.noise import reseed
from vae_lightning.runs import Complete, best
from vae_lightning.trainer_checks import refusal
from vae_lightning.trust import NOT_BUILT, TRUSTED, build, check_names, is_remote, trust
from vae_lightning.types import Batch, UserError

NAMES = {"sample": "samples", "reconstruct": "reconstructions"}
LIGHTNING_VERBS = ("train", "fit", "validate", "test", "predict")


def run(args: list[str]) -> int:
    """Run one command; a user's mistake ends in one line: 2 where it was found before the run, 1 during it."""
    _quieten()
    try:
        verb, rest, trusted = args[0], *_without_trust(args[1:])
        trust(trusted)  # what they name can be imported from here on
        if verb in LIGHTNING_VERBS:
            from vae_lightning.cli import CLI

            CLI(["fit" if verb == "train" else verb, *rest], then_test=verb == "train")
        elif verb == "check-data":
            from vae_lightning.cli import DataCLI

            _check(DataCLI(["fit", *rest]).spec)
        elif verb in NAMES:
            _draw(verb, rest, trusted)
        elif verb == "fit-prior":
            _fit_prior(rest, trusted)
        elif verb == "impute":
            _impute(rest, trusted)
        else:
            known = (*LIGHTNING_VERBS, "check-data", *NAMES, "fit-prior", "impute", "doctor")
            near = hint(verb, (*known, "--help", "--version"))
            if verb.startswith("-") and not near:
                raise UserError(f"{verb} stands before the command; write vae-lightning COMMAND {verb} ...")
            raise UserError(f"unknown command {verb!r}{near}; known: {', '.join(known)} (vae-lightning --help)")
    except Complete as complete:
        print(complete, flush=True)
    except UserError as error:
        print(f"vae-lightning: error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        said = refusal(error)
        if said is None:
            raise
        print(f"vae-lightning: error: {said}", file=sys.stderr)
        return 2
    return 0


def _without_trust(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of any verb without `--trust my_pkg`, and what these name."""
    given, rest = _trust_arguments().parse_known_args(args)
    return rest, [name.strip() for names in given.trust for name in names.split(",")]


def _trust_arguments() -> _Parser:
    parser = _Parser(prog="vae-lightning", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package of your own whose classes a checkpoint or a run's config.yaml may name; may be repeated",
    )
    return parser


class _Parser(OneLineParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(self.in_one_line(message))


def _draw(verb: str, args: list[str], trusted: list[str]) -> None:
    what = NAMES[verb]
    parser = _Parser(prog=f"vae-lightning {verb}", parents=[_trust_arguments()])
    if verb == "sample":
        fitted = "fitted: what fit-prior has written beside the checkpoint"
        parser.add_argument("--prior", choices=("own", "fitted"), default="own", help=fitted)
    given = _picture_arguments(parser, what, args)
    model = load_model(given.checkpoint, trusted)
    if verb == "sample":
        if given.prior == "fitted":
            use_fitted_prior(model, given.checkpoint, trusted)
        grid = sample_grid(model, given.num_images, given.seed)
    else:
        batch = first_images(_data_of(given.checkpoint, trusted).test_dataloader(), given.num_images)
        grid = reconstruction_grid(model, batch, given.seed)
    _write(grid, given.output)


def _impute(args: list[str], trusted: list[str]) -> None:
    """Hide pixels of test images, fill them in, and say how far that is from the truth, beside the mean image's."""
    parser = _Parser(prog="vae-lightning impute", parents=[_trust_arguments()])
    parser.add_argument("--missing", type=float, default=0.6, help="share of the pixels that are hidden")
    parser.add_argument("--steps", type=int, default=100, help="of the chain")
    parser.add_argument("--corrected", action="store_true", help="accept or reject each z (Metropolis-Hastings)")
    given = _picture_arguments(parser, "imputations", args)
    model = load_model(given.checkpoint, trusted)
    data = _data_of(given.checkpoint, trusted)
    batch = _spread_images(data.test_dataloader(), given.num_images)
    x = batch["x"]
    reseed(model.device, given.seed)
    missing = draw_missing(x, given.missing)
    filled = impute(model, batch, missing, given.steps, given.corrected)
    plain = torch.where(missing, _mean_image(data), x)
    shown = (x, torch.where(missing, 0.5, x), plain, filled.draw, filled.mean)
    _write(stack(*(row[:20] for row in shown)), given.output)
    print(f"{len(x)} images, {given.missing:.0%} of pixels missing, {given.steps} steps", end="")
    print(f", {filled.acceptance:.0%} accepted" if given.corrected else "")
    is_binary = bool(((x == 0) | (x == 1)).all())
    for name, guess in (("chain", filled.mean), ("mean image", plain)):
        score = MeanAndError()
        score.update(missing_error(guess, x, missing))
        error, stderr = score.compute()
        wrong = f", {missing_error(guess.round(), x, missing).mean():.1%} wrong" if is_binary else ""
        print(f"{name:<12}squared error {with_error(error, stderr, 4)} a missing pixel{wrong}", flush=True)


def _spread_images(batches: Iterable[Batch], n: int) -> Batch:
    """n images, spread over the set: what is said of them is to hold for it, and a file may be sorted by class."""
    rows, first = SpreadRows(n), 0
    for batch in batches:
        rows.add(batch, first)
        first += len(batch["x"])
    return rows.from_all_ranks()


def _picture_arguments(parser: _Parser, what: str, args: list[str]) -> argparse.Namespace:
    parser.description = f"write a picture of {what} as PNG"
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a run: its best one")
    parser.add_argument("--num_images", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allow_remote", choices=("true", "false"), default="false", help="fetch an address")
    parser.add_argument("--output", type=Path, help=f"default: images/{what}.png in the run's folder")
    given = parser.parse_args(args)
    if given.num_images < 1:
        raise UserError(f"--num_images is {given.num_images}; it must be at least 1")
    if is_remote(given.checkpoint):
        given.output = given.output or Path(f"{what}.png")  # it has no run's folder here
    given.checkpoint = best(local_checkpoint(given.checkpoint, given.allow_remote == "true"))
    given.output = given.output or given.checkpoint.absolute().parent.parent / "images" / f"{what}.png"
    return given


def _write(grid: Tensor, output: Path) -> None:
    try:
        save_png(grid, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another file by --output") from error
    print(output)


def _fit_prior(args: list[str], trusted: list[str]) -> None:
    """Encode the training set, fit a prior to it, write it beside the checkpoint, and say what it is worth."""
    path, recipe, seed = parse_args(args)
    path = best(path)
    model = load_model(path, trusted)
    check_space(own_prior(model), recipe)
    data = _data_of(path, trusted)
    data.setup("fit")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    reseed(model.device, seed)
    num_images = len(data.images("train").pixels)
    train = encode(model, data.train_dataloader(), "the training set", max(1, 20_000 // max(1, num_images)))
    held_out = encode(model, data.val_dataloader(), "the validation set")
    prior = fit_prior(recipe, train)
    said = report(model.cpu(), prior, held_out)
    file = save_prior(prior, recipe, path)
    count, num_samples = train.z.shape[:2]
    print(f"prior       {file}")
    print(f"fitted to   {count:,} training images, {num_samples} samples of q(z|x) each\n{said}", flush=True)


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
        said = f"{len(images.pixels):,} images {list(data.image_shape)}, mean pixel {number(_mean_pixel(images), 3)}"
        print(f"{split}: {said}{label}", flush=True)


def _mean_pixel(images: Images, at_once: int = 1000) -> float:
    """Of all images, in [0, 1]; read in parts, because they may lie in a file larger than the memory."""
    total = sum(int(part.sum(dtype=torch.int64)) for part in images.pixels.split(at_once))
    return total / images.pixels.numel() / images.max_value


def _build_data(spec: dict[str, Any]) -> ImageDataModule:
    parser = _data_parser()
    data: ImageDataModule = parser.instantiate_classes(parser.parse_object({"data": spec})).data
    return data


def _data_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    return parser


def _data_of(checkpoint: Path, trusted: list[str]) -> ImageDataModule:
    """The data set that the checkpoint's run was trained on, prepared."""
    config = checkpoint.absolute().parent.parent / "config.yaml"
    if not config.is_file():
        raise UserError(f"{config} not found: it names the data set; a checkpoint must stay in its run's folder")
    try:
        spec = yaml.safe_load(config.read_text())["data"]
        names = ("vae_lightning.data.", *(name for name in trust(trusted, checkpoint) if name not in TRUSTED))
        check_names(_without_folders(spec), config, names)
        data: ImageDataModule | None = build(_data_parser(), {"data": spec}, config, names).data
        if data is None:
            raise ValueError("data is null")
    except UserError:
        raise
    except (yaml.YAMLError, *NOT_BUILT) as error:
        raise UserError(f"{config}: names no data set that can be built: {' '.join(str(error).split())}") from error
    data.prepare_data()
    return data


def _mean_image(data: ImageDataModule, num_images: int = 10_000) -> Tensor:
    """The mean of x over about so many training images: [C, H, W]."""
    batches = islice(data.train_dataloader(), -(-num_images // data.batch_size))
    total, count = 0.0, 0
    for batch in batches:
        total, count = total + batch["x"].double().sum(0), count + len(batch["x"])
    return (torch.as_tensor(total) / count).float()


def _without_folders(spec: Any) -> Any:
    """A data set's recipe without its folders, whose names may be anything."""
    if isinstance(spec, dict):
        return {name: _without_folders(value) for name, value in spec.items() if not str(name).endswith("_dir")}
    return spec


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
