"""The table of numbers beside the papers, from results that these tests write."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.papers.__main__ import main
from benchmarks.papers.page import BEGIN, END, page, put_between_marks, short_table
from benchmarks.papers.rows import Row, RowError, collect, figure, judged, read_kept, read_rows
from tests.helpers import REPOSITORY

ROWS = """
first:
  title: the first
  config: configs/vae/digits.yaml
  flags: --nll.num_samples=50
  published: "89.9"
  source: somewhere
  must: {at_most: 89.8}
second:
  title: the second | with a bar
  config: configs/vae/digits.yaml
  must: {below: first}
scores:
  title: over seeds
  config: configs/vae/digits.yaml
  metric: test/mig
  seeds: [0, 1, 2]
never:
  title: too long
  config: configs/vae/digits.yaml
  not_run: wants a GPU for a week
lost:
  title: without its config
  config: configs/vae/none.yaml
"""


def write_run(runs: Path, row: str, run: str, seed: int = 0, **metrics: float | None) -> Path:
    """A finished run's folder, with the results that `vae-lightning test` writes."""
    results = {
        "metrics": {f"test/{name}": value for name, value in metrics.items()},
        "units": {"default": "nats per image"},
        "nll": {"num_samples": 5000, "chunk_size": 20},
        "evaluation": {"metrics": None, "also": None, "num_samples": 4},
        "details": {"kl_per_dimension/z": [1.0] * 40},
        "left_out": {},
        "checkpoint": "/home/someone/runs/best.ckpt",
        "data": {"class_path": "vae_lightning.data.Digits", "init_args": {"data_dir": "/home/someone/data"}},
        "binarisation": "static",
        "model": {"class_path": "vae_lightning.models.VAE"},
        "seed": seed,
        "precision": "32-true",
        "devices": 1,
        "machine": "a machine, 2 cores",
        "seconds": {"fit": 1800.0, "test": 61.2},
        "versions": {"torch": "2.15"},
    }
    folder = runs / "papers" / row / run
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


