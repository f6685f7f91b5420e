"""`record ENV --output FOLDER`: record steps of a gymnasium environment, as data for a model that dreams it; needs the
extra rl.

The policy is uniform, or a function of your own. The data set `Recorded` reads the folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import yaml

from vae_lightning.runs.trust import TRUSTED, trust
from vae_lightning.storage.recordings import require_free_folder, write_recording
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_seed


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    parser.add_argument("environment", metavar="ENV", help="a name of gymnasium, such as CartPole-v1")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write; it must not hold files")
    parser.add_argument("--steps", type=int, default=20_000, help="the number of steps")
    add_seed(parser, "the environment and of the policy")
    env_args = "arguments of gymnasium.make, such as max_episode_steps=200; write them last"
    parser.add_argument("--env_args", "--env-args", nargs="*", default=[], metavar="NAME=VALUE", help=env_args)
    policy = "a function of (observation, numpy generator) to an action, such as my_pkg.policies.act; default: uniform"
    parser.add_argument("--policy", metavar="NAME", help=f"{policy}; its package needs --trust")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Record an environment, write the folder, and print what is in it.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.

    Raises:
        UserError: if an argument is wrong, if the extra rl is missing, or if the environment cannot be recorded.
    """
    if arguments.steps < 1 or arguments.seed < 0:
        raise UserError(
            f"record: --steps is {arguments.steps} and --seed {arguments.seed}; there is at least 1 step, and a seed "
            "is at least 0"
        )
    require_free_folder(arguments.output)
    trust(trusted)  # makes a package of the present folder importable, for ENV such as my_pkg:Mine-v0
    env_args = _parsed(arguments.env_args)
    policy = None if arguments.policy is None else _function(arguments.policy, trusted)
    from vae_lightning.worlds.recording import record  # needs the extra, and --help does not

    recording = record(
        arguments.environment, env_args, arguments.steps, arguments.seed, policy, arguments.policy or "random"
    )
    write_recording(arguments.output, recording)
    about, ends = recording.about, int(recording.terminated.sum())
    observation = {"vector": "vectors", "image": "images", "discrete": "whole numbers below"}[about.kind]
    print(
        f"{arguments.output}: {len(recording.actions):,} steps of {about.environment}, {len(recording.lengths):,} "
        f"episodes, {ends:,} of which ended and the others were cut; {observation} "
        f"{about.num_states or list(about.shape)}, {about.num_actions} actions, policy {about.policy}",
        flush=True,
    )


def _parsed(pairs: list[str]) -> dict[str, Any]:
    """From `name=value` to values, read as YAML."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"record: --env_args {pair!r} is not NAME=VALUE, such as max_episode_steps=200")
        try:
            found[name] = yaml.safe_load(value)
            json.dumps(found[name])  # what the recording's file can hold
        except (yaml.YAMLError, TypeError) as error:
            raise UserError(f"record: --env_args {name}: {value!r} is no number, text or list of them") from error
    return found


def _function(name: str, trusted: list[str]) -> Any:
    """Import a function of a trusted package."""
    package, (module, _, function) = name.partition(".")[0], name.rpartition(".")
    own = tuple(prefix for prefix in trust(trusted) if prefix not in TRUSTED)
    if not module or not name.startswith(own):
        raise UserError(
            f"record: --policy {name} is no function of a trusted package; write my_pkg.my_module.act with --trust "
            f"{package if module else 'my_pkg'}"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"record: --policy {name}: {' '.join(str(error).split())}") from error
    if not callable(found):
        raise UserError(f"record: --policy {name} is no function")
    return found


COMMAND = Command(make_parser, run)
