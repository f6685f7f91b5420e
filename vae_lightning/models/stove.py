"""STOVE: video as objects that are found in each frame and move by learned dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lightning.distributions import DiagonalNormal, Family, FamilyRecipe, Repeated, normal_product
from vae_lightning.models.attention import Attention, Seen, best_order, in_order
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import centred, check_count, named_latents
from vae_lightning.models.boxes import Template
from vae_lightning.models.chain import Start, Transition, normal
from vae_lightning.models.dynamics import DynamicsRecipe, Interactions
from vae_lightning.models.parts import centre_or_sample
from vae_lightning.models.rollouts import Rollout
from vae_lightning.networks import MLP
from vae_lightning.objectives.schedules import at_least
from vae_lightning.trace import Latent, Trace, draw, drawing
from vae_lightning.types import Batch, NetworkRecipe, Shape, UserError

_LIKELIHOOD = partial(DiagonalNormal, sigma=0.1, learn_sigma=True, min_sigma=0.05)
_MOST_OBJECTS = 6  # 720 orders are compared in each frame


class STOVE(LatentVariableModel):
    """z_1 ~ p(z_1), z_t ~ N(f(z_(t-1)), s^2), x_t ~ N(the template painted at the O objects of z_t, sigma^2).

    Use this model for video of objects that move and act on each other, bright on a dark ground and always in view. The
    model finds the objects without labels, follows them, and predicts their places. Kossen, Stelzner, Hussing, Voelcker
    & Kersting 2020, "Structured Object-Aware Physics Prediction for Video Modeling and Planning"
    (https://arxiv.org/abs/1910.02425), with a painted template in place of the sum-product network.

    The state z_t of an object is its position (x, y), velocity (x, y), latent (L numbers) and logit of its size. The
    posterior q(z_t|x_t, z_(t-1)) is the normalised product of the image's Gaussians and of p(z_t|z_(t-1)); the objects
    that are found in an image are put in the order that fits f(z_(t-1)) best. So frame t's state depends on frames up
    to t alone; the state of frame 1 takes its velocity from frames 1 and 2. The one latent of a Trace is `z`
    [K, B, T, O, 5 + L]. `found` has, in evaluation, `positions` [B, T, O, 2], the means of the filter.

    Args:
        x_shape: (-1, C, H, W): clips of any number of frames, at least 2; x is [B, T, C, H, W].
        num_objects: O, from 1 to 6.
        num_frames: The number of frames that `sample` draws.
        latent_size: L of a state that no image shows: a memory for the dynamics.
        object_size: The median of the side of an object's box under p, as a share of the frame. The box is wider than
            the object, about twice.
        template_size: The side of the template that is painted in the boxes, in its own pixels.
        window: The side of the part of an image that the attention looks at, in pixels: an odd number, about one and a
            half objects.
        encoder: Network from a window to the Gaussians of position and size.
        dynamics: f: `Interactions`, or `ConstantVelocity`, which learns nothing.
        spread: s of position and latent. s is not learned, because a learned s of the velocity shrinks until q ignores
            the images.
        velocity_spread: s of velocity. Each frame of a sampled roll-out adds the square of this s to the squared
            velocity.
        filtered: Whether q is the product. false: q(z_t|x_t, z_(t-1)) is the image's Gaussian alone (for the latent,
            that of p), for comparison.
        likelihood: Family of one frame given its mean. null: N(., sigma^2) with one learned sigma of at least 0.05.
        kwargs: Arguments of `LatentVariableModel`.

    Raises:
        UserError: if a size does not fit.
    """

    measures = ("rollout_error/mean/sum_1_to_10",)

    def __init__(
        self,
        x_shape: Shape,
        num_objects: int,
        num_frames: int = 8,
        latent_size: int = 0,
        object_size: float = 0.4,
        template_size: int = 12,
        window: int = 13,
        encoder: NetworkRecipe | None = None,
        dynamics: DynamicsRecipe = Interactions,
        spread: float = 0.005,
        velocity_spread: float = 0.002,
        filtered: bool = True,
        likelihood: FamilyRecipe | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.frame_shape = _frame_shape(x_shape, window)
        at_least("STOVE", 1, num_objects=num_objects, template_size=template_size)
        at_least("STOVE", 2, num_frames=num_frames)
        at_least("STOVE", 0, latent_size=latent_size)
        _check_sizes(num_objects, object_size, min(spread, velocity_spread))
        self.num_objects, self.num_frames, self.latent_size = num_objects, num_frames, latent_size
        self.filtered = filtered
        spreads = [spread] * 2 + [velocity_spread] * 2 + [spread] * latent_size
        network = encoder or partial(MLP, hidden_sizes=(128,), activation=nn.ELU)
        self.attention = Attention(self.frame_shape, num_objects, window, network)
        centred("STOVE", (likelihood or _LIKELIHOOD)(self.frame_shape))
        self.likelihood = Repeated(self.frame_shape, likelihood or _LIKELIHOOD)
        self.template = Template(self.frame_shape, template_size, object_size)
        self.start, self.transition = Start(num_objects, spreads[4:]), Transition(dynamics(latent_size), spreads)

    # -- the generative model -------------------------------------------------------------------------------------

    def p_next(self, z: Tensor) -> Distribution:
        """p(z_t|z_(t-1)), with the batch shape [...] and the event shape [O, D].

        Args:
            z: z_(t-1), [..., O, D].
        """
        p: Distribution = self.transition(z, self.start.size_sd)
        return p

    def p_x(self, z: Tensor) -> Distribution:
        """p(x|z) of clips, with the batch shape [...] and the event shape [T, C, H, W].

        Args:
            z: [..., T, O, D].
        """
        bare = torch.ones((), dtype=z.dtype, device=z.device)
        for painted in self.template(z[..., :2], z[..., -1]).unbind(-4):  # of each object, [..., T, C, H, W]
            bare = bare * (1 - painted)
        p: Distribution = self.likelihood(1 - bare)
        return p

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        (z,) = named_latents("STOVE", latents, ["z"])
        return self.p_x(z)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        check_count("STOVE", n)
        start = self.start().sample((n,))
        return self.p_x(torch.stack([start, *self.rolled_out(start, self.num_frames - 1, True)], 1)).mean

    def rolled_out(self, z: Tensor, num_frames: int, sampled: bool) -> list[Tensor]:
        """Return the states of the frames after z [..., O, D]: means of each transition, or samples."""
        states = []
        for _ in range(num_frames):
            p = self.p_next(z)
            z = p.sample() if sampled else p.mean
            states.append(z)
        return states

    def prior_codes(self, batch: Batch) -> dict[str, Tensor]:
        """Return objects that stand in the middle of the frame and go on by the means of the transitions."""
        start = self.start().mean.expand(len(batch["x"]), -1, -1)
        return {"z": torch.stack([start, *self.rolled_out(start, batch["x"].shape[1] - 1, False)], 1)}

    def prior_modules(self) -> list[nn.Module]:
        return [self.start, self.transition]

    # -- inference ------------------------------------------------------------------------------------------------

    def see(self, x: Tensor) -> Seen:
        """Return the Gaussians of position and size from each frame alone: mean and sd [B, T, O, 3].

        Args:
            x: [B, T, C, H, W].
        """
        seen = self.attention(x.flatten(0, 1), self.template)
        return Seen(*(part.unflatten(0, x.shape[:2]) for part in seen))

    def filter(self, seen: Seen, num_samples: int = 1) -> Latent:
        """Follow the objects from frame to frame: z ~ q(z_1|x) prod_t q(z_t|x_t, z_(t-1)), [K, B, T, O, D].

        Args:
            seen: The Gaussians of each frame, from `see`.
            num_samples: K.
        """
        q, now = self.q_start(seen)
        p = self.start().expand(q.batch_shape)
        z = draw(q, num_samples)  # [K, B, O, D]
        steps = [(z, q.expand(z.shape[:2]), p.expand(z.shape[:2]))]
        for t in range(1, seen.mean.shape[1]):
            before, p = now, self.p_next(z)
            order = best_order(p.mean[..., :2], seen.mean[:, t, :, :2])  # [K, B, O]
            now = Seen(*(in_order(part[:, t], order) for part in seen))  # [K, B, O, 3]
            image = self.q_image(now, now.mean[..., :2] - z[..., :2], before)
            known = p if self.filtered else self._latent_alone(p)
            q = normal_product(image, known) if self.filtered or self.latent_size else image
            z = draw(q)
            steps.append((z, q, p))
        zs, qs, ps = zip(*steps, strict=True)
        return Latent(torch.stack(zs, 2), _in_time(qs), _in_time(ps), draws=zs)

    def q_start(self, seen: Seen) -> tuple[Distribution, Seen]:
        """q(z_1|x) from frames 1 and 2, batch shape [B] and event shape [O, D]; and the Gaussians of frame 1."""
        first, second = (Seen(*(part[:, t] for part in seen)) for t in (0, 1))
        order = best_order(first.mean[..., :2], second.mean[..., :2])
        second = Seen(*(in_order(part, order) for part in second))
        q = self.q_image(first, second.mean[..., :2] - first.mean[..., :2], second)
        return normal_product(q, self.start()) if self.latent_size else q, first

    def _latent_alone(self, p: Distribution) -> Distribution:
        """p(z_t|z_(t-1)) with an infinite deviation for all but the latent, which no image shows."""
        at = torch.arange(5 + self.latent_size, device=p.mean.device)
        return normal(p.mean, torch.where((at >= 4) & (at < 4 + self.latent_size), p.stddev, torch.inf))

    def q_image(self, now: Seen, velocity: Tensor, other: Seen) -> Distribution:
        """The images' Gaussian of the state; the latent, which no image shows, has an infinite deviation.

        Args:
            now: The Gaussians of this frame, [..., O, 3].
            velocity: The mean of the velocity, [..., O, 2].
            other: The Gaussians of the frame before or after; their variance of the position is part of the velocity's.
        """
        (position, size), (sd, sd_size) = (part.split([2, 1], -1) for part in now)
        sd_velocity = (sd.square() + other.sd[..., :2].square()).sqrt()
        nothing = velocity.new_zeros(()).expand(*velocity.shape[:-1], self.latent_size)
        mean = torch.cat((position.expand_as(velocity), velocity, nothing, size.expand_as(velocity[..., :1])), -1)
        parts = sd, sd_velocity, nothing + torch.inf, sd_size
        return normal(mean, torch.cat([part.expand(*mean.shape[:-1], -1) for part in parts], -1))

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x = batch["x"]
        _check_clips(x)
        seen = self.see(x)
        with torch.autocast(x.device.type, enabled=False):  # positions need more digits than bfloat16 has
            z = self.filter(seen, num_samples)
            p_x = self.p_x(z.z)
            found = {} if self.training else {"positions": self._means(seen)[..., :2]}
        return Trace(x, p_x, {"z": z}, found=found)

    @torch.no_grad()
    def _means(self, seen: Seen) -> Tensor:
        """The means of the filter, each given the mean of the frame before: [B, T, O, D]."""
        with drawing(centre_or_sample):
            return self.filter(seen).z[0]

    @torch.no_grad()
    def predict_frames(self, x_seen: Tensor, horizon: int, sampled: bool = False) -> Rollout:
        """Predict the frames that follow.

        Args:
            x_seen: Frames [B, T, C, H, W], at least 2.
            horizon: The number of frames to predict, at least 1.
            sampled: Whether each transition is drawn, by torch's global generator. false: the mean of each transition
                is taken. Means slow down in the long run, because the mean over uncertain collisions is no motion;
                samples do not.

        Raises:
            UserError: if there is one frame only.
        """
        _check_clips(x_seen)
        at_least("predict_frames", 1, horizon=horizon)
        seen = self.see(x_seen)
        with torch.autocast(x_seen.device.type, enabled=False):  # as in `trace`
            z = self._means(seen)
            states = torch.stack(self.rolled_out(z[:, -1], horizon, sampled), 1)  # [B, horizon, O, D]
            return Rollout(z[..., :2], states[..., :2], self.p_x(states).mean)


def _frame_shape(x_shape: Shape, window: int) -> Shape:
    """Return (C, H, W) of the frames of clips."""
    if len(x_shape) != 4 or min(x_shape[1:]) < 1:
        raise UserError(f"STOVE: x_shape is {list(x_shape)}; it is that of clips, [-1, C, H, W]")
    smallest = min(x_shape[2:])
    if not 1 <= window <= smallest or window % 2 == 0:
        raise UserError(
            f"STOVE: window is {window}; it is an odd number of pixels, at most {smallest}, the smaller side of a frame"
        )
    return tuple(x_shape[1:])


def _check_sizes(num_objects: int, object_size: float, spread: float) -> None:
    if num_objects > _MOST_OBJECTS:
        raise UserError(
            f"STOVE: num_objects is {num_objects}; at most {_MOST_OBJECTS} can be followed, because all orders of the "
            "objects are compared in each frame"
        )
    if not 0 < object_size < 1:
        raise UserError(f"STOVE: object_size is {object_size}; it is a share of the frame, above 0 and below 1")
    if not spread > 0:
        raise UserError(f"STOVE: spread is {spread}; a standard deviation is above 0")


def _check_clips(x: Tensor) -> None:
    if x.shape[1] < 2:
        raise UserError("STOVE: a clip of one frame has no velocity; it takes at least 2 frames (--data.num_frames=8)")


def _in_time(steps: tuple[Any, ...]) -> Distribution:
    """One distribution of all frames, with the event shape [T, O, D], from one of each, [K, B] and [O, D]."""
    mean, sd = (torch.stack([getattr(p.base_dist, name) for p in steps], 2) for name in ("loc", "scale"))
    return Independent(Normal(mean, sd, validate_args=Family.validate_args), 3, validate_args=Family.validate_args)
