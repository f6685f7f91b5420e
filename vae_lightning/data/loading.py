"""The data set that a run was trained on, built from the run's own config by the rules of trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from vae_lightning.data.module import DataModule
from vae_lightning.runs.trust import NOT_BUILT, TRUSTED, build, check_names, read_checkpoint, trust
from vae_lightning.types import UserError


def build_data(spec: dict[str, Any]) -> DataModule:
    """Build the data set that the user has written as `{class_path, init_args}`. The class may be any.

    Args:
        spec: The entry `data` of a config: `class_path` and, if needed, `init_args`.

    Raises:
        UserError: if the class refuses its arguments.
    """
    parser = _data_parser()
    try:
        data: DataModule = parser.instantiate_classes(parser.parse_object({"data": spec})).data
    except ValueError as error:
        raise _what_the_class_said(error) or error from None
    return data


def data_of(checkpoint: Path, trusted: list[str], prepare: bool = True) -> DataModule:
    """Build the data set that the checkpoint's run was trained on.

    Args:
        checkpoint: A file in the `checkpoints` folder of a run; the run's config.yaml names the data set.
        trusted: Packages of the user, whose classes the config may name.
        prepare: Whether to call its `prepare_data`.

    Raises:
        UserError: if the config is missing, names a class that is not trusted or cannot be built, or if the data have
            changed since the training in a way that the model cannot bear.
    """
    config = checkpoint.absolute().parent.parent / "config.yaml"
    if not config.is_file():
        raise UserError(f"{config}, which names the data set, is not found; keep the checkpoint in its run's folder")
    try:
        spec = yaml.safe_load(config.read_text())["data"]
        names = ("vae_lightning.data.", *(name for name in trust(trusted, checkpoint) if name not in TRUSTED))
        check_names(_without_folders(spec), config, names)
        data: DataModule | None = build(_data_parser(), {"data": spec}, config, names).data
        if data is None:
            raise ValueError("data is null")
    except UserError:
        raise
    except (yaml.YAMLError, *NOT_BUILT) as error:
        if said := _what_the_class_said(error):
            raise UserError(f"{config}: {said}") from error
        raise UserError(f"{config}: its data set cannot be built: {' '.join(str(error).split())}") from error
    data.prints_notes = False  # the training has printed them
    if prepare:
        data.prepare_data()
        check_unchanged(data, checkpoint)
    return data


def check_unchanged(data: DataModule, checkpoint: Path) -> None:
    """Let data whose files give numbers a meaning, as texts do, look at what the checkpoint keeps of the training's.

    Args:
        data: The data, after `prepare_data`.
        checkpoint: The checkpoint of the run.

    Raises:
        UserError: if the data have changed in a way that the model cannot bear.
    """
    if type(data).load_state_dict is not DataModule.load_state_dict:
        data.load_state_dict(read_checkpoint(checkpoint).get(type(data).__qualname__, {}))


def _what_the_class_said(error: BaseException | None) -> UserError | None:
    """Return the error of ours that jsonargparse has wrapped, once or more; None if there is none."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _data_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    return parser


def _without_folders(spec: Any) -> Any:
    """Leave out the options that end in `_dir`: the name of a folder may look like the name of a class."""
    if isinstance(spec, dict):
        return {name: _without_folders(value) for name, value in spec.items() if not str(name).endswith("_dir")}
    return spec
