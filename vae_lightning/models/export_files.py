"""The files of a model's parts, .pt2 and ONNX: write them, run them, compare them with the model."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.distributions import Family
from vae_lightning.models.exporting import Part
from vae_lightning.types import UserError

TOLERANCE = 1e-4
"""The largest difference of an exported file: absolute, or relative where a number is above 1."""
BATCH_SIZES = (1, 2, 3, 17)
"""The batches that an exported file is compared with the model on."""


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
