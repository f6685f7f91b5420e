"""`fit-prior RUN`: fit a density to the encoded training set, for `sample RUN --prior=fitted`.

"Ex-post density estimation" (Ghosh et al. 2020, https://arxiv.org/abs/1903.12436): the decoder was trained on latents
of the aggregate posterior 1/N sum_n q(z|x_n), which the prior may miss.
"""

from __future__ import annotations

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
from vae_lightning.metrics.formatting import with_error
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
from vae_lightning.verbs._arguments import add_run


@dataclass(frozen=True)
class Encoded:
    """Of N images: `z` ~ q(z|x) [N, K, *event], and the ELBO at each [N, K], in nats, closed forms not used."""

    z: Tensor
    elbo: Tensor


@torch.no_grad()
def encode(model: LatentVariableModel, batches: Iterable[Batch], what: str, num_samples: int = 1) -> Encoded:
    """Run the model on every batch, wherever the model is, K = `num_samples`; `what` the images are, where none are."""
    found = []
    for batch in batches:
        trace = model.trace({name: values.to(model.device) for name, values in batch.items()}, num_samples)
        if len(trace.latents) != 1:
            raise _no_single_latent(model)
        (latent,) = trace.latents.values()
        found.append((latent.z.transpose(0, 1).cpu(), trace.log_weight().T.cpu()))  # [B, K, *event], [B, K]
    if not found:
        raise UserError(f"{what} has no images: there is nothing to fit a prior to")
    z, elbo = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Encoded(z, elbo)


def own_prior(model: LatentVariableModel) -> Prior:
    """The prior that a fitted one may take the place of.

    Raises:
        UserError: where the model has not one prior over one latent.
    """
    prior = getattr(model, "prior", None)
    if not isinstance(prior, Prior):
        raise _no_single_latent(model)
    return prior


def _no_single_latent(model: LatentVariableModel) -> UserError:
    return UserError(f"{type(model).__name__}: a prior is fitted to one latent with one prior; it has not that")


def check_space(own: Prior, recipe: PriorRecipe) -> None:
    """A density on a simplex or a sphere and one over R^D are not of the same thing: a gain between them means nothing.

    Raises:
        UserError: where samples of the model's own prior have no density under one of `recipe`, or one of another kind;
            and for a VampPrior, which is no density by itself.
    """
    fitted = recipe(own.event_shape)
    if isinstance(fitted, VampPrior):
        raise UserError(
            "fit-prior: VampPrior is made of a model's encoder and trained with it, so it cannot be fitted afterwards; "
            "choose MixtureOfFullNormals, MixtureOfNormals or FlowPrior"
        )
    if not _one_space(own, fitted):
        raise UserError(
            f"fit-prior: {type(fitted).__name__} is not over the space of the model's latents, whose prior is "
            f"{distribution_name(own())}; give the posterior's own family: --prior=FamilyPrior --prior.family=... "
            "--prior.learn=true"
        )


@torch.no_grad()
def _one_space(own: Prior, other: Prior) -> bool:
    p = own()
    return share_support(p, other(), p.sample((100,)))


