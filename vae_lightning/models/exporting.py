"""A trained model as files for other programs: encoder and decoder apart, each from tensors to tensors.

The encoder gives the mean and the scale of q(z|x), the decoder the mean of p(x|z). Neither draws noise, so their
results can be repeated: draw z = mean + scale * noise outside. The batch size of every file is free.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.distributions import Family
from vae_lightning.distributions.flows import Flowed
from vae_lightning.distributions.groups import Groups
from vae_lightning.distributions.sphere import VonMisesFisherDistribution
from vae_lightning.models.parts import InParts
from vae_lightning.trace import distribution_name, has_mean, point
from vae_lightning.types import Batch, UserError

TOLERANCE = 1e-4
"""The largest difference of an exported file: absolute, or relative where a number is above 1."""
BATCH_SIZES = (1, 2, 3, 17)
"""The batches that an exported file is compared with the model on."""


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
        UserError: if the model has no encoder without noise, or a q(z|x) has no such numbers.
    """
    read = _Read(batch)
    posteriors = model.infer(read)
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
        UserError: if the model's p(x|z) is not a function of its latents, or has no mean in closed form.
    """
    posteriors = model.infer(batch)
    latents = _Read({name: q.sample()[0 if len(q.batch_shape) > 1 else slice(None)] for name, q in posteriors.items()})
    beside = _Read(batch)
    p_x = model.decode_given(latents, beside)
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


# -- the files --------------------------------------------------------------------------------------------------------


def export_pt2(part: Part) -> bytes:
    """Return a part as a .pt2 file for `torch.export.load(file).module()`, which needs torch alone.

    Args:
        part: The encoder or the decoder.

    Raises:
        UserError: if torch cannot export the part.
    """
    file = io.BytesIO()
    torch.export.save(_program(part), file)
    return file.getvalue()


def run_pt2(contents: bytes) -> Callable[..., Sequence[Tensor]]:
    """Return the function of a .pt2 file: tensors in, a tuple of tensors out.

    Args:
        contents: The file.
    """
    module: Callable[..., Sequence[Tensor]] = torch.export.load(io.BytesIO(contents)).module()
    return module


def export_onnx(part: Part) -> bytes:
    """Return a part as one ONNX file, weights included, with the batch as its free dimension. Needs the extra `export`.

    Args:
        part: The encoder or the decoder.

    Raises:
        UserError: if torch cannot export the part, or an operation has no ONNX form.
    """
    program = _program(part)
    with _quiet(), _refusing(part):
        exported = torch.onnx.export(
            program,
            part.rows(2),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
        )
        assert exported is not None
        proto = exported.model_proto
    free = {dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim[:1]}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in free:
                dim.dim_param = "batch"
    contents: bytes = proto.SerializeToString()
    return contents


def run_onnx(contents: bytes) -> Callable[..., Sequence[Tensor]]:
    """Return the function of an ONNX file, run by onnxruntime on the CPU: tensors in, tensors out.

    Args:
        contents: The file.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, arrays)]

    return run


@torch.no_grad()
def worst_difference(part: Part, function: Callable[..., Sequence[Tensor]]) -> float:
    """Return the largest difference between a part and its exported file, over batches of `BATCH_SIZES`.

    The difference of a number above 1 is relative. It is infinite if a number is finite in one of the two only.

    Args:
        part: The encoder or the decoder.
        function: The file's function.
    """
    worst = 0.0
    for size in BATCH_SIZES:
        rows = part.rows(size)
        with _without_checks(), _evaluating(part.module):
            expected = part.module(*rows)
        for wanted, found in zip(expected, function(*rows), strict=True):
            if found.shape != wanted.shape:
                return torch.inf
            difference = (found.double() - wanted.double()).abs() / wanted.double().abs().clamp(min=1)
            same = (found == wanted) | (found.isnan() & wanted.isnan())
            difference = torch.where(same, 0.0, difference.nan_to_num(nan=torch.inf))
            worst = max(worst, difference.max().item())
    return worst


def _program(part: Part) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    rows = part.rows(2)  # a batch of one would be taken for a constant
    shapes = (tuple({0: batch} for _ in rows),)
    with _quiet(), _refusing(part), _without_checks(), _evaluating(part.module), _without_unused(part), torch.no_grad():
        return torch.export.export(part.module, rows, dynamic_shapes=shapes)


@contextmanager
def _refusing(part: Part) -> Iterator[None]:
    """Report a failed export in one line: torch and its converter raise exceptions of many kinds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        refusal = UserError(f"{part.name}: torch cannot export it: {reason}")
        refusal.exit_code = 1
        raise refusal from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter prints about its own progress."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_checks() -> Iterator[None]:
    """Leave out the argument checks of distributions, which depend on values and so have no place in a graph."""
    ours, torchs = Family.validate_args, Distribution._validate_args
    Family.validate_args = False
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Family.validate_args = ours
        Distribution.set_default_validate_args(torchs)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        yield
    finally:
        for one in training:
            one.training = True


@contextmanager
def _without_unused(part: Part) -> Iterator[None]:
    """Take the parameters that the part does not use out of its model: an encoder's file needs no decoder.

    Unused are the parameters of modules that are not called and that the outputs have no gradient of.
    """
    called: set[nn.Module] = set()
    hooks = [one.register_forward_pre_hook(lambda module, _: called.add(module)) for one in part.module.modules()]
    with torch.enable_grad():
        outputs = [value.sum() for value in part.module(*part.rows(2)) if value.requires_grad]
    for hook in hooks:
        hook.remove()
    owned = [
        (one, name, value)
        for one in part.module.modules()
        for name, value in one._parameters.items()
        if value is not None
    ]
    weights = [weight for _, _, weight in owned]
    slopes = torch.autograd.grad(outputs, weights, allow_unused=True) if outputs and weights else [None] * len(weights)
    taken = [
        (one, name, weight)
        for (one, name, weight), slope in zip(owned, slopes, strict=True)
        if one not in called and slope is None
    ]
    for one, name, _ in taken:
        one._parameters[name] = None
    try:
        yield
    finally:
        for one, name, weight in taken:
            one._parameters[name] = weight
