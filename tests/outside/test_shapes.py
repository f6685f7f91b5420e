"""Clips, sentences and tables go through every verb of the command line, from a package outside `vae_lightning`."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers import only, read_csv, read_picture, run_cli
from tests.outside.commands import CASES, SETTINGS, fit_flags, run
from tests.outside.table import Tumours
from tests.outside.tokens import Sentences, SentenceVAE
from tests.outside.video import MovingSquare
from vae_lightning.data import Examples, Split, windows
from vae_lightning.distributions import Masked
from vae_lightning.models import LatentVariableModel
from vae_lightning.runs import trust
from vae_lightning.storage.loader import first_images


@pytest.fixture(autouse=True)
def _trust_ends() -> Iterator[None]:
    yield
    trust._FINDER.places.clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@cache
def trained(name: str, runs: Path) -> tuple[Path, str]:
    """The folder of a run of `train`, and what the command printed."""
    case = CASES[name]
    said = run("train", *fit_flags(case, runs, name), f"--trainer.max_epochs={case.epochs}")
    assert "Warning" not in said.stderr
    return only(runs, f"*/{name}"), said.stdout


def weights(folder: Path, file: str = "last.ckpt") -> dict[str, Tensor]:
    return dict(torch.load(folder / "checkpoints" / file, weights_only=True)["state_dict"])


def assert_equal_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def results(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "results.json").read_text())["metrics"])


# -- every verb -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_training_raises_the_bound(name: str, runs: Path) -> None:
    folder, _ = trained(name, runs)
    elbos = [float(row["val/elbo"]) for row in read_csv(folder / "metrics.csv") if "val/elbo" in row]
    assert len(elbos) == CASES[name].epochs
    assert elbos[-1] - elbos[0] > CASES[name].gain, elbos
    assert elbos[-1] > CASES[name].best, elbos
    found = results(folder)
    assert found["test/elbo"] == pytest.approx(found["test/log_likelihood"] - found["test/kl"], abs=1e-3)
    assert found["test/nll"] < -found["test/elbo"]
    assert found["test/swap_cost"] > 5


@pytest.mark.parametrize("name", CASES)
def test_a_test_of_the_checkpoint_gives_the_numbers_of_the_run(name: str, runs: Path) -> None:
    folder, _ = trained(name, runs)
    before = results(folder)
    run("test", "-c", folder / "config.yaml", f"--ckpt_path={folder}", *SETTINGS)
    assert results(folder) == before


@pytest.mark.parametrize("name", CASES)
def test_it_resumes_within_an_epoch_to_the_last_bit(name: str, runs: Path) -> None:
    folder, _ = trained(name, runs)
    flags = fit_flags(CASES[name], runs, f"{name}-half")
    run("fit", *flags, f"--trainer.max_steps={CASES[name].middle}")
    said = run("fit", *flags, f"--trainer.max_epochs={CASES[name].epochs}").stdout
    assert f"goes on from last.ckpt, step {CASES[name].middle}" in said
    assert_equal_weights(folder, only(runs, f"*/{name}-half"))


@pytest.mark.parametrize("name", CASES)
def test_python_loads_the_checkpoint(name: str, runs: Path) -> None:
    folder, _ = trained(name, runs)
    model = LatentVariableModel.load_from_checkpoint(folder / "checkpoints" / "best.ckpt", trusted=["tests"])
    assert f"{type(model).__module__}.{type(model).__name__}" == f"tests.outside.{CASES[name].model}"
    saved = weights(folder, "best.ckpt")
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    shape = {"video": (6, 1, 10, 10), "tokens": (8,), "table": (12,)}[name]
    assert model.sample(3).shape == (3, *shape)


@pytest.mark.parametrize("name", CASES)
def test_predict_writes_a_row_for_each_example(name: str, runs: Path) -> None:
    folder, _ = trained(name, runs)
    run("predict", "-c", folder / "config.yaml", f"--ckpt_path={folder}", *SETTINGS)
    rows = dict(np.load(folder / "predictions-test.npz", allow_pickle=False))
    wanted = {"video": [50, 12, 8], "tokens": [200, 8], "table": [100, 4]}[name]
    assert list(rows["z_mean"].shape) == list(rows["z_scale"].shape) == wanted
    assert ("label" in rows) == (name == "table")


# -- what a user sees -------------------------------------------------------------------------------------------------


def drawn(verb: str, name: str, runs: Path) -> Path:
    """The path of the pictures of `sample` or `reconstruct`, without its ending."""
    folder, _ = trained(name, runs)
    run(verb, folder, "--num_images=4", "--trust=tests")
    return folder / "images" / {"sample": "samples", "reconstruct": "reconstructions"}[verb]


@pytest.mark.parametrize(("verb", "steps"), [("sample", 6), ("reconstruct", 12)])
def test_clips_move(verb: str, steps: int, runs: Path) -> None:
    """Samples have the frames of a window, reconstructions those of a whole clip; a still shows frames side by side."""
    path = drawn(verb, "video", runs)
    with Image.open(path.with_suffix(".gif")) as moving:
        assert getattr(moving, "n_frames", 1) == steps
        frames = [np.array((moving.seek(t), moving.convert("L"))[1]) for t in range(steps)]  # type: ignore[func-returns-value]
    below_title = [frame[24:] for frame in frames]
    assert all((one != other).any() for one, other in itertools.pairwise(below_title))
    still = read_picture(path.with_suffix(".png"))
    assert max(still.shape) < 1000
    assert not path.with_suffix(".txt").exists()


def test_a_model_that_predicts_frames_draws_roll_outs(runs: Path) -> None:
    """Of whole validation clips in training, of test clips after the test and by reconstruct; the report has them."""
    path = drawn("reconstruct", "video", runs)
    names = (path.with_name("reconstructions_rollouts.gif"), path.with_name("rollouts_test.gif"))
    for name in (*names, max(path.parent.glob("rollouts-*.gif"))):
        with Image.open(name) as moving:
            assert getattr(moving, "n_frames", 1) == 12, name
    assert "grey border: frames seen" in (path.parent.parent / "report.html").read_text()


def test_reconstructions_are_like_their_originals(runs: Path) -> None:
    folder, _ = trained("video", runs)
    model = LatentVariableModel.load_from_checkpoint(folder / "checkpoints" / "best.ckpt", trusted=["tests"]).eval()
    x = first_images(MovingSquare().test_dataloader(), 20)["x"]
    assert x.shape == (20, 12, 1, 10, 10)
    with torch.no_grad():
        reconstruction = model.trace({"x": x}).reconstruction()
    assert reconstruction is not None
    best = reconstruction.flatten(2).topk(9).indices  # the square has nine pixels
    assert x.flatten(2).gather(2, best).mean() > 0.75


@pytest.mark.parametrize("verb", ["sample", "reconstruct"])
def test_sentences_are_lines(verb: str, runs: Path) -> None:
    path = drawn(verb, "tokens", runs)
    title, _, *lines = path.with_suffix(".txt").read_text().splitlines()
    assert title == f"{path.name}, best.ckpt"
    assert not path.with_suffix(".png").exists()
    words = [line.split() for line in lines if line]
    assert len(words) == (4 if verb == "sample" else 8)
    captions = {"original", "reconstruction", *"1234"}
    assert all(set(row) - captions <= {*Sentences.words} - {"."} for row in words)
    assert all(len([word for word in row if word not in captions]) >= 3 for row in words)


def test_a_table_has_a_line_for_each_row_with_its_class(runs: Path) -> None:
    lines = drawn("reconstruct", "table", runs).with_suffix(".txt").read_text().splitlines()[2:]
    first = [line.split() for line in lines if line][:2]
    assert first[0][0] == "1"
    assert first[0][1] in Tumours.class_names
    original, reconstruction = (np.array([float(value) for value in row[-12:]]) for row in first)
    assert np.abs(original - reconstruction).mean() < 1


def test_samples_of_a_table_are_rows_of_numbers(runs: Path) -> None:
    lines = drawn("sample", "table", runs).with_suffix(".txt").read_text().splitlines()[2:]
    rows = [[float(value) for value in line.split()[-12:]] for line in lines if line]
    assert len(rows) >= 2
    assert np.abs(np.array(rows)).mean() < 3  # the columns are standardised


# -- sentences of several lengths -------------------------------------------------------------------------------------


def test_the_probabilities_of_all_sentences_sum_to_one() -> None:
    """Over every sentence of every length: the end counts, and the padding does not."""
    torch.manual_seed(0)
    vocabulary, num_steps = 3, 4
    model = SentenceVAE((num_steps,), vocabulary, latent_size=2).double()
    sentences = [
        [*words, 0, *[-1] * (num_steps - length - 1)]
        for length in range(num_steps)
        for words in itertools.product(range(1, vocabulary), repeat=length)
    ]
    x = torch.tensor(sentences)
    assert len(x) == 1 + 2 + 4 + 8
    z = torch.randn(1, 1, 2, dtype=torch.float64)
    seen = torch.arange(num_steps) < (x >= 0).sum(1)[:, None]
    p = Masked(model.words(z).expand((1, len(x))), seen)
    torch.testing.assert_close(p.log_prob(x).exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert torch.equal(p.log_prob(x), p.log_prob(x.clamp(min=0)))  # whatever the padding holds


def test_padding_has_no_gradient() -> None:
    model, batch = SentenceVAE((8,), Sentences.vocabulary), Sentences().examples("val").select(torch.arange(5))
    trace = model.trace(batch)
    assert batch["length"].unique().numel() > 1
    logits = torch.zeros(1, 5, 8, Sentences.vocabulary, requires_grad=True)
    seen = torch.arange(8) < batch["length"][:, None]
    (gradient,) = torch.autograd.grad(Masked(model.likelihood(logits), seen).log_prob(batch["x"]).sum(), logits)
    assert torch.equal(gradient[0].abs().sum(-1) > 0, seen)
    assert trace.log_likelihood().isfinite().all()


def test_nats_a_step_are_of_all_steps_that_count(runs: Path) -> None:
    """Tokens with the end and without the padding, which bits a dimension are of, too; and the frames of a clip."""
    found = results(trained("tokens", runs)[0])
    tokens = Sentences().examples("test").fields["length"].float().mean().item()
    assert found["test/elbo"] / found["test/elbo_per_step"] == pytest.approx(tokens, rel=1e-5)
    assert found["test/nll"] / math.log(2) / found["test/nll_bpd"] == pytest.approx(tokens, rel=1e-5)
    found = results(trained("video", runs)[0])
    assert found["test/elbo"] / found["test/elbo_per_step"] == pytest.approx(12, rel=1e-5)
    assert "test/elbo_per_step" not in results(trained("table", runs)[0])


@pytest.mark.parametrize("name", CASES)
def test_a_run_speaks_of_examples(name: str, runs: Path) -> None:
    folder, said = trained(name, runs)
    assert "nats/example" in said
    assert "examples/s" in said
    units = json.loads((folder / "results.json").read_text())["units"]
    assert units["elbo_per_step"] == "nats per step of a sequence"
    for text in (re.sub(r"/images\b", "", said), units["default"], units["stderr"]):
        assert not re.search(r"\bimages?\b", text), text


# -- windows ----------------------------------------------------------------------------------------------------------


class MappedSquare(MovingSquare):
    """The same clips in a file that is mapped, a folder a split."""

    def prepare_data(self) -> None:
        Path(self.data_dir).mkdir(exist_ok=True)
        for split in ("train", "val", "test"):
            (Path(self.data_dir) / split).write_bytes(super().load(split).fields["x"].numpy().tobytes())

    def load(self, split: Split) -> Examples:
        with (Path(self.data_dir) / split).open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        steps = torch.frombuffer(mapping, dtype=torch.uint8).view(-1, 1, 10, 10)
        if split == "test":
            return Examples({"x": steps.unflatten(0, (-1, 12))}, mapping)
        return windows({"x": steps}, torch.full((len(steps) // 12,), 12), self.num_frames, mapping=mapping)


@pytest.mark.parametrize("resident", ["mmap", "memory"])
def test_mapped_windows_are_the_windows(resident: str, runs: Path, tmp_path: Path) -> None:
    folder, _ = trained("video", runs)
    case = CASES["video"]._replace(data="test_shapes.MappedSquare")
    flags = [f"--data.resident={resident}", f"--data.data_dir={tmp_path}", f"--trainer.max_epochs={case.epochs}"]
    run("train", *fit_flags(case, runs, resident), *flags)
    assert_equal_weights(folder, only(runs, f"*/{resident}"))
    assert results(folder) == results(only(runs, f"*/{resident}"))


def test_windows_resume_exactly_in_half_precision(runs: Path) -> None:
    assert_resumed_equals_whole("bf16", runs, ["--trainer.precision=bf16-mixed"], run)


@pytest.mark.slow  # each rank imports everything anew
@pytest.mark.parametrize("several", [1, 2])
def test_windows_resume_exactly_on_two_ranks(several: int, runs: Path) -> None:
    precision = "bf16-mixed" if several == 2 else "32-true"
    ranks = ["--trainer.accelerator=cpu", "--trainer.devices=2", f"--trainer.precision={precision}"]
    assert_resumed_equals_whole(f"ranks-{several}", runs, [*ranks, f"--speed.steps_per_call={several}"], run_cli)


def assert_resumed_equals_whole(name: str, runs: Path, way: list[str], start: Callable[..., Any]) -> None:
    """An epoch on one rank has 28 batches, on two ranks 14."""
    case = CASES["video"]
    start("fit", *fit_flags(case, runs, name), *way, "--trainer.max_epochs=2")
    half = fit_flags(case, runs, f"{name}-half")
    start("fit", *half, *way, "--trainer.max_steps=10")
    assert "goes on from last.ckpt, step 10" in start("fit", *half, *way, "--trainer.max_epochs=2").stdout
    assert_equal_weights(only(runs, f"*/{name}"), only(runs, f"*/{name}-half"))


def test_two_steps_a_call_are_the_same_steps(runs: Path) -> None:
    """Also if they are resumed within an epoch."""
    folder, _ = trained("video", runs)
    flags = [*fit_flags(CASES["video"], runs, "calls"), "--speed.steps_per_call=2"]
    run("fit", *flags, "--trainer.max_steps=40")
    run("fit", *flags, f"--trainer.max_epochs={CASES['video'].epochs}")
    assert_equal_weights(folder, only(runs, "*/calls"))


@pytest.mark.slow  # the compiler takes up to a minute
@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
def test_windows_are_compiled(runs: Path) -> None:
    folder, _ = trained("video", runs)
    case = CASES["video"]
    flags = ["--speed.compile=true", f"--trainer.max_epochs={case.epochs}"]
    run("train", *fit_flags(case, runs, "compiled"), *flags)
    ours, theirs = results(only(runs, "*/compiled")), results(folder)
    assert ours["test/elbo"] == pytest.approx(theirs["test/elbo"], rel=0.05)


@pytest.mark.parametrize("verb", ["sample", "reconstruct"])
def test_without_the_users_word_it_is_refused(verb: str, runs: Path) -> None:
    folder, _ = trained("table", runs)
    assert "give --trust tests" in run(verb, folder, expect=2).stderr


def test_a_checkpoint_of_other_data_is_one_line(runs: Path) -> None:
    folder, _ = trained("table", runs)
    args = ["--model=tests.outside.table.TableVAE", "--data=Digits", f"--ckpt_path={folder}"]
    (line,) = run("test", *args, *SETTINGS, expect=2).stderr.splitlines()
    assert "does not fit the model of the config: decoder.layers.3.bias is [12] there, [64]" in line
