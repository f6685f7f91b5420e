"""`make results`: write docs/results.md and the README's table from the newest finished run of each row.

Without flags, the command looks for finished runs in <runs-dir>/papers/<row>/, stores their results in
docs/results.json, and writes the pages anew. --run first makes the runs of a row. --record takes a run from elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.papers.page import BEGIN, END, page, put_between_marks, short_table
from benchmarks.papers.rows import Kept, Row, RowError, collect, read_kept, read_rows, record_of

ROOT = Path(__file__).parent.parent.parent


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", nargs="+", default=[], metavar="ROW", help="make the runs of these rows first: train, then test")
    add("--record", nargs="+", default=[], metavar="ROW=RUN", help="record RUN, the folder of a finished run, as ROW")
    add("--list", action="store_true", help="print the rows and their commands; write nothing")
    add("--data-dir", help="folder of MNIST; default: the folder in the configs")
    add("--runs-dir", type=Path, default=Path("runs"), help="the runs of a row are in <runs-dir>/papers/<row>")
    add("--args", default="", help="more flags for --run, such as --args=--trainer.devices=1")
    add("--rows", type=Path, default=Path(__file__).parent / "rows.yaml")
    add("--docs", type=Path, default=ROOT / "docs", help="folder of results.json and results.md")
    add("--readme", type=Path, default=ROOT / "README.md", help=f"the file whose table is between {BEGIN} and {END}")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    options = parse(args)
    try:
        rows = read_rows(options.rows)
        wanted = [_known(name, rows) for name in options.run]
        if options.list:
            print("\n".join(f"{name:<28}{row.command}" for name, row in rows.items()))
            return 0
        failed = [row.name for row in wanted if not run(row, options)]
        kept = read_kept(options.docs / "results.json")
        own = {name: row for name, row in rows.items() if not row.runs_of}
        for name, row in own.items():
            kept[name] = collect(row, options.runs_dir, kept.get(name, []), ROOT)
        for entry in options.record:
            name, _, folder = entry.partition("=")
            _replace(kept, _known(name, own), Path(folder))
        write(rows, {name: kept[name] for name in own if kept[name]}, options.docs, options.readme)
    except RowError as error:
        print(f"results: error: {error}", file=sys.stderr)
        return 2
    for name in failed:
        print(f"results: {name}: a run of this row failed; its output is above", file=sys.stderr)
    return 1 if failed else 0


def _known(name: str, rows: dict[str, Row]) -> Row:
    if name not in rows:
        raise RowError(f"unknown row {name!r}; known: {', '.join(rows)}")
    return rows[name]


def run(row: Row, options: argparse.Namespace) -> bool:
    """Call `vae-lightning train` for each seed of the row; stop and return False if a run fails."""
    if not (ROOT / row.config).is_file():
        raise RowError(f"{row.name}: there is no {row.config}")
    for seed in row.seeds:
        where = [f"--runs_dir={options.runs_dir}", f"--experiment=papers/{row.folder}", f"--seed_everything={seed}"]
        where += [f"--data.data_dir={options.data_dir}"] if options.data_dir else []
        command = [sys.executable, "-m", "vae_lightning", "train", *row.arguments, *where, *options.args.split()]
        print(" ".join(command[1:]), flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return False
    return True


def _replace(kept: Kept, row: Row, folder: Path) -> None:
    record = record_of(row, folder, ROOT)
    if record["seed"] not in row.seeds:
        raise RowError(f"{folder}: has the seed {record['seed']}; the seeds of {row.name} are {list(row.seeds)}")
    others = [one for one in kept[row.name] if one["seed"] != record["seed"]]
    kept[row.name] = sorted([*others, record], key=lambda one: row.seeds.index(one["seed"]))


def write(rows: dict[str, Row], kept: Kept, docs: Path, readme: Path) -> None:
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "results.json").write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n")
    (docs / "results.md").write_text(page(rows, kept, ROOT))
    print(docs / "results.md")
    text = readme.read_text() if readme.is_file() else ""
    changed = put_between_marks(text, short_table(rows, kept, ROOT))
    if changed is None:
        print(f"{readme}: has no place for the table: put it between {BEGIN} and {END}")
    elif changed != text:
        readme.write_text(changed)
        print(readme)


if __name__ == "__main__":
    sys.exit(main())
