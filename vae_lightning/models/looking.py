"""What a trained model answers in Python: codes, reconstructions, ways through its latents. Tensors in, tensors out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.distributions.paths import between, centre, centre_or_estimate, moved
from vae_lightning.distributions.priors import Prior
from vae_lightning.models.batches import KnownFields
from vae_lightning.trace import Latent, Trace, distribution_name, drawing, point
from vae_lightning.types import Batch, UserError

Start = Literal["posterior", "prior"]
_TOLERANCE = 1e-4  # largest difference of a part and the trace: another order of operations rounds otherwise


class PartDiffersError(UserError):
    """An encoder or a decoder that differs from the trace; its output would be that of another model."""


class Looking(pl.LightningModule):
    """The methods that look at a model's latents, for every model that has `trace` and, where needed, `decode`.

    `x` is a tensor of examples, such as images [B, C, H, W], or a batch: a dict with `x` and the fields that belong to
    it. A conditional model takes the label from the batch. Call `eval()` first, and use `torch.no_grad()` where no
    gradient is needed; `reconstruct`, `interpolate` and `traverse` compute none.
    """

    @abstractmethod
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        """Return the model's distributions at `batch["x"]`.

        Args:
            batch: The batch.
            num_samples: The number of samples of each latent that is not enumerated.
            step: The optimizer step, for schedules inside the model; None in evaluation, where a schedule has its end
                value.
        """

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        """Return p(x|z) at given latents; only models whose p(x|z) is a function of z alone define this.

        Args:
            latents: Tensors [..., *event] by the names of the Trace's latents.

        Raises:
            UserError: if the model has no such function.
        """
        raise UserError(f"{type(self).__name__} has no decode(latents): its p(x|z) is not a function of z alone")

    # -- what a model with more than z may define -------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """The number of labels that p(x|z, label) is conditioned on; 0 if the model takes no label."""
        return 0

    def sample_given(self, label: Tensor) -> Tensor:
        """Return means of p(x|z, label) with z ~ p(z|label): [n, C, H, W]; only conditional models define this.

        Args:
            label: [n].

        Raises:
            UserError: if the model takes no label.
        """
        raise UserError(f"{type(self).__name__} is not conditioned on a label; sample(n) draws without one")

    def decode_given(self, latents: Mapping[str, Tensor], batch: Batch) -> Distribution:
        """Return p(x|z) at given latents and at the other fields of the batch; a conditional model overrides this.

        Args:
            latents: Tensors [B, *event] by the names of the Trace's latents.
            batch: The fields beside z, such as `label` [B].
        """
        return self.decode(latents)

    def prior_codes(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean of each latent's prior by name, [B, *event]; a prior without a mean is left out.

        Args:
            batch: The batch; its size and the fields that the prior is conditioned on are used.
        """
        codes = {}
        for name, latent in self.look(batch).latents.items():
            value = centre(latent.p)
            if value is not None and len(latent.p.batch_shape) < 2:
                codes[name] = value.expand(latent.z.shape)[0]
        return codes

    def needed_for(self, name: str, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the latents to decode from if `name` is moved; a hierarchy leaves out latents that depend on `name`.

        Args:
            name: The latent that is moved.
            codes: All latents.
        """
        return dict(codes)

    def prior_modules(self) -> list[nn.Module]:
        """Return the modules whose distributions `sample` draws latents from: every `Prior` of the model."""
        return [module for module in self.modules() if isinstance(module, Prior)]

    # -- what users call --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor | Batch) -> Tensor:
        """Return the mean of p(x|z) at the posterior's mean: [B, C, H, W]. Deterministic, and has a gradient.

        In a hierarchy each latent has the mean of q(z_l|x, z_(l+1)) at the mean above it; on a sphere z is the mean
        direction; of an enumerated variable the likeliest value is taken; p(x|z) of classes gives its mode.

        Args:
            x: [B, C, H, W], or a batch.

        Raises:
            UserError: if a posterior has no closed-form mean, or p(x|z) has neither a mean nor a mode.
        """
        owner, drawn = type(self).__name__, []

        def mean(q: Distribution) -> Tensor:
            value = centre(q)
            if value is None:
                raise UserError(
                    f"{owner}(x): the posterior {distribution_name(q)} has no closed-form mean; reconstruct(x) takes "
                    "one z ~ q(z|x)"
                )
            drawn.append(q)
            return value

        with drawing(mean):
            trace = self.checked_trace(as_batch(x))
        if not drawn and trace.continuous():
            raise UserError(
                f"{owner}(x): its trace samples without vae_lightning.trace.draw, which gives means here; "
                "reconstruct(x) takes one z ~ q(z|x)"
            )
        return self._point_of(trace.reconstruction())

    def encode(self, x: Tensor | Batch) -> Distribution | Mapping[str, Distribution]:
        """Return q(z|x), with batch shape [B]; of several latents a mapping by name.

        In a hierarchy q(z_l|x, z_(l+1)) has batch shape [1, B], at the mean of the layer above. Where a variable is
        enumerated, the batch shape is [K, B, ...] with a row for each of its values.

        Args:
            x: [B, C, H, W], or a batch.
        """
        q = {name: latent.q for name, latent in self.look(as_batch(x)).latents.items()}
        return next(iter(q.values())) if len(q) == 1 else q

    def codes_of(self, x: Tensor | Batch) -> dict[str, Tensor]:
        """Return the point of each q(z|x) by the name of the latent: [B, *event]; `decode` takes them.

        The point is the posterior's mean as in `forward`, or the mean of 64 draws if q has no closed-form mean.

        Args:
            x: [B, C, H, W], or a batch.
        """
        trace = self.look(as_batch(x))
        return {name: trace.row(latent.z) for name, latent in trace.latents.items()}

    @torch.no_grad()
    def reconstruct(self, x: Tensor | Batch) -> Tensor:
        """Return the mean of p(x|z) at one z ~ q(z|x): [B, C, H, W]. This is what pictures of a run show.

        Args:
            x: [B, C, H, W], or a batch.

        Raises:
            UserError: if p(x|z) has neither a mean nor a mode.
        """
        return self._point_of(self.checked_trace(as_batch(x)).reconstruction())

    @torch.no_grad()
    def interpolate(self, a: Tensor | Batch, b: Tensor | Batch, steps: int = 10) -> Tensor:
        """Return the means of p(x|z) on the way from the code of a to the code of b: [B, steps, C, H, W].

        The way is straight, or along the sphere. Both ends belong to it. What cannot change gradually, such as a count
        or a label, changes in the middle.

        Args:
            a: [B, C, H, W], or a batch.
            b: As many examples.
            steps: The number of images, at least 2.

        Raises:
            UserError: if there are too few steps, or the model cannot decode latents.
        """
        first, last = as_batch(a), as_batch(b)
        if steps < 2:
            raise UserError(f"interpolate: steps is {steps}; a way needs at least its 2 ends")
        if len(first["x"]) != len(last["x"]):
            raise UserError(f"interpolate: {len(first['x'])} examples and {len(last['x'])}; give as many of each")
        from_, to = self.look(first), self.look(last)
        share = torch.linspace(0, 1, steps, device=first["x"].device)

        def way(start: Tensor, end: Tensor, latent: Latent | None = None) -> Tensor:  # [steps, B, ...]
            if latent is not None and not latent.enumerated and start.is_floating_point():
                return between(latent.q, start, end, share)
            return torch.where((share < 0.5).view(-1, *[1] * start.dim()), start, end)

        codes = {
            name: way(from_.row(latent.z), to.row(to.latents[name].z), latent) for name, latent in from_.latents.items()
        }
        fields = {name: way(first[name], last[name]) for name in first if name in last}
        return self._decode_ways(codes, fields, steps).transpose(0, 1)

    @torch.no_grad()
    def traverse(
        self, x: Tensor | Batch, latent: str, dimension: int, values: Tensor, start: Start = "posterior"
    ) -> Tensor:
        """Return the means of p(x|z) with one number of one latent set to each of the values: [B, S, C, H, W].

        Of a latent with several objects the first object is moved.

        Args:
            x: [B, C, H, W], or a batch.
            latent: The name of the latent, as in a Trace.
            dimension: The number of the dimension, from 0, in the flattened latent.
            values: [S].
            start: Where the other numbers stand: at the code of x (`posterior`), or at the prior's mean (`prior`).

        Raises:
            UserError: if there is no such latent or dimension, or the model cannot decode latents.
        """
        batch = as_batch(x)
        trace = self.look(batch)
        codes = {name: trace.row(one.z) for name, one in trace.latents.items()}
        if start == "prior":
            codes |= self.prior_codes(batch)
        return self.traverse_codes(codes, trace, batch, latent, dimension, values)

    @torch.no_grad()
    def traverse_codes(
        self,
        codes: Mapping[str, Tensor],
        trace: Trace,
        batch: Batch,
        latent: str,
        dimension: int,
        values: Tensor,
    ) -> Tensor:
        """Return `traverse` from codes of one's own: [B, S, C, H, W].

        Args:
            codes: Where the other numbers stand, [B, *event] by name.
            trace: A trace of the model, for the space of each latent.
            batch: What stands beside z, such as `label` [B].
            latent: The name of the latent.
            dimension: The number of the dimension, from 0, in the flattened latent.
            values: [S].
        """
        one = self._existing(trace, latent, dimension)
        z = codes[latent]
        num_objects = z.dim() - 1 - len(one.q.event_shape)
        at_first: Any = (slice(None), *[0] * num_objects)  # [B, *event] of the first object
        moves = moved(one.q, z[at_first], dimension, values)  # [B, S, *event]
        copies = {name: code.expand(len(values), *code.shape).clone() for name, code in codes.items()}  # [S, B, ...]
        copies[latent][(slice(None), *at_first)] = moves.transpose(0, 1).to(z)
        fields = {name: value.expand(len(values), *value.shape) for name, value in batch.items()}
        return self._decode_ways(self.needed_for(latent, copies), fields, len(values)).transpose(0, 1)

    @torch.no_grad()
    def decode_codes(self, codes: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean of p(x|z) at codes of one's own: [B, C, H, W].

        Args:
            codes: Latents [B, *event] by name.
            batch: What stands beside z, such as `label` [B]; {} for a model that is not conditional.

        Raises:
            UserError: if the model cannot decode latents, or p(x|z) has neither a mean nor a mode.
        """
        return self._point_of(point(self.decode_given(codes, batch)))

    @torch.no_grad()
    def check_decode(self, batch: Batch) -> None:
        """Compare p(x|z) of `decode` with that of the trace, which was trained, at the codes of a few examples.

        Call it before drawing at chosen latents: a subclass may have changed p(x|z) in `trace` alone.

        Args:
            batch: A few examples.

        Raises:
            PartDiffersError: if the two differ.
            UserError: if the model cannot decode latents.
        """
        trace = self.look(batch)
        codes = {name: trace.row(latent.z) for name, latent in trace.latents.items()}
        found, wanted = point(self.decode_given(codes, batch)), trace.reconstruction()
        if found is not None and wanted is not None and differ(found, wanted):
            raise PartDiffersError(
                f"{type(self).__name__}: decode differs from its trace in the mean of p(x|z): override decode(latents) "
                "too, and return the trace's p(x|z) at these latents"
            )

    # -- inside -----------------------------------------------------------------------------------------------------

    def checked_trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        """Return the trace; report a field that the batch does not have in one line.

        Args:
            batch: The batch.
            num_samples: The number of samples of each latent.
            step: The optimizer step; None in evaluation.
        """
        try:
            trace: object = self.trace(batch, num_samples, step)
        except KeyError:
            self.trace(KnownFields(type(self).__name__, batch), num_samples, step)  # fails if a field is missing
            raise
        if not isinstance(trace, Trace):
            raise UserError(f"{type(self).__name__}: trace returns a {type(trace).__name__}; it must return a Trace")
        return trace

    def look(self, batch: Batch) -> Trace:
        """Return the trace at the points of the posteriors, as in `codes_of`.

        Args:
            batch: The batch.
        """
        with drawing(centre_or_estimate):
            return self.checked_trace(batch)

    def _existing(self, trace: Trace, latent: str, dimension: int) -> Latent:
        """The latent of this name, if it can be moved along this dimension."""
        movable = {name: one for name, one in trace.latents.items() if not one.enumerated}
        if latent not in movable:
            names = ", ".join(movable) or "none"
            raise UserError(f"{type(self).__name__} has no latent {latent} to move; it has {names}")
        size = movable[latent].q.event_shape.numel()
        if not 0 <= dimension < size:
            raise UserError(f"{latent} has no dimension {dimension}; they are 0 .. {size - 1}")
        return movable[latent]

    def _decode_ways(self, codes: Mapping[str, Tensor], fields: Batch, steps: int) -> Tensor:
        """Decode latents [steps, B, *event] beside fields [steps, B, ...]: [steps, B, C, H, W]."""
        flat = {name: code.flatten(0, 1) for name, code in codes.items()}
        beside = {name: value.flatten(0, 1) for name, value in fields.items()}
        return self.decode_codes(flat, beside).unflatten(0, (steps, -1))

    def _point_of(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise UserError(f"{type(self).__name__}: its p(x|z) has neither a mean nor a mode to show")
        return value


def differ(found: Tensor | None, wanted: Tensor | None) -> bool:
    """Whether two computations of the same numbers differ by more than rounding.

    Args:
        found: The numbers of a part of the model, such as its decoder.
        wanted: Those of the trace.
    """
    if found is None or wanted is None or found.shape != wanted.shape:
        return True
    return not torch.allclose(found.double(), wanted.double(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def as_batch(x: Tensor | Batch) -> Batch:
    """Return the batch {"x": x} for a tensor of examples; return a batch unchanged.

    Args:
        x: [B, ...], or a batch.
    """
    return x if isinstance(x, Mapping) else {"x": x}
