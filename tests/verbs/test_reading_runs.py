"""`report`, `runs` and `compare` on runs of the digits: what they show is what the runs left in their folders."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.helpers import DIGITS, REPOSITORY
from tests.pictures.test_page import Reader
from vae_lightning.__main__ import main
from vae_lightning.cli import ending
from vae_lightning.runs.ownership import lock_run
from vae_lightning.runs.record import folder_of, read_run, read_values, state_of
from vae_lightning.types import UserError
from vae_lightning.verbs.compare import Compared, paired_difference, why_not_comparable
from vae_lightning.verbs.report import page_of
from vae_lightning.verbs.runs import short_names

QUICK = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1")
QUIET = ("--trainer.check_val_every_n_epoch=1", "--trainer.logger=false", "--nll.num_samples=2")
CPU = ("--trainer.accelerator=cpu", "--pictures.num_images=10")
RUNS = {"one": (), "two": ("--model.latent_size=3", "--seed_everything=5")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of one experiment, each of six steps."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.delenv("VAE_LIGHTNING_RUN_ID", raising=False)
        for name, flags in RUNS.items():
            where = (f"--runs_dir={folder}", f"--run_id={name}")
            assert main(["train", "-c", DIGITS, *QUICK, *QUIET, *CPU, *where, *flags]) == 0
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the experiment's folder, from whose parent the commands are run."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained / "vae" / "digits", tmp_path / "runs" / "vae" / "digits"))


def change_results(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    results = json.loads((folder / "results.json").read_text())
    change(results)
    (folder / "results.json").write_text(json.dumps(results))


def refusal(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run a command that fails; return its one line."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# -- the values of each test example -----------------------------------------------------------------------------------


def test_the_values_of_each_example_have_the_mean_and_the_error_of_the_results(trained: Path) -> None:
    folder = trained / "vae" / "digits" / "one"
    values, record = read_values(folder), read_run(folder)
    assert {"nll", "elbo", "log_likelihood", "kl", "kl/z", "fingerprint"} == set(values)
    for name in set(values) - {"fingerprint"}:
        assert values[name].shape == (355,)
        mean, error = record.numbers()[name]
        assert values[name].mean() == pytest.approx(mean, rel=1e-5)
        assert values[name].std(ddof=1) / math.sqrt(355) == pytest.approx(error, rel=1e-4)


# -- report ------------------------------------------------------------------------------------------------------------


def test_train_writes_a_report_of_all_that_the_run_left(trained: Path) -> None:
    folder = trained / "vae" / "digits" / "one"
    page = Reader((folder / "report.html").read_text())
    text = "\n".join(page.texts)
    record = read_run(folder)
    assert "vae/digits/one" in text
    assert f"{record.number('nll'):.2f} +- {record.number('nll_stderr'):.2f}" in text
    assert "Binomial" in text
    assert "355 of the test set" in text
    assert f"vae-lightning train -c {DIGITS} --trainer.max_epochs=2" in text
    assert (folder / "config.yaml").read_text() in text
    assert "torch" in text
    assert (
        len([name for name, _ in page.elements if name == "img"]) == len(list((folder / "images").glob("*.png"))) == 2
    )
    assert {"elbo", "log_likelihood", "kl", "dimension of z"} <= set(page.texts)
    assert "kl/z" not in [title for name, title in zip(page.elements, page.texts, strict=False) if name[0] == "svg"]
    kls = json.loads((folder / "results.json").read_text())["details"]["kl_per_dimension/z"]
    bars = [title.split(": ") for title in page.texts if re.fullmatch(r"\d: [\d.e-]+", title)]
    assert [float(value) for _, value in bars] == pytest.approx(sorted(kls, reverse=True), rel=1e-3)
    assert [int(name) for name, _ in bars] == sorted(range(8), key=lambda i: -kls[i])
    sources = [value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")]
    assert all(value and value.startswith("data:") for value in sources)


def test_a_report_is_a_function_of_the_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, output in (("one", "a.html"), ("one/checkpoints/best.ckpt", "b.html")):
        assert main(["report", str(runs / run), "--output", output]) == 0
        assert capsys.readouterr().out == f"{output}\n"
    first = Path("a.html").read_text()
    assert first.replace(str(runs), "") == Path("b.html").read_text().replace(str(runs), "")
    assert main(["report", str(runs / "one")]) == 0
    assert (runs / "one" / "report.html").read_text() == first


def test_a_report_of_damaged_and_hostile_files(runs: Path, tmp_path: Path) -> None:
    folder = runs / "one"
    (folder / "results.json").write_text("{")
    (folder / "metrics.csv").write_text("step,train/<b>\n1,x\n2,1.0\n3,nan\n\x00,4\n")
    (folder / "images" / "bad-0002.png").write_text("no picture")
    (folder / "images" / "words-0001.txt").write_text("<script>old")
    (folder / "images" / "words-0002.txt").write_text("<script>new")
    secret = tmp_path / "secret.png"
    shutil.copy(next((folder / "images").glob("samples*.png")), secret)
    (folder / "images" / "link.png").symlink_to(secret)
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    page = Reader(text)
    assert "script" not in [name for name, _ in page.elements]
    assert [t for t in page.texts if t.startswith("<script>")] == ["<script>new"]
    assert len([name for name, _ in page.elements if name == "img"]) == 2
    assert "results.json: cannot be read" in text
    assert "Left out, because too large or damaged: bad-0002.png." in text


@pytest.mark.parametrize("strange", [None, [], {}, "x", 1, [[1]], {"a": None}], ids=str)
def test_strange_entries_of_results_and_settings_are_no_traceback(
    trained: Path, tmp_path: Path, strange: object, capsys: pytest.CaptureFixture[str]
) -> None:
    original = trained / "vae" / "digits" / "one"
    folder = tmp_path / "strange"
    folder.mkdir()
    results = json.loads((original / "results.json").read_text())
    for name in results:
        entries = {**results, name: strange}
        entries |= {name: dict.fromkeys(results[name], strange)} if strange and isinstance(results[name], dict) else {}
        (folder / "results.json").write_text(json.dumps(entries))
        (folder / "config.yaml").write_text(json.dumps(dict.fromkeys(("model", "data", "experiment"), strange)))
        assert "<h2>" in page_of(folder).html()
        other = Compared("other", read_run(original), {})
        assert why_not_comparable(Compared("strange", read_run(folder), {}), other) != ""
    assert main(["compare", str(folder), str(original), f"--output={tmp_path / 'compare.html'}"]) in (0, 1)
    assert main(["runs", str(tmp_path)]) == 0
    assert "strange" in capsys.readouterr().out


def test_a_report_of_a_fit_alone_says_that_there_are_no_numbers(runs: Path) -> None:
    (runs / "one" / "results.json").unlink()
    shutil.rmtree(runs / "one" / "images")
    assert main(["report", str(runs / "one")]) == 0
    assert "There are none yet: vae-lightning test" in (runs / "one" / "report.html").read_text()


def test_a_report_that_fails_never_fails_the_run(
    trained: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Path) -> None:
        raise OSError("disk\nfull")

    assert trained.is_dir()
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(ending, "page_of", fail)
    config, checkpoint = runs / "one" / "config.yaml", runs / "one" / "checkpoints" / "best.ckpt"
    before = (runs / "one" / "report.html").read_text()
    assert main(["test", "-c", str(config), f"--ckpt_path={checkpoint}", "--trainer.limit_test_batches=1"]) == 0
    output = capsys.readouterr().out
    assert "report: not written: OSError: disk full" in output
    assert "test        nll" in output
    assert (runs / "one" / "report.html").read_text() == before


def test_what_has_no_report_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere: no such run; name a run's folder" in refusal(capsys, "report", "nowhere")
    line = refusal(capsys, "report", "runs")
    assert "runs: not a run's folder" in line
    assert "a run in it is runs/vae/digits/one" in line
    Path("file").write_text("")
    line = refusal(capsys, "report", runs / "one", "--output", "file/report.html")
    assert "file/report.html: cannot be written (file is a file, not a folder); choose another file by" in line
    assert "https://x.org/run" in refusal(capsys, "report", "https://x.org/run")


# -- runs --------------------------------------------------------------------------------------------------------------


def rows_of(text: str) -> dict[str, str]:
    """Return the row of each run of the table by the run's name."""
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_the_table_has_each_run_with_its_numbers_and_its_settings(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs"]) == 0
    table = rows_of(capsys.readouterr().out)
    assert list(table["run"].split()) == ["run", "date", "state", "elbo", "nll", "differs"]
    for name, size, seed in (("one", 8, 0), ("two", 3, 5)):
        record, row = read_run(runs / name), table[f"vae/digits/{name}"]
        assert f"finished  {record.number('elbo'):.2f} +- {record.number('elbo_stderr'):.2f}" in row
        assert f"{record.number('nll'):.2f} +- {record.number('nll_stderr'):.2f}" in row
        assert row.endswith(f"latent_size {size}, seed_everything {seed}")


def test_the_states_of_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = runs / "one"
    assert state_of(one) == "finished"
    with lock_run(one):
        assert state_of(one) == "running"
    last = one / "checkpoints" / "last.ckpt"
    os.utime(last, (last.stat().st_mtime + 60,) * 2)  # trained further since the test
    assert state_of(one) == "trained"
    contents = torch.load(last, weights_only=True)
    for state in contents["callbacks"].values():
        state.pop("complete", None)
    torch.save(contents, last)
    (one / "results.json").unlink()
    assert state_of(one) == "stopped"
    last.write_text("damaged")
    assert state_of(one) == "stopped"
    main(["runs"])
    assert " val " in rows_of(capsys.readouterr().out)["vae/digits/one"]
    shutil.rmtree(one / "checkpoints")
    assert state_of(one) == "empty"


def test_damaged_runs_have_a_row_and_a_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "one" / "results.json").write_text("[]")
    (runs / "two" / "config.yaml").write_text("a: [\x1b")
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert {"vae/digits/one", "vae/digits/two"} <= rows_of(out).keys()
    assert "one/results.json: cannot be read" in out
    assert "two/config.yaml: cannot be read" in out
    assert "\x1b" not in out


