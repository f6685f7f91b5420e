"""A model, a network, a prior and a data set of the user's own package work in every verb, if the user trusts it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.forks import start_for_real, start_python
from tests.helpers import DIGITS, REPOSITORY, clean_environment, run_cli
from vae_lightning.runs import trust

PACKAGE = {
    "__init__.py": "from own_pkg.parts import *",
    "parts.py": """
from vae_lightning.data import Digits
from vae_lightning.distributions import StandardNormal
from vae_lightning.models import VAE
from vae_lightning.networks import MLP

class OwnNetwork(MLP): "A network."
class OwnPrior(StandardNormal):
    def fit(self, train, held_out): "Nothing to fit."
class OwnDigits(Digits): "A data set."
class OwnVAE(VAE):
    def __init__(self, image_shape, own_size: int = 3, **kwargs):
        super().__init__(image_shape, own_size, **kwargs)
""",
}
CONFIG = """
model:
  class_path: own_pkg.OwnVAE
  init_args:
    own_size: 3
    encoder: {class_path: own_pkg.parts.OwnNetwork, init_args: {hidden_sizes: [4]}}
    decoder: {class_path: own_pkg.OwnNetwork, init_args: {hidden_sizes: [4]}}
    likelihood: {class_path: Binomial, init_args: {num_steps: 16}}
    prior: StandardNormal
    objective: ELBO
    optimizer: torch.optim.Adam
data: own_pkg.OwnDigits
trainer:
  {max_epochs: 1, limit_train_batches: 2, limit_val_batches: 1, limit_test_batches: 1, log_every_n_steps: 1}
nll: {num_samples: 2}
"""
TABLE = '[tool.vae_lightning]\ntrust = ["own_pkg"]\n'


def write_package(folder: Path, name: str = "own_pkg") -> None:
    (folder / name).mkdir(parents=True)
    for file, text in PACKAGE.items():
        (folder / name / file).write_text(text.replace("own_pkg", name))


def run_python(*args: str) -> int:
    """Run `python ARGS` in the present folder in its own process.

    In one process, jsonargparse would see every class that was ever imported as a subclass.
    """
    process = start_python(*args, cwd=Path.cwd(), env=clean_environment())
    out, err = process.communicate(timeout=120)
    sys.stdout.write(out), sys.stderr.write(err)
    assert process.returncode is not None
    return process.returncode


def main(args: list[str]) -> int:
    """Run the console script. Python's path has the folder of the script, and not the present folder."""
    return run_python(str(Path(__file__).parent / "console.py"), *args)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package, a config and a run, trained by a command that trusts the package."""
    folder = tmp_path_factory.mktemp("project")
    write_package(folder)
    (folder / "own.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "-c", "own.yaml", "--run_id=r", "--trainer.logger=false", "--trust", "own_pkg"]) == 0
    return folder


RUN = "runs/own/r"


@pytest.fixture
def here(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy the project, and make the copy the present folder."""
    folder = Path(shutil.copytree(project, tmp_path / "project"))
    monkeypatch.chdir(folder)
    yield folder
    trust._FINDER.places.clear()


VERBS = {
    "test": ["test", "-c", "own.yaml", "--ckpt_path", RUN],
    "predict": ["predict", "-c", "own.yaml", "--ckpt_path", RUN],
    "resume": ["fit", "-c", "own.yaml", "--ckpt_path", RUN, "--trainer.max_epochs=2", "--trainer.logger=false"],
    "sample": ["sample", RUN, "--num_images=2"],
    "reconstruct": ["reconstruct", RUN, "--num_images=2"],
    "impute": ["impute", RUN, "--num_images=2", "--steps=1"],
    "traverse": ["traverse", RUN, "--num_images=20", "--dimensions=0"],
    "embed": ["embed", RUN],
    "score": ["score", RUN, "--num_samples=2"],
    "export": ["export", RUN, "--format=safetensors"],
    "fit-prior": ["fit-prior", RUN, "--prior=own_pkg.OwnPrior"],
}


