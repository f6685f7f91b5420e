"""One verdict on the latents from all that a test knows of them: used or not, and a remedy for what is wrong.

What each statistic says, and what it cannot say:

- KL(q(z|x) || p(z)), nats an image: what the latent costs. Near 0, q(z|x) is the prior and z knows nothing of the
  image. A large KL is no proof of use: a q(z|x) that has left the prior in the same way for every image has one.
- Mutual information I(x;z), with its standard error: what z says of the image, at most the KL. Where it cannot be had
  (a flow, a q that depends on another latent) the moments of q(z|x) stand in: sum_d 1/2 log(1 + Var_x E[z_d|x] /
  E_x Var[z_d|x]), which is I of a Gaussian aggregate; and where q has no moments, the number of active units.
- Active units: dimensions whose mean varies by more than 0.01 over images. It is in the latent's own scale, so 0 of
  them is no proof of disuse where q(z|x) is narrower than its means are spread.
- Swap cost, with its standard error: what log p(x|z) loses by another image's z. It is 0 on average where q(z|x) is
  alike for all images, and exactly 0 where the decoder ignores z; how much log p(x|z) *changes* tells the two apart.
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

COLLAPSED = 0.1
"""Nats an image. A latent that costs or says less, or whose swap costs less, is as good as absent: one bit is 0.69
nats, and the standard error of a likelihood over 10,000 images is about 0.2."""
DEAD = 0.01
"""Nats an image, of one dimension: ten such are a latent that has collapsed."""
NARROW, WIDE = 0.005, 10.0
"""Standard deviations of q(z|x), in the prior's: a floor of 1e-3 is met, or no bound is."""

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
    "log p(x|z) of some test image is not finite, so nothing can be said of the latents: training has gone astray. "
    "Remedy: a lower learning rate, or --trainer.gradient_clip_val"
)
_NEEDS_Z = f"a decoder that cannot do without z (fewer or narrower layers), or {_MORE_KL}"


class Verdict(NamedTuple):
    """`summary`: which latents are used, by which numbers; empty where none is. `findings`: what is wrong, a sentence
    each, with its remedy."""

    summary: str
    findings: list[str]


@dataclass(frozen=True)
class _Latent:
    """What is known of one latent; None where it is not known."""

    name: str
    kl: float
    kl_by_dimension: Tensor | None  # [D]
    signal: Tensor | None  # [D], 1/2 log(1 + Var_x E[z_d|x] / E_x Var[z_d|x])
    scale: Tensor | None  # [D]
    information: Estimate | None
    ceiling: str
    active: int | None

    @property
    def is_said(self) -> bool | None:
        """Does z say something of the image? None: not clear."""
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
        """The numbers that `is_said` rests on, and the count of active units beside them."""
        parts = []
        if self.information is not None:
            said = f"mutual information {with_error(*self.information, 3)} nats"
            parts.append(f"{said} ({self.ceiling})" if math.isnan(self.information.error) else said)
        elif self.signal is not None:
            parts.append(f"mutual information about {self.signal.sum().item():.2g} nats (by the moments of q)")
        if self.active is not None:
            parts.append(f"active_units {self.active}{self._of_all}")
        return ", ".join([*parts, f"KL {self.kl:.3g} nats an image"])

    @property
    def _of_all(self) -> str:
        sizes = [len(values) for values in (self.kl_by_dimension, self.signal) if values is not None]
        return f" of {sizes[0]}" if sizes else ""


def judge(use: Mapping[str, Tensor], found: Mapping[str, Finding]) -> Verdict:
    """Of `use_of_latents` over N images, [N, ...], and of what `Evaluation` has found in the same test, if anything."""
    cost, change = mean_and_error(use["swap_cost"]), use["swap_cost"].abs().mean().item()
    if not math.isfinite(change):
        return Verdict("", [_NOT_FINITE])
    latents = [_known(name, use, found) for name in of_each_latent("kl", use)]
    unused = {latent.name: line for latent in latents if (line := _unused(latent, cost))}
    used = [latent for latent in latents if latent.name not in unused]
    findings = [*unused.values(), *_of_decoder(cost, change, bool(used))]
    is_used = bool(used) and len(findings) == len(unused)
    findings += [line for latent in used for line in _of_dimensions(latent)]
    findings += [line for latent in latents for line in _of_widths(latent)]
    if not is_used:
        return Verdict("", findings)
    said = "; ".join(f"{latent.name} {latent.evidence}" for latent in used)
    summary = f"{'in use' if findings else 'all in use'}: {said}; another image's z costs {_nats(cost)} of log p(x|z)"
    return Verdict(summary, findings)


