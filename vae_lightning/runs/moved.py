"""Make moved modules importable under their old names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = "vae_lightning."
_MOVED = {
    "checkpoint_form": "runs.checkpoint_form",
    "checkpoint_io": "runs.checkpoint_io",
    "checkpoints": "models.loading",
    "commands": "cli.dispatch",
    "compiler": "runs.machine",
    "container": "runs.container",
    "cores": "runs.machine",
    "data.archive": "storage.archive",
    "data.cache": "storage.cache",
    "data.decode": "storage.decode",
    "data.files": "storage.files",
    "data.loader": "storage.loader",
    "data.progress": "storage.progress",
    "data.transforms": "storage.transforms",
    "doctor": "verbs.doctor",
    "drawing": "synthetic",
    "errors": "cli.errors",
    "fitting": "verbs.fit_prior",
    "formatting": "metrics.formatting",
    "loggers": "runs.loggers",
    "login": "runs.login",
    "near": "runs.suggestions",
    "overrides": "cli.overrides",
    "ownership": "runs.ownership",
    "predictions": "metrics.predictions",
    "report": "cli.summary",
    "restoring": "models.restoring",
    "signals": "runs.signals",
    "trainer_checks": "cli.trainer_checks",
    "trust": "runs.trust",
}
"""The old name of each moved module or package, below vae_lightning, and its present name."""


class MovedModules(MetaPathFinder, Loader):
    """Resolve an import of an old name to the module of the present name, so that both names give one module."""

    def find_spec(
        self, fullname: str, _: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if _present_name(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(str(_present_name(spec.name)))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the spec of the module. The module is not run again, because it has run under its present name."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def _present_name(fullname: str) -> str | None:
    if not fullname.startswith(_PACKAGE):
        return None
    name = fullname.removeprefix(_PACKAGE)
    for old, new in _MOVED.items():
        if name == old or name.startswith(f"{old}."):
            return _PACKAGE + new + name.removeprefix(old)
    return None