def empty_run(folder: Path) -> Path:
    """Make a run's folder as a run leaves it that ended before its first checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "wandb" / "offline-run").mkdir(parents=True)
    (folder / "wandb" / "latest-run").symlink_to(folder / "wandb" / "offline-run")
    for name in ("config.yaml", ".owner.json", "metrics.csv", "images/samples-0001.png"):
        (folder / name).write_text("")
    return folder


@pytest.mark.parametrize("answer", ["y", "n", "", None])
def test_prune_asks_and_deletes_only_runs_without_anything(
    runs: Path,
    tmp_path: Path,
    answer: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def reply(_: str) -> str:
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", reply)
    gone = empty_run(runs / "gone")
    mine = empty_run(runs / "mine")
    (mine / "notes.md").write_text("my notes")
    linked = empty_run(runs / "linked")
    (linked / "images" / "all.png").symlink_to(tmp_path)
    busy = empty_run(runs / "busy")
    outside = empty_run(tmp_path / "outside")
    (runs / "link").symlink_to(outside)
    with lock_run(busy):
        assert main(["runs", "runs", "--prune"]) == 0
    output = capsys.readouterr().out
    assert gone.exists() == (answer != "y")
    assert all((path / "config.yaml").is_file() for path in (mine, linked, busy, outside, runs / "one", runs / "two"))
    assert f"{Path('runs/vae/digits/mine')}: kept, because of" in output
    assert "link" not in {Path(name).name for name in rows_of(output)}
    assert ("nothing deleted" in output) == (answer != "y")


def test_prune_has_nothing_to_delete(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "--prune"]) == 0
    assert "nothing to delete: each run has a checkpoint or a result" in capsys.readouterr().out


def test_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: no runs in it\n"
    assert "no such folder; name the folder of your runs" in refusal(capsys, "runs", tmp_path / "nowhere")


def test_a_setting_has_its_shortest_name() -> None:
    names = ["model.optimizer.lr", "model.encoder.size", "model.decoder.size", "size"]
    assert list(short_names(names).values()) == ["lr", "encoder.size", "decoder.size", "size"]


# -- compare -----------------------------------------------------------------------------------------------------------


def test_the_paired_error_equals_the_formula() -> None:
    first, second = np.array([1.0, 2.0, 4.0]), np.array([2.0, 5.0, 6.0])
    mean, error = paired_difference(first, second)
    assert mean == 2  # the differences are 1, 3, 2
    assert error == pytest.approx(math.sqrt((1 + 1 + 0) / (3 * 2)))
    assert paired_difference(first[:1], second[:1]) == (1.0, None)
    assert paired_difference(second, first)[0] == -2


def test_compare_shows_numbers_differences_and_settings(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs / "one"), str(runs / "two")]) == 0
    output = capsys.readouterr().out
    table = rows_of(output)
    a, b = read_values(runs / "one"), read_values(runs / "two")
    for name, slope in (("nll", 1.0), ("elbo", 1.0), ("nll_bpd", 1 / (64 * math.log(2)))):
        d = (b[name.removesuffix("_bpd")] - a[name.removesuffix("_bpd")]) * slope
        value, error = map(float, (table[name].split()[7], table[name].split()[9]))
        assert value == pytest.approx(d.mean(), abs=0.006)
        assert error == pytest.approx(d.std(ddof=1) / math.sqrt(len(d)), abs=0.006)
    assert "two - one: paired over 355 test examples" in output
    assert table["model.latent_size"].split()[1:] == ["8", "3"]
    assert table["seed_everything"].split()[1:] == ["0", "5"]
    assert "runs_dir" not in output
    page = Reader(Path("compare.html").read_text())
    assert "val/elbo" in page.texts
    assert output.splitlines()[-1] == "compare.html"


def test_numbers_of_a_test_with_other_settings_are_said_to_be_such(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later test writes the same files: those of 20 images, or of another beta, must not pass for the run's."""

    def test(name: str, *flags: str) -> str:
        where = ("-c", str(runs / name / "config.yaml"), "--ckpt_path", str(runs / name), "--nll.num_samples=2", *CPU)
        assert main(["test", *where, "--data.eval_batch_size=20", *flags]) == 0
        return capsys.readouterr().out

    limit, beta = "trainer.limit_test_batches: None -> 1", "objective.beta: 1.0 -> 0.5"
    said = test("one", "--trainer.limit_test_batches=1", "--model.objective.beta=0.5")
    assert f"(there -> here): {beta}; {limit}\n" in said
    shown = Reader((runs / "one" / "report.html").read_text()).texts
    assert any(f"model.{beta}; {limit}" in text for text in shown)
    assert "trained by" not in shown  # the beta of the test is not the one that the run was trained with
    for verb in (["runs", str(runs)], ["compare", str(runs / "two"), str(runs / "one")]):
        assert main(verb) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "tested with other settings" in line)
        assert line.endswith(f"one: tested with other settings than its config.yaml's: model.{beta}; {limit}")
    assert "there -> here" not in test("one")
    assert read_run(runs / "one").tested_otherwise == []


