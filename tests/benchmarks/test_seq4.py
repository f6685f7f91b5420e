"""The curve of SEQ4 over numbers of pairs: its table and picture, and runs that are not repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.seq4 import SCORES, Row, curves, measure, table, write

ROWS = [
    Row("supervised", 15, 0, dict.fromkeys(SCORES, 0.25)),
    Row("supervised", 15, 1, dict.fromkeys(SCORES, 0.75)),
    Row("semi-supervised", 15, 0, dict.fromkeys(SCORES, 1.0)),
    Row("supervised", 30, 0, dict.fromkeys(SCORES, 0.5)),
]


def test_means_and_spreads_over_seeds(tmp_path: Path) -> None:
    assert curves(ROWS, "exact_match") == {
        "supervised": [(15, 0.5), (30, 0.5)],
        "semi-supervised": [(15, 1.0)],
    }
    lines = table(ROWS).splitlines()
    assert lines[1].split() == ["15", "0.500", "+-", "0.354", "(0.250,", "0.750)", "1.000", "(1.000)"]
    assert lines[2].split() == ["30", "0.500", "(0.500)", "not", "run"]
    write(tmp_path, ROWS)
    assert json.loads((tmp_path / "seq4.json").read_text())["rows"][0]["pairs"] == 15
    assert (tmp_path / "seq4.svg").read_text().startswith("<svg")


def test_a_run_with_results_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it ran again"))
    run = tmp_path / "seq4" / "toy" / "supervised-15-0"
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps({"metrics": {f"test/{score}": 0.25 for score in SCORES}}))
    assert measure(tmp_path, "supervised", 15, 0) == ROWS[0]
    with pytest.raises(pytest.fail.Exception, match="it ran again"):  # other settings are another run
        measure(tmp_path, "supervised", 15, 0, ["--data.pool_seed=1"])
