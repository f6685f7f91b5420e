"""Check an untrusted checkpoint: sizes before the file is unpacked, types of the entries before they are used."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vae_lightning.types import UserError

_MAX_DEPTH, _MAX_ENTRIES, _MAX_LETTERS = 50, 20_000, 1_000
_MAX_INT = 2**63
_MAX_VIEW_BYTES = 2**20  # an expanded buffer shows more bytes than it stores; up to this many are accepted
# The weights_only loader of torch may call more than these, and some calls allocate memory: bytearray(10**10)
_ALLOWED_CALLS = re.compile(
    r"collections (OrderedDict|Counter)|builtins (set|complex)|_codecs encode|torch (Size|device|\w+Storage|[a-z]\w*)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.nn\.parameter Parameter"
)


def load_plain(path: str | Path, map_location: Any = "cpu") -> Any:
    """Load the plain data of a file that `torch.save` wrote, running none of its code, in no more memory than its size.

    Args:
        path: the file.
        map_location: the device that the tensors are loaded to, as in `torch.load`.

    Raises:
        UserError: if torch cannot read the file, or if an entry is neither plain data nor a dense, real tensor.
    """
    path = Path(path)
    refusal = f"{path}: not a readable checkpoint: damaged, not torch's, or more in it than plain data"
    try:
        _check_archive(path)
        contents = torch.load(path, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except Exception as error:  # OSError, EOFError, UnpicklingError or RuntimeError, depending on the damage
        raise UserError(refusal) from error
    size = path.stat().st_size
    for count, (value, name) in enumerate(_walk(contents)):
        if name is None or count > size:
            raise UserError(f"{path}: nested too deep, or holds more entries than the file has bytes: not loaded")
        reason = _value_fault(value)
        if reason:
            raise UserError(f"{path}: {name} is {reason}, expected plain data and dense tensors of real numbers")
    return contents


def _check_archive(path: Path) -> None:
    """Check the directory of the zip file and the names in its pickle, before anything is unpacked."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise UserError(
                f"{path}: its member {packed[0][:100]!r} is compressed, expected no compression: not loaded"
            )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise UserError(f"{path}: its zip directory claims members longer than the file: not loaded")
        for member in members:
            if member.filename.endswith("data.pkl"):
                _check_calls(archive.read(member), path)


def _check_calls(pickled: bytes, path: Path) -> None:
    for code, name, _ in pickletools.genops(pickled):
        if code.name == "GLOBAL" and not _ALLOWED_CALLS.fullmatch(str(name)):
            word = " ".join(str(name).split())[:100]
            raise UserError(f"{path}: not a readable checkpoint: more in it than plain data ({word})")


def _walk(value: Any, name: str = "the file", depth: int = 0) -> Iterator[tuple[Any, str | None]]:
    """Yield each value and dict key in plain data with the name of its place; the name is None if nested too deep."""
    if depth > _MAX_DEPTH:
        yield value, None
        return
    yield value, name
    if isinstance(value, dict):
        for key, entry in value.items():
            place = ascii(key[:60])[1:-1] if isinstance(key, str) else "an entry"
            yield key, f"a key of {name}"
            yield from _walk(entry, place if depth == 0 else f"{name}.{place}"[:200], depth + 1)
    elif isinstance(value, (list, tuple, set)):
        for entry in value:
            yield from _walk(entry, name, depth + 1)


def _value_fault(value: Any) -> str:
    """The reason why a value may not stand in a checkpoint; empty if the value may."""
    if isinstance(value, Tensor):
        return _tensor_fault(value)
    if isinstance(value, int) and abs(value) >= _MAX_INT:
        return "an integer of more than 64 bits"
    if isinstance(value, (dict, list)) and not getattr(value, "__dict__", {}).keys() <= {"_metadata"}:
        return f"a {type(value).__name__} with extra attributes"
    metadata = getattr(value, "_metadata", {})  # a module's state_dict stores the version of each submodule here
    if not isinstance(metadata, dict) or not all(isinstance(entry, dict) for entry in metadata.values()):
        return "a state_dict whose metadata is not a dict"
    return ""


def _tensor_fault(value: Tensor) -> str:
    refused = {
        "a subclass of Tensor": type(value) not in (Tensor, torch.nn.Parameter),
        "a tensor without contents": value.device.type == "meta",
        "a nested tensor": value.is_nested,
        "a quantised tensor": value.is_quantized,
        f"a tensor of layout {value.layout}": value.layout != torch.strided,
        "a complex tensor": value.is_complex(),
    }
    reason = next((name for name, is_true in refused.items() if is_true), "")
    if reason:
        return reason
    shown, stored = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    return f"a tensor {list(value.shape)} over {stored} bytes" if shown > max(stored, _MAX_VIEW_BYTES) else ""


