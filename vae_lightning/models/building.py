"""Build a model from an untrusted checkpoint: trusted classes only, and memory in proportion to the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vae_lightning.runs.trust import NOT_BUILT, build
from vae_lightning.types import UserError

_BYTES, _BYTES_PER_BYTE = 2**29, 16  # the memory to build a model: a constant, and a factor of the weights' bytes
_CALLS, _CALLS_PER_TENSOR = 5_000, 100  # the tensor operations to build a model, likewise


def load(
    cls: type[pl.LightningModule],
    checkpoint: dict[str, Any],
    path: str | Path,
    trusted: tuple[str, ...],
    strict: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Build the model of a checkpoint that has passed the checks of its form and its names.

    Args:
        cls: The class of the model, or a base class of the class that the checkpoint names.
        checkpoint: The contents of the file.
        path: The file, for messages.
        trusted: Names of the packages whose classes the checkpoint may name.
        strict: Whether the names of the weights must match; None for the model's `strict_loading`.
        overrides: Hyper-parameters that replace those of the checkpoint.

    Raises:
        UserError: if the model cannot be built, or if the weights do not fit the model.
    """
    hparams = {**checkpoint["hyper_parameters"], **(overrides or {})}
    hparams.pop("_instantiator", None)
    name = hparams.pop("_class_path")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(cls, "model", fail_untyped=False)
    try:
        with Budget(checkpoint["state_dict"], path):
            model = build(parser, {"model": {"class_path": name, "dict_kwargs": hparams}}, path, trusted).model
            if is_overridden("configure_model", model):
                model.configure_model()
        if hasattr(model, "adapt_to"):
            model.adapt_to(checkpoint["state_dict"])
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading if strict is None else strict)
    except NOT_BUILT as error:
        raise _refusal(error, path) from error
    return model


def _refusal(error: Exception, path: str | Path) -> UserError:
    """Return the UserError to raise: the one beneath `error` if there is one, else a line with the reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError) and str(cause).startswith(f"{path}: "):
            return cause
        cause = cause.__cause__ or cause.__context__
    reason = " ".join(str(error).split())[:300]
    return UserError(f"{path}: its model cannot be built, or its weights do not fit it: {reason}")


class Budget(TorchDispatchMode):
    """A context in which tensors may take a multiple of the memory of `state`, and no more.

    A file with `latent_size: 1000000000` then ends in a message and does not exhaust the memory. Each result
    is measured on the meta device before the operation runs.

    Args:
        state: The weights of the checkpoint.
        path: The file, for the message.

    Raises:
        UserError: when the memory or the number of operations is spent.
    """

    def __init__(self, state: Mapping[str, Any], path: str | Path) -> None:
        super().__init__()
        self.path = path
        self.bytes = _BYTES + _BYTES_PER_BYTE * _num_bytes(state)
        self.calls = _CALLS + _CALLS_PER_TENSOR * len(state)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls -= 1
        if not (func.is_view or func._schema.is_mutable):
            self.bytes -= _result_bytes(func, args, kwargs)
        if self.bytes < 0 or self.calls < 0:
            raise UserError(
                f"{self.path}: its hyper-parameters ask for a model far larger than its weights: not loaded"
            )
        return func(*args, **kwargs)


def _result_bytes(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    on_meta = {"device": "meta"} if any(argument.name == "device" for argument in func._schema.arguments) else {}
    args, kwargs = tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs))
    try:
        return _num_bytes(func(*args, **{**kwargs, **on_meta}))
    except (NotImplementedError, RuntimeError):  # the size depends on values, or the operation itself will fail
        return 0


def _num_bytes(tree: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
