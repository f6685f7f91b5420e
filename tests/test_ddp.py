"""Two processes on the CPU share one run and one folder, and have the same numbers as one process."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import DIGITS, REPOSITORY, only, read_csv, run_cli
from tests.helpers import EPOCHS as EACH_EPOCH
from vae_lightning.__main__ import main
from vae_lightning.data import Digits
from vae_lightning.data.module import SPLITS
from vae_lightning.distributions import Binomial
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.storage.loader import ImageLoader, evaluation_batch_size
from vae_lightning.types import UserError

TWO = ("--trainer.accelerator=cpu", "--trainer.devices=2")
ONE = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false")
EPOCHS = (*EACH_EPOCH, "--data.eval_batch_size=21")  # 9 batches of val and 17 of test: the ranks have unequal shares


TINY = partial(MLP, hidden_sizes=(16,))


def read_results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that two processes trained and tested."""
    runs = tmp_path_factory.mktemp("ddp")
    result = run_cli("train", "-c", DIGITS, "--trainer.max_epochs=2", *EPOCHS, *TWO, f"--runs_dir={runs}")
    assert result.stdout.count("nats/image") == 1  # only one process prints
    assert "sync_dist" not in result.stderr  # Lightning warns of numbers that differ between ranks
    return only(runs, "vae/digits/*")


