"""Compare the settings of runs, or the present settings of a run with those at its start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_OF_NO_TEST = (
    *(f"data.{name}" for name in ("batch_size", "eval_batch_size", "num_workers", "resident", "flip", "seed")),
    *(f"data.{name}" for name in ("cache_dir", "split", "num_images")),
    *(f"model.{name}" for name in ("optimizer", "scheduler")),
)
"""Settings of the model and the data that no number of a test depends on, and what a test adds to them."""


def config_changes(config: Path, text: str) -> list[str]:
    """The settings that differ between a run's config.yaml and the present configuration, as `key: saved -> present`.

    Args:
        config: the config.yaml in the run's folder.
        text: the present configuration, as YAML.
    """
    return differing_settings(yaml.safe_load(config.read_text()), yaml.safe_load(text))


def changes_of_a_test(run: Mapping[str, Any], test: Mapping[str, Any]) -> list[str]:
    """The settings that a test's numbers depend on and that are not the run's, as `key: the run's -> the test's`.

    Without them, the numbers of a part of the test set, of other data or under another beta would pass for the run's.

    Args:
        run: the run's config.yaml.
        test: the configuration of the test, or its results.json.
    """
    parts: list[Any] = [{name: tree.get(name) for name in ("model", "data")} for tree in (run, test)]
    trainers: list[Any] = [tree.get("trainer") for tree in (run, test)]
    if all(isinstance(trainer, Mapping) for trainer in trainers):  # an old results.json does not know it
        for part, trainer in zip(parts, trainers, strict=True):
            part["trainer"] = {"limit_test_batches": trainer.get("limit_test_batches")}
    return differing_settings(parts[0], parts[1], hidden=_OF_NO_TEST)


def changes_of_test_data(config: Path, text: str) -> list[str]:
    """Those of `changes_of_a_test` that are no settings of the model.

    Args:
        config: the config.yaml in the run's folder.
        text: the configuration of the test, as YAML.
    """
    changes = changes_of_a_test(yaml.safe_load(config.read_text()), yaml.safe_load(text))
    return [change for change in changes if not change.startswith("model")]


def differing_settings(saved: Any, present: Any, hidden: tuple[str, ...] = ()) -> list[str]:
    """The settings that differ between two trees of plain data, as `key: saved -> present`.

    A missing setting counts as None. If a class was replaced, its settings are compared only if both classes have them.

    Args:
        saved: the settings at the start of the run.
        present: the settings of this command.
        hidden: keys that begin with one of these words are left out.
    """
    differing = differing_by_name([saved, present]).items()
    return [f"{name}: {then} -> {now}" for name, (then, now) in differing if not name.startswith(hidden)]


def differing_by_name(trees: Sequence[Any]) -> dict[str, list[str | None]]:
    """The settings that are not the same in all trees of plain data: the value in each tree by the setting's name.

    A setting that a tree does not have is None. If a class was replaced, its settings are compared only if all classes
    have them.

    Args:
        trees: the settings of each run.
    """
    flat = [dict(_flat(_short(tree))) for tree in trees]
    every = {name for settings in flat for name in settings}
    names = {name for name in every if len({settings.get(name, "None") for settings in flat}) > 1}
    shared = {name for name in every if all(name in settings for settings in flat)}
    kept = (name for name in names if name in shared or not any(name.startswith(f"{other}.") for other in names))
    return {name: [settings.get(name) for settings in flat] for name in sorted(kept)}


def _short(value: Any) -> Any:
    """Shorten each class path to the class name, because Python and YAML write one class by different paths."""
    if isinstance(value, dict):
        return {key: _short(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_short(entry) for entry in value]
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
