"""Reading checkpoints: plain data only, classes of known packages only, errors in one line."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from vae_lightning.models import LatentVariableModel
from vae_lightning.models.weights import check_finite
from vae_lightning.trust import is_remote
from vae_lightning.types import UserError

_NOT_SHOWN = ("optimizer", "scheduler", "_")


def local_checkpoint(path: str | Path, allow_remote: bool) -> Path:
    """The file itself; or, where `path` is an address and that is allowed, a copy that lasts as long as the process.

    fsspec fetches http and https; s3, gs or hf where s3fs, gcsfs or huggingface_hub is installed. What it fetches is
    trusted no more than another file.
    """
    if not is_remote(path):
        return Path(path)
    if not allow_remote:
        raise UserError(f"{path}: not on this machine; fetch it first, or give --allow_remote=true if you trust it")
    import fsspec

    folder = Path(tempfile.mkdtemp(prefix="vae_lightning-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / "checkpoints" / "remote.ckpt"
    copy.parent.mkdir()
    try:
        with fsspec.open(str(path), "rb") as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file)
    except Exception as error:  # of the network, of a server, of a package that is missing: fsspec names no class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: cannot be fetched ({reason})") from error
    return copy


def load_model(path: str | Path, trusted: Sequence[str] = ()) -> LatentVariableModel:
    """The model in a checkpoint, whatever its class, in evaluation mode on the CPU.

    `trusted`: packages of one's own, whose classes it may name.
    """
    model = LatentVariableModel.load_from_checkpoint(path, map_location="cpu", trusted=trusted)
    check_finite(path, model.state_dict())
    return model.eval()


def check_weights(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise where a checkpoint has a weight that is not finite, of its model or of the one that is being averaged."""
    for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
        check_finite(path, state)


def differences(checkpoint: dict[str, Any], model: LatentVariableModel) -> list[str]:
    """What the checkpoint's model was built with where `model` is built otherwise: `key: there -> here`."""
    both = (dict(checkpoint["hyper_parameters"]), dict(model.hparams))
    return _unequal(*({k: v for k, v in _flat(_named(hparams)) if not k.startswith(_NOT_SHOWN)} for hparams in both))


def changes(config: Path, text: str) -> list[str]:
    """What a run's own config says and `text` says otherwise: `key: there -> here`."""
    return _unequal(*(dict(_flat(_named(yaml.safe_load(source)))) for source in (config.read_text(), text)))


def _unequal(saved: dict[str, str], own: dict[str, str]) -> list[str]:
    """What both say otherwise; nothing is None. Of a class that was replaced, not the settings that one of both has."""
    names = {name for name in saved.keys() | own.keys() if saved.get(name, "None") != own.get(name, "None")}
    shared = saved.keys() & own.keys()
    kept = (name for name in names if name in shared or not any(name.startswith(f"{other}.") for other in names))
    return [f"{name}: {saved.get(name)} -> {own.get(name)}" for name in sorted(kept)]


def _named(value: Any) -> Any:
    """Classes by their last name alone: Python and YAML write the same one by different paths."""
    if isinstance(value, dict):
        return {key: _named(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_named(entry) for entry in value]
    return value.rpartition(".")[2] if isinstance(value, str) else value


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            name = prefix if key in ("class_path", "init_args") else f"{prefix}.{key}".strip(".")
            yield from _flat(entry, name)
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        specs = [entry if isinstance(entry, dict) else {"class_path": entry} for entry in value]
        yield prefix, f"[{', '.join(str(spec.get('class_path')) for spec in specs)}]"
        for index, spec in enumerate(specs):
            yield from _flat(spec.get("init_args", {}), f"{prefix}.{index}")
    else:
        yield prefix, str(list(value) if isinstance(value, tuple) else value)