def _known(name: str, use: Mapping[str, Tensor], found: Mapping[str, Finding]) -> _Latent:
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


def _unused(latent: _Latent, cost: Estimate) -> str | None:
    """What is wrong with a latent that says nothing of the image; None where it says something, or may."""
    if latent.kl < COLLAPSED:
        return (
            f"{latent.name} is not used: KL {latent.kl:.2g} nats an image, q(z|x) has collapsed to the prior. "
            f"Remedy: {_MORE_KL}"
        )
    swap = f"another image's z costs {_nats(cost)} of log p(x|z)"
    if latent.is_said is None and not cost.is_above(COLLAPSED):
        return f"it is not clear whether {latent.name} is used ({latent.evidence}): {swap}. Remedy: {_MORE_IMAGES}"
    if latent.is_said is False and (latent.information is not None or not cost.is_above(COLLAPSED)):
        return (
            f"{latent.name} is not used: it says next to nothing of the image ({latent.evidence}); q(z|x) has left the "
            f"prior, but nearly alike for all images, and {swap}. Remedy: {_MORE_INFORMATION}"
        )
    return None


def _of_decoder(cost: Estimate, change: float, some_are_used: bool) -> list[str]:
    """What is wrong with the decoder: nothing that follows from latents which say nothing."""
    if change < COLLAPSED:
        return [
            f"the decoder ignores its latents: another image's z changes log p(x|z) by {change:.2g} nats. "
            f"Remedy: {_NEEDS_Z}"
        ]
    if not some_are_used or cost.is_above(COLLAPSED):
        return []
    if cost.is_below(COLLAPSED):
        return [
            f"the decoder does not use what its latents say of the image: another image's z costs {_nats(cost)} of "
            f"log p(x|z). Remedy: {_NEEDS_Z}"
        ]
    return [
        f"it is not clear whether the decoder uses its latents: another image's z costs {_nats(cost)} of log p(x|z). "
        f"Remedy: {_MORE_IMAGES}"
    ]


def _of_dimensions(latent: _Latent) -> list[str]:
    """Of a latent that is used: its dimensions that are not, equal to the prior or alike for all images."""
    if latent.kl_by_dimension is None:
        return []
    found, size, dead = [], len(latent.kl_by_dimension), num_dead(latent.kl_by_dimension)
    if dead:
        found.append(
            f"{dead} of {size} dimensions of {latent.name} are dead (KL below {DEAD} nats an image): they do no "
            "harm, and a smaller latent would do. Remedy, if they are wanted: "
            "--model.objective=FreeBits --model.objective.per_dimension=true, or a warm-up of beta"
        )
    if latent.signal is None:
        return found
    alike = int(((latent.kl_by_dimension >= DEAD) & (latent.signal < DEAD)).sum())
    if alike:
        found.append(
            f"{alike} of {size} dimensions of {latent.name} cost KL and say nothing: q(z|x) has left the prior there, "
            f"but nearly alike for all images. Remedy: {_MORE_INFORMATION}"
        )
    return found


def _of_widths(latent: _Latent) -> list[str]:
    if latent.scale is None:
        return []
    narrow, wide = int((latent.scale < NARROW).sum()), int((latent.scale > WIDE).sum())
    size, found = len(latent.scale), []
    if narrow:
        found.append(
            f"{narrow} of {size} dimensions of {latent.name} are all but deterministic (sigma of q(z|x) below {NARROW} "
            "of the prior's): samples of the prior may look like nothing. Remedy: a larger beta, or a larger or "
            "learned sigma of the likelihood"
        )
    if wide:
        found.append(
            f"{wide} of {size} dimensions of {latent.name} have a q(z|x) more than {WIDE:.0f} times as wide as the "
            "prior: training has gone astray. Remedy: a lower learning rate, or --trainer.gradient_clip_val"
        )
    return found


def num_dead(kl: Tensor) -> int:
    """How many dimensions have a KL below 0.01 nats an image, by its mean [D]."""
    return int((kl < DEAD).sum())


def of_each_latent(kind: str, use: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries `<kind>/<latent>`, by latent."""
    return {name.removeprefix(f"{kind}/"): value for name, value in use.items() if name.startswith(f"{kind}/")}


def _nats(estimate: Estimate) -> str:
    return f"{with_error(*estimate)} nats"
