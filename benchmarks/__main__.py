"""`python -m benchmarks [mnist] [celeba] [nll] [startup]`: run suites, write benchmarks/results/."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import mnist_data
from benchmarks.machine import conditions, file_name, gpus, machine
from benchmarks.report import keep, section, summarise
from benchmarks.rounds import Suite, run_suite
from benchmarks.suites import SMOKE, SUITES, Options


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="SUITE", help=f"one of {', '.join(SUITES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs; default: 5")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder with MNIST/raw; without these files, synthetic bytes",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--machine", help="name of the results' files; default: derived from the processor")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CONTENDER", help="run only these; the tables are printed and not kept"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, to check that everything runs; nothing is kept"
    )
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in SUITES]
    if unknown:
        parser.error(f"unknown suite {unknown[0]}; known: {', '.join(SUITES)}")
    return args


def main() -> int:
    args = arguments()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # exit in the normal way, so that the running contender is ended too
    if args.smoke:  # spinning threads beside other processes would take minutes instead of seconds
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    facts = machine()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    if os.getloadavg()[0] > 0.5:
        print(f"the load average is {os.getloadavg()[0]:.2f}: another process is running and changes the measurements")
    done: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        options = _options(args, Path(scratch))
        for name in args.names or SUITES:
            done[name] = _run(args, SUITES[name](options))
            print("\n".join(["", *section(name, done[name]), ""]), flush=True)
            if not (args.smoke or args.only):
                page = keep(args.out, args.machine or file_name(facts), facts, {name: done[name]})
                print(page, flush=True)
    return 1 if any(suite["failures"] for suite in done.values()) else 0


def _run(args: argparse.Namespace, suite: Suite) -> dict[str, Any]:
    since = time.monotonic()
    header = {
        "measured": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    }
    header |= conditions()
    only = args.only or (SMOKE[suite.name] if args.smoke else [])
    results = run_suite(suite, args.rounds, only)
    return summarise(suite, results, {**header, "rounds": f"{args.rounds}, in {time.monotonic() - since:,.0f} s"})


def _options(args: argparse.Namespace, scratch: Path) -> Options:
    data_dir = args.data_dir.absolute()
    real = mnist_data.is_there(data_dir) and not args.smoke
    if not real:
        data_dir = scratch / "mnist"
        mnist_data.write_synthetic(data_dir, *((6000, 1000) if args.smoke else ()))
        print("MNIST: synthetic bytes" + ("" if args.smoke else f" ({args.data_dir} has no MNIST/raw)"), flush=True)
    device = "cuda" if gpus() else "cpu"
    return Options(data_dir, real, scratch, device, args.smoke)


if __name__ == "__main__":
    sys.exit(main())
