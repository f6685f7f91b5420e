"""A misspelt flag, key, class, verb or file ends in a one-line error with the right name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.runs.suggestions import nearest

FIT = ("fit", "-c", DIGITS)

MISSES: dict[str, tuple[Sequence[str], str]] = {
    # flags
    "flag": ([*FIT, "--trainer.max_epoch=3"], "--trainer.max_epochs"),
    "flag-and-value": ([*FIT, "--trainer.max_epoch", "3"], "--trainer.max_epochs"),
    "group": ([*FIT, "--trainr.max_epochs=3"], "--trainer.max_epochs"),
    "group-of-the-model": ([*FIT, "--modell.latent_size=3"], "--model.latent_size"),
    "short-flag": (["train", "-C", DIGITS], "-c"),
    "flag-of-config": (["train", "--confg", DIGITS], "--config"),
    "model-key": ([*FIT, "--model.laten_size=3"], "latent_size"),
    "slot-key": ([*FIT, "--model.encoder.hiden_sizes=[3]"], "hidden_sizes"),
    "optimizer-key": ([*FIT, "--model.optimizer.lrr=3"], "lr"),
    "inner-key": ([*FIT, "--model.objective.beta=LinearWarmup", "--model.objective.beta.num_step=3"], "num_steps"),
    "data-key": ([*FIT, "--data.batchsize=3"], "batch_size"),
    "callback-key": ([*FIT, "--trainer.callbacks+=EMA", "--trainer.callbacks.deccay=0.5"], "decay"),
    # values
    "choice": ([*FIT, "--data.binarisation=dynamik"], "dynamic"),
    "choice-of-several-types": ([*FIT, "--trainer.precision=bf16-mixd"], "bf16-mixed"),
    # classes
    "posterior": ([*FIT, "--model.posterior=DiagonalNormall"], "DiagonalNormal"),
    "model": ([*FIT, "--model=VEA"], "VAE"),
    "data": ([*FIT, "--data=MINST"], "MNIST"),
    "module-of-a-class": ([*FIT, "--model.encoder=vae_lightning.network.MLP"], "MLP"),
    "optimizer": ([*FIT, "--model.optimizer=Adma"], "Adam"),
    "optimizer-by-path": ([*FIT, "--model.optimizer=torch.optim.Adma"], "Adam"),
    "scheduler": ([*FIT, "--model.scheduler=StepLr"], "StepLR"),
    "callback": ([*FIT, "--trainer.callbacks+=EarlyStoping"], "EarlyStopping"),
    "logger": ([*FIT, "--trainer.logger=WandbLoger"], "WandbLogger"),
    "metric": ([*FIT, "--evaluation.also+=FrechetDistanc"], "FrechetDistance"),
    # verbs, and flags of verbs with another parser
    "verb": (["tran", "-c", DIGITS], "train"),
    "verb-of-a-picture": (["smaple", "a.ckpt"], "sample"),
    "verb-doctor": (["docter"], "doctor"),
    "verb-flag": (["--hepl"], "--help"),
    "sample-flag": (["sample", "a.ckpt", "--sed=3"], "--seed"),
    "sample-choice": (["sample", "a.ckpt", "--prior=fited"], "fitted"),
    "impute-flag": (["impute", "a.ckpt", "--mising=0.3"], "--missing"),
    "fit-prior-flag": (["fit-prior", "a.ckpt", "--priorr=FlowPrior"], "--prior"),
    "fit-prior-class": (["fit-prior", "a.ckpt", "--prior=FlowPriorr"], "FlowPrior"),
    "doctor-flag": (["doctor", "--data_dri=data"], "--data_dir"),
    # files
    "config": (["train", "-c", "configs/vae/digit.yaml"], DIGITS),
    "short-name": (["train", "-c", "vae/digit"], "vae/digits"),
    "listed-config": (["configs", "vae/digit"], "vae/digits"),
    "shipped-config": (["train", "-c", "configs/vea/digits.yaml"], DIGITS),
}
KEYS = {  # keys of a YAML file: the right name, the misspelt name
    "model": ("latent_size", "laten_size"),
    "slot": ("hidden_sizes", "hiden_sizes"),
    "trainer": ("trainer.max_epochs", "max_epoch"),
    "group": ("trainer.max_epochs", "trainr"),
    "pictures": ("pictures.every_n_epochs", "every_n_epoch"),
    "class": ("MLP", "MPL"),
    "module": ("networks", "vae_lightning.network."),
    "data-class": ("Digits", "Digit"),
    "arguments": ("init_args", "init_arg"),
    "class-path": ("class_path", "clas_path"),
}


def error_of(args: Sequence[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    try:
        code: object = main(list(args))
    except SystemExit as ended:
        code = ended.code
    lines = capfd.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("vae-lightning: error: ")
    return lines[0]


@pytest.mark.parametrize("case", MISSES)
def test_the_nearest_name_is_said(
    case: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    args, name = MISSES[case]
    line = error_of(args, capfd)
    assert line.count("did you mean") == 1, line
    assert f"(did you mean {name}?)" in line


@pytest.mark.parametrize("case", KEYS)
def test_the_nearest_key_is_said_of_a_yaml_file(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    right, wrong = KEYS[case]
    text = (REPOSITORY / DIGITS).read_text()
    word = {"group": "trainer", "module": "vae_lightning.networks."}.get(case, right.rpartition(".")[2])
    assert word in text
    (tmp_path / "a.yaml").write_text(text.replace(word, wrong))
    line = error_of(["fit", "-c", str(tmp_path / "a.yaml"), f"--runs_dir={tmp_path}"], capfd)
    assert f"(did you mean {right}?)" in line


@pytest.mark.parametrize(
    ("verb", "config", "near"),
    [
        ("train", DIGITS, DIGITS),
        ("fit", "vae/digits", "vae/digits"),
        ("train", "mine.yaml", "mine.yaml"),
        ("check-data", DIGITS, DIGITS),
    ],
)
def test_a_config_without_its_flag_is_told_to_be_given_by_it(
    verb: str, config: str, near: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert error_of([verb, config], capfd).endswith(f" {config} (give -c {near})")


def test_an_option_before_the_command_is_told_to_follow_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert error_of(["--trust=my_pkg", "sample", "a.ckpt"], capfd).endswith(
        "write vae-lightning COMMAND --trust=my_pkg ..."
    )


def test_no_config_at_all_is_told_to_be_given(capfd: pytest.CaptureFixture[str]) -> None:
    for args in (["train"], ["check-data"], ["check-data", "--data=Digits"]):
        assert "(give a config: -c vae/digits)" in error_of(args, capfd), args


@pytest.mark.parametrize(
    "args",
    [
        ["xyzzy"],
        [*FIT, "--nonsense=3"],
        [*FIT, "--model.encoder=NoSuchNet"],
        [*FIT, "--model.wings=2"],
        [*FIT, "--model.scheduler=ReduceLROnPlateau"],
    ],
)
def test_nothing_is_said_where_nothing_is_near(
    args: Sequence[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert "did you mean" not in error_of(args, capfd)


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("Adma", ["Adam", "Adamax", "AdamW"], "Adam"),  # swapped letters
        ("steplr", ["StepLR", "MultiStepLR"], "StepLR"),
        ("hiden_sizes", ["hidden_size", "hidden_sizes"], "hidden_sizes"),
        ("foo", ["train", "fit"], None),
        ("", ["train"], None),
        ("train", [], None),
    ],
)
def test_nearest(word: str, known: list[str], expected: str | None) -> None:
    assert nearest(word, known) == expected
