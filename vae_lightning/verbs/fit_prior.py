"""`fit-prior RUN`: fit a density to the encoded training set, for `sample RUN --prior=fitted`.

"Ex-post density estimation" (Ghosh et al. 2020, https://arxiv.org/abs/1903.12436): the decoder was trained on latents
of the aggregate posterior 1/N sum_n q(z|x_n), from which the model's prior may differ.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from vae_lightning.data.loading import data_of
from vae_lightning.distributions import (
    MixtureOfFullNormals,
    Prior,
    PriorRecipe,
    StandardNormal,
    VampPrior,
    share_support,
)
from vae_lightning.metrics import MeanAndError
from vae_lightning.metrics.formatting import in_words_of, with_error
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.building import Budget
from vae_lightning.models.loading import load_model
from vae_lightning.models.weights import check_finite
from vae_lightning.noise import reseed
from vae_lightning.recipes import to_plain
from vae_lightning.runs.checkpoint_form import load_plain
from vae_lightning.runs.folder import best_checkpoint
from vae_lightning.runs.trust import NOT_BUILT, build, check_names, trust
from vae_lightning.runs.whole_files import file_digest, write_whole
from vae_lightning.trace import distribution_name
from vae_lightning.types import Batch, UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import TRUST_HELP, add_run, add_seed


@dataclass(frozen=True)
class Encoded:
    """Latents of N images, and an estimate of the ELBO at each latent.

    Args:
        z: Samples of q(z|x): [N, K, *event].
        elbo: log p(x, z) - log q(z|x) at each sample, without closed forms: [N, K], in nats per image.
    """

    z: Tensor
    elbo: Tensor


@torch.no_grad()
def encode(model: LatentVariableModel, batches: Iterable[Batch], images: str, num_samples: int = 1) -> Encoded:
    """Encode every batch on the model's device; the result is on the CPU.

    Args:
        model: A model with one latent.
        batches: Batches of images.
        images: The name of the images, for the message if there are none.
        num_samples: K, the number of samples of q(z|x) for each image.

    Raises:
        UserError: if there are no images, or the model has more than one latent.
    """
    parts = []
    for batch in batches:
        trace = model.trace({name: values.to(model.device) for name, values in batch.items()}, num_samples)
        if len(trace.latents) != 1:
            raise _no_single_latent(model)
        (latent,) = trace.latents.values()
        parts.append((latent.z.transpose(0, 1).cpu(), trace.log_weight().T.cpu()))  # [B, K, *event], [B, K]
    if not parts:
        raise UserError(f"{images} has no images: there is nothing to fit a prior to")
    z, elbo = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Encoded(z, elbo)


def own_prior(model: LatentVariableModel) -> Prior:
    """Return the model's own prior, which a fitted prior may replace.

    Args:
        model: Any model.

    Raises:
        UserError: unless the model has one prior over one latent.
    """
    prior = getattr(model, "prior", None)
    if not isinstance(prior, Prior):
        raise _no_single_latent(model)
    return prior


def _no_single_latent(model: LatentVariableModel) -> UserError:
    return UserError(
        f"{type(model).__name__}: a prior can be fitted only to a model with one latent whose prior is a Prior module, "
        "in the slot `prior`"
    )


def check_space(model_prior: Prior, recipe: PriorRecipe) -> None:
    """Check that the model's prior and a prior of `recipe` are densities over the same space.

    A density on a simplex or a sphere and a density over R^D have no common unit, so their difference means nothing.

    Args:
        model_prior: The model's own prior.
        recipe: The recipe of the prior to fit.

    Raises:
        UserError: if the spaces differ, or if `recipe` makes a VampPrior, which is no density without a model.
    """
    candidate = recipe(model_prior.event_shape)
    if isinstance(candidate, VampPrior):
        raise UserError(
            "fit-prior: VampPrior is made of a model's encoder and trained with it, so it cannot be fitted afterwards; "
            "choose MixtureOfFullNormals, MixtureOfNormals or FlowPrior"
        )
    if not _have_one_space(model_prior, candidate):
        raise UserError(
            f"fit-prior: {type(candidate).__name__} is not over the space of the model's latents, whose prior is "
            f"{distribution_name(model_prior())}; give the family of the posterior: --prior=FamilyPrior "
            "--prior.family=... --prior.learn=true"
        )


@torch.no_grad()
def _have_one_space(prior: Prior, other: Prior) -> bool:
    p = prior()
    return share_support(p, other(), p.sample((100,)))


def fit_prior(recipe: PriorRecipe, train: Encoded) -> Prior:
    """Return a prior of `recipe` fitted to latents of the training set; the first tenth of them decides when to stop.

    Args:
        recipe: The recipe of the prior.
        train: The encoded training set.

    Raises:
        UserError: if there are fewer than two images.
    """
    prior = recipe(tuple(train.z.shape[2:]))
    if len(train.z) < 2:
        raise UserError("fit-prior: one training image; at least two are needed, one of them to decide when to stop")
    tenth = -(-len(train.z) // 10)
    prior.fit(train.z[tenth:].flatten(0, 1), train.z[:tenth].flatten(0, 1))
    return prior.eval().requires_grad_(False)


@torch.no_grad()
def report(model: LatentVariableModel, fitted: Prior, held_out: Encoded) -> str:
    """Compare the priors by E log p(z) of held-out latents, and by the ELBO, to which the difference is added.

    Args:
        model: The model, on the CPU.
        fitted: The fitted prior, on the CPU.
        held_out: The encoded validation set.

    Returns:
        Lines for the terminal, in nats per image with standard errors.
    """
    old = own_prior(model)
    z = held_out.z  # [N, K, *event]
    densities = {type(old).__name__: old().log_prob(z), f"fitted {type(fitted).__name__}": fitted().log_prob(z)}
    if not isinstance(old, StandardNormal) and _have_one_space(old, StandardNormal(old.event_shape)):
        densities = {"N(0, I)": StandardNormal(old.event_shape)().log_prob(z), **densities}
    gain = fitted().log_prob(z) - old().log_prob(z)
    lines = [f"validation  log p(z) {_in_nats(log_p)} nats/image under {name}" for name, log_p in densities.items()]
    elbos = f"{_in_nats(held_out.elbo)} -> {_in_nats(held_out.elbo + gain)}"
    lines.append(f"ELBO        {elbos} nats/image with the fitted prior, a gain of {_in_nats(gain)}")
    if gain.mean() < 0:
        lines.append("the fitted prior is worse than the model's: choose another --prior, or fewer parameters")
    return "\n".join(lines)


def _in_nats(values: Tensor) -> str:
    """Return the mean of `values` [N, K] over N images with its standard error, as text."""
    mean_and_error = MeanAndError()
    mean_and_error.update(values.double().mean(1))  # first the mean over the K samples of each image
    mean, error = mean_and_error.compute()
    return with_error(mean, error)


# -- the file beside the checkpoint -----------------------------------------------------------------------------------


def prior_path(checkpoint: Path) -> Path:
    """Return the file of a checkpoint's fitted prior: best.prior.pt for best.ckpt.

    Args:
        checkpoint: The file of the checkpoint.
    """
    return checkpoint.with_suffix(".prior.pt")


def save_prior(prior: Prior, recipe: PriorRecipe, checkpoint: Path) -> Path:
    """Write a fitted prior beside its checkpoint, as plain data, and return the file's path.

    The file holds the recipe, the shape and the tensors of the prior, and the digest of the checkpoint, so that a prior
    is never used with other weights.

    Args:
        prior: The fitted prior.
        recipe: The recipe that made it.
        checkpoint: The checkpoint whose model encoded the latents.

    Raises:
        UserError: if the file cannot be written.
    """
    stream = io.BytesIO()
    contents = {
        "prior": to_plain(recipe, "prior"),
        "event_shape": list(prior.event_shape),
        "state_dict": dict(prior.state_dict()),
        "checkpoint": file_digest(checkpoint),
    }
    torch.save(contents, stream)
    path = prior_path(checkpoint)
    try:
        write_whole(path, stream.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def use_fitted_prior(model: LatentVariableModel, checkpoint: Path, trusted: Sequence[str] = ()) -> None:
    """Replace the model's prior by the prior that was fitted to its checkpoint.

    Args:
        model: The model of the checkpoint.
        checkpoint: The checkpoint's file.
        trusted: Packages of the user's own, whose priors the file may name.

    Raises:
        UserError: if there is no fitted prior, or it is damaged, or it was fitted to other latents.
    """
    path = prior_path(checkpoint)
    event_shape = own_prior(model).event_shape
    if not path.is_file():
        raise UserError(f"{path}: no fitted prior; vae-lightning fit-prior {checkpoint} makes it")
    contents = _read(path)
    shape = tuple(contents["event_shape"])
    if shape != event_shape:
        raise UserError(f"{path}: fitted to latents of shape {shape}; the model's have {event_shape}")
    if contents["checkpoint"] != file_digest(checkpoint):
        raise UserError(f"{path}: fitted to an earlier {checkpoint.name}, which has changed; run fit-prior again")
    names = trust(trusted, path)
    check_names(contents["prior"], path, names)
    try:
        with Budget(contents["state_dict"], path):
            prior = build(_recipe_parser(), {"prior": contents["prior"]}, path, names).prior(shape)
        prior.load_state_dict(contents["state_dict"])
    except UserError:
        raise
    except NOT_BUILT as error:
        raise UserError(f"{path}: its prior cannot be built: {' '.join(str(error).split())[:300]}") from error
    check_finite(path, prior.state_dict())
    model.prior = prior.to(model.device).eval()


def _read(path: Path) -> dict[str, Any]:
    contents = load_plain(path)
    is_prior = isinstance(contents, dict) and {"prior", "event_shape", "state_dict", "checkpoint"} <= contents.keys()
    if not is_prior or not _is_shape(contents["event_shape"]) or not _is_state(contents["state_dict"]):
        raise UserError(f"{path}: not a prior that vae-lightning fit-prior has written")
    return dict(contents)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int for size in value)


def _is_state(value: Any) -> bool:
    entries = value.items() if isinstance(value, dict) else [(None, None)]
    return all(isinstance(name, str) and isinstance(entry, Tensor) for name, entry in entries)


# -- the command line -------------------------------------------------------------------------------------------------


def make_parser(prog: str, description: str) -> ArgumentParser:
    """Return the parser of `RUN [--prior=FlowPrior --prior.num_steps=8] [--seed=1]`.

    The parser is jsonargparse's, because `--prior` takes a class and the arguments of the class.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    add_run(parser)
    parser.add_argument(
        "--prior",
        type=PriorRecipe,
        default=MixtureOfFullNormals,
        help="the class of the density; its arguments are --prior.NAME",
    )
    add_seed(parser, "the noise and of the density's initial values")
    parser.add_argument("--trust", metavar="PACKAGE", help=TRUST_HELP)  # `cli.dispatch` reads the value
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Fit a prior to a run's encoded training set, write it beside the checkpoint, and print the comparison.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    checkpoint = best_checkpoint(arguments.run)
    recipe = _recipe_parser().instantiate_classes(Namespace(prior=arguments.prior)).prior
    model = load_model(checkpoint, trusted)
    check_space(own_prior(model), recipe)
    data = data_of(checkpoint, trusted)
    data.setup("fit")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    reseed(model.device, arguments.seed)
    num_images = len(data.examples("train"))
    train = encode(model, data.train_dataloader(), "the training set", max(1, 20_000 // max(1, num_images)))
    held_out = encode(model, data.val_dataloader(), "the validation set")
    prior = fit_prior(recipe, train)
    comparison = report(model.cpu(), prior, held_out)
    path = save_prior(prior, recipe, checkpoint)
    count, num_samples = train.z.shape[:2]
    print(f"prior       {path}")
    lines = f"fitted to   {count:,} training images, {num_samples} samples of q(z|x) each\n{comparison}"
    print(in_words_of(lines, model.is_of_images), flush=True)


def _recipe_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--prior", type=PriorRecipe, default=MixtureOfFullNormals)
    return parser


COMMAND = Command(make_parser, run)
