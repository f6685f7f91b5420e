"""Each flag of ours has a help text, in every command's `--help`, and `vae-lightning --help` lists every command."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from docstring_parser import parse
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback

from tests.helpers import REPOSITORY
from vae_lightning import verbs
from vae_lightning.cli import dispatch
from vae_lightning.cli.help import LIGHTNING_VERBS, help_text, own_verbs
from vae_lightning.cli.lightning import LINKED_CALLBACKS
from vae_lightning.cli.slots import slots, subclasses
from vae_lightning.metrics.evaluator import Evaluator
from vae_lightning.verbs import Command, DataCommand, doctor

OWN_FLAGS = {"seed_everything", "runs_dir", "experiment", "run_id", "matmul_precision", "init_from"}
OWN_FLAGS |= {"model", "data", "ckpt_path"}
GIVEN_BY_THE_MODEL = {"event_shape", "in_shape", "out_shape", "image_shape"}  # arguments of classes that are no flags


def classes() -> list[type]:
    """Every class of ours that a flag can name, and every callback, because `trainer.callbacks` can name it."""
    bases = (*slots().values(), Evaluator, Callback)
    every = {cls for base in bases for cls in (base, *subclasses(base))}
    ours = (cls for cls in every if cls.__module__.startswith("vae_lightning.") and not cls.__name__.startswith("_"))
    return sorted(ours, key=lambda cls: f"{cls.__module__}.{cls.__name__}")


def own_arguments(cls: type) -> list[str]:
    """The arguments that the class's own constructor adds."""
    constructor = cls.__dict__.get("__init__")
    if not inspect.isfunction(constructor):
        return []
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    return [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def documented(cls: type) -> dict[str, str]:
    return {line.arg_name: line.description or "" for line in parse(cls.__doc__ or "").params}


def texts(shown: str) -> dict[str, str]:
    """The text after the name of each flag in the output of a `--help`, without type and default."""
    by_flag: dict[str, str] = {}
    for entry in re.split(r"\n(?=  -)", shown)[1:]:
        entry = re.split(r"\n(?! )|\n\n", entry)[0]  # up to the end of the group
        names, _, text = entry.strip().replace("\n", "  ").partition("  ")
        text = re.sub(r"\s*\((required|type|default|known subclasses).*$", "", " ".join(text.split()))
        by_flag |= {name.split()[0].lstrip("-"): text for name in names.split(", ") if name.startswith("-")}
    return by_flag


@cache
def shown_by(verb: str) -> str:
    """What a command of Lightning's prints for `--help`; run once, with a terminal of fixed width."""
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(StringIO()) as printed:
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit, match=r"^(0|None)$"):
            dispatch.run([verb, "--help"])
    return printed.getvalue()


def test_each_flag_has_a_text_in_the_help_of_fit() -> None:
    """The real help: each flag of ours is there, and no flag at all is without a text."""
    flags = texts(shown_by("fit"))
    linked = {f"{key}.{name}" for key, cls in LINKED_CALLBACKS.items() for name in own_arguments(cls)}
    assert len(linked) > 10
    assert OWN_FLAGS | linked <= flags.keys()
    assert [name for name, text in flags.items() if not text and not name.startswith("trainer.")] == []


@pytest.mark.parametrize("key", LINKED_CALLBACKS)
def test_the_help_of_fit_shows_the_line_of_the_docstring(key: str) -> None:
    flags, lines = texts(shown_by("fit")), documented(LINKED_CALLBACKS[key])
    assert {name: flags[f"{key}.{name}"] for name in lines} == {
        name: " ".join(line.split()) for name, line in lines.items()
    }


def test_each_flag_of_predict_has_a_text() -> None:
    flags = texts(shown_by("predict"))
    assert {"split", "sample", "ckpt_path"} <= flags.keys()
    assert [name for name, text in flags.items() if not text and not name.startswith("trainer.")] == []


def test_flags_without_a_text_are_found() -> None:
    """The three tests above can fail: the reader of the help sees an argument whose text is missing."""
    parser = ArgumentParser(prog="test")
    parser.add_argument("--named", type=int, default=3, help="a text (in part)")
    parser.add_argument("--a_long_name_that_needs_its_own_line", type=int, default=3, help="another")
    parser.add_argument("--bare", type=int, default=3)
    parser.add_argument("--none")
    flags = texts(parser.format_help())
    assert flags == {
        **{"h": "Show this help message and exit.", "help": "Show this help message and exit."},
        **{"named": "a text (in part)", "a_long_name_that_needs_its_own_line": "another", "bare": "", "none": ""},
    }


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_argument_has_its_line(cls: type) -> None:
    """The docstring of the class that adds an argument has the line that is the flag's help."""
    lines = documented(cls)
    assert [name for name in own_arguments(cls) if not lines.get(name) and name not in GIVEN_BY_THE_MODEL] == []


@pytest.mark.parametrize(
    "cls", [cls for cls in classes() if not issubclass(cls, Callback)], ids=lambda cls: cls.__name__
)
def test_the_help_of_a_class_has_a_text_for_each_flag(cls: type) -> None:
    """What `--model.help VAE` or `--model.prior.help VampPrior` shows, with the inherited arguments."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "one", fail_untyped=False)
    flags = texts(parser.format_help())
    names = {name.removeprefix("one.") for name, text in flags.items() if name.startswith("one.") and not text}
    assert names <= GIVEN_BY_THE_MODEL


def test_each_verbs_file_defines_its_command() -> None:
    """`doctor` is run without torch, and so by `__main__`."""
    modules = {name: importlib.import_module(f"vae_lightning.verbs.{name.replace('-', '_')}") for name in own_verbs()}
    assert modules.pop("doctor") is doctor
    assert all(isinstance(module.COMMAND, (Command, DataCommand)) for module in modules.values())


@pytest.mark.parametrize("verb", own_verbs())
def test_each_flag_of_our_verbs_has_a_text(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"vae_lightning.verbs.{verb.replace('-', '_')}")
    if verb == "doctor":
        doctor.main(["--help"])
        shown = capsys.readouterr().out
    elif isinstance(module.COMMAND, Command):
        shown = module.COMMAND.make_parser(verb, own_verbs()[verb].text).format_help()
    else:
        return  # the arguments are those of fit
    flags = texts(shown)
    assert len(flags) > 2
    assert [name for name, text in flags.items() if not text] == []


def test_the_help_names_every_verb() -> None:
    text = help_text()
    folder = Path(verbs.__path__[0])
    files = {path.stem.replace("_", "-") for path in folder.glob("[a-z]*.py")}
    assert files == own_verbs().keys() >= {"sample", "doctor", "check-data"}
    assert all(f"\n  {name} " in text for name in (*files, *LIGHTNING_VERBS))
    assert max(map(len, text.splitlines())) <= 120


def test_a_reader_who_leaves_before_the_end_is_no_error() -> None:
    """Such as `vae-lightning --help | head -1`."""
    command = [sys.executable, "-m", "vae_lightning", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 1)