def check_plain(value: Any, path: str | Path) -> None:
    """Raise unless a recipe or a configuration holds only short words and numbers, and few enough of them.

    Args:
        value: the recipe or configuration.
        path: the file that holds `value`, for the message.

    Raises:
        UserError: with the first entry that is refused.
    """
    reason = _recipe_fault(value)
    if reason:
        raise UserError(f"{path}: {reason}: not loaded")


def _recipe_fault(value: Any) -> str:
    for count, (entry, name) in enumerate(_walk(value, "a recipe")):
        if count > _MAX_ENTRIES:
            return f"holds more than {_MAX_ENTRIES:,} entries in a recipe"
        if name is None:
            return "holds a recipe that is nested too deep"
        if not (entry is None or isinstance(entry, (bool, int, float, str, dict, list, tuple))):
            return f"holds a {type(entry).__name__} where names and numbers are expected"
        if isinstance(entry, int) and abs(entry) >= _MAX_INT:
            return f"holds a number of more than 64 bits in {name}"
        if isinstance(entry, str) and not (len(entry) <= _MAX_LETTERS and entry.isprintable()):
            return f"holds {entry[:60]!a}, expected a name or a plain word"
        if isinstance(entry, dict) and not _is_recipe(entry):
            return "holds a class_path that is not a name, or init_args that are not a dict"
    return ""


def _is_recipe(entry: dict[Any, Any]) -> bool:
    return isinstance(entry.get("class_path", ""), str) and isinstance(entry.get("init_args") or {}, dict)


# -- the entries of a checkpoint --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Type:
    expected: str
    accepts: Callable[[Any], bool]


_Form: TypeAlias = "_Type | Mapping[str, _Form] | list[_Form]"
"""The form of a value: a type, a dict of forms by key (`key?`: may be absent, `*`: other keys), a list of one form."""


def is_number(value: Any) -> bool:
    """True for one real number: an int or a float, or a tensor without dimensions.

    Args:
        value: any entry of a checkpoint.
    """
    is_scalar = isinstance(value, Tensor) and value.dim() == 0
    return is_scalar or (isinstance(value, (int, float)) and not isinstance(value, bool))


