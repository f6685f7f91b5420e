"""How the settings of a run differ from those that it was begun with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def changes(config: Path, text: str) -> list[str]:
    """What a run's own config.yaml says and the configuration `text` says otherwise: `key: there -> here`."""
    return unequal(yaml.safe_load(config.read_text()), yaml.safe_load(text))


def unequal(saved: Any, own: Any, hidden: tuple[str, ...] = ()) -> list[str]:
    """The settings that differ between two trees of plain data, as `key: saved -> own`; a missing one is None.

    If a class was replaced, its settings are compared only if both classes have them.

    Args:
        hidden: keys that begin with one of these words are left out.
    """
    then, now = (
        {k: v for k, v in _flat(_short(tree)) if not (hidden and k.startswith(hidden))} for tree in (saved, own)
    )
    names = {name for name in then.keys() | now.keys() if then.get(name, "None") != now.get(name, "None")}
    shared = then.keys() & now.keys()
    kept = (name for name in names if name in shared or not any(name.startswith(f"{other}.") for other in names))
    return [f"{name}: {then.get(name)} -> {now.get(name)}" for name in sorted(kept)]


def _short(value: Any) -> Any:
    """Classes by their last name alone, because Python and YAML write one class by different paths."""
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
