"""MONet: attention divides an image among slots, and one autoencoder explains the share of each slot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from vae_lightning.distributions import DiagonalNormal, PriorRecipe, SlotMixture, StandardNormal
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import check_count, named_latents
from vae_lightning.models.counts import say_too_many
from vae_lightning.networks import MLP, SpatialBroadcast, UNet
from vae_lightning.objectives import GECO
from vae_lightning.objectives.schedules import Schedule, as_schedule, at_least
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, NetworkRecipe, Shape, UserError

_ENCODER = partial(MLP, hidden_sizes=(128,))
_END = 2**40  # a step after the end of every schedule
_LEAST = -10.0  # the least log-mask that a network reads; the masks themselves are not clamped


class MONet(LatentVariableModel):
    """z_s ~ p(z); each pixel has a slot c ~ Cat(p(c|z)) and the colour x ~ N(mu_c(z_c), sigma_c^2).

    Use this model to take images apart into objects and background without labels, where objects hide each other.
    Burgess et al. 2019 (https://arxiv.org/abs/1901.11390). A decoder draws a picture mu_s and a logit map from each
    z_s; the softmax of the maps over the slots is p(c|z), the decoded masks. For inference a network attends to one
    slot after the other, each time to a share of the pixels that no slot has taken yet, and an encoder gives
    q(z_s|x, attended mask s). So there are two sets of masks. The attended ones segment x; the decoded ones are
    the model's.

    `elbo` = E_q[log sum_c p(c|z) N(x; mu_c, sigma_c^2)] - KL(q(z|x) || p(z)) is a bound of log p(x), with decoded
    masks. The loss of the paper is no bound, because its mixture has the attended masks. The paper's loss is the
    negative ELBO plus two costs of the trace, which the objective weights:

    - `attention`: log p(x|z) under the decoded masks minus that under the attended ones; weight 1.
    - `mask`: KL(attended || decoded), summed over pixels; its weight is gamma of the paper.

    `ELBO(beta=0.5, costs={"attention": 1, "mask": 0.5})` is the paper's loss, -log p_attended + beta KL + gamma
    KL(mask); weights of 0 train by the bound. The latent of a Trace is `slots`, [K, B, S, D]. `found` has, in
    evaluation: `masks`, the attended ones [B, S, H, W]; `segmentation`, the slot of each pixel by these, and
    `segmentation_decoded` by the decoded masks at posterior means, uint8 [B, H, W]; `slots_used`, how many slots own a
    pixel; `count`, which is `slots_used` - 1, because one slot is the background's. Any slot may be the background's.

    Args:
        image_shape: (C, H, W); x is [B, C, H, W] in [0, 1].
        num_slots: S, at least 2: one for the background, and one for each object of the fullest image.
        latent_size: D, the size of z_s.
        sigma_background: The standard deviation of a pixel of slot 0, which looks at the image first: a number or a
            schedule. In evaluation it is the schedule's end.
        sigma_foreground: The standard deviation of a pixel of every other slot. From the start, a small value splits
            the background, and a large value leaves objects together; so let a schedule lower the value.
        attention: Network from x and the log of the share that is not taken yet, [C + 1, H, W], to the logit of the
            next slot's share.
        encoder: Network from m_s x and m_s, [C + 1, H, W], m_s being the attended mask, to the parameters of q(z_s|x).
        decoder: Network from z_s to mu_s before a sigmoid, and the logit map: [C + 1, H, W].
        prior: p(z) of all slots, [S, D].
        kwargs: Arguments of `LatentVariableModel`.

    Raises:
        UserError: if a number is too small, if a network does not fit the image, or if the objective is GECO.
    """

    measures = ("fg_ari",)
    is_first: Tensor

    def __init__(
        self,
        image_shape: Shape,
        num_slots: int = 4,
        latent_size: int = 10,
        sigma_background: float | Schedule = 0.2,
        sigma_foreground: float | Schedule = 0.24,
        attention: NetworkRecipe = UNet,
        encoder: NetworkRecipe = _ENCODER,
        decoder: NetworkRecipe = SpatialBroadcast,
        prior: PriorRecipe = StandardNormal,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        _check(num_slots, latent_size, sigma_background, sigma_foreground)
        if isinstance(self.objective, GECO):
            raise UserError(
                "MONet: GECO holds log p(x|z) at a goal, and this model's loss has log p(x|z) under other masks, too; "
                "choose ELBO, --model.objective=ELBO --model.objective.beta=0.5"
            )
        self.image_shape = tuple(image_shape)
        self.num_slots, self.latent_size = num_slots, latent_size
        channels, height, width = self.image_shape
        self.posterior = DiagonalNormal((num_slots, latent_size))
        self.prior = prior((num_slots, latent_size))
        self.attention = attention((channels + 1, height, width), (1, height, width))
        self.encoder = encoder((channels + 1, height, width), (2 * latent_size,))
        self.decoder = decoder((latent_size,), (channels + 1, height, width))
        self.sigmas = as_schedule(sigma_background), as_schedule(sigma_foreground)
        self.register_buffer("is_first", (torch.arange(num_slots) == 0).float(), persistent=False)

    # -- the generative model -------------------------------------------------------------------------------------

    def sigma(self, step: int | None) -> Tensor:
        """Return the standard deviation of the pixels of each slot at a step, None for the end: [S]."""
        background, foreground = (schedule(_END if step is None else step) for schedule in self.sigmas)
        return self.is_first * background + (1 - self.is_first) * foreground

    def p_x(self, z: Tensor, step: int | None = None) -> SlotMixture:
        """Return p(x|z): batch [...], event [C, H, W].

        Args:
            z: [..., S, D].
            step: The training step, for the schedules of sigma; None for their end.
        """
        features = self.decoder(z)  # [..., S, C + 1, H, W]
        features = features if features.dtype == torch.float64 else features.float()
        slots, logits = features[..., :-1, :, :].sigmoid(), features[..., -1, :, :]
        return SlotMixture(logits.log_softmax(-3), slots, self.sigma(step))

    def decode(self, latents: Mapping[str, Tensor]) -> SlotMixture:
        (z,) = named_latents("MONet", latents, ["slots"])
        return self.p_x(z)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        check_count("MONet", n)
        return self.p_x(self.prior().sample((n,))).mean

    # -- inference ------------------------------------------------------------------------------------------------

    def attend(self, x: Tensor) -> Tensor:
        """Return the logarithms of the attended masks, [B, S, H, W]; the masks of a pixel sum to 1.

        A slot takes sigmoid(l) of the share that the slots before it have not taken; the last slot takes the rest. The
        computation stays in logarithms, so that no mask becomes 0.

        Args:
            x: [B, C, H, W].
        """
        left = torch.zeros_like(x[:, :1])  # log of the share that no slot has taken, [B, 1, H, W]
        log_masks = []
        for _ in range(self.num_slots - 1):
            logit = self.attention(torch.cat((x, left.clamp(min=_LEAST)), 1)).to(x.dtype)
            log_masks.append(left + F.logsigmoid(logit))
            left = left + F.logsigmoid(-logit)
        return torch.cat((*log_masks, left), 1)

    def q_slots(self, x: Tensor, log_masks: Tensor) -> Distribution:
        """Return q(z|x) of all slots given the attended masks: batch [B], event [S, D].

        The encoder reads its slot's share of the image, m x and m. The paper's encoder reads x and log m, and must
        first learn to ignore the parts of x that belong to other slots.

        Args:
            x: [B, C, H, W].
            log_masks: [B, S, H, W].
        """
        masks = log_masks.exp()[:, :, None]  # [B, S, 1, H, W]
        seen = torch.cat((masks * x[:, None], masks), 2)  # [B, S, C + 1, H, W]
        mean, raw = self.encoder(seen).chunk(2, -1)  # [B, S, D] each
        return self.posterior(torch.cat((mean, raw), 1))

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x = batch["x"]
        log_masks = self.attend(x)
        q_z = self.q_slots(x, log_masks)
        z = draw(q_z, num_samples)  # [K, B, S, D]
        p_x = self.p_x(z, step)  # batch [K, B]
        attended = SlotMixture(log_masks, p_x.slots, p_x.sigma)
        costs = {"attention": p_x.log_prob(x) - attended.log_prob(x), "mask": masks_kl(log_masks, p_x.log_masks)}
        found = {} if self.training else self._found(log_masks, q_z)
        return Trace(x, p_x, {"slots": Latent(z, q_z, self.prior())}, costs=costs, found=found)

    def infer(self, batch: Batch) -> Mapping[str, Distribution]:
        x = batch["x"]
        return {"slots": self.q_slots(x, self.attend(x))}

    @torch.no_grad()
    def _found(self, log_masks: Tensor, q_z: Distribution) -> dict[str, Tensor]:
        """Return what is read off x: the masks, and which slot each pixel belongs to."""
        segmentation = log_masks.argmax(1)  # [B, H, W]
        used = F.one_hot(segmentation, self.num_slots).any(1).any(1).sum(-1)  # [B]
        return {
            "masks": log_masks.exp(),
            "segmentation": segmentation.to(torch.uint8),
            "segmentation_decoded": self.p_x(q_z.mean).log_masks.argmax(1).to(torch.uint8),
            "slots_used": used,
            "count": (used - 1).clamp(min=0),
        }

    # -- steps, notes, pictures -----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        say_too_many("MONet", data, stage, self.num_slots - 1, f"num_slots={self.num_slots} has beside the background")

    @property
    def bound_note(self) -> str:
        costs = self.objective.costs
        weights = {name: costs[name](_END) if name in costs else 1.0 for name in ("attention", "mask")}
        if not any(weights.values()):
            return "without costs, with decoded masks alone; elbo is a lower bound of log p(x)"
        named = ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items())
        return (
            f"with the costs {named}, so no bound of log p(x), for attended masks stand in it; elbo is a lower "
            "bound, with decoded masks, and nll is of the same p(x)"
        )

    @staticmethod
    def _scalars(trace: Trace) -> dict[str, Tensor]:
        """Add sigma, and the mean over the batch of KL(q || p) of each slot."""
        kl, p_x = trace.kl_by_dimension().get("slots"), trace.p_x  # [B, S, D]
        assert isinstance(p_x, SlotMixture)
        scalars = {**LatentVariableModel._scalars(trace), "sigma_background": p_x.sigma[0]}
        scalars["sigma_foreground"] = p_x.sigma[-1]
        if kl is None:
            return scalars
        return scalars | {f"kl/slots/{s}": one for s, one in enumerate(kl.detach().sum(-1).mean(0))}

    def panes(self, trace: Trace) -> Mapping[str, Tensor | list[str]]:
        """Return the attended segmentation, each attended mask, and each slot on white."""
        masks = trace.found["masks"]  # [B, S, H, W]
        p_x = trace.p_x
        assert isinstance(p_x, SlotMixture)
        rows = {"segmentation": trace.found["segmentation"]}
        rows |= {f"mask {s}": masks[:, s, None] for s in range(self.num_slots)}
        on_white = 1 - masks[:, :, None] * (1 - p_x.slots[0])  # [B, S, C, H, W]
        return rows | {f"slot {s}": on_white[:, s] for s in range(self.num_slots)}


def masks_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) of the slots of all pixels, sum_pixels sum_s q_s (log q_s - log p_s): [...] nats.

    torch's KL of two Categoricals is infinite, or cut, where a probability underflows.

    Args:
        log_q: [..., S, H, W].
        log_p: [..., S, H, W].
    """
    return (log_q.exp() * (log_q - log_p)).sum((-3, -2, -1))


def _check(num_slots: int, latent_size: int, *sigmas: float | Schedule) -> None:
    if not 2 <= num_slots <= 255:
        raise UserError(
            f"MONet: num_slots is {num_slots}; it must be at least 2, one for the background, and at most 255"
        )
    at_least("MONet", 1, latent_size=latent_size)
    for name, sigma in zip(("sigma_background", "sigma_foreground"), sigmas, strict=True):
        if not (lowest := as_schedule(sigma).lowest) > 0:
            raise UserError(f"MONet: {name} is {lowest}; it must be above 0, such as 0.2 for pixels in [0, 1]")