def test_two_processes_share_one_folder(two: Path) -> None:
    names = {path.name for path in two.iterdir()}
    assert names == {
        *(".owner.json", "config.yaml", "checkpoints", "images", "metrics.csv", "results.json", "wandb"),
        *("report.html", "test_values.npz"),
    }
    only(two, "wandb/offline-run-*")
    assert sorted(p.name for p in (two / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert read_results(two)["devices"] == 2


def test_two_processes_train(two: Path) -> None:
    elbos = [float(row["val/elbo"]) for row in read_csv(two / "metrics.csv") if "val/elbo" in row]
    assert len(elbos) == 2  # one row per epoch, not one per process
    assert all(math.isfinite(elbo) for elbo in elbos)
    assert elbos[1] > elbos[0]
    steps = torch.load(two / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps == 2 * math.ceil(len(Digits().images("train").pixels) // 2 / 64)


def test_two_processes_report_what_one_reports(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without sampling. The 355 test images are nine and eight batches, the last one short.

    Every batch has its own noise.
    """
    both = read_results(two)
    monkeypatch.chdir(REPOSITORY)
    assert main(["test", "-c", str(two / "config.yaml"), f"--ckpt_path={two}", *ONE]) == 0
    one = read_results(two)
    assert one["devices"] == 1
    assert one["data"]["num_images"] == both["data"]["num_images"] == 355
    here, there = one["metrics"], both["metrics"]
    assert here.keys() == there.keys()
    assert {"test/elbo", "test/nll", "test/psnr", "test/mutual_information/z", "test/swap_cost"} <= here.keys()
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for name in ("kl_per_dimension/z", "variance_of_means/z"):
        assert both["details"][name] == pytest.approx(one["details"][name], rel=1e-5, abs=1e-7)
    assert there["test/elbo"] == pytest.approx(there["test/log_likelihood"] - there["test/kl"], abs=1e-3)


@pytest.mark.slow
def test_two_processes_predict_what_one_predicts_in_its_order(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, path = ("predict", "-c", str(two / "config.yaml"), f"--ckpt_path={two}"), two / "predictions-all.npz"
    command = (*command, "--split=all", "--sample=true")
    run_cli(*command, *TWO)
    both = dict(np.load(path, allow_pickle=False))
    monkeypatch.chdir(REPOSITORY)
    assert main([*command, *ONE]) == 0
    one = dict(np.load(path, allow_pickle=False))
    path.unlink()
    assert both.keys() == one.keys() == {"z_mean", "z_scale", "z_sample", "label", "split"}
    labels = [Digits().images(split).labels for split in SPLITS]
    assert np.array_equal(both["label"], torch.cat(labels))  # type: ignore[arg-type]
    assert np.array_equal(both["split"], one["split"])
    for name in ("z_mean", "z_scale", "z_sample"):
        np.testing.assert_allclose(both[name], one[name], rtol=1e-5, atol=1e-6)


def test_two_processes_log_every_epoch_of_ten_steps(two: Path) -> None:
    """The config's interval is meant for the 20 steps that one process has in an epoch."""
    rows = [row for row in read_csv(two / "metrics.csv") if "train/elbo" in row]
    assert [int(row["step"]) for row in rows] == [9, 19]
    assert all(float(row["train/images_per_second"]) > 0 for row in rows)


def test_within_an_epoch_another_number_of_ranks_is_refused_and_between_two_it_is_said(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of two ranks resumes on one. Within an epoch, the slice of one rank has images that the two have seen."""
    monkeypatch.chdir(REPOSITORY)
    whole = torch.load(two / "checkpoints" / "last.ckpt", weights_only=True)
    assert [whole["global_step"], whole["callbacks"]["ExactResume"]["devices"]] == [20, 2]
    copy = Path(shutil.copytree(two, tmp_path / "copy", ignore=shutil.ignore_patterns("wandb")))
    fit = ("fit", "-c", DIGITS, *EPOCHS, *ONE, f"--ckpt_path={copy}")
    assert main([*fit, "--trainer.max_epochs=3"]) == 0
    assert "NOT EXACT: the resumed run differs from an uninterrupted one: devices 2 -> 1\n" in capsys.readouterr().out
    resumed = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == 20 + 20  # one process runs all the batches of the next epoch

    progress = whole["loops"]["fit_loop"]["epoch_loop.batch_progress"]  # the state of four steps earlier
    progress["current"].update(ready=6, started=6, processed=6, completed=6)
    progress["is_last_batch"] = False
    WholeFiles().save_checkpoint(whole, copy / "checkpoints" / "last.ckpt")
    assert main([*fit, "--trainer.max_epochs=3"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(r"from within an epoch \(6 batches seen, 20 now\).*only the same devices.*: devices 2 -> 1;", said)


@pytest.mark.slow
def test_two_processes_go_on_within_an_epoch_as_if_never_stopped(two: Path, tmp_path: Path) -> None:
    """Both ranks are equal bit for bit: the gradient is the mean over ranks, and each rank draws its own noise."""
    half = ("fit", "-c", DIGITS, *EPOCHS, *TWO, "--trainer.logger=false", f"--runs_dir={tmp_path}", "--run_id=half")
    run_cli(*half, "--trainer.max_steps=14")
    folder = tmp_path / "vae" / "digits" / "half"
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 14
    assert "goes on from last.ckpt, step 14" in run_cli(*half, "--trainer.max_epochs=2").stdout
    whole, resumed = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (two, folder))
    assert resumed["global_step"] == whole["global_step"] == 20
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value)
    rows = [[row for row in read_csv(run / "metrics.csv") if "val/elbo" in row] for run in (two, folder)]
    assert rows[0] == rows[1]


def test_several_steps_a_call_are_the_same_steps_on_two_ranks(two: Path, tmp_path: Path) -> None:
    """An epoch of ten batches runs in calls of four, four and two.

    Each backward pass of a call is averaged over ranks.
    """
    several = ("--speed.steps_per_call=4", "--trainer.logger=false", f"--runs_dir={tmp_path}", "--run_id=several")
    run_cli("fit", "-c", DIGITS, "--trainer.max_epochs=2", *EPOCHS, *TWO, *several)
    folder = tmp_path / "vae" / "digits" / "several"
    whole, calls = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (two, folder))
    assert calls["global_step"] == whole["global_step"] == 20
    for name, value in whole["state_dict"].items():
        assert torch.equal(calls["state_dict"][name], value), name
    rows = [[row for row in read_csv(run / "metrics.csv") if "val/elbo" in row] for run in (two, folder)]
    assert rows[0] == rows[1]


def test_one_batch_of_128_and_two_of_64_give_the_same_gradient_in_expectation() -> None:
    """Together the two ranks have the same images. Each draws its own noise, so the test averages over noise."""
    torch.manual_seed(0)
    data, model = Digits(), VAE((1, 8, 8), 2, likelihood=partial(Binomial, num_steps=16), encoder=TINY, decoder=TINY)
    images = data.images("train")
    first = [next(iter(ImageLoader(images, 64, True, rank=rank, world_size=2))) for rank in range(2)]
    whole = next(iter(ImageLoader(images, 128, True)))
    together = torch.cat([batch["x"] for batch in first])
    assert torch.equal(together.flatten(1).sort(0).values, whole["x"].flatten(1).sort(0).values)

    def gradient(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = model.objective(model.trace(batch), 0)["loss"].mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double()

    one = torch.stack([gradient(whole) for _ in range(60)])
    two = torch.stack([sum(gradient(batch) for batch in first) / 2 for _ in range(60)])  # type: ignore[misc]
    error = ((one.var(0) + two.var(0)) / 60).sqrt()
    deviation = ((one.mean(0) - two.mean(0)) / error.clamp(min=1e-9))[error > 1e-9]
    assert deviation.square().mean() == pytest.approx(1, abs=0.4)  # deviations are as large as chance makes them


@pytest.mark.parametrize("batch_size", [1, 40, 500])
@pytest.mark.parametrize("world_size", [2, 3, 8, 16])
def test_ranks_evaluate_the_batches_of_one_rank_in_turn(world_size: int, batch_size: int) -> None:
    """Each image comes once, and batches have the same boundaries.

    Batches are smaller only if there are more than eight ranks and too few batches for them.
    """
    images = Digits().images("test")
    size, size_of_one = (evaluation_batch_size(355, batch_size, ranks) for ranks in (world_size, 1))
    parts = [ImageLoader(images, size, False, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [[batch["x"] for batch in loader] for loader in parts]
    assert [len(part) for part in batches] == [len(loader) for loader in parts]
    assert min(map(len, batches)) > 0
    turns = [x for turn in zip_longest(*batches) for x in turn if x is not None]
    assert torch.equal(torch.cat(turns), images.pixels.float() / 16)
    whole = [batch["x"] for batch in ImageLoader(images, size_of_one, False)]
    assert [len(x) for x in turns] == [len(x) for x in whole] or (world_size == 16 and batch_size > 355 // 16)


def test_no_rank_is_without_a_batch() -> None:
    with pytest.raises(UserError, match="no examples"):  # and not a complaint about the number of devices
        evaluation_batch_size(0, 500, 1)
    for total, world_size in itertools.product(range(1, 60), range(1, 20)):
        if total < world_size:
            with pytest.raises(UserError, match=f"{total} examples for {world_size} ranks: each needs one"):
                evaluation_batch_size(total, 500, world_size)
            continue
        size = evaluation_batch_size(total, 500, world_size)
        assert -(-total // size) >= world_size
        assert size == evaluation_batch_size(total, 500, 1) or world_size > 8


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_train_on_disjoint_images_and_equally_many(world_size: int) -> None:
    images = Digits().images("train")
    orders = []
    for rank in range(world_size):
        loader = ImageLoader(images, 50, True, rank=rank, world_size=world_size)
        loader.set_epoch(3)
        orders.append(loader._order().tolist())
    assert {len(order) for order in orders} == {len(images.pixels) // world_size}
    assert len({index for order in orders for index in order}) == sum(len(order) for order in orders)


def test_ranks_draw_different_noise_and_each_repeats_its_own() -> None:
    def noise(rank: int, *counters: int) -> list[float]:
        VAE._reseed(model, rank, *counters)
        return torch.randn(4).tolist()

    model = VAE((1, 8, 8), latent_size=2)
    drawn = [noise(rank, *counters) for rank in (0, 1, 2) for counters in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn)
    torch.randn(100)  # earlier draws do not matter
    assert noise(1, 0, 0, 1) == drawn[5]