NOTE = "the KL of z has weight 0 in the loss, so elbo, kl and nll say nothing of the model"


def leave_the_kl_out(results: dict[str, object]) -> None:
    """Make the results those of a run with a beta of 0, whose model names psnr as its measure."""
    results |= {"loss_note": NOTE, "untrained_kl": ["z"], "measures": ["psnr", "unknown", 3]}


def test_a_bound_without_a_meaning_is_shown_nowhere(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_results(runs / "one", leave_the_kl_out)
    psnr = f"psnr {read_run(runs / 'one').number('psnr'):.2f}"
    assert main(["runs"]) == 0
    table = rows_of(capsys.readouterr().out)
    assert re.search(rf"finished +- +- +{psnr}", table["vae/digits/one"])
    assert re.search(r"finished +-\d+\.\d\d \+- \S+ +\d+\.\d\d \+- \S+ +- ", table["vae/digits/two"])
    assert main(["compare", str(runs / "one"), str(runs / "two")]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[1].startswith("psnr")
    assert re.fullmatch(r"elbo +\? +-\S+ \+- \S+ +\? +nats.*", rows_of(output)["elbo"])
    assert f"one: {NOTE}" in output
    texts = Reader(page_of(runs / "one").html()).texts
    numbers = texts[texts.index("Numbers of the test") : texts.index("Settings")]
    assert NOTE in numbers
    assert not {"nll", "nll_bpd", "elbo", "kl", "kl/z", "rate"} & set(numbers)
    assert numbers.index("psnr") < numbers.index("log_likelihood")


def test_a_fit_with_a_beta_of_0_shows_no_elbo(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "one" / "results.json").unlink()
    config = yaml.safe_load((runs / "one" / "config.yaml").read_text())
    config["model"]["init_args"]["objective"] = {
        "class_path": "vae_lightning.objectives.ELBO",
        "init_args": {"beta": 0},
    }
    (runs / "one" / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["runs"]) == 0
    assert " val " not in rows_of(capsys.readouterr().out)["vae/digits/one"]


def test_without_the_values_of_the_same_examples_the_errors_are_those_of_independent_numbers(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "two" / "test_values.npz").unlink()
    assert main(["compare", str(runs / "one"), str(runs / "two")]) == 0
    output = capsys.readouterr().out
    (a, a_error), (b, b_error) = (read_run(runs / name).numbers()["nll"] for name in ("one", "two"))
    assert None not in (a, a_error, b, b_error)
    assert f"{b - a:.2f} +- {math.hypot(a_error, b_error):.2f} *" in rows_of(output)["nll"]  # type: ignore[operator, arg-type]
    assert "two - one: not paired" in output


def test_values_of_another_test_are_not_paired(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_results(runs / "two", lambda results: results["metrics"].update({"test/nll": 1.0}))  # type: ignore[attr-defined]
    assert main(["compare", str(runs / "one"), str(runs / "two")]) == 0
    assert "two - one: not paired" in capsys.readouterr().out


def rename_likelihood(results: dict[str, object]) -> None:
    results["likelihood"] = "Bernoulli"


def test_other_likelihoods_and_data_are_not_put_side_by_side(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("likelihood", "data", "examples"):
        shutil.copytree(runs / "two", runs / name)
    change_results(runs / "likelihood", rename_likelihood)
    for name, old, new in (("data", "data.Digits", "data.MNIST"), ("examples", "data_dir: data", "data_dir: other")):
        config = runs / name / "config.yaml"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
    arrays = read_values(runs / "examples")
    np.savez(runs / "examples" / "test_values.npz", **{**arrays, "fingerprint": arrays["fingerprint"] + 1})  # type: ignore[arg-type]
    assert main(["compare", *(str(runs / name) for name in ("one", "likelihood", "data", "examples"))]) == 1
    output, error = capsys.readouterr()
    refused = "compare: the numbers of likelihood, data, examples are not put beside those of one; see above"
    assert error == f"vae-lightning: error: {refused}\n"
    for name, reason in (
        ("likelihood", "likelihood Binomial / Bernoulli"),
        ("data", "data Digits / MNIST"),
        ("examples", "the test examples differ: data.data_dir data / other"),
    ):
        assert f"one and {name}: numbers are not put side by side: {reason}" in output.splitlines()
    assert "nll" not in rows_of(output)
    assert "model.latent_size" in rows_of(output)
    assert "<svg" not in Path("compare.html").read_text()


def test_a_run_that_was_not_tested_is_said_to_be_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("results.json", "test_values.npz"):
        (runs / "two" / name).unlink()
    assert main(["compare", str(runs / "one"), str(runs / "two")]) == 0
    output = capsys.readouterr().out
    assert "\ntwo: not tested; vae-lightning test writes its numbers\n" in output
    assert "paired over" not in output
    assert "None" not in output


def test_what_cannot_be_compared_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = runs / "one"
    assert "one run is given; give two or more" in refusal(capsys, "compare", one)
    assert "a run is given twice" in refusal(capsys, "compare", one, one / "checkpoints" / "best.ckpt")
    assert "nowhere: no such run" in refusal(capsys, "compare", one, "nowhere")
    with pytest.raises(UserError, match="no such run"):
        folder_of("nowhere")