@pytest.mark.parametrize(
    ("verb", "how"),
    [("sample", "list"), *((verb, "flag") for verb in VERBS if verb != "sample")]
    + [(verb, "table") for verb in ("resume", "reconstruct", "fit-prior")],
)
def test_every_verb_takes_it(here: Path, verb: str, how: str) -> None:
    """Trusted by the flag, or by the pyproject.toml of the present folder, which is not on Python's path."""
    if how == "table":
        (here / "pyproject.toml").write_text(TABLE)
    flag = {"flag": ["--trust", "own_pkg"], "list": ["--trust=other_pkg,own_pkg"], "table": []}[how]
    assert main([*VERBS[verb], *flag]) == 0
    if verb == "fit-prior":
        assert main(["sample", RUN, "--num_images=2", "--prior=fitted", *flag]) == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("flags", [[], ["--model=own_pkg.Near"]])
def test_a_config_whose_package_lies_here_is_told_to_trust_it(
    flags: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Python does not look in the present folder. The message must not propose a class of ours."""
    assert main(["test", "-c", "own.yaml", "--ckpt_path", RUN, *flags]) == 2
    said = capfd.readouterr().err
    assert said.endswith("; own_pkg lies in the present folder: give --trust own_pkg\n"), said
    assert "did you mean" not in said


@pytest.mark.parametrize("verb", ["sample", "reconstruct", "impute", "fit-prior"])
def test_without_the_users_word_it_is_refused(here: Path, verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One line says how to trust the package, and nothing is imported."""
    (here / "own_pkg" / "__init__.py").write_text("print('imported', flush=True)")
    prior = ["--prior=MixtureOfNormals"] if verb == "fit-prior" else []
    assert main([*VERBS[verb][:2], *prior]) == 2
    out, said = capfd.readouterr()
    assert "best.ckpt: names own_pkg." in said
    assert said.strip().endswith("give --trust own_pkg (in Python trusted=['own_pkg'])")
    assert "imported" not in out


@pytest.mark.slow
def test_the_last_line_of_a_run_recommends_a_command_that_works(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*VERBS["resume"], "--trust=own_pkg"]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("next "))
    assert line.endswith("best.ckpt --trust own_pkg")
    (here / "pyproject.toml").write_text(TABLE)
    assert main(["test", "-c", "own.yaml", "--ckpt_path", RUN]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("next "))
    assert line.endswith("best.ckpt")
    assert main(["sample", *line.split()[3:]]) == 0


PYTHON = """
import sys
import pytest, torch
from vae_lightning.models.loading import load_model
from vae_lightning.models import VAE, LatentVariableModel
from vae_lightning.types import UserError

sys.path.remove("")
cls, path = {"VAE": VAE, "LatentVariableModel": LatentVariableModel}[sys.argv[1]], sys.argv[2]
with pytest.raises(UserError, match=r"trusted=\\['own_pkg'\\]"):
    cls.load_from_checkpoint(path)
assert "own_pkg" not in sys.modules
model = cls.load_from_checkpoint(path, trusted=["own_pkg"])
assert type(model).__name__ == "OwnVAE"
saved = torch.load(path, weights_only=True)["state_dict"]
assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
assert type(type(model).load_from_checkpoint(path)) is type(model)  # a class may load its own package
assert type(load_model(path, ["own_pkg"])) is type(model)
"""


@pytest.mark.parametrize("cls", ["VAE", "LatentVariableModel"])
def test_python_takes_it_too(here: Path, cls: str) -> None:
    assert run_python("-c", PYTHON, cls, str(here / RUN / "checkpoints" / "best.ckpt")) == 0