_ANY = _Type("anything", lambda _: True)
_PLAIN = _Type("a dict of names and numbers", lambda value: isinstance(value, dict) and not _recipe_fault(value))
_DICT = _Type("a dict", lambda value: isinstance(value, dict))
_NAME = _Type("a name", lambda value: isinstance(value, str) and len(value) <= _MAX_LETTERS)
_BOOL = _Type("true or false", lambda value: isinstance(value, bool))
_INT = _Type("a whole number", lambda value: type(value) is int)
_COUNT = _Type("a count", lambda value: type(value) is int and value >= 0)
_NUMBER = _Type("a number", is_number)
_TENSOR = _Type("a tensor", lambda value: isinstance(value, Tensor))
_SCALAR = _Type("a tensor of one number", lambda value: isinstance(value, Tensor) and value.dim() == 0)
_VERSION = _Type(
    "2.0 or later", lambda value: isinstance(value, str) and bool(re.fullmatch(r"[2-9]\.\d[\w.+]{0,40}", value))
)
_COUNTS: _Form = {"ready": _COUNT, "completed": _COUNT, "started?": _COUNT, "processed?": _COUNT}
_PROGRESS: _Form = {"total": _COUNTS, "current": _COUNTS}
_ALL_COUNTS: _Form = dict.fromkeys(("ready", "started", "processed", "completed"), _COUNT)
_BATCHES: _Form = {"total": _ALL_COUNTS, "current": _ALL_COUNTS, "is_last_batch": _BOOL}
_EVALUATION: _Form = {"state_dict": _DICT, "batch_progress": _BATCHES, "*": _ANY}
_FIT: _Form = {
    "state_dict": {"combined_loader?": [_ANY]},
    "epoch_progress": {"total": _ALL_COUNTS, "current": _ALL_COUNTS},
    "epoch_loop.state_dict": {"_batches_that_stepped": _COUNT},
    "epoch_loop.batch_progress": _BATCHES,
    "epoch_loop.scheduler_progress": _PROGRESS,
    "epoch_loop.automatic_optimization.state_dict": _DICT,
    "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": _PROGRESS, "zero_grad": _PROGRESS}},
    "epoch_loop.manual_optimization.state_dict": _DICT,
    "epoch_loop.manual_optimization.optim_step_progress": _PROGRESS,
    "epoch_loop.val_loop.state_dict": _DICT,
    "epoch_loop.val_loop.batch_progress": _BATCHES,
    "*": _ANY,
}
_LOOPS: _Form = {
    "fit_loop": _FIT,
    "validate_loop": _EVALUATION,
    "test_loop": _EVALUATION,
    "predict_loop": {"state_dict": _DICT, "batch_progress": _PROGRESS, "*": _ANY},
    "*": _ANY,
}
_SCALER: _Form = dict.fromkeys(("scale", "growth_factor", "backoff_factor", "growth_interval"), _NUMBER)
_CHECKPOINT: _Form = {
    "state_dict": {"*": _TENSOR},
    "hyper_parameters": {"_class_path": _NAME, "*": _ANY},
    "pytorch-lightning_version?": _VERSION,
    "epoch?": _COUNT,
    "global_step?": _COUNT,
    "loops?": _LOOPS,
    "callbacks?": {"ExactResume?": _PLAIN, "*": _ANY},
    "optimizer_states?": [{"state": _DICT, "param_groups": [{"params": [_COUNT], "*": _ANY}]}],
    "lr_schedulers?": [_DICT],
    "current_model_state?": {"*": _TENSOR},
    "averaging_state?": {"n_averaged": _SCALAR},
    "plateau?": {"values": {"*": _NUMBER}, "epochs": _COUNT},
    "MixedPrecision?": {**_SCALER, "_growth_tracker": _NUMBER},  # type: ignore[dict-item]
    "*": _ANY,
}
_FIT_ENTRIES = ("pytorch-lightning_version", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers")
_OLD_KEYS = ("hparams", "module_arguments", "native_amp_scaling_state")  # names of old releases that Lightning loads


def check_form(checkpoint: Any, path: str | Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the checkpoint after checking that each entry has its type. Only the entries of a model must be present.

    Args:
        checkpoint: the contents of the file.
        path: the file, for the messages.
        needed: further entries that must be present.

    Raises:
        UserError: with the first entry that is refused, and the type that is expected.
    """
    _check(checkpoint, _CHECKPOINT, "", f"{path}: not a checkpoint of vae_lightning")
    for key in _OLD_KEYS:
        if key in checkpoint:
            raise UserError(f"{path}: has {key!r}, an entry that vae_lightning does not write: not loaded")
    for key in needed:
        if key not in checkpoint:
            raise UserError(f"{path}: not a checkpoint of vae_lightning: {key} is missing")
    check_plain(checkpoint["hyper_parameters"], path)
    return dict(checkpoint)


def check_whole_fit(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise unless a checkpoint has every entry that a fit needs to resume.

    Args:
        checkpoint: the contents of the file.
        path: the file, for the message.

    Raises:
        UserError: with the first entry that is absent.
    """
    absent = [name for name in _FIT_ENTRIES if name not in checkpoint]
    if absent:
        raise UserError(f"{path}: has weights alone; a fit cannot resume from this file (no {absent[0]})")


def _check(value: Any, form: _Form, name: str, refusal: str) -> None:
    expected = form.expected if isinstance(form, _Type) else "a list" if isinstance(form, list) else "a dict"
    types = (list, tuple) if isinstance(form, list) else dict
    if not (form.accepts(value) if isinstance(form, _Type) else isinstance(value, types)):
        raise UserError(f"{refusal}: {name or 'the file'} is {describe(value)}, expected {expected}")
    if isinstance(form, list):
        for index, entry in enumerate(value):
            _check(entry, form[0], f"{name}[{index}]", refusal)
    elif not isinstance(form, _Type):
        _check_entries(value, form, name, refusal)


def _check_entries(value: Mapping[Any, Any], form: Mapping[str, _Form], name: str, refusal: str) -> None:
    prefix = f"{name}." if name else ""
    known = {key.removesuffix("?"): entry for key, entry in form.items() if key != "*"}
    for key, entry in known.items():
        if key in value:
            _check(value[key], entry, f"{prefix}{key}", refusal)
        elif f"{key}?" not in form:
            raise UserError(f"{refusal}: {prefix}{key} is missing")
    for key, entry in value.items():
        if not isinstance(key, str) or (key not in known and "*" not in form):
            raise UserError(f"{refusal}: {name or 'the file'} has an unknown entry {ascii(key)[:60]}")
        if key not in known and not key.endswith("_extra_state"):  # a module may store any object there
            _check(entry, form["*"], f"{prefix}{key[:60]}", refusal)


def describe(value: Any) -> str:
    """A value in a few words, for a message.

    Args:
        value: any entry of a checkpoint.
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return ascii(value)[:60]
    return f"a {type(value).__name__}"
