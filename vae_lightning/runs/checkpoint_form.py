"""The form of a file that may be anyone's: its sizes before it is opened, its types before anything in it is used."""

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
_VIEW = 2**20  # bytes that a tensor may show of fewer stored ones, as an expanded buffer does
# What torch's weights_only loader would call besides these takes memory that is not in the file: bytearray(10**10)
_CALLED = re.compile(
    r"collections (OrderedDict|Counter)|builtins (set|complex)|_codecs encode|torch (Size|device|\w+Storage|[a-z]\w*)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.nn\.parameter Parameter"
)


def load_plain(path: str | Path, map_location: Any = "cpu") -> Any:
    """The plain data of one of torch's files: nothing in it is run, and it takes no more memory than the file is long.

    Raises:
        UserError: if the file is no such file, holds more than plain data, or tensors that are not dense and real.
    """
    path = Path(path)
    refusal = f"{path}: not a readable checkpoint: damaged, not torch's, or with more in it than plain data"
    try:
        _check_archive(path)
        contents = torch.load(path, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch raises OSError, EOFError, UnpicklingError or RuntimeError, by where it broke
        raise UserError(refusal) from error
    size = path.stat().st_size
    for count, (value, name) in enumerate(_walk(contents)):
        if name is None or count > size:
            raise UserError(f"{path}: nested without end, or more entries in it than its bytes could hold: not loaded")
        reason = _impossible(value)
        if reason:
            raise UserError(f"{path}: {name} is {reason}, expected plain data and dense tensors of real numbers")
    return contents


def _check_archive(path: Path) -> None:
    """The zip file's directory, and the names in its pickle, before anything is unpacked."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise UserError(
                f"{path}: {packed[0][:100]!r} in it is compressed, as nothing in a checkpoint is: not loaded"
            )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise UserError(f"{path}: its members say that they are longer than the file: not loaded")
        for member in members:
            if member.filename.endswith("data.pkl"):
                _check_calls(archive.read(member), path)


def _check_calls(pickled: bytes, path: Path) -> None:
    for code, name, _ in pickletools.genops(pickled):
        if code.name == "GLOBAL" and not _CALLED.fullmatch(str(name)):
            word = " ".join(str(name).split())[:100]
            raise UserError(f"{path}: not a readable checkpoint: more in it than plain data ({word})")


def _walk(value: Any, name: str = "it", depth: int = 0) -> Iterator[tuple[Any, str | None]]:
    """Every value in plain data, and the keys of dicts, with its place in words: None where it is nested too deep."""
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


def _impossible(value: Any) -> str:
    """Why a value has no place in a checkpoint; nothing if it has."""
    if isinstance(value, Tensor):
        return _strange(value)
    if isinstance(value, int) and abs(value) >= _MAX_INT:
        return "a whole number of more than 64 bits"
    if isinstance(value, (dict, list)) and not getattr(value, "__dict__", {}).keys() <= {"_metadata"}:
        return f"a {type(value).__name__} with attributes of its own"
    metadata = getattr(value, "_metadata", {})  # of a module's state_dict: the version of each part
    if not isinstance(metadata, dict) or not all(isinstance(entry, dict) for entry in metadata.values()):
        return "a state_dict with metadata that is no dict"
    return ""


def _strange(value: Tensor) -> str:
    strange = {
        "a subclass of Tensor": type(value) not in (Tensor, torch.nn.Parameter),
        "a tensor without contents": value.device.type == "meta",
        "a nested tensor": value.is_nested,
        "a quantised tensor": value.is_quantized,
        f"a tensor of layout {value.layout}": value.layout != torch.strided,
        "a complex tensor": value.is_complex(),
    }
    reason = next((name for name, is_so in strange.items() if is_so), "")
    if reason:
        return reason
    shown, stored = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    return f"a tensor {list(value.shape)} over {stored} bytes" if shown > max(stored, _VIEW) else ""


def check_plain(value: Any, path: str | Path) -> None:
    """Raise unless a recipe or a configuration is words and numbers of a size that a person could have written.

    Raises:
        UserError: with what it holds besides.
    """
    odd = _odd_in(value)
    if odd:
        raise UserError(f"{path}: {odd}: not loaded")


def _odd_in(value: Any) -> str:
    for count, (entry, name) in enumerate(_walk(value, "a recipe")):
        if count > _MAX_ENTRIES:
            return f"holds more than {_MAX_ENTRIES:,} entries in a recipe"
        if name is None:
            return "holds a recipe that is nested without end"
        if not (entry is None or isinstance(entry, (bool, int, float, str, dict, list, tuple))):
            return f"holds a {type(entry).__name__} where names and numbers are expected"
        if isinstance(entry, int) and abs(entry) >= _MAX_INT:
            return f"holds a number of more than 64 bits in {name}"
        if isinstance(entry, str) and not (len(entry) <= _MAX_LETTERS and entry.isprintable()):
            return f"holds {entry[:60]!a}, expected a name or a plain word"
        if isinstance(entry, dict) and not _is_recipe(entry):
            return "holds a class_path that is no name, or init_args that are no dict"
    return ""


def _is_recipe(entry: dict[Any, Any]) -> bool:
    return isinstance(entry.get("class_path", ""), str) and isinstance(entry.get("init_args") or {}, dict)


# -- the entries of a checkpoint --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Is:
    what: str
    holds: Callable[[Any], bool]


_Form: TypeAlias = "_Is | Mapping[str, _Form] | list[_Form]"
"""A test of one value; a dict's entries by name (`name?`: may be absent; `*`: any other); a list of one form."""


def is_number(value: Any) -> bool:
    """One real number: Python's, or a tensor without dimensions."""
    is_scalar = isinstance(value, Tensor) and value.dim() == 0
    return is_scalar or (isinstance(value, (int, float)) and not isinstance(value, bool))


_ANY = _Is("anything", lambda _: True)
_PLAIN = _Is("a dict of names and numbers", lambda value: isinstance(value, dict) and not _odd_in(value))
_DICT = _Is("a dict", lambda value: isinstance(value, dict))
_NAME = _Is("a name", lambda value: isinstance(value, str) and len(value) <= _MAX_LETTERS)
_BOOL = _Is("true or false", lambda value: isinstance(value, bool))
_INT = _Is("a whole number", lambda value: type(value) is int)
_COUNT = _Is("a count", lambda value: type(value) is int and value >= 0)
_NUMBER = _Is("a number", is_number)
_TENSOR = _Is("a tensor", lambda value: isinstance(value, Tensor))
_SCALAR = _Is("a tensor of one number", lambda value: isinstance(value, Tensor) and value.dim() == 0)
_VERSION = _Is(
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
_OF_A_FIT = ("pytorch-lightning_version", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers")
_OLD_KEYS = ("hparams", "module_arguments", "native_amp_scaling_state")  # which Lightning would still load


def check_form(checkpoint: Any, path: str | Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The checkpoint, each of whose entries is of its type; those that a model can be built without may be absent.

    Args:
        needed: entries that may not be absent, besides those of a model.

    Raises:
        UserError: with the first entry that is not, and what is expected there.
    """
    _check(checkpoint, _CHECKPOINT, "", f"{path}: not a checkpoint of vae_lightning")
    for key in _OLD_KEYS:
        if key in checkpoint:
            raise UserError(
                f"{path}: has {key!r} beside its hyper_parameters, as no checkpoint of ours has: not loaded"
            )
    for key in needed:
        if key not in checkpoint:
            raise UserError(f"{path}: not a checkpoint of vae_lightning: it has no {key}")
    check_plain(checkpoint["hyper_parameters"], path)
    return dict(checkpoint)


def check_whole_fit(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise unless a checkpoint has what a fit goes on with, and not weights alone.

    Raises:
        UserError: with the entry that is absent.
    """
    absent = [name for name in _OF_A_FIT if name not in checkpoint]
    if absent:
        raise UserError(
            f"{path}: has weights alone, without an optimizer's state; a fit cannot go on from it (no {absent[0]})"
        )


def _check(value: Any, form: _Form, name: str, refusal: str) -> None:
    expected = form.what if isinstance(form, _Is) else "a list" if isinstance(form, list) else "a dict"
    kinds = (list, tuple) if isinstance(form, list) else dict
    if not (form.holds(value) if isinstance(form, _Is) else isinstance(value, kinds)):
        raise UserError(f"{refusal}: {name or 'it'} is {describe(value)}, expected {expected}")
    if isinstance(form, list):
        for index, entry in enumerate(value):
            _check(entry, form[0], f"{name}[{index}]", refusal)
    elif not isinstance(form, _Is):
        _check_entries(value, form, name, refusal)


def _check_entries(value: Mapping[Any, Any], form: Mapping[str, _Form], name: str, refusal: str) -> None:
    prefix = f"{name}." if name else ""
    named = {key.removesuffix("?"): entry for key, entry in form.items() if key != "*"}
    for key, entry in named.items():
        if key in value:
            _check(value[key], entry, f"{prefix}{key}", refusal)
        elif f"{key}?" not in form:
            raise UserError(f"{refusal}: it has no {prefix}{key}")
    for key, entry in value.items():
        if not isinstance(key, str) or (key not in named and "*" not in form):
            raise UserError(
                f"{refusal}: {name or 'it'} has an entry {ascii(key)[:60]}, which is none of a checkpoint's"
            )
        if key not in named and not key.endswith("_extra_state"):  # a module's own, which is no tensor
            _check(entry, form["*"], f"{prefix}{key[:60]}", refusal)


def describe(value: Any) -> str:
    """A value in a few words, for a message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return ascii(value)[:60]
    return f"a {type(value).__name__}"
