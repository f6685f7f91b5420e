"""Every flag of ours says what it is for, and `vae-lightning --help` names every verb."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from docstring_parser import parse

from vae_lightning import verbs
from vae_lightning.callbacks import EMA, BestAndLast, FastNetworks, FiniteSteps, Pictures
from vae_lightning.cli.help import LIGHTNING_VERBS, help_text, own_verbs
from vae_lightning.cli.slots import slots, subclasses
from vae_lightning.metrics import CollapseReport, Evaluation, MarginalLikelihood
from vae_lightning.metrics.evaluator import Evaluator

CALLBACKS = (BestAndLast, FiniteSteps, FastNetworks, Pictures, MarginalLikelihood, Evaluation, CollapseReport, EMA)


def classes() -> list[type]:
    """Every class of ours that a flag can name, and those whose arguments are flags by themselves."""
    found = {cls for base in (*slots().values(), Evaluator) for cls in (base, *subclasses(base))} | {*CALLBACKS}
    ours = (cls for cls in found if cls.__module__.startswith("vae_lightning.") and not cls.__name__.startswith("_"))
    return sorted(ours, key=lambda cls: f"{cls.__module__}.{cls.__name__}")


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_argument_has_its_line(cls: type) -> None:
    """The line of the docstring that jsonargparse shows at the flag, of the class that adds the argument."""
    constructor = cls.__dict__.get("__init__")
    if not inspect.isfunction(constructor):
        return
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    own = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    documented = {line.arg_name: line.description for line in parse(cls.__doc__ or "").params}
    built = {"event_shape", "in_shape", "out_shape", "image_shape"}  # given by the model, and no flags
    assert [name for name in own if not documented.get(name) and name not in built] == []


def test_the_help_names_every_verb() -> None:
    text = help_text()
    folder = Path(verbs.__path__[0])
    files = {path.stem.replace("_", "-") for path in folder.glob("[a-z]*.py")}
    assert files == own_verbs().keys() >= {"sample", "doctor", "check-data"}
    assert all(f"\n  {name} " in text for name in (*files, *LIGHTNING_VERBS))
    assert max(map(len, text.splitlines())) <= 120
