"""What forms without a sentence add to few pairs: `python -m benchmarks.seq4 --counts 15 30 75 150 300 --seeds 0 1 2`.

For each number of pairs, seed and arm, one run of configs/seq4/toy.yaml: `supervised`, the pairs alone, and
`semi-supervised`, the same pairs at the same steps beside 2,000 forms. The pairs of a smaller number are among those of
a larger. A run that lies in the folder already is not repeated, so that a stopped call goes on. The table, the numbers
and a picture of both curves are written to the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import conditions, machine
from vae_lightning.pictures import line_chart

CONFIG = Path(__file__).parent.parent / "configs/seq4/toy.yaml"
ARMS = {"supervised": "--data.use_unlabelled=false", "semi-supervised": "--data.use_unlabelled=true"}
SCORES = ("exact_match", "token_accuracy", "round_trip", "bleu/sentence", "length_ratio/latent", "nats_per_token/x")


class Row(NamedTuple):
    """The scores of one run on test, by name.

    Args:
        arm: One of `ARMS`.
        pairs: The number of pairs.
        seed: The seed of the run.
        scores: The scores.
    """

    arm: str
    pairs: int
    seed: int
    scores: dict[str, float]


def measure(folder: Path, arm: str, pairs: int, seed: int, flags: Sequence[str] = ()) -> Row:
    """Train and test one model, unless its results lie in the folder.

    Args:
        folder: Where the runs lie.
        arm: One of `ARMS`.
        pairs: The number of pairs.
        seed: The seed of the run.
        flags: Further flags of `vae-lightning train`.
    """
    name = f"{arm}-{pairs}-{seed}"
    if flags:  # other settings are other runs
        name += f"-{hashlib.sha256(' '.join(flags).encode()).hexdigest()[:6]}"
    found = sorted(folder.glob(f"**/{name}/results.json"))
    if not found:
        own = [f"--runs_dir={folder}", f"--run_id={name}", "--trainer.logger=false", "--pictures.num_images=0"]
        own += [f"--data.num_pairs={pairs}", f"--seed_everything={seed}", ARMS[arm], *flags]
        subprocess.run([sys.executable, "-m", "vae_lightning", "train", "-c", str(CONFIG), *own], check=True)
        found = sorted(folder.glob(f"**/{name}/results.json"))
    metrics = json.loads(found[0].read_text())["metrics"]
    return Row(arm, pairs, seed, {score: metrics[f"test/{score}"] for score in SCORES})


def curves(rows: Sequence[Row], score: str) -> dict[str, list[tuple[float, float]]]:
    """Return the mean over seeds of a score against the number of pairs, for each arm.

    Args:
        rows: The rows.
        score: The name of the score.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for arm in ARMS:
        counts = sorted({row.pairs for row in rows if row.arm == arm})
        found[arm] = [(count, statistics.mean(_values(rows, arm, count, score))) for count in counts]
    return found


def table(rows: Sequence[Row], score: str = "exact_match") -> str:
    """Return a line for each number of pairs: mean +- standard deviation over seeds for each arm, and the values.

    Args:
        rows: The rows.
        score: The name of the score.
    """
    lines = [f"pairs  {'  '.join(f'{arm:<40}' for arm in ARMS)}".rstrip()]
    for count in sorted({row.pairs for row in rows}):
        cells = [f"{_cell(_values(rows, arm, count, score)):<40}" for arm in ARMS]
        lines.append(f"{count:>5}  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread} ({', '.join(f'{value:.3f}' for value in values)})"


def _values(rows: Sequence[Row], arm: str, pairs: int, score: str) -> list[float]:
    return [row.scores[score] for row in rows if (row.arm, row.pairs) == (arm, pairs)]


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write the numbers, the table and the picture.

    Args:
        folder: The folder of the files.
        rows: The rows.
    """
    plain = {"machine": machine(), "conditions": conditions(), "rows": [row._asdict() for row in rows]}
    (folder / "seq4.json").write_text(json.dumps(plain, indent=1) + "\n")
    (folder / "seq4.txt").write_text(table(rows) + "\n")
    chart = line_chart(curves(rows, "exact_match"), "forms read right, unseen forms", "pairs", "exact match")
    (folder / "seq4.svg").write_text(chart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[15, 30, 75, 150, 300], help="numbers of pairs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the seeds")
    parser.add_argument("--folder", type=Path, default=Path("runs/seq4_curve"), help="where runs and results are put")
    parser.add_argument("flags", nargs="*", help="after --: further flags of vae-lightning train")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in arguments.seeds:
        for count in arguments.counts:
            rows += [measure(arguments.folder, arm, count, seed, arguments.flags) for arm in ARMS]
            write(arguments.folder, rows)
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
