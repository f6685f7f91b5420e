"""What a model names for the last lines of its runs: its first numbers have a unit and a meaning, its verb exists."""

from __future__ import annotations

import inspect

import pytest

from vae_lightning import metrics, models
from vae_lightning.cli.help import own_verbs
from vae_lightning.metrics.evaluator import Evaluator
from vae_lightning.models import LatentVariableModel
from vae_lightning.verbs.report import MEANINGS

EVALUATORS = [one for one in vars(metrics).values() if inspect.isclass(one) and issubclass(one, Evaluator)]
MODELS = [one for one in vars(models).values() if inspect.isclass(one) and issubclass(one, LatentVariableModel)]


@pytest.mark.parametrize("model", MODELS)
def test_the_first_numbers_have_a_unit_and_a_meaning(model: type[LatentVariableModel]) -> None:
    kinds = {name.partition("/")[0] for name in model.measures}
    assert kinds <= {"cost", *(name for evaluator in EVALUATORS for name in getattr(evaluator, "units", ()))}
    assert kinds <= MEANINGS.keys()
    assert bool(kinds) == (model.__name__ in {"AIR", "Dreaming", "MONet", "STOVE", "Seq4"})


@pytest.mark.parametrize("model", MODELS)
def test_the_next_verb_is_a_command(model: type[LatentVariableModel]) -> None:
    assert model.next_verb in own_verbs()
