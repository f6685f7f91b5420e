"""Attend, Infer, Repeat: a canvas is the sum of up to N objects, and the model counts, finds and explains them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.nn import functional as F

from vae_lightning.distributions import DiagonalNormal, Family, FamilyRecipe, PriorRecipe, StandardNormal
from vae_lightning.distributions.families import inverse_softplus
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import centred, check_count, named_latents
from vae_lightning.models.boxes import draw_boxes, in_pixels, paint, read, to_box
from vae_lightning.models.counts import CountPriorRecipe, UniformCount, log_count, mixed, say_too_many
from vae_lightning.networks import MLP
from vae_lightning.objectives.schedules import LinearWarmup, Schedule, as_schedule, at_least
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, NetworkRecipe, Shape, UserError

_NORMAL = partial(DiagonalNormal, sigma=0.3)
_INK = 0.1  # a pixel that an object paints less than this belongs to no object
_KEPT = 0.99  # the share of the running mean of q(n) that a training step keeps


class Steps(NamedTuple):
    """What N steps of inference give, each [S, B, N, ...], as if every object were there."""

    logits: Tensor  # of q(continue), [S, B, N]
    where: Tensor
    where_features: Tensor
    what: Tensor
    what_features: Tensor


class AIR(LatentVariableModel):
    """n ~ p(n), z_i ~ p(z) for i <= n, x ~ p(x | sum_(i <= n) of the glimpses decoder(what_i) painted at where_i).

    Use this model to count and find objects in images without labels: characters on a canvas, where objects do not
    hide each other and the background is black. Eslami et al. 2016 (https://arxiv.org/abs/1603.08575), but the count is
    enumerated and not sampled: the bound is a sum over n = 0 .. N, its gradient needs no score function and no
    baseline. The latents of a Trace are `n` [K, B], `z_where` [K, B, N, 3] and `z_what` [K, B, N, D]; the rows
    K = S (N + 1) run over the counts. `found` has, in evaluation, `count` and `presence` at posterior means,
    `count_sampled`, `boxes`, `segmentation` and what each step `painted`.

    Args:
        image_shape: (C, H, W) of a canvas; x is [B, C, H, W], ink is 1 and background 0.
        num_steps: N, the largest number of objects that can be found; one more than the data have is a good choice.
        window: The side of a glimpse in pixels; about the size of an object.
        what_size: D of what [K, B, N, D].
        hidden_size: The size of the LSTM, of its features of x, and of the layer between it and where.
        box_size: The prior's median of a box's side, as a share of the canvas.
        box_spread: The standard deviation of the logit of a box's side under the prior.
        embed: Network from x to the features of x, before a ReLU.
        encoder: Network from a glimpse to the parameters of q(what).
        decoder: Network from what to a glimpse, before `decoder_bias` and a sigmoid.
        decoder_bias: What is added to the decoder's output; below 0, so that glimpses start dark.
        prior_what: p(what).
        count_prior: p(n): `UniformCount`, or `DecayingCount` if few objects are likelier.
        likelihood: Family of p(x|z) whose mean is the canvas. null: N(canvas, 0.3^2).
        floor: eps of q(continue) = eps + (1 - 2 eps) sigmoid(l) in training, from 0 to 0.5: a number or a schedule.
            Without it the second step may never learn, because it is hardly ever taken. null: 0.1, falling to 0 over
            1,500 steps. In evaluation eps is 0.
        sample_counts: Where `sample` takes counts from: `prior` for p(n), `aggregate` for the mean of q(n|x) over the
            last few hundred training batches.
        kwargs: Arguments of `LatentVariableModel`.

    Raises:
        UserError: if a size does not fit, or the mean of the likelihood is not the canvas.
    """

    measures = ("count_accuracy",)
    where_start: Tensor
    aggregate_counts: Tensor

    def __init__(
        self,
        image_shape: Shape,
        num_steps: int = 3,
        window: int = 12,
        what_size: int = 10,
        hidden_size: int = 128,
        box_size: float = 0.4,
        box_spread: float = 0.15,
        embed: NetworkRecipe = MLP,
        encoder: NetworkRecipe = MLP,
        decoder: NetworkRecipe = MLP,
        decoder_bias: float = -2.0,
        prior_what: PriorRecipe = StandardNormal,
        count_prior: CountPriorRecipe = UniformCount,
        likelihood: FamilyRecipe | None = None,
        floor: float | Schedule | None = None,
        sample_counts: Literal["prior", "aggregate"] = "prior",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.image_shape = tuple(image_shape)
        _check_sizes(self.image_shape, window, box_size, box_spread)
        sizes = {"num_steps": num_steps, "what_size": what_size, "hidden_size": hidden_size}
        at_least("AIR", 1, **sizes)
        self.num_steps, self.window, self.decoder_bias = num_steps, window, decoder_bias
        self.floor = as_schedule(LinearWarmup(1500, 0.1, 0.0) if floor is None else floor)
        at_least("AIR", 0, floor=self.floor.lowest)
        if not self.floor(0) <= 0.5:
            raise UserError(f"AIR: floor starts at {self.floor(0)}; it is a probability of at most 0.5")
        if sample_counts not in ("prior", "aggregate"):
            raise UserError(f"AIR: sample_counts is {sample_counts}; it must be prior or aggregate")
        self.sample_counts = sample_counts
        self._said_counts = False
        glimpse_shape = (self.image_shape[0], window, window)
        self.where_family, self.what_family = DiagonalNormal((3,)), DiagonalNormal((what_size,))
        self.likelihood = centred("AIR", (likelihood or _NORMAL)(self.image_shape))
        self.prior_what, self.count_prior = prior_what((what_size,)), count_prior(num_steps)
        self.embed = embed(self.image_shape, (hidden_size,))
        self.lstm = nn.LSTMCell(hidden_size + 3 + what_size, hidden_size)
        last = nn.Linear(hidden_size, 7)
        nn.init.zeros_(last.weight)  # so that q(where) starts at p(where): a box that starts off the ink finds no slope
        nn.init.zeros_(last.bias)
        self.predict = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), last)  # logit of c, q(where)
        self.encoder = encoder(glimpse_shape, self.what_family.param_shape)
        self.decoder = decoder((what_size,), glimpse_shape)
        scales = [inverse_softplus(scale - self.where_family.min_scale) for scale in (box_spread, 1.0, 1.0)]
        start = torch.tensor([math.log(box_size / (1 - box_size)), 0.0, 0.0, *scales])
        self.register_buffer("where_start", start, persistent=False)  # the features of p(where)
        self.register_buffer("aggregate_counts", self.count_prior().probs.clone())  # [N + 1]

    # -- the generative model -------------------------------------------------------------------------------------

    def painted(self, where: Tensor, what: Tensor) -> Tensor:
        """Return what each object adds to the canvas: [..., C, H, W].

        Args:
            where: [..., 3].
            what: [..., D].
        """
        with torch.autocast(where.device.type, enabled=False):
            glimpses = torch.sigmoid(self.decoder(what) + self.decoder_bias)  # [..., C, w, w]
            return paint(glimpses, to_box(where), self.image_shape[-2:])

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        n, where, what = named_latents("AIR", latents, ["n", "z_where", "z_what"])
        counted = torch.arange(self.num_steps, device=n.device) < n[..., None]  # [..., N]
        painted = self.painted(where, what)  # [..., N, C, H, W]
        return self.likelihood((counted[..., None, None, None] * painted).sum(-4))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        check_count("AIR", n)
        if not self._said_counts:
            self._said_counts = True
            of = "p(n)" if self.sample_counts == "prior" else "the aggregate posterior, the mean of q(n|x) in training"
            rank_zero_info(f"AIR: samples have counts of {of} (sample_counts={self.sample_counts})")
        p_n = self.count_prior() if self.sample_counts == "prior" else _categorical(self.aggregate_counts.log())
        where = self.where_family(self.where_start).sample((n, self.num_steps))
        what = self.prior_what().sample((n, self.num_steps))
        return self.decode({"n": p_n.sample((n,)), "z_where": where, "z_what": what}).mean

    def prior_codes(self, batch: Batch) -> dict[str, Tensor]:
        """Return one object of the prior's mean: no mean of p(n) is a count."""
        one = torch.ones(len(batch["x"]), dtype=torch.long, device=batch["x"].device)
        return {**super().prior_codes(batch), "n": one}

    def prior_modules(self) -> list[nn.Module]:
        return [self.where_family, self.prior_what]

    # -- inference ------------------------------------------------------------------------------------------------

    def attend(self, x: Tensor, num_samples: int = 1, at_means: bool = False) -> Steps:
        """Run N steps of inference. The input of a step has no count in it, so z_1 .. z_N is one chain.

        Args:
            x: [B, C, H, W].
            num_samples: S.
            at_means: Whether each z is the mean of its posterior and not a sample.
        """
        images = x.expand(num_samples, *x.shape).flatten(0, 1)  # [S B, C, H, W]
        embedded = F.relu(self.embed(x)).repeat(num_samples, 1)  # [S B, E]
        where, what = x.new_zeros(len(images), 3), x.new_zeros(len(images), *self.what_family.event_shape)
        state: tuple[Tensor, Tensor] | None = None
        steps = []
        for _ in range(self.num_steps):
            state = self.lstm(torch.cat((embedded.to(x.dtype), where, what), -1), state)
            logit, where_features = self.predict(state[0]).to(x.dtype).split([1, 6], -1)
            where_features = where_features + self.where_start
            q_where = self.where_family(where_features)
            where = q_where.mean if at_means else draw(q_where)  # [S B, 3]
            with torch.autocast(x.device.type, enabled=False):
                what_features = self.encoder(self.glimpse(images, where))
            q_what = self.what_family(what_features)
            what = q_what.mean if at_means else draw(q_what)  # [S B, D]
            steps.append((logit[:, 0], where, where_features, what, what_features))
        stacked = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))  # [S B, N, ...]
        return Steps(*(part.unflatten(0, (num_samples, len(x))) for part in stacked))

    def glimpse(self, images: Tensor, where: Tensor) -> Tensor:
        """Return the glimpses [B, C, w, w] of images [B, C, H, W] at where [B, 3]."""
        return read(images, to_box(where), self.window)

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x = batch["x"]
        steps = self.attend(x, num_samples)
        floor = 0.0 if step is None else self.floor(step)
        log_q = log_count(*mixed(steps.logits, floor))  # [S, B, N + 1]
        painted = self.painted(steps.where, steps.what)  # [S, B, N, C, H, W]
        canvases = [torch.zeros_like(painted[:, :, 0])]
        for i in range(self.num_steps):
            canvases.append(canvases[-1] + painted[:, :, i])
        p_x = self.likelihood(torch.stack(canvases, 1).flatten(0, 1))  # batch [K, B], row s (N + 1) + n
        if self.training and step is not None:
            self._remember(log_q)
        found = {} if self.training else self._found(x, log_q)
        shares = log_q.movedim(-1, 1).flatten(0, 1) - math.log(num_samples)  # [K, B]
        return Trace(x, p_x, self._latents(steps, log_q), shares, self.num_steps + 1, found=found)

    def _latents(self, steps: Steps, log_q: Tensor) -> dict[str, Latent]:
        num_samples, batch, values = log_q.shape

        def rows(value: Tensor) -> Tensor:  # [S, B, ...] -> [K, B, ...]
            return value[:, None].expand(num_samples, values, *value.shape[1:]).flatten(0, 1)

        n = torch.arange(values, device=log_q.device).repeat(num_samples)[:, None].expand(-1, batch)  # [K, B]
        exists = (torch.arange(self.num_steps, device=n.device) < n[..., None]).to(log_q.dtype)  # [K, B, N]
        q_where = self.where_family(rows(steps.where_features))
        q_what = self.what_family(rows(steps.what_features))
        return {
            "n": Latent(n, _categorical(rows(log_q)), self.count_prior(), enumerated=True),
            "z_where": Latent(rows(steps.where), q_where, self.where_family(self.where_start), exists=exists),
            "z_what": Latent(rows(steps.what), q_what, self.prior_what(), exists=exists),
        }

    @torch.no_grad()
    def _remember(self, log_q: Tensor) -> None:
        """Update the running mean of q(n|x), for samples with counts of the aggregate posterior."""
        self.aggregate_counts.lerp_(log_q.exp().mean((0, 1)).to(self.aggregate_counts.dtype), 1 - _KEPT)

    @torch.no_grad()
    def _found(self, x: Tensor, log_q: Tensor) -> dict[str, Tensor]:
        """Return what is read off x by a chain of posterior means, and a count that is sampled."""
        steps = self.attend(x, at_means=True)
        logits, where, what = steps.logits[0], steps.where[0], steps.what[0]  # [B, N, ...]
        count = (logits > 0).long().cumprod(-1).sum(-1)  # [B]
        counted = torch.arange(self.num_steps, device=x.device) < count[:, None]  # [B, N]
        painted = self.painted(where, what).mean(2) * counted[..., None, None]  # [B, N, H, W]
        most, which = painted.max(1)  # [B, H, W]
        return {
            "count": count,
            "count_sampled": _categorical(log_q[0]).sample(),
            "presence": F.logsigmoid(logits).cumsum(-1).exp(),
            "boxes": torch.where(counted[..., None], in_pixels(to_box(where), x.shape[-2:]), -1.0),
            "segmentation": torch.where(most > _INK, which + 1, 0).to(torch.uint8),
            "painted": painted,
        }

    # -- steps, pictures ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        say_too_many("AIR", data, stage, self.num_steps, f"num_steps={self.num_steps}")

    def loss_and_terms(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        loss, terms, scalars = super().loss_and_terms(batch, step)
        return loss, terms, {**scalars, "floor": loss.new_full((), self.floor(step))} if self.training else scalars

    def panes(self, trace: Trace) -> Mapping[str, Tensor | list[str]]:
        """Return the boxes on the canvas (step 1 red, 2 green, 3 blue), and the canvas after each step."""
        latent = trace.latents["z_where"]
        assert latent.exists is not None
        where, exists = trace.row(latent.z), trace.row(latent.exists)  # [B, N, 3], [B, N]
        rows = {"boxes": draw_boxes(trace.x, in_pixels(to_box(where), trace.x.shape[-2:]), exists)}
        canvases = trace.by_sample(trace.p_x.mean)[0]  # [N + 1, B, C, H, W]
        count = exists.sum(-1).long()  # [B]
        for i in range(1, self.num_steps + 1):
            rows[f"after step {i}"] = canvases[count.clamp(max=i), torch.arange(len(count), device=count.device)]
        return rows


def _categorical(logits: Tensor) -> Categorical:
    return Categorical(logits=logits, validate_args=Family.validate_args)


def _check_sizes(image_shape: Shape, window: int, box_size: float, box_spread: float) -> None:
    smallest = min(image_shape[-2:])
    if not 1 <= window <= smallest:
        raise UserError(
            f"AIR: window is {window}; a glimpse has at least 1 pixel and fits in the canvas, "
            f"{image_shape[-2]} x {image_shape[-1]}: choose at most {smallest}"
        )
    if not 0 < box_size < 1:
        raise UserError(f"AIR: box_size is {box_size}; it is a share of the canvas, above 0 and below 1")
    if not box_spread > 1e-3:
        raise UserError(f"AIR: box_spread is {box_spread}; it must be above 0.001, the floor of the posterior's sigma")
