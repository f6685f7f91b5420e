"""A trained model as files for other programs: encoder and decoder apart, each from tensors to tensors.

The encoder gives the mean and the scale of q(z|x), the decoder the mean of p(x|z). Neither draws noise, so their
results can be repeated: draw z = mean + scale * noise outside. The batch size of every file is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.distributions.flows import Flowed
from vae_lightning.distributions.groups import Groups
from vae_lightning.distributions.sphere import VonMisesFisherDistribution
from vae_lightning.models.looking import PartDiffersError, differ
from vae_lightning.models.parts import InParts, centre_or_sample
from vae_lightning.trace import Trace, distribution_name, drawing, has_mean, point
from vae_lightning.types import Batch, UserError


@dataclass(frozen=True)
class Part:
    """An encoder or a decoder as one module, with examples of its inputs.

    Args:
        name: `encoder` or `decoder`.
        module: From the inputs, in order, to a tuple of the outputs.
        inputs: Examples of the inputs by name, [N, ...] each.
        outputs: The names of the outputs.
        notes: Lines for the user: what the outputs are, if they are no mean and scale, and what takes long.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    notes: list[str] = field(default_factory=list)

    def rows(self, n: int) -> tuple[Tensor, ...]:
        """Return the inputs of a batch of n: the examples, repeated if there are fewer."""
        return tuple(values[torch.arange(n) % len(values)] for values in self.inputs.values())


class _Encoder(nn.Module):
    """A module that holds the model as a submodule: at the top, torch refuses buffers with names such as `code`."""

    def __init__(self, model: InParts, fields: Sequence[str]) -> None:
        super().__init__()
        self.model, self.fields = model, tuple(fields)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        posteriors = self.model.infer(dict(zip(self.fields, inputs, strict=True)))
        return tuple(_numbers_of(posteriors).values())


class _Decoder(nn.Module):
    def __init__(self, model: InParts, latents: Sequence[str], fields: Sequence[str]) -> None:
        super().__init__()
        self.model, self.latents, self.fields = model, tuple(latents), (*latents, *fields)

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        values = dict(zip(self.fields, inputs, strict=True))
        beside = {name: value for name, value in values.items() if name not in self.latents}
        p_x = self.model.decode_given({name: values[name] for name in self.latents}, beside)
        value = point(p_x)
        if value is None:
            raise UserError(f"likelihood {distribution_name(p_x)} has no mean in closed form")
        return (value,)


class _FlowModule(nn.Module):
    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        e, context = inputs
        return (self.flow(context)(e),)


class _Read(dict[str, Tensor]):
    """A dict that remembers which of its entries were read."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.names: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.names += [name] if name in self and name not in self.names else []
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


# -- the parts --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def encoder_of(model: InParts, batch: Batch) -> Part:
    """Return the model's encoder: from x (and a label, if q depends on it) to the numbers of each q(z|x).

    These are `<latent>_mean` and `<latent>_scale`, the standard deviation of each dimension. A flow has no such
    numbers: its encoder gives mean and scale of the normal that the flow begins with, and the flow's context.

    Args:
        model: The model, in evaluation mode on the CPU.
        batch: Examples, such as a test batch.

    Raises:
        UserError: if the model has no encoder without noise, a q(z|x) has no such numbers, or `infer` differs from the
            trace.
    """
    read = _Read(batch)
    with _same_noise(model):
        posteriors = model.infer(read)
    _check_encoder(model, batch, posteriors)
    if not posteriors:
        raise UserError(f"{type(model).__name__} has no latent, so there is no encoder")
    outputs = tuple(_numbers_of(posteriors))
    notes = [note for name, q in posteriors.items() for note in _notes(name, q)]
    return Part("encoder", _Encoder(model, read.names), {name: batch[name] for name in read.names}, outputs, notes)


@torch.no_grad()
def decoder_of(model: InParts, batch: Batch) -> Part:
    """Return the model's decoder: from the latents to the mean of p(x|z).

    The label, or x for its known pixels, is one more input if p(x|z) is conditioned on it.
    For classes, such as the tokens of a sentence, the most probable class stands in place of the mean.

    Args:
        model: The model, in evaluation mode on the CPU.
        batch: Examples, such as a test batch; their latents are the examples of the inputs.

    Raises:
        UserError: if the model's p(x|z) is not a function of its latents, has no mean in closed form, or differs from
            the trace's.
    """
    model.infer(batch)  # raises UserError if a latent is enumerated or exists in some examples only
    trace = model.checked_trace(batch)
    latents, beside = _Read({name: latent.z[0] for name, latent in trace.latents.items()}), _Read(batch)
    p_x = model.decode_given(latents, beside)
    _check_decoder(model, trace, p_x)
    output = "x_mean" if has_mean(p_x) else "x_mode"
    inputs = {name: values[name] for values in (latents, beside) for name in tuple(values.names)}
    part = Part("decoder", _Decoder(model, latents.names, beside.names), inputs, (output,))
    part.module(*part.rows(2))  # raises UserError if there is no mean
    return part


@torch.no_grad()
def flows_of(model: InParts, batch: Batch) -> list[Part]:
    """Return the flow of each q(z|x) that is one: from e ~ N(base mean, base scale^2) and the context to z.

    With it z ~ q(z|x) can be drawn outside, although q(z|x) has no mean in closed form.

    Args:
        model: The model, in evaluation mode on the CPU.
        batch: Examples, such as a test batch.
    """
    parts = []
    for name, q in model.infer(batch).items():
        if isinstance(q, Flowed) and isinstance(q.flow, nn.Module) and q.context is not None:
            inputs = {f"{name}_base": q.q_0.sample(), f"{name}_context": q.context}
            parts.append(Part(f"flow_{name}", _FlowModule(q.flow), inputs, (name,)))
    return parts


# -- parts and trace --------------------------------------------------------------------------------------------------


@contextmanager
def _same_noise(model: InParts) -> Iterator[None]:
    """What draws noise draws the same each time: a q at a sample of another latent, or dropout in training."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield


