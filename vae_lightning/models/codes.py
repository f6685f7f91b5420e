"""The codes of an image: the mean and the scale of q(z|x), for each latent."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

DRAWS, _AT_ONCE = 64, 8


def posterior_codes(
    trace_of: Callable[[Batch, int], Trace], batch: Batch, trace: Trace, with_sample: bool = False
) -> dict[str, Tensor]:
    """Return `<latent>_mean` and `<latent>_scale`, each [B, *event]: E[z|x] and each dimension's standard deviation.

    Both are exact if q(z|x) has closed forms. Otherwise they are estimated from 64 draws of q(z|x), and the standard
    error of the mean is an eighth of the scale. Flows, relaxed categories and latents that depend on another latent
    (layers of a hierarchy) have no closed forms; `estimated` lists these latents.

    Args:
        trace_of: The model's `trace`, called for the draws.
        batch: The batch.
        trace: The model's trace of the batch.
        with_sample: Whether to add `<latent>_sample`, the first sample of the trace.
    """
    found: dict[str, Tensor] = {}
    traces: list[Trace] = []
    for name, latent in trace.continuous().items():
        mean, scale = _closed_forms(latent.q)
        if mean is None or scale is None:
            if _is_conditional(latent.q):
                traces = traces or [trace_of(batch, _AT_ONCE) for _ in range(DRAWS // _AT_ONCE)]
                draws = torch.cat([drawn.sampled_rows(drawn.latents[name].z) for drawn in traces])  # [64, B, *event]
            else:
                # of a copy, because some distributions store their last sample
                draws = copy(latent.q).sample(torch.Size((DRAWS,)))
            mean = draws.mean(0) if mean is None else mean
            scale = draws.std(0) if scale is None else scale
        found |= {f"{name}_mean": mean, f"{name}_scale": scale}
        if with_sample:
            found[f"{name}_sample"] = trace.sampled_rows(latent.z)[0]
    return found


def predictions(
    owner: str, trace_of: Callable[[Batch, int], Trace], batch: Batch, trace: Trace, with_sample: bool
) -> dict[str, Tensor]:
    """Return `posterior_codes`, what the model finds as `found_<name>`, and the label of the batch, if it has one.

    Args:
        owner: The model's class, for the message.
        trace_of: The model's `trace`.
        batch: The batch.
        trace: The model's trace of the batch.
        with_sample: Whether to add samples.

    Raises:
        UserError: if there is none of these.
    """
    found = {f"found_{name}": value for name, value in trace.found.items()}
    labels = {name: batch[name] for name in ("label",) if name in batch}
    rows = {**posterior_codes(trace_of, batch, trace, with_sample), **found, **labels}
    if not rows:
        raise UserError(
            f"{owner} has nothing to predict: it samples no latent, or not in every row, it finds nothing "
            "(Trace.found), and the batch has no label"
        )
    return rows


def estimated(trace: Trace) -> list[str]:
    """Return the names of the latents whose mean or scale is estimated from draws."""
    forms = {name: _closed_forms(latent.q) for name, latent in trace.continuous().items()}
    return [name for name, (mean, scale) in forms.items() if mean is None or scale is None]


def _closed_forms(q: Distribution) -> tuple[Tensor | None, Tensor | None]:
    """Return E[z|x] and the standard deviations, each None if q(z|x) has no closed form."""
    if _is_conditional(q):
        return None, None
    return _or_none(q, "mean"), _or_none(q, "stddev")


def _or_none(q: Distribution, moment: str) -> Tensor | None:
    try:
        value: Tensor = getattr(q, moment)
    except NotImplementedError:
        return None
    return value


def _is_conditional(q: Distribution) -> bool:
    """Return whether q depends on an earlier latent's sample: q(z|x, z') has batch [K, B], one for each sample."""
    return len(q.batch_shape) > 1
