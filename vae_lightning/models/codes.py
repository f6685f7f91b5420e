"""What a model says of an image: the mean and the scale of q(z|x), by latent."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.trace import Trace
from vae_lightning.types import Batch

DRAWS, _AT_ONCE = 64, 8


def posterior_codes(
    trace_of: Callable[[Batch, int], Trace], batch: Batch, trace: Trace, with_sample: bool = False
) -> dict[str, Tensor]:
    """`<latent>_mean` and `<latent>_scale`, each [B, *event]: E[z|x] and the standard deviation of each dimension.

    They are exact where q(z|x) has closed forms. Elsewhere they are the mean and the standard deviation of 64 draws of
    q(z|x), and the standard error of such a mean is an eighth of the scale: of a flow or a relaxed category, and of a
    latent that is drawn given another one (a layer of a hierarchy). `estimated` names these latents.

    Args:
        trace: The model's trace of the batch.
        with_sample: Whether to add `<latent>_sample`, the first sample of the trace.
    """
    found: dict[str, Tensor] = {}
    traces: list[Trace] = []
    for name, latent in trace.latents.items():
        mean, scale = _closed_forms(latent.q)
        if mean is None or scale is None:
            if _is_conditional(latent.q):
                traces = traces or [trace_of(batch, _AT_ONCE) for _ in range(DRAWS // _AT_ONCE)]
                draws = torch.cat([one.latents[name].z for one in traces])  # [64, B, *event]
            else:
                draws = copy(latent.q).sample(torch.Size((DRAWS,)))  # a copy: some remember their last sample
            mean = draws.mean(0) if mean is None else mean
            scale = draws.std(0) if scale is None else scale
        found |= {f"{name}_mean": mean, f"{name}_scale": scale}
        if with_sample:
            found[f"{name}_sample"] = latent.z[0]
    return found


def estimated(trace: Trace) -> list[str]:
    """The latents whose mean or scale is that of draws."""
    forms = {name: _closed_forms(latent.q) for name, latent in trace.latents.items()}
    return [name for name, (mean, scale) in forms.items() if mean is None or scale is None]


def _closed_forms(q: Distribution) -> tuple[Tensor | None, Tensor | None]:
    """E[z|x] and the standard deviations; None for what q(z|x) does not know of itself."""
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
    """Does q depend on an earlier latent's sample? Then it is q(z|x, z'), one for each of the samples: batch [K, B]."""
    return len(q.batch_shape) > 1
