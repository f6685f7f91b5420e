"""Another class in a slot has its own defaults, and keeps the values that the user has set for the slot."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers import DIGITS
from vae_lightning import objectives
from vae_lightning.cli.lightning import DataCLI
from vae_lightning.cli.overrides import with_own_defaults
from vae_lightning.distributions import IAF, VampPrior
from vae_lightning.networks import GatedMLP, LadderMLP
from vae_lightning.objectives import IWAE, Objective
from vae_lightning.recipes import arguments

OBJECTIVES = [cls for cls in vars(objectives).values() if inspect.isclass(cls) and issubclass(cls, Objective)]
WANTED = {"dataset_size": "1000", "goal": "-40", "capacity": "25"}  # arguments without a default


@pytest.mark.parametrize("cls", [cls for cls in OBJECTIVES if cls is not Objective])
def test_an_objective_has_its_own_defaults_and_not_those_of_the_one_before(cls: type[Objective]) -> None:
    parameters = arguments(cls).values()
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    flags = [f"--model.objective.{name}={WANTED[name]}" for name in required]
    settings = DataCLI(["fit", "-c", DIGITS, f"--model.objective={cls.__name__}", *flags]).config.fit
    chosen = settings.model.init_args.objective.init_args
    plain = {p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str, type(None)))}
    assert {name: chosen[name] for name in plain} == plain


def test_what_a_file_or_a_flag_says_stays(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  init_args:\n    objective: {class_path: ELBO, init_args: {num_samples: 7}}\n")
    args = ["fit", "--model.objective.beta=2", "--model.objective", "CIWAE", "-c", str(config)]
    assert with_own_defaults(args) == args  # the user has set every argument of CIWAE


@pytest.mark.parametrize(
    ("set_flags", "inserted"),
    [
        ([], ["beta=6.0", "gamma=1.0", "num_samples=1"]),
        (["--model.objective.init_args.gamma=3"], ["beta=6.0", "num_samples=1"]),
        (["--model.objective={beta: 2}"], ["gamma=1.0", "num_samples=1"]),
        (["--model.objective.gammas=3"], ["beta=6.0", "gamma=1.0", "num_samples=1"]),
    ],
)
def test_the_defaults_come_right_after_the_class(set_flags: list[str], inserted: list[str]) -> None:
    """Without alpha, which no other objective has."""
    args = [*set_flags, "--model.objective=BetaTC", "--trainer.max_epochs=3"]
    flags = [f"--model.objective.{one}" for one in inserted]
    assert with_own_defaults(args) == [*set_flags, args[-2], *flags, args[-1]]


def test_a_value_that_is_no_yaml_is_left_for_the_parser_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        DataCLI(["fit", "-c", DIGITS, "--model.posterior={min_sigma: [", "--model.objective=IWAE"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("vae-lightning: error: model")


FIT = {"class_path": "VAE", "init_args": {"latent_size": 4}}
IN_A_FILE = [
    ("objective", IWAE),
    ("encoder", GatedMLP),
    ("decoder", LadderMLP),
    ("posterior", IAF),
    ("prior", VampPrior),
    ("optimizer", torch.optim.AdamW),
    ("optimizer", torch.optim.RMSprop),
]


@pytest.mark.parametrize(("slot", "cls"), IN_A_FILE)
@pytest.mark.parametrize("is_path", [True, False])
def test_a_class_in_a_file_has_its_own_defaults(slot: str, cls: type, is_path: bool, tmp_path: Path) -> None:
    """Numbers, texts and classes: the activation of a `LadderMLP` in the place of an `MLP`, the decay of AdamW."""
    name = f"{cls.__module__}.{cls.__name__}" if is_path else cls.__name__
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": {**FIT, "init_args": {"latent_size": 4, slot: {"class_path": name}}}}))
    settings = DataCLI(["fit", "-c", str(config), "--data=Digits"]).config.fit
    chosen = settings.model.init_args[slot].init_args
    found = {p.name: p.default for p in arguments(cls).values() if p.name in chosen}
    assert len(found) >= 1
    for argument, default in found.items():
        if isinstance(default, type):
            assert chosen[argument].class_path.rpartition(".")[2] == default.__name__
        elif not isinstance(default, tuple) and default is not inspect.Parameter.empty:
            assert chosen[argument] == default
        elif isinstance(default, tuple):
            assert tuple(chosen[argument]) == default


def test_an_own_class_in_a_file_has_its_own_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_net.py").write_text(
        "from vae_lightning.networks import MLP\n"
        "class OwnNet(MLP):\n"
        "    def __init__(self, in_shape, out_shape, hidden_sizes: tuple[int, ...] = (7,)):\n"
        "        super().__init__(in_shape, out_shape, hidden_sizes)\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text("model: {class_path: VAE, init_args: {latent_size: 4, encoder: own_net.OwnNet}}\n")
    settings = DataCLI(["fit", "-c", str(config), "--data=Digits"]).config.fit
    assert list(settings.model.init_args.encoder.init_args.hidden_sizes) == [7]


OWN = {
    "a list": ("hidden_sizes: list[int] = [7]", [7]),
    "a tuple in a tuple": ("hidden_sizes: tuple[tuple[int | None, ...], ...] = ((1, None), (2,))", ((1, None), (2,))),
    "infinite": ("hidden_sizes: float = float('inf')", float("inf")),
    "a tuple of infinite numbers": ("hidden_sizes: tuple[float, ...] = (float('inf'), 1e-7)", (float("inf"), 1e-7)),
    "a text that reads as a list": ("hidden_sizes: str = '[1]'", "[1]"),
    "a text that reads as null": ("hidden_sizes: str = 'null'", "null"),
    "a text that reads as a comment": ("hidden_sizes: str = '# 1'", "# 1"),
    "a class": ("activation: type[nn.Module] = nn.GELU", torch.nn.GELU),
    "a tuple of classes": ("kinds: tuple[type, ...] = (nn.GELU,)", (torch.nn.GELU,)),
    "a number of an enum": ("colour: Colour = Colour.RED", 1),
    "a tuple of an enum": ("colours: tuple[Colour, ...] = (Colour.RED,)", (1,)),
}


@pytest.mark.parametrize("kind", OWN)
def test_each_kind_of_default_of_an_own_class_reaches_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature, default = OWN[kind]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_kinds", raising=False)
    (tmp_path / "own_kinds.py").write_text(
        "import enum\nfrom torch import nn\nfrom vae_lightning.networks import MLP\n"
        "class Colour(enum.IntEnum):\n    RED = 1\n"
        f"class OwnKind(MLP):\n    def __init__(self, in_shape, out_shape, {signature}): ...\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text("model: {class_path: VAE, init_args: {latent_size: 4, encoder: own_kinds.OwnKind}}\n")
    settings = DataCLI(["fit", "-c", str(config), "--data=Digits"]).config.fit
    assert settings.model.init_args.encoder.init_args[signature.partition(":")[0]] == default


def test_a_class_within_a_class_may_have_a_default_of_none(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {class_path: HVAE, init_args: {inference: {class_path: Ladder, init_args: {encoder: MLP}}}}"
    )
    chosen = DataCLI(["fit", "-c", str(config), "--data=Digits"]).config.fit.model.init_args.inference.init_args
    assert chosen.encoder.init_args.normalisation is None


def test_a_key_named_like_a_slot_is_none_outside_of_the_model_and_the_data(tmp_path: Path) -> None:
    """The notes for W&B may have a key `model`."""
    config = tmp_path / "config.yaml"
    config.write_text("trainer: {logger: {init_args: {config: {model: HVAE, encoder: GatedMLP}}}}\n")
    args = ["fit", "-c", str(config)]
    assert with_own_defaults(args) == args