def test_a_name_is_trusted_as_a_whole(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Trust in `own_pkg` does not extend to `own_pkg_evil`, which may belong to anyone."""
    write_package(here, "own_pkg_evil")
    (here / "own_pkg_evil" / "__init__.py").write_text("print('imported', flush=True)")
    path = here / RUN / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["_class_path"] = "own_pkg_evil.OwnVAE"
    torch.save(checkpoint, path)
    assert main(["sample", RUN, "--trust=own_pkg"]) == 2
    out, said = capfd.readouterr()
    assert "names own_pkg_evil.OwnVAE, which is not of" in said
    assert "imported" not in out


@pytest.mark.parametrize("place", [RUN, f"{RUN}/checkpoints", "."])
def test_a_table_that_came_with_the_run_says_nothing(
    here: Path, place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pyproject.toml in the run's folder gives no trust, even in the present folder.

    One above the run is the user's.
    """
    (here / place / "pyproject.toml").write_text(TABLE)
    monkeypatch.chdir(here / RUN / "checkpoints")
    write_package(Path(), "other_pkg")
    expected = 0 if place == "." else 2
    assert main(["sample", "best.ckpt", "--output=a.png", "--num_images=1"]) == expected
    assert ("give --trust own_pkg" in capfd.readouterr().err) == (expected == 2)


@pytest.mark.parametrize("place", [RUN, f"{RUN}/checkpoints", "."])
def test_a_table_in_a_runs_folder_makes_nothing_importable(
    here: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a library that looks for an optional package would import the run's, before a checkpoint is named."""
    (here / place / "pyproject.toml").write_text(TABLE)
    monkeypatch.chdir(here / place)
    trust.trust(())
    assert list(trust._FINDER.places) == (["own_pkg"] if place == "." else [])


def test_the_nearest_table_counts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "pyproject.toml").write_text(TABLE)
    (here / "sub" / "below").mkdir(parents=True)
    (here / "sub" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.chdir(here / "sub" / "below")
    assert "own_pkg." in trust.trust(())
    (here / "sub" / "pyproject.toml").write_text("[tool.vae_lightning]\n")
    assert trust.trust(()) == trust.TRUSTED


@pytest.mark.parametrize("text", ["[tool", "[tool.vae_lightning]\ntrust = 'own_pkg'", "[tool]\nvae_lightning = 3"])
def test_a_wrong_table_is_one_line(here: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "pyproject.toml").write_text(text)
    assert main(["sample", RUN]) == 2
    said = capfd.readouterr().err.strip()
    assert said.startswith(f"vae-lightning: error: {here}/pyproject.toml: ")
    assert "\n" not in said


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["own-pkg", "", "a b", "/etc", "own_pkg."])
def test_a_wrong_name_is_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", RUN, f"--trust={name}"]) == 2
    assert f"trust: {name!r} is not the name of a package" in capfd.readouterr().err


def test_a_package_that_is_not_there_is_one_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(here / "own_pkg")
    assert main(["sample", RUN, "--trust=own_pkg"]) == 2
    assert "which is not a class that can be imported here" in capfd.readouterr().err


FOUND = """
import sys
sys.path.remove("")
from vae_lightning.runs import trust
trust.trust(["own_pkg", "yaml"])
import own_pkg, yaml
assert yaml.safe_load("1") == 1
try:
    import unnamed_module
except ModuleNotFoundError:
    sys.exit(0)
sys.exit(1)
"""


def test_only_what_is_named_is_found_in_the_present_folder(here: Path) -> None:
    """Installed modules come first, so no file of the present folder replaces a module."""
    (here / "unnamed_module.py").write_text("")
    (here / "yaml.py").write_text("raise AssertionError")
    assert run_python("-c", FOUND) == 0


def test_a_script_that_the_shell_finds_takes_it(here: Path) -> None:
    """The console script is started for real. With Python's `-P` the present folder is not on its path."""
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(REPOSITORY)}
    said = run_cli(*VERBS["sample"], "--trust=own_pkg", cwd=here, env=env, start=start_for_real)
    assert said.stdout.strip().endswith("samples.png")


def test_a_run_of_ours_needs_no_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run without foreign classes prints nothing about `--trust`."""
    args = [
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        "--trainer.log_every_n_steps=1",
        "--nll.num_samples=2",
        "--trainer.logger=false",
    ]
    assert main(["fit", "-c", str(REPOSITORY / DIGITS), *args, f"--runs_dir={tmp_path}"]) == 0
    assert "--trust" not in capfd.readouterr().out
