"""Run every contender in turn (A B C, A B C, ...), each in its own process with its own terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.gpu import busy, watch_gpu

ROOT = Path(__file__).parent.parent
OUT, START = "BENCHMARK_OUT", "BENCHMARK_START"  # the names in benchmarks.timing, which imports torch
TIME_LIMIT_S = 3600
SETTLE_S = 1  # between processes, because a logger's helper may end a moment later
NEAR = 2  # cores are near each other if they exchange data in at most this many times the shortest time seen
TRIES = 3  # runs of a contender in a round, until an epoch has near cores

Values: TypeAlias = dict[str, float]
"""The numbers of one contender in one round."""
Round: TypeAlias = dict[str, Values]
"""The values of a round by contender. A contender that failed or is not installed is absent."""


@dataclass(frozen=True)
class Contender:
    """A program to measure.

    Args:
        name: its name in tables and flags.
        what: its description in the tables.
        command: the arguments of the interpreter; `{seed}` stands for the number of the round.
        requires: a package without which the contender is left out.
    """

    name: str
    what: str
    command: tuple[str, ...]
    requires: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    value: Callable[[Values], float | None]
    style: str = ",.0f"


@dataclass(frozen=True)
class Claim:
    """A bound on a number of each round, judged by the median over rounds.

    Args:
        what: the claim in words.
        value: the number of a round.
        must: the bound; None only records the number. A function computes the bound from the numbers of all rounds,
            such as a bound from their noise.
        at_most: whether the bound is an upper bound.
        style: the format of the number.
    """

    what: str
    value: Callable[[Round], float | None]
    must: float | Callable[[list[float]], float | None] | None
    at_most: bool = False
    style: str = ".2f"


@dataclass(frozen=True)
class Suite:
    """Contenders measured together, with their tables.

    Args:
        prepare: commands that run once before the rounds.
        base: the contender that the column of ratios divides by.
        speed: the number that the ratios compare.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    columns: tuple[Column, ...]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    prepare: tuple[tuple[str, ...], ...] = ()
    base: str = ""
    speed: str = "images_per_second"


@dataclass
class Results:
    """The results of a suite.

    Args:
        rounds: for each round, the record that each contender wrote.
        failures: the last lines of output of each contender that failed.
        nearest: the smallest `exchange_us` of all epochs (see `benchmarks.timing.exchange_us`).
    """

    rounds: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    nearest: float = math.inf


def run_suite(suite: Suite, num_rounds: int, only: list[str]) -> Results:
    """Run all rounds of a suite. A contender that fails is reported and left out of the later rounds."""
    results = Results()
    chosen = [contender for contender in suite.contenders if not only or contender.name in only]
    for contender in chosen:
        if contender.requires and importlib.util.find_spec(contender.requires) is None:
            results.failures[contender.name] = "not installed"
    for number, command in enumerate(suite.prepare, start=1):
        _run_one(results, f"prepare {number}", command, 0)
    for number in range(num_rounds):
        results.rounds.append({})
        for contender in chosen:
            if contender.name not in results.failures:
                record = _run_near(results, contender, number)
                if record is not None:
                    results.rounds[-1][contender.name] = record
                    brief = _brief(measured(record, results.nearest))
                    print(f"{suite.name} {number + 1}/{num_rounds} {contender.name}: {brief}", flush=True)
    return results


def _run_near(results: Results, contender: Contender, seed: int) -> dict[str, Any] | None:
    """Run a contender until one of its epochs has near cores, at most `TRIES` times; return the last record."""
    for _ in range(TRIES):
        record = _run_one(results, contender.name, contender.command, seed)
        if record is None:
            return None
        times = [epoch["exchange_us"] for epoch in record.get("epochs", []) if epoch["exchange_us"] is not None]
        results.nearest = min([results.nearest, *times])
        if not times or measured(record, results.nearest)["near_epochs"]:
            break
    return record


def _run_one(results: Results, name: str, command: tuple[str, ...], seed: int) -> dict[str, Any] | None:
    try:
        return run_process([part.replace("{seed}", str(seed)) for part in command])
    except RuntimeError as error:
        results.failures[name] = str(error)
        print(f"{name} failed: {str(error).splitlines()[-1]}", flush=True)
        return None


def _brief(values: Values) -> str:
    names = ("images_per_second", "image_us", "seconds", "first_step_s", "elbo", "nll", "all_s", "wall_s")
    return "  ".join(f"{name} {values[name]:,.1f}" for name in names if name in values)


def measured(record: dict[str, Any], nearest: float = math.inf) -> Values:
    """The numbers of a record, with its rates; the first epoch is warm-up and does not count.

    `images_per_second` is the median over the `near_epochs` epochs with near cores, or over all epochs if none had near
    cores. `far_images_per_second` is the median over the other epochs.
    """
    values = {name: float(value) for name, value in record.items() if isinstance(value, (int, float))}
    rates: dict[bool, list[float]] = {True: [], False: []}
    for epoch in record.get("epochs", [])[1:]:
        rates[(epoch["exchange_us"] or 0) <= NEAR * nearest].append(epoch["images"] / epoch["seconds"])
    near, far = rates[True], rates[False]
    if near or far:
        values |= {"images_per_second": statistics.median(near or far), "near_epochs": len(near)}
    if far:
        values["far_images_per_second"] = statistics.median(far)
    return values


# -- one process -------------------------------------------------------------------------------------------------------


def run_process(command: list[str]) -> dict[str, Any]:
    """Run `python *command` in an empty folder; return its record, `wall_s`, and `gpu_busy` if it trained on a GPU.

    The process has a terminal, so that it draws its usual bar. The number of threads is PyTorch's default.

    Raises:
        RuntimeError: if the process fails or exceeds the time limit; the message has the last lines of its output.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        out = Path(folder) / "record.json"
        terminal, inner = _open_terminal()
        env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "TERM": "xterm-256color"}
        since = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**env, OUT: str(out), START: str(since)},
            stdin=subprocess.DEVNULL,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        try:
            with watch_gpu() as samples:
                output = _listen(process, terminal, since + TIME_LIMIT_S)
        finally:
            _end(process)
            os.close(terminal)
        wall_s = time.monotonic() - since
        time.sleep(SETTLE_S)
        if process.returncode != 0:
            raise RuntimeError(_last_lines(output) or f"exit code {process.returncode}")
        record = json.loads(out.read_text()) if out.is_file() else {}
        return {**record, **busy(samples, record.get("epochs", [])), "wall_s": wall_s}


def _open_terminal() -> tuple[int, int]:
    terminal, inner = pty.openpty()
    ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    return terminal, inner


def _listen(process: subprocess.Popen[bytes], terminal: int, deadline: float) -> bytes:
    """Read the terminal until the process ends; return the last 20 kB. A helper may hold the terminal longer."""
    output = b""
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if select.select([terminal], [], [], 0 if ended else 0.1)[0]:
            try:
                output = (output + os.read(terminal, 65536))[-20_000:]
                continue
            except OSError:  # Linux raises if no process holds the other end
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0.0, deadline - time.monotonic()))
        if ended or process.poll() is not None:
            break
    return output


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the session of the process if it is still running (time limit, or an interrupt)."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_lines(output: bytes, count: int = 12) -> str:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode(errors="replace")).replace("\r", "\n")
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-count:])
