"""Another class in a slot has its own defaults, and keeps the values that the user has set for the slot."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tests.helpers import DIGITS
from vae_lightning import objectives
from vae_lightning.cli.lightning import DataCLI
from vae_lightning.cli.overrides import with_own_defaults
from vae_lightning.objectives import Objective
from vae_lightning.recipes import arguments

OBJECTIVES = [cls for cls in vars(objectives).values() if inspect.isclass(cls) and issubclass(cls, Objective)]
WANTED = {"dataset_size": "1000", "goal": "-40", "capacity": "25"}  # arguments without a default


@pytest.mark.parametrize("cls", [cls for cls in OBJECTIVES if cls is not Objective])
def test_an_objective_has_its_own_defaults_and_not_those_of_the_one_before(cls: type[Objective]) -> None:
    parameters = arguments(cls).values()
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    flags = [f"--model.objective.{name}={WANTED[name]}" for name in required]
    settings = DataCLI(["fit", "-c", DIGITS, f"--model.objective={cls.__name__}", *flags]).config.fit
    init_args = settings.model.init_args.objective.init_args
    plain = {p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str, type(None)))}
    assert {name: init_args[name] for name in plain} == plain


def test_what_a_file_or_a_flag_says_stays(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  init_args:\n    objective: {class_path: ELBO, init_args: {num_samples: 7}}\n")
    args = ["fit", "--model.objective.beta=2", "--model.objective", "CIWAE", "-c", str(config)]
    assert with_own_defaults(args) == args  # the user has set every argument of CIWAE


@pytest.mark.parametrize(
    ("set_flags", "inserted"),
    [
        ([], ["--model.posterior.rank=1", "--model.posterior.min_sigma=0.001"]),
        (["--model.posterior.init_args.rank=3"], ["--model.posterior.min_sigma=0.001"]),
        (["--model.posterior={min_sigma: 1}"], ["--model.posterior.rank=1"]),
    ],
)
def test_the_defaults_come_right_after_the_class(set_flags: list[str], inserted: list[str]) -> None:
    args = [*set_flags, "--model.posterior=LowRankNormal", "--trainer.max_epochs=3"]
    assert with_own_defaults(args) == [*set_flags, args[-2], *inserted, args[-1]]


def test_a_value_that_is_no_yaml_is_left_for_the_parser_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        DataCLI(["fit", "-c", DIGITS, "--model.posterior={min_sigma: [", "--model.objective=IWAE"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("vae-lightning: error: model")