def fit_prior(recipe: PriorRecipe, train: Encoded) -> Prior:
    """A prior of `recipe`, fitted to z ~ q(z|x) over the training set; a tenth of the images says when to stop."""
    prior = recipe(tuple(train.z.shape[2:]))
    if len(train.z) < 2:
        raise UserError("fit-prior: one training image; it takes two at least, one of them to tell when to stop")
    tenth = -(-len(train.z) // 10)
    prior.fit(train.z[tenth:].flatten(0, 1), train.z[:tenth].flatten(0, 1))
    return prior.eval().requires_grad_(False)


@torch.no_grad()
def report(model: LatentVariableModel, fitted: Prior, held_out: Encoded) -> str:
    """E log p(z) of held-out latents under each prior, and the ELBO: the difference of the two is added to it.

    All three on the CPU.
    """
    own = own_prior(model)
    z = held_out.z  # [N, K, *event]
    densities = {type(own).__name__: own().log_prob(z), f"fitted {type(fitted).__name__}": fitted().log_prob(z)}
    if not isinstance(own, StandardNormal) and _one_space(own, StandardNormal(own.event_shape)):
        densities = {"N(0, I)": StandardNormal(own.event_shape)().log_prob(z), **densities}
    gain = fitted().log_prob(z) - own().log_prob(z)
    lines = [f"validation  log p(z) {_said(log_p)} nats/image under {name}" for name, log_p in densities.items()]
    elbos = f"{_said(held_out.elbo)} -> {_said(held_out.elbo + gain)}"
    lines.append(f"ELBO        {elbos} nats/image with the fitted prior, a gain of {_said(gain)}")
    if gain.mean() < 0:
        lines.append("the fitted prior is the worse one: choose another by --prior, or one with fewer parameters")
    return "\n".join(lines)


def _said(values: Tensor) -> str:
    mean_and_error = MeanAndError()
    mean_and_error.update(values.double().mean(1))  # of an image, over its samples
    mean, error = mean_and_error.compute()
    return with_error(mean, error)


# -- the file beside the checkpoint -----------------------------------------------------------------------------------


def prior_path(checkpoint: Path) -> Path:
    """best.prior.pt for best.ckpt."""
    return checkpoint.with_suffix(".prior.pt")


def save_prior(prior: Prior, recipe: PriorRecipe, checkpoint: Path) -> Path:
    """Plain data: how to build the prior, its tensors, and the digest of the checkpoint that it belongs to."""
    contents = io.BytesIO()
    kept = {
        "prior": to_plain(recipe, "prior"),
        "event_shape": list(prior.event_shape),
        "state_dict": dict(prior.state_dict()),
        "checkpoint": file_digest(checkpoint),
    }
    torch.save(kept, contents)
    path = prior_path(checkpoint)
    try:
        write_whole(path, contents.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def use_fitted_prior(model: LatentVariableModel, checkpoint: Path, trusted: Sequence[str] = ()) -> None:
    """Put the prior that was fitted to this checkpoint in the place of the model's own.

    `trusted`: packages of one's own, whose priors the file may name.

    Raises:
        UserError: where there is none, it is damaged, or it was fitted to other latents.
    """
    own, path = own_prior(model), prior_path(checkpoint)
    if not path.is_file():
        raise UserError(f"{path}: no fitted prior; vae-lightning fit-prior {checkpoint} makes it")
    kept = _read(path)
    shape = tuple(kept["event_shape"])
    if shape != own.event_shape:
        raise UserError(f"{path}: fitted to latents of shape {shape}; the model's have {own.event_shape}")
    if kept["checkpoint"] != file_digest(checkpoint):
        raise UserError(f"{path}: fitted to another {checkpoint.name} than is there now; run fit-prior again")
    names = trust(trusted, path)
    check_names(kept["prior"], path, names)
    try:
        with Budget(kept["state_dict"], path):
            prior = build(_recipe_parser(), {"prior": kept["prior"]}, path, names).prior(shape)
        prior.load_state_dict(kept["state_dict"])
    except UserError:
        raise
    except NOT_BUILT as error:
        raise UserError(f"{path}: its prior cannot be built: {' '.join(str(error).split())[:300]}") from error
    check_finite(path, prior.state_dict())
    model.prior = prior.to(model.device).eval()


def _read(path: Path) -> dict[str, Any]:
    kept = load_plain(path)
    is_prior = isinstance(kept, dict) and {"prior", "event_shape", "state_dict", "checkpoint"} <= kept.keys()
    if not is_prior or not _is_shape(kept["event_shape"]) or not _is_state(kept["state_dict"]):
        raise UserError(f"{path}: not a prior that vae-lightning fit-prior has written")
    return dict(kept)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int for size in value)


def _is_state(value: Any) -> bool:
    entries = value.items() if isinstance(value, dict) else [(None, None)]
    return all(isinstance(name, str) and isinstance(entry, Tensor) for name, entry in entries)


# -- the command line -------------------------------------------------------------------------------------------------


def make_parser(prog: str, description: str) -> ArgumentParser:
    """RUN [--prior=FlowPrior --prior.num_steps=8] [--seed=1]: a class and its arguments, in jsonargparse's form."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    add_run(parser)
    parser.add_argument("--prior", type=PriorRecipe, default=MixtureOfFullNormals, help="the class of the density")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, and of the density's first values")
    parser.add_argument("--trust", metavar="PACKAGE", help="a package of your own; may be repeated")  # the dispatch's
    return parser


def run(given: Namespace, trusted: list[str]) -> None:
    path = best_checkpoint(given.checkpoint)
    recipe = _recipe_parser().instantiate_classes(Namespace(prior=given.prior)).prior
    model = load_model(path, trusted)
    check_space(own_prior(model), recipe)
    data = data_of(path, trusted)
    data.setup("fit")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    reseed(model.device, given.seed)
    num_images = len(data.images("train").pixels)
    train = encode(model, data.train_dataloader(), "the training set", max(1, 20_000 // max(1, num_images)))
    held_out = encode(model, data.val_dataloader(), "the validation set")
    prior = fit_prior(recipe, train)
    said = report(model.cpu(), prior, held_out)
    file = save_prior(prior, recipe, path)
    count, num_samples = train.z.shape[:2]
    print(f"prior       {file}")
    print(f"fitted to   {count:,} training images, {num_samples} samples of q(z|x) each\n{said}", flush=True)


def _recipe_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--prior", type=PriorRecipe, default=MixtureOfFullNormals)
    return parser
