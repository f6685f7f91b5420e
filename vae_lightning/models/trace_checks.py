"""Checks of a model's first trace: does its mathematics make sense for these data?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vae_lightning.distributions import is_straight_through, seen_positions, share_support
from vae_lightning.models.weights import check_finite
from vae_lightning.trace import Latent, Observed, Trace, distribution_name, has_mean
from vae_lightning.types import UserError

_FOR_PIXELS = (
    "Bernoulli for pixels of 0 and 1 (--data.binarisation=dynamic or threshold makes them such), or a likelihood for "
    "grey pixels (--model.likelihood=ContinuousBernoulli or DiagonalNormal, or Binomial or DiscretizedLogistic where "
    "its number of levels fits)"
)
_FOR_NUMBERS = (
    "a likelihood whose support has every number of x (DiagonalNormal for real numbers, Classes for whole numbers from "
    "0), and hide padding with Masked"
)


def check_trace(owner: str, state: Mapping[str, Tensor], trace: Trace) -> None:
    """Check the weights, x under p(x|z), and each latent's sample, posterior and prior. Synchronises with the device.

    Args:
        owner: The model's class, for messages.
        state: The model's weights and buffers by name.
        trace: The model's trace of a batch.

    Raises:
        UserError: if a weight or a sample is not finite, if p(x|z) has another shape than x, has no mean or gives x no
            probability, if a posterior and its prior are not over the same space or hide different positions, if a
            sample has no pathwise gradient, or if the shares of an enumerated variable do not sum to 1.
    """
    check_finite(owner, state)
    _check_event(owner, trace)
    _check_shares(owner, trace)
    _check_beside(owner, trace)
    _check_likelihood(trace)
    for name, latent in trace.latents.items():
        posterior, prior = distribution_name(latent.q), distribution_name(latent.p)
        _check_exists(name, latent)
        _check_masks(name, latent)
        _check_gradient(name, latent)
        if not torch.isfinite(latent.z).all():
            raise UserError(
                f"latent {name}: a sample of its posterior {posterior} is not finite, with weights that are; "
                "they are too large: train again with a smaller learning rate or --trainer.gradient_clip_val"
            )
        if not share_support(latent.q, latent.p, latent.z):
            raise UserError(
                f"latent {name}: its posterior {posterior} and its prior {prior} are not over the "
                "same space; give the posterior's own family as the prior (--model.prior=FamilyPrior "
                "--model.prior.family=...), or on the sphere --model.prior=UniformSphere, with one group_size; a "
                "latent whose prior has no such flag takes DiagonalNormal, or another posterior over R^D"
            )
        _check_density(name, latent, list(trace.p_x.batch_shape))


def describe_bound(likelihood: str, trace: Trace, untrained_kl: Sequence[str] = ()) -> str:
    """Return one line on what the bound of a run is made of: likelihood, what is observed, how each KL is computed.

    Args:
        likelihood: The name of p(x|z).
        trace: The trace of a batch.
        untrained_kl: The latents whose KL has weight 0 in the loss.
    """
    kinds = ", ".join(
        f"{name} {latent.kl_estimator}{', enumerated' if latent.enumerated else ''}"
        + (", straight-through (biased gradient)" if is_straight_through(latent.q) else "")
        for name, latent in trace.latents.items()
    )
    seen = f"; elbo and nll are of {', '.join(('x', *trace.observed))}" if trace.observed else ""
    costs = f"; costs in the loss alone: {', '.join(trace.costs)}" if trace.costs else ""
    untrained = f"; {note_of_untrained(untrained_kl)}" if untrained_kl else ""
    return f"likelihood {likelihood}; KL by latent: {kinds}{seen}{costs}{untrained}"


def note_of_untrained(latents: Sequence[str]) -> str:
    """Return why the bound of a run has no meaning, in one sentence; empty if every KL is trained.

    Args:
        latents: The latents whose KL has weight 0 in the loss.
    """
    if not latents:
        return ""
    return f"the KL of {', '.join(latents)} has weight 0 in the loss, so elbo, kl and nll say nothing of the model"


def _check_event(owner: str, trace: Trace) -> None:
    event, batch = list(trace.p_x.event_shape), list(trace.p_x.batch_shape)
    if event != list(trace.x.shape[1:]) or len(batch) != 2:
        raise UserError(
            f"{owner}: its p(x|z), {distribution_name(trace.p_x)}, has the batch shape {batch} and the event shape "
            f"{event}; x is {list(trace.x.shape)}, so they must be [K, {len(trace.x)}] and {list(trace.x.shape[1:])} "
            "(Repeated is for models whose features have an axis of steps)"
        )


def _check_shares(owner: str, trace: Trace) -> None:
    rows = trace.p_x.batch_shape[0]
    enumerated = [name for name, latent in trace.latents.items() if latent.enumerated]
    if trace.log_shares is None:
        if enumerated or trace.num_values != 1:
            raise UserError(
                f"{owner}: its trace enumerates {', '.join(enumerated) or f'{trace.num_values} values'} but has no "
                "log_shares; give log_shares = log q(c|x) - log S, [K, B]"
            )
        return
    if rows % trace.num_values:
        raise UserError(
            f"{owner}: its trace has {rows} rows for num_values={trace.num_values}; K = S C rows hold the C values of "
            "each of S samples"
        )
    _check_shape(owner, "log_shares", trace.log_shares, list(trace.p_x.batch_shape))
    totals = trace.log_shares.detach().double().exp().sum(0)  # [B]
    wrong = totals[(totals - 1).abs() > 1e-3]
    if len(wrong):
        raise UserError(
            f"{owner}: the shares of an example sum to {wrong[0].item():.4g}; exp(log_shares) must sum to 1 over the "
            f"{rows} rows: log_shares = log q(c|x) - log S with S = {trace.num_samples} samples"
        )
    of_samples = trace.by_sample(trace.log_shares.detach().double()).exp().sum(1) * trace.num_samples  # [S, B]
    wrong = of_samples[(of_samples - 1).abs() > 1e-3]
    if len(wrong):  # values counted as samples make the estimate of p(x) C times too large
        raise UserError(
            f"{owner}: the shares of one sample's {trace.num_values} values sum to {wrong[0].item():.4g} / S, not to "
            f"1 / S, S = {trace.num_samples} samples; num_values must be C, the number of values of the enumerated "
            "variable, and row k = s C + c must hold value c of sample s"
        )


def _check_beside(owner: str, trace: Trace) -> None:
    """Refuse what is observed, found or added to the loss in a shape that would be broadcast to another meaning."""
    rows = list(trace.p_x.batch_shape)  # [K, B]
    for name, seen in trace.observed.items():
        shape, event, batch = list(seen.value.shape), list(seen.p.event_shape), list(seen.p.batch_shape)
        if shape != [*rows[1:], *event] or batch not in (rows, rows[1:]):
            raise UserError(
                f"{owner}: observed {name} is {shape}, and its p has the batch shape {batch} and the event shape "
                f"{event}; they must be {[*rows[1:], *event]}, and {rows} or {rows[1:]}"
            )
        _check_support(owner, name, seen)
    for name, value in trace.costs.items():
        _check_shape(owner, f"cost {name}", value, rows, rows[1:])
    known = {f"known of observed {name}": seen.known for name, seen in trace.observed.items()}
    for name, given in {**known, "example_weight": trace.example_weight}.items():
        if given is not None:
            _check_shape(owner, name, given, rows[1:])
    for name, value in trace.found.items():
        if list(value.shape[:1]) != rows[1:]:
            raise UserError(f"{owner}: found {name} is {list(value.shape)}; it must be [{rows[1]}, ...], a row each")


def _check_shape(owner: str, name: str, value: Tensor, *wanted: list[int]) -> None:
    if list(value.shape) not in wanted:
        raise UserError(f"{owner}: {name} is {list(value.shape)}; it must be {' or '.join(map(str, wanted))}")


def _check_support(owner: str, name: str, seen: Observed) -> None:
    """Refuse a seen value that p gives no probability, such as the label of a class that p does not have."""
    try:
        constraint = seen.p.support
    except NotImplementedError:  # a distribution of a user's own need not define its support
        return
    assert constraint is not None
    inside = constraint.check(seen.value)
    unknown = torch.zeros_like(inside) if seen.known is None else ~seen.known.bool()
    bad = ~(inside | unknown).reshape(-1, len(seen.value)).all(0)  # [B]
    if bad.any():
        raise UserError(
            f"{owner}: observed {name} has the value {seen.value[bad][0].tolist()}, to which its p, "
            f"{distribution_name(seen.p)}, gives no probability; Observed(..., known=...) leaves examples out whose "
            "value is not known"
        )


def _check_exists(name: str, latent: Latent) -> None:
    """Refuse a probability: the ELBO would be right, but the importance estimate would exceed log p(x)."""
    exists = latent.exists
    if exists is not None and bool(((exists != 0) & (exists != 1)).any()):
        raise UserError(
            f"latent {name}: exists has a value between 0 and 1; exists tells whether the row has the variable, and "
            "must be 0 or 1, never a probability"
        )


def _check_density(name: str, latent: Latent, rows: list[int]) -> None:
    """Refuse a density of single dimensions or objects: a KL [B, D] would pass for one of B samples, [K, B]."""
    for letter, log_density in (("q", latent.log_q()), ("p", latent.log_p())):
        if list(log_density.shape) != rows:
            raise UserError(
                f"latent {name}: log {letter}(z) is {list(log_density.shape)}, and must be one number for each row and "
                f"example, {rows}: z is {list(latent.z.shape)}, q has the batch shape {list(latent.q.batch_shape)}, p "
                f"{list(latent.p.batch_shape)}; make the dimensions of z part of the event, Independent(q, 1) and "
                "Independent(p, 1), or give Latent(exists=...), [K, B, *objects], for objects"
            )


def _check_masks(name: str, latent: Latent) -> None:
    """Refuse a mask of q or of p alone: log q(z) - log p(z) would count the hidden positions of the other."""
    q, p = seen_positions(latent.q), seen_positions(latent.p)
    if q is None and p is None:
        return
    if q is None or p is None or not torch.equal(*torch.broadcast_tensors(q, p)):
        raise UserError(
            f"latent {name}: its posterior and its prior do not hide the same positions; give both one mask: "
            "Masked(q, mask), Masked(p, mask)"
        )


def _check_gradient(name: str, latent: Latent) -> None:
    """Refuse a sample without a pathwise gradient: its encoder would not be trained, or wrongly, without a word."""
    if latent.enumerated:
        return
    remedy = (
        "enumerate the variable (Latent(..., enumerated=True) and Trace.log_shares), or choose RelaxedCategorical, or "
        "Categorical with straight_through=true (biased)"
    )
    if not latent.q.has_rsample:
        raise UserError(
            f"latent {name}: samples of its posterior {distribution_name(latent.q)} have no pathwise gradient, so they "
            f"cannot train an encoder; {remedy}"
        )
    if torch.is_grad_enabled() and not latent.z.requires_grad and latent.q.log_prob(latent.z).requires_grad:
        raise UserError(
            f"latent {name}: its sample has no gradient, although its posterior {distribution_name(latent.q)} is "
            "trained; draw it by rsample, or by vae_lightning.trace.draw"
        )


def _check_likelihood(trace: Trace) -> None:
    likelihood = distribution_name(trace.p_x)
    if not has_mean(trace.p_x):
        raise UserError(
            f"the likelihood {likelihood} does not know its mean, which reconstructions and samples are; choose "
            "one that does (--model.likelihood=DiagonalNormal or ContinuousBernoulli, Bernoulli for binarised pixels)"
        )
    value = trace.outside_support()
    if value is not None:
        is_image = trace.x.dim() == 4 and trace.x.is_floating_point()
        raise UserError(
            f"the likelihood {likelihood} gives no probability to a {'pixel' if is_image else 'number'} of value "
            f"{value:.4g}, or an infinite density; choose {_FOR_PIXELS if is_image else _FOR_NUMBERS}"
        )
