"""One verdict on the latents from all results of a test: whether each latent is used, and a remedy for each problem.

What each statistic shows, and what it cannot show:

- KL(q(z|x) || p(z)), in nats per image, is the cost of the latent. If the KL is near 0, q(z|x) equals the prior and z
  carries nothing about the image. A large KL does not prove use: q(z|x) may differ from the prior in the same way for
  every image.
- Mutual information I(x;z), with its standard error, is the information about the image in z; the KL is its upper
  limit. If I cannot be measured (a flow, a q that depends on another latent), the moments of q(z|x) replace it:
  sum_d 1/2 log(1 + Var_x E[z_d|x] / E_x Var[z_d|x]), which is I of a Gaussian aggregate. If q has no moments, the
  number of active units replaces it.
- Active units are dimensions whose mean has a variance above 0.01 over images. This variance depends on the latent's
  scale, so 0 active units do not prove disuse if q(z|x) is narrower than the spread of its means.
- Swap cost, with its standard error, is the loss of log p(x|z) with the z of another image. The cost is 0 on average
  if q(z|x) is alike for all images, and exactly 0 if the decoder ignores z; the mean absolute change of log p(x|z)
  distinguishes the two cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lightning.metrics.estimate import Estimate, mean_and_error
from vae_lightning.metrics.evaluator import Finding
from vae_lightning.metrics.formatting import with_error
from vae_lightning.models.dimensions import DEAD

COLLAPSED = 0.1
"""Nats per image. A latent with a smaller KL, mutual information or swap cost counts as unused: one bit is 0.69 nats,
and the standard error of a likelihood over 10,000 images is about 0.2."""
NARROW, WIDE = 0.005, 10.0
"""Limits of sigma of q(z|x), in units of the prior's: below NARROW sigma is near its floor (1e-3), above WIDE it
diverges."""

_MORE_KL = (
    "warm the KL up (--model.objective=ELBO --model.objective.beta=LinearWarmup --model.objective.beta.num_steps=...), "
    "give it free bits (--model.objective=FreeBits), or lower beta"
)
_MORE_INFORMATION = (
    "train longer, if this run was short; warm the KL up (--model.objective=ELBO "
    "--model.objective.beta=LinearWarmup --model.objective.beta.num_steps=...), or lower beta"
)
_MORE_IMAGES = "more test images, or a larger --collapse.num_images"
_NOT_FINITE = (
    "log p(x|z) of some test image is not finite, so the latents cannot be judged: training has diverged. "
    "Remedy: a lower learning rate, or --trainer.gradient_clip_val"
)
_NEEDS_Z = f"a weaker decoder that needs z (fewer or narrower layers), or {_MORE_KL}"


class Verdict(NamedTuple):
    """The verdict on all latents.

    Args:
        summary: the used latents with their numbers; empty if no latent is used.
        findings: one sentence, with a remedy, for each problem.
    """

    summary: str
    findings: list[str]


@dataclass(frozen=True)
class _Latent:
    """The measurements of one latent; None for each that is unknown."""

    name: str
    kl: float
    kl_by_dimension: Tensor | None  # [D]
    signal: Tensor | None  # [D], 1/2 log(1 + Var_x E[z_d|x] / E_x Var[z_d|x])
    scale: Tensor | None  # [D]
    information: Estimate | None
    ceiling: str
    active: int | None

    @property
    def is_informative(self) -> bool | None:
        """Whether z carries information about the image; None if the numbers do not decide."""
        if self.information is not None:
            mean, error = self.information
            if self.information.is_below(COLLAPSED):
                return False
            at_ceiling = math.isnan(error) and mean >= COLLAPSED
            return True if at_ceiling or self.information.is_above(COLLAPSED) else None
        if self.signal is not None:
            return bool(self.signal.sum() >= COLLAPSED)
        return None if self.active is None else self.active > 0

    @property
    def evidence(self) -> str:
        """The numbers behind `is_informative`, with the number of active units and the KL."""
        parts = []
        if self.information is not None:
            error = self.information[1]
            places = 4 if 5e-5 < error < 5e-4 else 3  # -0.0005 +- 0.0003, not -0.001 +- 0.000
            text = f"mutual information {with_error(*self.information, places)} nats"
            parts.append(f"{text} ({self.ceiling})" if math.isnan(self.information.error) else text)
        elif self.signal is not None:
            parts.append(f"mutual information about {self.signal.sum().item():.2g} nats (by the moments of q)")
        if self.active is not None:
            parts.append(f"active_units {self.active}{self._out_of_size}")
        return ", ".join([*parts, f"KL {self.kl:.3g} nats an image"])

    @property
    def _out_of_size(self) -> str:
        sizes = [len(values) for values in (self.kl_by_dimension, self.signal) if values is not None]
        return f" of {sizes[0]}" if sizes else ""


def judge(use: Mapping[str, Tensor], found: Mapping[str, Finding], on_unused: str = "") -> Verdict:
    """The verdict on the latents.

    Args:
        use: the result of `use_of_latents` over N images, [N, ...].
        found: the results of `Evaluation` in the same test; may be empty.
        on_unused: what to say of a collapsed latent in place of the general remedy.
    """
    cost, change = mean_and_error(use["swap_cost"]), use["swap_cost"].abs().mean().item()
    if not math.isfinite(change):
        return Verdict("", [_NOT_FINITE])
    latents = [_collect(name, use, found) for name in by_latent("kl", use)]
    unused = {latent.name: line for latent in latents if (line := _unused_finding(latent, cost, on_unused))}
    used = [latent for latent in latents if latent.name not in unused]
    findings = [*unused.values(), *_decoder_findings(cost, change, bool(used))]
    is_used = bool(used) and len(findings) == len(unused)
    findings += [line for latent in used for line in _dimension_findings(latent)]
    findings += [line for latent in latents for line in _width_findings(latent)]
    if not is_used:
        return Verdict("", findings)
    evidence = "; ".join(f"{latent.name} {latent.evidence}" for latent in used)
    summary = f"{'in use' if findings else 'all in use'}: {evidence}; {_swap(cost)}"
    return Verdict(summary, findings)


def _collect(name: str, use: Mapping[str, Tensor], found: Mapping[str, Finding]) -> _Latent:
    mean, variance = use.get(f"mean/{name}"), use.get(f"variance/{name}")
    kl, scale = use.get(f"kl_by_dimension/{name}"), use.get(f"scale/{name}")
    information, active = found.get(f"mutual_information/{name}"), found.get(f"active_units/{name}")
    error = found.get(f"mutual_information/{name}_stderr")
    is_measured = isinstance(information, float) and isinstance(error, float)
    return _Latent(
        name,
        kl=use[f"kl/{name}"].mean().item(),
        kl_by_dimension=None if kl is None else kl.mean(0),
        signal=None if mean is None or variance is None else torch.log1p(mean.var(0) / variance.mean(0)) / 2,
        scale=None if scale is None else scale.mean(0),
        information=Estimate(information, error) if is_measured else None,  # type: ignore[arg-type]
        ceiling=str(found.get("information_limit", "")),
        active=int(active) if isinstance(active, float) and math.isfinite(active) else None,
    )


def _unused_finding(latent: _Latent, cost: Estimate, on_unused: str) -> str | None:
    """The problem of a latent that carries nothing about the image; None if the latent is used, or may be."""
    if latent.kl < COLLAPSED:
        return f"{latent.name} is not used: KL {latent.kl:.2g} nats an image, q(z|x) has collapsed to the prior. " + (
            on_unused or f"Remedy: {_MORE_KL}"
        )
    swap = _swap(cost)
    if latent.is_informative is None and not cost.is_above(COLLAPSED):
        return f"it is not clear whether {latent.name} is used ({latent.evidence}): {swap}. Remedy: {_MORE_IMAGES}"
    if latent.is_informative is False and (latent.information is not None or not cost.is_above(COLLAPSED)):
        return (
            f"{latent.name} is not used: it carries almost no information about the image ({latent.evidence}); q(z|x) "
            f"differs from the prior, but nearly alike for all images, and {swap}. Remedy: {_MORE_INFORMATION}"
        )
    return None


def _decoder_findings(cost: Estimate, change: float, some_are_used: bool) -> list[str]:
    """The problems of the decoder, except those that follow from latents without information."""
    if change < COLLAPSED:
        return [
            f"the decoder ignores its latents: with the z of another image, log p(x|z) changes by {change:.2g} nats. "
            f"Remedy: {_NEEDS_Z}"
        ]
    if not some_are_used or cost.is_above(COLLAPSED):
        return []
    if cost.is_below(COLLAPSED):
        return [f"the decoder does not use the information in its latents: {_swap(cost)}. Remedy: {_NEEDS_Z}"]
    return [f"it is not clear whether the decoder uses its latents: {_swap(cost)}. Remedy: {_MORE_IMAGES}"]


def _dimension_findings(latent: _Latent) -> list[str]:
    """The unused dimensions of a used latent: equal to the prior, or alike for all images."""
    if latent.kl_by_dimension is None:
        return []
    found, size, dead = [], len(latent.kl_by_dimension), num_dead(latent.kl_by_dimension)
    if dead:
        found.append(
            f"{dead} of {size} dimensions of {latent.name} are dead (KL below {DEAD} nats an image): they do no "
            "harm, and a smaller latent would suffice. Remedy, if you want to use them: "
            "--model.objective=FreeBits --model.objective.per_dimension=true, or a warm-up of beta"
        )
    if latent.signal is None:
        return found
    alike = int(((latent.kl_by_dimension >= DEAD) & (latent.signal < DEAD)).sum())
    if alike:
        found.append(
            f"{alike} of {size} dimensions of {latent.name} cost KL without information: q(z|x) differs from the "
            f"prior, but nearly alike for all images. Remedy: {_MORE_INFORMATION}"
        )
    return found


def _width_findings(latent: _Latent) -> list[str]:
    if latent.scale is None:
        return []
    narrow, wide = int((latent.scale < NARROW).sum()), int((latent.scale > WIDE).sum())
    size, found = len(latent.scale), []
    if narrow:
        found.append(
            f"{narrow} of {size} dimensions of {latent.name} are all but deterministic (sigma of q(z|x) below {NARROW} "
            "of the prior's): samples of the prior may look unlike the data. Remedy: a larger beta, or a larger or "
            "learned sigma of the likelihood"
        )
    if wide:
        found.append(
            f"{wide} of {size} dimensions of {latent.name} have a q(z|x) more than {WIDE:.0f} times as wide as the "
            "prior: training has diverged. Remedy: a lower learning rate, or --trainer.gradient_clip_val"
        )
    return found


def num_dead(kl: Tensor) -> int:
    """The number of dimensions whose mean KL, in `kl` [D], is below 0.01 nats per image."""
    return int((kl < DEAD).sum())


def by_latent(statistic: str, use: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries `<statistic>/<latent>` of `use`, by the name of the latent."""
    prefix = f"{statistic}/"
    return {name.removeprefix(prefix): value for name, value in use.items() if name.startswith(prefix)}


def _swap(cost: Estimate) -> str:
    """The swap cost in words."""
    return f"with the z of another image, log p(x|z) falls by {_nats(cost)}"


def _nats(estimate: Estimate) -> str:
    return f"{with_error(*estimate)} nats"
