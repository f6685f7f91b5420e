"""Run the code of a command of `vae-lightning`, and report a mistake in one line and by an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from vae_lightning.cli.errors import flags_of, one_line
from vae_lightning.cli.help import LIGHTNING_VERBS, own_verbs
from vae_lightning.cli.trainer_checks import refusal
from vae_lightning.runs.folder import Complete
from vae_lightning.runs.notes import silence_notes
from vae_lightning.runs.suggestions import hint
from vae_lightning.runs.trust import trust
from vae_lightning.types import UserError
from vae_lightning.verbs import Command, DataCommand
from vae_lightning.verbs._arguments import Parser


def run(args: list[str]) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake found before the run, 1 for an error during the run.

    Args:
        args: The command and its arguments, without the program's name.
    """
    silence_notes()  # again, because a test or a host program may have reset the warnings
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls deprecated functions
    try:
        _run(args[0], *_without_trust(args[1:]))
    except Complete as complete:
        print(complete, flush=True)
    except UserError as error:
        print(f"vae-lightning: error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        message = refusal(error)
        if message is None:
            raise
        print(f"vae-lightning: error: {message}", file=sys.stderr)
        return 2
    return 0


def _run(verb: str, rest: list[str], trusted: list[str]) -> None:
    trust(trusted)  # makes these packages importable from here on
    if verb in LIGHTNING_VERBS:
        from vae_lightning.cli.lightning import CLI
        from vae_lightning.cli.seeds import asks_for_seeds, train_seeds

        if verb == "train" and asks_for_seeds(rest):
            train_seeds(rest, trusted)
            return
        CLI(["fit" if verb == "train" else verb, *rest], then_test=verb == "train", trusted=trusted)
        return
    if verb not in own_verbs():
        raise _unknown(verb)
    command: Command | DataCommand = importlib.import_module(f"vae_lightning.verbs.{verb.replace('-', '_')}").COMMAND
    if isinstance(command, DataCommand):
        from vae_lightning.cli.lightning import DataCLI

        command.run(DataCLI(["fit", *rest]).recipe)
        return
    parser = command.make_parser(f"vae-lightning {verb}", own_verbs()[verb].text)
    try:
        arguments = parser.parse_args(rest)
    except argparse.ArgumentError as error:  # jsonargparse raises this for a wrong class or a wrong argument of a class
        raise UserError(f"{verb}: {one_line(str(error), flags_of(parser))}") from error
    command.run(arguments, trusted)


def _unknown(verb: str) -> UserError:
    known = (*LIGHTNING_VERBS, *own_verbs())
    near = hint(verb, (*known, "--help", "--version"))
    if verb.startswith("-") and not near:
        return UserError(f"{verb} stands before the command; write vae-lightning COMMAND {verb} ...")
    return UserError(f"unknown command {verb!r}{near}; known: {', '.join(known)} (vae-lightning --help)")


def _without_trust(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of any verb without `--trust my_pkg`, and the packages that `--trust` names."""
    with_trust, rest = Parser("vae-lightning", add_help=False).parse_known_args(args)
    return rest, [name.strip() for names in with_trust.trust for name in names.split(",")]
