"""Search settings by Optuna, without an account: every trial is a run of `vae-lightning fit` in a process of its own.

    python launch/optuna.py -c vae/digits --trials 20

Arguments that this file does not know go to `fit`: --trainer.max_epochs=50 --data.data_dir=DIR. The study lies in
`<folder>/study.journal` and each run in `<folder>/trial-<number>`. The same command goes on until there are that many
finished trials; several processes, also on several machines with a common folder, share the study. A trial is stopped
early if its best val/elbo is below the median of the others at the same epoch. The extra `sweeps` installs Optuna.

Change `suggest` to search other settings: every flag of `vae-lightning fit --help` will do.
"""

from __future__ import annotations

import argparse
import csv
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# this file has the library's name: Python must not look for the library in this folder
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError:
    sys.exit("launch/optuna.py: needs Optuna: pip install 'vae_lightning[sweeps]'")

MONITOR = "val/elbo"  # is maximised; comparable over beta and objectives, which the loss is not


def suggest(trial: Trial) -> list[str]:
    """Return the flags of a trial.

    Args:
        trial: Optuna's trial, which draws the values.
    """
    width = trial.suggest_categorical("width", [64, 128, 256, 512])
    hidden = f"[{width}, {width}]"
    return [
        f"--model.latent_size={trial.suggest_int('latent_size', 2, 32, log=True)}",
        f"--model.encoder.hidden_sizes={hidden}",
        f"--model.decoder.hidden_sizes={hidden}",
        f"--model.optimizer.lr={trial.suggest_float('lr', 1e-4, 1e-2, log=True)}",
        f"--data.batch_size={trial.suggest_categorical('batch_size', [32, 64, 128])}",
    ]


def main() -> int:
    """Run trials until the study has enough, print the table, and return the exit code."""
    arguments, of_fit = parse()
    folder = arguments.folder or Path("runs", "sweep", Path(arguments.config).stem)
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=folder.name,
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        direction="maximize",
        load_if_exists=True,
    )
    # of the number of trials, too: a study that goes on must not draw its first values again
    study.sampler = optuna.samplers.TPESampler(seed=arguments.seed + 1000 * len(study.trials))
    failed = 0
    while len(finished(study)) < arguments.trials and failed < 3:
        trial = study.ask()
        state, value = run(trial, ["-c", arguments.config, *suggest(trial), *of_fit], folder)
        study.tell(trial, value, state)
        failed = failed + 1 if state is TrialState.FAIL else 0
        print(f"trial {trial.number}: {state.name.lower()}, {MONITOR} {text(value)}, {trial.params}", flush=True)
    print("\n".join(["", *table(study)]))
    if failed:
        print(f"launch/optuna.py: the last {failed} trials failed; see {folder}/trial-*.log", file=sys.stderr)
    return 1 if failed else 0


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Return this file's arguments, and the others, which are of `fit`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, help="a config, by its path or its short name")
    parser.add_argument("--trials", type=int, default=20, help="the number of finished trials to have at the end")
    parser.add_argument("--folder", type=Path, help="the folder of the study; default: runs/sweep/<config>")
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed of the search, another one for each process that shares a study"
    )
    return parser.parse_known_args()


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count: those that ended, and those that were stopped early.

    Args:
        study: The study.
    """
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def run(trial: Trial, args: list[str], folder: Path) -> tuple[TrialState, float | None]:
    """Run one trial; return its state and its best value of `MONITOR`.

    Args:
        trial: The trial.
        args: The arguments of `fit`.
        folder: The folder of the study.
    """
    place = [f"--runs_dir={folder.parent}", f"--experiment={folder.name}", f"--run_id=trial-{trial.number}"]
    command = [sys.executable, "-m", "vae_lightning", "fit", *args, *place, "--trainer.logger=false"]
    state, best = TrialState.COMPLETE, None
    with (folder / f"trial-{trial.number}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            for epoch, value in values(process, folder / f"trial-{trial.number}" / "metrics.csv"):
                best = value if best is None else max(best, value)
                trial.report(best, epoch)
                if state is TrialState.COMPLETE and trial.should_prune():
                    state = TrialState.PRUNED
                    process.send_signal(signal.SIGTERM)  # the run saves a checkpoint and ends
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()
    if state is TrialState.PRUNED:
        return state, None  # Optuna takes the last value that was reported
    return (state, best) if process.returncode == 0 and best is not None else (TrialState.FAIL, None)


def values(process: subprocess.Popen[bytes], path: Path) -> Iterator[tuple[int, float]]:
    """Yield the epoch and the value of each validation of a running process, the last ones after its end.

    Args:
        process: The process.
        path: Its metrics.csv.
    """
    seen = 0
    while True:
        has_ended = process.poll() is not None
        rows = read(path)
        yield from rows[seen:]
        seen = len(rows)
        if has_ended:
            return
        time.sleep(0.5)


def read(path: Path) -> list[tuple[int, float]]:
    """Return the epoch and the value of each validation in a metrics.csv.

    Args:
        path: The file, which may not exist yet.
    """
    if not path.is_file():
        return []
    lines = (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))  # the last may be half
    return [(int(row["epoch"]), float(row[MONITOR])) for row in csv.DictReader(lines) if row.get(MONITOR)]


def table(study: optuna.Study) -> list[str]:
    """Return the lines of the table of all trials, the best first.

    Args:
        study: The study.
    """
    trials = sorted(study.trials, key=lambda trial: (trial.value is None, -(trial.value or 0.0)))
    names = sorted({name for trial in trials for name in trial.params})
    rows = [["trial", "state", MONITOR, *names]]
    for trial in trials:
        found = (trial.params.get(name, "") for name in names)
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in found)
        rows.append([str(trial.number), trial.state.name.lower(), text(trial.value), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def text(value: float | None) -> str:
    """Return a value with two decimals, or a dash for none.

    Args:
        value: The value.
    """
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
