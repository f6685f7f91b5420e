"""Which code a command of `vae-lightning` runs, and how its mistakes end: in one line, with an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings

from vae_lightning.cli.errors import flags_of, one_line
from vae_lightning.cli.help import LIGHTNING_VERBS, own_verbs
from vae_lightning.cli.trainer_checks import refusal
from vae_lightning.runs.folder import Complete
from vae_lightning.runs.suggestions import hint
from vae_lightning.runs.trust import trust
from vae_lightning.types import UserError
from vae_lightning.verbs._arguments import Parser


def run(args: list[str]) -> int:
    """Run one command; the exit code is 2 for a mistake that is found before the run, and 1 for one during the run."""
    _silence_notes()
    try:
        _run(args[0], *_without_trust(args[1:]))
    except Complete as complete:
        print(complete, flush=True)
    except UserError as error:
        print(f"vae-lightning: error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        said = refusal(error)
        if said is None:
            raise
        print(f"vae-lightning: error: {said}", file=sys.stderr)
        return 2
    return 0


def _run(verb: str, rest: list[str], trusted: list[str]) -> None:
    trust(trusted)  # makes these packages importable from here on
    if verb in LIGHTNING_VERBS:
        from vae_lightning.cli.lightning import CLI

        CLI(["fit" if verb == "train" else verb, *rest], then_test=verb == "train")
        return
    if verb not in own_verbs():
        raise _unknown(verb)
    module = importlib.import_module(f"vae_lightning.verbs.{verb.replace('-', '_')}")
    if hasattr(module, "run_on_data"):  # its arguments are those of fit
        from vae_lightning.cli.lightning import DataCLI

        module.run_on_data(DataCLI(["fit", *rest]).spec)
        return
    parser = module.make_parser(f"vae-lightning {verb}", own_verbs()[verb].text)
    try:
        given = parser.parse_args(rest)
    except argparse.ArgumentError as error:  # of a parser that takes classes
        raise UserError(f"{verb}: {one_line(str(error), flags_of(parser))}") from error
    module.run(given, trusted)


def _unknown(verb: str) -> UserError:
    known = (*LIGHTNING_VERBS, *own_verbs())
    near = hint(verb, (*known, "--help", "--version"))
    if verb.startswith("-") and not near:
        return UserError(f"{verb} stands before the command; write vae-lightning COMMAND {verb} ...")
    return UserError(f"unknown command {verb!r}{near}; known: {', '.join(known)} (vae-lightning --help)")


def _without_trust(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of any verb without `--trust my_pkg`, and the packages that `--trust` names."""
    given, rest = Parser("vae-lightning", add_help=False).parse_known_args(args)
    return rest, [name.strip() for names in given.trust for name in names.split(",")]


def _silence_notes() -> None:
    """Keep back Lightning's notes on itself, and warnings about settings that this template has on purpose."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(lambda record: not _is_note(record.getMessage()))
    notes = (".*does not have many workers.*", ".*LeafSpec.*", "Checkpoint directory .* exists and is not empty")
    for text in notes:
        warnings.filterwarnings("ignore", message=text)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls functions under old names


def _is_note(text: str) -> bool:
    starts = (
        *("💡", "GPU available", "TPU available", "HPU available", "Seed set to", "`Trainer.fit` stopped"),
        *("Restoring states from", "Restored all states", "Loaded model weights", "`weights_only` was not"),
    )
    return text.startswith(starts)