def _check_encoder(model: InParts, batch: Batch, posteriors: Mapping[str, Distribution]) -> None:
    """Compare `infer` with the trace, which is what was trained: a subclass may have changed one of the two.

    Raises:
        PartDiffersError: if the latents differ, or the numbers of their q.
    """
    with _same_noise(model), drawing(centre_or_sample):
        latents = model.checked_trace(batch).latents
    owner, names = type(model).__name__, ", ".join(f'"{name}": q_{name}' for name in latents)
    remedy = f"override infer(batch) too, and return the trace's {{{names}}}"
    if list(posteriors) != list(latents):
        lacks = [name for name in latents if name not in posteriors]
        more = [name for name in posteriors if name not in latents]
        parts = [f"{verb} {', '.join(some)}" for verb, some in (("lacks", lacks), ("adds", more)) if some]
        fault = " and ".join(parts) or "has another order"
        raise PartDiffersError(f"{owner}: infer {fault}, unlike its trace: {remedy}")
    found, wanted = _numbers_of(posteriors), _numbers_of({name: latent.q for name, latent in latents.items()})
    off = [name for name in {**found, **wanted} if differ(found.get(name), wanted.get(name))]
    if off:
        raise PartDiffersError(f"{owner}: infer differs from its trace in {', '.join(off)}: {remedy}")


def _check_decoder(model: InParts, trace: Trace, p_x: Distribution) -> None:
    """Compare p(x|z) of `decode` with the trace's, at the trace's own z."""
    found, wanted = point(p_x), trace.reconstruction()
    if found is not None and differ(found, wanted):
        raise PartDiffersError(
            f"{type(model).__name__}: decode differs from its trace in the mean of p(x|z): override decode(latents) "
            "too, and return the trace's p(x|z) at these latents"
        )


# -- numbers ----------------------------------------------------------------------------------------------------------


def _numbers_of(posteriors: Mapping[str, Distribution]) -> dict[str, Tensor]:
    """Return the numbers that describe each q(z|x), [B, *event] each."""
    depends = [name for name, q in posteriors.items() if len(q.batch_shape) > 1]
    found: dict[str, Tensor] = {}
    for name, q in posteriors.items():
        try:
            moments = None if isinstance(q, Flowed) and not depends else (q.mean, q.stddev)
        except NotImplementedError as error:
            raise UserError(
                f"q of {name}, {distribution_name(q)}, has no mean in closed form; vae-lightning embed estimates it "
                "from samples"
            ) from error
        if moments is None:
            assert isinstance(q, Flowed)
            found |= {f"{name}_base_mean": q.q_0.mean, f"{name}_base_scale": q.q_0.stddev}
            found |= {} if q.context is None else {f"{name}_context": q.context}
        else:
            row = 0 if len(q.batch_shape) > 1 else slice(None)  # [1, B, *event] at the mean of the latent above
            found |= {f"{name}_mean": moments[0][row], f"{name}_scale": moments[1][row]}
    return found


def _notes(name: str, q: Distribution) -> list[str]:
    family = distribution_name(q)
    if isinstance(q, Flowed):
        return [
            f"{name}: q(z|x) is a flow, {family}, without a mean in closed form: the encoder gives mean and scale of "
            f"the normal that it begins with, and the context; flow_{name} takes a draw of this normal to {name}"
        ]
    if isinstance(q, Groups) and isinstance(q.base, VonMisesFisherDistribution):
        return [f"{name}: the mean of {family} is a long series; the export takes about two minutes"]
    return []