class Table:
    """A folder with rows, runs and a README; a call runs the command in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.docs = folder, folder / "runs", folder / "docs"
        (folder / "rows.yaml").write_text(ROWS)
        (folder / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    def __call__(self, *args: str) -> int:
        where = {"runs-dir": self.runs, "docs": self.docs, "rows": "rows.yaml", "readme": "README.md"}
        return main([*(f"--{name}={self.folder / value}" for name, value in where.items()), *args])

    def row(self, name: str) -> list[str]:
        lines = (self.docs / "results.md").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"| `{name}`")]
        return [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]

    @property
    def kept(self) -> dict[str, list[dict[str, Any]]]:
        return dict(json.loads((self.docs / "results.json").read_text()))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def test_figures_bounds_and_reasons(table: Table) -> None:
    write_run(table.runs, "first", "20260101-000000-aaaa", nll=90.5, nll_stderr=0.2)
    write_run(table.runs, "first", "20260102-000000-aaaa", nll=89.73, nll_stderr=0.21, elbo=-93.0, nll_ess=41.6)
    write_run(table.runs, "second", "20260101-000000-aaaa", nll=89.9, nll_stderr=0.28)
    for seed, mig in enumerate((0.1, 0.2, 0.3)):
        write_run(table.runs, "scores", f"20260101-00000{seed}-aaaa", seed=seed, mig=mig)
    assert table() == 0
    newest = "89.73 ± 0.21 (K = 5,000; ELBO -93.00; 42 effective)"
    assert table.row("first")[2:] == [newest, "89.9 [somewhere]", "at most 89.8", "met"]
    assert table.row("second")[1:2] == ["the second / with a bar"]
    assert table.row("second")[-1] == "MISSED: -0.17 ± 0.35 below first"
    assert table.row("scores")[2] == "0.200 ± 0.058 (seeds 0, 1, 2)"
    assert table.row("never")[2] == "not run: wants a GPU for a week"
    assert table.row("lost")[2] == "not run: there is no configs/vae/none.yaml"
    page = (table.docs / "results.md").read_text()
    assert "30 min to fit, 61 s to test; a machine, 2 cores" in page
    assert 'make train CONFIG=configs/vae/digits.yaml ARGS="--nll.num_samples=50"' in page


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_a_number_that_is_not_known_is_null(table: Table, unknown: float | None) -> None:
    """An unknown error (null, or NaN in older results) is left out, and the table is strict JSON."""
    write_run(table.runs, "first", "20260102-000000-aaaa", nll=89.0, nll_stderr=unknown, elbo=unknown)
    write_run(table.runs, "second", "20260102-000000-aaaa", nll=88.0, nll_stderr=0.2)
    assert table() == 0
    assert table.row("first")[2] == "89.00 (K = 5,000)"
    assert table.row("second")[-1] == "met: 1.00 ± ? below first"
    assert table.kept["first"][0]["metrics"] == {"test/nll": 89.0, "test/nll_stderr": None, "test/elbo": None}
    json.loads((table.docs / "results.json").read_text(), parse_constant=pytest.fail)


def test_a_run_without_its_own_figure_is_refused(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(table.runs, "first", "20260102-000000-aaaa", nll=None)
    assert table() == 2
    assert "has no test/nll" in capsys.readouterr().err


def test_what_is_kept_outlives_the_runs_and_names_no_folder_of_a_machine(table: Table) -> None:
    run = write_run(table.runs, "first", "20260102-000000-aaaa", nll=89.0, nll_stderr=0.2)
    assert table() == 0
    before = (table.docs / "results.md").read_text()
    (run / "results.json").unlink()
    assert table() == 0
    assert (table.docs / "results.md").read_text() == before
    assert "/home/someone" not in (table.docs / "results.json").read_text()
    write_run(table.runs, "first", "20260101-000000-aaaa", nll=70.0, nll_stderr=0.2)  # older than the kept record
    assert table() == 0
    assert (table.docs / "results.md").read_text() == before


def test_a_row_that_changed_since_its_run_says_so(table: Table) -> None:
    write_run(table.runs, "first", "20260102-000000-aaaa", nll=89.0, nll_stderr=0.2)
    assert table() == 0
    (table.folder / "rows.yaml").write_text(ROWS.replace("num_samples=50", "num_samples=60"))
    assert table() == 0
    page = (table.docs / "results.md").read_text()
    assert 'its command is now `make train CONFIG=configs/vae/digits.yaml ARGS="--nll.num_samples=60"`' in page
    assert table.kept["first"][0]["command"].endswith('--nll.num_samples=50"')


def test_a_config_that_changed_since_a_run_is_said(table: Table) -> None:
    """A change of the contents is reported, not of the comments. Old records without a recipe report no change."""

    def says_so(config: str) -> bool:
        (table.folder / "a.yaml").write_text(config)
        assert table() == 0
        return (
            f"The contents of `{table.folder}/a.yaml` have changed since this run."
            in (table.docs / "results.md").read_text()
        )

    (table.folder / "rows.yaml").write_text(ROWS.replace("configs/vae/digits.yaml", str(table.folder / "a.yaml")))
    write_run(table.runs, "first", "20260102-000000-aaaa", nll=89.0, nll_stderr=0.2)
    assert not says_so("trainer: {max_epochs: 364}")
    assert not says_so("# a comment\ntrainer:\n  max_epochs: 364  # another\n")
    assert says_so("trainer: {max_epochs: 400}")
    kept = table.kept
    del kept["first"][0]["recipe"]
    (table.docs / "results.json").write_text(json.dumps(kept))
    assert not says_so("trainer: {max_epochs: 500}")


def test_a_new_run_takes_the_place_of_one_whose_name_is_no_time(table: Table) -> None:
    run = write_run(table.folder / "elsewhere", "anything", "by_hand", nll=88.0, nll_stderr=0.1)
    assert table("--record", f"first={run}") == 0
    write_run(table.runs, "first", "20260101-000000-aaaa", nll=87.0, nll_stderr=0.1)
    assert table() == 0
    assert table.kept["first"][0]["run"] == "20260101-000000-aaaa"


def test_a_row_waits_for_all_its_seeds(table: Table) -> None:
    write_run(table.runs, "scores", "20260101-000000-aaaa", seed=1, mig=0.1)
    assert table() == 0
    assert table.row("scores")[2] == "not run: seeds [1] of [0, 1, 2] are done"
    assert len(table.kept["scores"]) == 1


def test_a_run_made_elsewhere_is_recorded(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(table.folder / "elsewhere", "anything", "20260101-000000-bbbb", nll=88.0, nll_stderr=0.1)
    assert table("--record", f"first={run}") == 0
    assert table.kept["first"][0]["run"] == "20260101-000000-bbbb"
    other = write_run(table.folder / "elsewhere", "anything", "20260101-000000-cccc", seed=5, nll=88.0)
    assert table("--record", f"first={other}") == 2
    assert "has the seed 5" in capsys.readouterr().err


def test_the_readmes_table_is_written_between_its_marks(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(table.runs, "first", "20260102-000000-aaaa", nll=89.0, nll_stderr=0.2)
    assert table() == 0
    text = (table.folder / "README.md").read_text()
    assert text.startswith(f"before\n{BEGIN}\n| what |")
    assert text.endswith(f"{END}\nafter\n")
    assert "89.00 ± 0.20" in text
    assert "old" not in text
    assert "too long" not in text  # rows without a figure are only in the docs
    (table.folder / "README.md").write_text("no place")
    assert table() == 0
    assert (table.folder / "README.md").read_text() == "no place"
    assert "has no place for the table" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--run", "thrid"], "unknown row 'thrid'; known: first, second"),
        (["--record", "thrid=x"], "unknown row 'thrid'"),
        (["--record", "first=nowhere"], "nowhere/results.json: no results of a finished run"),
        (["--run", "lost"], "there is no configs/vae/none.yaml"),
    ],
)
def test_mistakes_end_in_one_line(table: Table, capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert table(*args) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_run_without_the_figure_is_refused(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(table.runs, "scores", "20260101-000000-aaaa", nll=88.0)
    assert table() == 2
    assert "has no test/mig" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("a: {title: x}", "'config' is missing"),
        ("a: {title: x, config: y, flag: z}", "'flag' is not a field of a row"),
        ("a: {title: x, config: y, must: {at_last: 3}}", "at_last"),
        ("a: {title: x, config: y, must: {at_most: low}}", "a number"),
        ("a: {title: x, config: y, must: {below: b}}", "below"),
    ],
)
def test_rows_that_say_nothing_are_refused(tmp_path: Path, wrong: str, said: str) -> None:
    (tmp_path / "rows.yaml").write_text(wrong)
    with pytest.raises(RowError, match=said):
        read_rows(tmp_path / "rows.yaml")


def test_a_row_of_the_runs_of_another_row(table: Table) -> None:
    """The row has its own metric, and further numbers in brackets, those that the runs have."""
    beside = yaml.safe_load(ROWS)["scores"] | {"runs_of": "scores", "metric": "test/sap"}
    beside["beside"] = {"MIG": "test/mig", "of nothing": "test/none"}
    (table.folder / "rows.yaml").write_text(ROWS + yaml.safe_dump({"beside": beside}))
    for seed in range(3):
        write_run(table.runs, "scores", f"20260101-00000{seed}-aaaa", seed=seed, mig=0.1 * seed, sap=0.5)
    assert table() == 0
    assert table.row("beside")[2] == "0.500 ± 0.000 (MIG 0.100 ± 0.058; seeds 0, 1, 2)"
    assert table.kept.keys() == {"scores"}  # the runs are stored once
    (table.folder / "rows.yaml").write_text(ROWS + yaml.safe_dump({"beside": beside | {"runs_of": "first"}}))
    assert table() == 2  # other flags and seeds


def test_a_bound_without_a_meaning_is_no_figure(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose loss has no KL has a score, but its nll may not stand in the table."""
    for row, seeds in (("first", [0]), ("scores", [0, 1, 2])):
        for seed in seeds:
            run = write_run(table.runs, row, f"20260101-00000{seed}-aaaa", seed, nll=9e4, mig=0.5 + 0.1 * seed)
            results = json.loads((run / "results.json").read_text())
            results |= {"untrained_kl": ["z"], "loss_note": "the KL of z has weight 0"}
            (run / "results.json").write_text(json.dumps(results))
    assert table() == 2
    assert "the KL of z has weight 0: test/nll is no figure for first" in capsys.readouterr().err
    shutil.rmtree(table.runs / "papers" / "first")
    assert table() == 0
    assert table.row("scores")[2] == "0.600 ± 0.058 (seeds 0, 1, 2)"


