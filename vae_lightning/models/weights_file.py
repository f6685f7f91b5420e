"""A model as one safetensors file: the weights, and in the file's metadata how the model is built. No pickle.

    save_safetensors(model, "model.safetensors")
    model = load_safetensors("model.safetensors")

Both need the package safetensors (extra `export` or `hub`).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vae_lightning import __version__
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.building import load
from vae_lightning.models.weights import check_finite
from vae_lightning.noise import reseed
from vae_lightning.runs.checkpoint_form import check_form
from vae_lightning.runs.trust import check_checkpoint, trust
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import Batch, UserError

FILE = "model.safetensors"
"""The name of the file in a folder for the hub."""
_LARGEST_HEADER = 10 * 2**20


def import_extra(name: str, extra: str, purpose: str) -> ModuleType:
    """Return a module of a package that comes with an extra.

    Args:
        name: The module.
        extra: The extra of vae_lightning that installs it.
        purpose: What needs it: the beginning of the message.

    Raises:
        UserError: if it is not installed, or its import fails, as that of a package for another Python does.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything: ImportError, OSError of a library, ...
        package = name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            fault, remedy = "is not installed", f"pip install 'vae_lightning[{extra}]'"
        else:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            fault = f"is installed but cannot be imported ({reason})"
            remedy = f"pip install --force-reinstall {package}, which comes with 'vae_lightning[{extra}]'"
        raise UserError(f"{purpose} needs {package}, which {fault}: {remedy}") from error


def config_of(model: LatentVariableModel) -> dict[str, Any]:
    """Return what a model is built from, as plain data: its class, its arguments, the step of its schedules.

    Args:
        model: The model.
    """
    return {
        "library_name": "vae_lightning",
        "library_version": __version__,
        "hyper_parameters": dict(model.hparams),
        "global_step": model.loaded_step,
    }


def to_safetensors(model: LatentVariableModel) -> bytes:
    """Return the contents of a model's file.

    Args:
        model: The model; tensors that share memory are written once for each name.
    """
    save = import_extra("safetensors.torch", "export", "model.safetensors").save
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    contents: bytes = save(state, metadata={"format": "pt", "config": json.dumps(config_of(model))})
    return contents


def save_safetensors(model: LatentVariableModel, path: str | Path) -> None:
    """Write a model as one file, whole or not at all.

    Args:
        model: The model.
        path: The file to write.
    """
    write_whole(Path(path), to_safetensors(model))


def load_safetensors(path: str | Path, trusted: Sequence[str] = ()) -> LatentVariableModel:
    """Return the model of a file of `save_safetensors` or `vae-lightning export`, in evaluation mode on the CPU.

    As from a checkpoint, only classes of trusted packages are imported.

    Args:
        path: The file, or the folder that holds it as model.safetensors.
        trusted: Packages of your own, whose classes the file may name.

    Raises:
        UserError: if the file is missing, damaged or another program's, or if it names an untrusted class.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); vae-lightning export writes such a file"
        ) from error
    return from_safetensors(contents, path, trusted)


def from_safetensors(contents: bytes, path: Path, trusted: Sequence[str] = ()) -> LatentVariableModel:
    """Return the model of a file's contents.

    Args:
        contents: The contents of the file.
        path: The file, for messages.
        trusted: Packages of your own, whose classes the file may name.

    Raises:
        UserError: as `load_safetensors`.
    """
    tensors_of = import_extra("safetensors.torch", "export", str(path)).load
    from safetensors import SafetensorError

    try:
        size = int.from_bytes(contents[:8], "little")
        header = json.loads(contents[8 : 8 + min(size, _LARGEST_HEADER)])
        config = json.loads(header["__metadata__"]["config"])
        state = tensors_of(contents)
        parts = {"hyper_parameters": config["hyper_parameters"], "global_step": config.get("global_step", 0)}
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: not a model of vae-lightning export --format safetensors ({reason})") from error
    checkpoint = check_form({"state_dict": state, **parts}, path)
    names = trust(trusted, path)
    check_checkpoint(checkpoint, path, names)
    model: LatentVariableModel = load(LatentVariableModel, checkpoint, path, names)
    check_finite(path, model.state_dict())
    return model.eval()


@torch.no_grad()
def reload_difference(model: LatentVariableModel, again: LatentVariableModel, batch: Batch, seed: int) -> float:
    """Return the largest difference of the weights, and of log p(x, z) - log q(z|x) at the same noise.

    The difference of a number above 1 is relative; it is infinite where a weight is missing.

    Args:
        model: The model.
        again: The model that was loaded from its file.
        batch: Examples.
        seed: The seed of the noise.
    """
    mine, other = dict(model.state_dict()), dict(again.state_dict())
    if mine.keys() != other.keys():
        return float("inf")
    for one, found in ((model, mine), (again, other)):
        reseed(one.device, seed)
        found["log_weight"] = one.trace(batch).log_weight()
    differences = [
        (mine[name].double() - other[name].double()).abs() / mine[name].double().abs().clamp(min=1) for name in mine
    ]
    return max(value.max().item() for value in differences if value.numel())
