"""`dream RUN`: train an agent in the dream of a world model alone, and test it in the real world.

Beside it stand an agent that is trained in the real world with the same number of steps, and a random one. The worlds
are mazes that were not in training, or the recorded environment. A table of their returns, their learning curves and a
moving picture of the real world beside the dream are written to dream.json, dream.txt, dream.html and dream.gif.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vae_lightning.data.loading import data_of
from vae_lightning.data.transitions import Transitions
from vae_lightning.models.loading import load_model
from vae_lightning.runs.folder import best_checkpoint
from vae_lightning.runs.trust import trust
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_output, add_run, check_at_least, not_written

if TYPE_CHECKING:
    from vae_lightning.worlds.comparison import Comparison, Row
    from vae_lightning.worlds.report import Report

_SCENES = 4  # worlds in the moving picture


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    add_run(parser)
    parser.add_argument("--agent", choices=("ppo", "dqn"), default="ppo", help="the learning method; default: ppo")
    parser.add_argument("--worlds", type=int, default=10, help="the number of mazes that training has not; default: 10")
    parser.add_argument("--steps", type=int, default=60_000, help="the number of steps of each agent; default: 60000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="the seeds of the agents; default: 0")
    episodes = "the number of episodes of a test; default: 1 in a maze without slips, else 20"
    parser.add_argument("--episodes", type=int, help=episodes)
    without = "train no agent in the real world, whose steps may be dear"
    parser.add_argument("--without_real", action="store_true", help=without)
    add_output(parser, "the folder of the files; default: the run's folder")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Train and test the agents, print what each reaches, and write the files.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    check_at_least(arguments, worlds=1, steps=1, episodes=1)
    if min(arguments.seeds) < 0:
        raise UserError(f"--seeds is {min(arguments.seeds)}; it must be at least 0")
    checkpoint = best_checkpoint(arguments.run)
    with _needs_the_extra():
        from vae_lightning.worlds.comparison import Comparison, worlds_of
        from vae_lightning.worlds.report import Report
    model = load_model(checkpoint, trusted)
    data = data_of(checkpoint, trusted)
    if not callable(getattr(model, "step", None)) or not isinstance(data, Transitions):
        raise UserError(
            f"{checkpoint}: {type(model).__name__} of {type(data).__name__} is no world model, which has "
            "step(state, action) and learns from transitions; train one with -c dreaming/maze7"
        )
    num_transitions = data.num_real_transitions()
    comparison = Comparison(
        model,  # type: ignore[arg-type]  # `step` was asked for
        data,
        num_transitions,
        arguments.agent,
        arguments.steps,
        arguments.episodes,
        trusted=trust(trusted, checkpoint),
        without_real=arguments.without_real,
    )
    folder = arguments.output or checkpoint.absolute().parent.parent
    settings = {
        **{"checkpoint": str(checkpoint), "data": type(data).__name__, "agent": arguments.agent},
        **{"steps": arguments.steps, "seeds": arguments.seeds, "transitions_of_the_model": num_transitions},
    }
    report = Report(folder, f"Dreams of {checkpoint.absolute().parent.parent.name}", settings)
    with _one_thread():
        _compare(comparison, worlds_of(data, "test", arguments.worlds), arguments.seeds, report)


def _compare(comparison: Comparison, worlds: list[int], seeds: list[int], report: Report) -> None:
    """Compare world by world; write the files after each, so that a stop loses one world at most."""
    from vae_lightning.worlds.rollout import moving_picture, side_by_side

    comparison.real(worlds[0])  # a world that cannot be made is found before anything is trained
    written: list[Path] = []
    for world in worlds:
        for seed in seeds:
            for row, policy in comparison.rows(world, seed):
                report.rows.append(row)
                print(_line(row), flush=True)
                if row.teacher == "dream" and seed == seeds[0] and len(report.scenes) < _SCENES:
                    name = f"world {world}"
                    report.scenes[name] = side_by_side(comparison.model, comparison.real(world), policy, seed)
        if world in worlds[:_SCENES]:  # later worlds add no scene
            report.picture = moving_picture(report.scenes, comparison.data)
        written = _save(report)
    print("", report.text(), *written, sep="\n")


def _line(row: Row) -> str:
    """What one agent reached, in one line."""
    score, parts = row.score, [f"world {row.world}, seed {row.seed}, {row.teacher:<6}"]
    if score.success is not None:
        parts.append(f"success {score.success:.0%}")
    if score.ratio is not None:
        parts.append(f"steps / optimal {score.ratio:.3f}")
    parts.append(f"return {score.mean_return:.3f}")
    if row.teacher == "dream":
        parts.append(f"{row.invalid:,} of {row.steps:,} dreamt states invalid")
    if row.steps:
        parts.append(f"{row.seconds:.1f} s of processor time")
    return ", ".join(parts)


def _save(report: Report) -> list[Path]:
    try:
        return report.save()
    except OSError as error:
        raise not_written(report.folder, error, "folder") from error


@contextmanager
def _needs_the_extra() -> Iterator[None]:
    """Say which extra is missing, in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("gymnasium", "stable_baselines3"):
            raise
        raise UserError(
            f"dream needs {error.name}, which is not installed; install the extra rl: pip install 'vae_lightning[rl]'"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: the networks are so small that more of them would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


COMMAND = Command(make_parser, run)