def test_rows_of_seq4_take_three_seeds_and_show_what_is_read_right(tmp_path: Path) -> None:
    """The project's rows, with results of the form that such runs write."""
    rows = read_rows(REPOSITORY / "benchmarks" / "papers" / "rows.yaml")
    kept: dict[str, list[dict[str, Any]]] = {}
    for name, start in (("seq4-toy-supervised", 0.4), ("seq4-toy", 0.7)):
        for seed in (0, 1, 2):
            metrics = {"exact_match": start + 0.01 * seed, "bleu/x": 0.9, "nll": 8e4, "elbo": -8e4}
            write_run(tmp_path, name, f"20260101-00000{seed}-aaaa", seed, **metrics)
        kept[name] = collect(rows[name], tmp_path, [], REPOSITORY)
    text = page({name: rows[name] for name in kept}, kept, REPOSITORY)
    assert "| 0.410 ± 0.006 (BLEU 0.900 ± 0.000; seeds 0, 1, 2) |" in text
    assert "| met: 0.30 ± 0.01 above seq4-toy-supervised |" in text
    assert "80000" not in text


def test_the_error_of_a_gap() -> None:
    rows = {name: Row(name, name, "c", must={"above": "b"} if name == "a" else {}) for name in "ab"}
    one = {"metrics": {"test/nll": 3.0, "test/nll_stderr": 0.3}}
    two = {"metrics": {"test/nll": 2.0, "test/nll_stderr": 0.4}}
    assert judged(rows["a"], rows, {"a": [one], "b": [two]}) == "met: 1.00 ± 0.50 above b"
    assert judged(rows["a"], rows, {"a": [one]}) == "b has not been run"
    assert judged(rows["b"], rows, {"b": [two]}) == ""
    without = figure(rows["b"], [{"metrics": {"test/nll": 2.0}}])
    assert without is not None
    assert math.isnan(without.error)


def test_the_projects_own_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Each row has a command and a shipped config, and each published figure has a source."""
    rows = read_rows(REPOSITORY / "benchmarks" / "papers" / "rows.yaml")
    assert {"static-vae", "static-vamp", "dynamic-resnet-iaf", "sprites-beta-tc"} <= rows.keys()
    for row in rows.values():
        assert row.config.startswith("configs/")
        assert all(flag.startswith("--") for flag in shlex.split(row.flags))
        assert bool(row.published) == bool(row.source), row.name  # each figure has its source
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.count("make train CONFIG=") == len(rows)
    assert put_between_marks((REPOSITORY / "README.md").read_text(), "table") is not None


def test_the_pages_are_those_of_the_rows_and_their_records() -> None:
    """The pages equal the output of `make results`; no row has both a figure and a reason for having none."""
    rows = read_rows(REPOSITORY / "benchmarks" / "papers" / "rows.yaml")
    kept = read_kept(REPOSITORY / "docs" / "results.json")
    assert (REPOSITORY / "docs" / "results.md").read_text() == page(rows, kept, REPOSITORY)
    readme = (REPOSITORY / "README.md").read_text()
    assert readme == put_between_marks(readme, short_table(rows, kept, REPOSITORY))
    assert [name for name, row in rows.items() if row.not_run and kept.get(name)] == []


@pytest.mark.filterwarnings("ignore")
def test_a_row_is_run(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--run` starts this project's training once for each seed."""
    typed = []

    class Done:
        returncode = 0

    def fake(command: list[str], **_: Any) -> Done:
        typed.append(command)
        return Done()

    monkeypatch.setattr("benchmarks.papers.__main__.subprocess.run", fake)
    assert table("--run", "scores", "--data-dir=there", "--args=--trainer.max_epochs=1 --trainer.logger=false") == 0
    assert len(typed) == 3
    for seed, command in enumerate(typed):
        assert command[1:6] == ["-m", "vae_lightning", "train", "-c", "configs/vae/digits.yaml"]
        assert {f"--seed_everything={seed}", "--experiment=papers/scores", "--data.data_dir=there"} <= set(command)
        assert command[-2:] == ["--trainer.max_epochs=1", "--trainer.logger=false"]
    Done.returncode = 1
    assert table("--run", "scores", "first") == 1
    assert len(typed) == 5  # seeds after a failed one are not tried
    assert yaml.safe_load((table.folder / "rows.yaml").read_text()).keys() >= table.kept.keys()
