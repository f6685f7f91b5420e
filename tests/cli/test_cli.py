"""The command line as a user sees it: runs and their folders, slots, resuming, and one clear line for each mistake."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from tests.helpers import (
    DIGITS,
    EPOCHS,
    IDX_NAMES,
    REPOSITORY,
    TRAIN,
    TrainedRun,
    clean_environment,
    idx_bytes,
    only,
    read_csv,
    read_picture,
    run_cli,
    trained_run,
    write_binarized_mnist,
    write_mnist,
)
from vae_lightning import distributions as d
from vae_lightning import networks, objectives
from vae_lightning.__main__ import main
from vae_lightning.cli.lightning import CLI
from vae_lightning.data import MNIST, Digits
from vae_lightning.models import VAE

RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
TERMS = {"elbo", "log_likelihood", "kl", "kl/z", "loss"}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """One run that the tests of this file read; no test may change it."""
    return trained_run(tmp_path_factory.getbasetemp() / "trained")


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["state_dict"])


# -- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_one_folder_with_what_is_promised(trained: TrainedRun) -> None:
    assert RUN_ID.fullmatch(trained.folder.name)
    names = {str(p.relative_to(trained.folder)) for p in trained.folder.rglob("*") if p.is_file()}
    assert {name for name in names if not name.startswith("wandb/")} == {
        *("config.yaml", "metrics.csv", "results.json", "test_values.npz", "report.html", ".owner.json"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/previous.ckpt"),
        *("images/reconstructions-0002.png", "images/samples-0002.png"),
    }
    logged = only(trained.folder, "wandb/offline-run-*/files/media/html/report_*.html")
    assert logged.read_text() == (trained.folder / "report.html").read_text()


def test_metrics_csv_has_every_key_and_nats_that_add_up(trained: TrainedRun) -> None:
    rows = read_csv(trained.folder / "metrics.csv")
    keys = {name for row in rows for name in row}
    assert {f"{stage}/{name}" for stage in ("train", "val", "test") for name in TERMS} <= keys
    assert {"step", "epoch", "train/beta", "train/images_per_second", "test/nll", "test/nll_stderr"} <= keys
    values = [{name: float(value) for name, value in row.items()} for row in rows]
    assert all(math.isfinite(value) for row in values for value in row.values())
    validations = [row for row in values if "val/elbo" in row]
    assert len(validations) == 2
    assert validations[1]["val/elbo"] > validations[0]["val/elbo"]  # the model learns
    for row in validations:
        assert row["val/elbo"] == pytest.approx(row["val/log_likelihood"] - row["val/kl"], abs=1e-3)
        assert row["val/kl"] == pytest.approx(row["val/kl/z"])
        assert row["val/kl"] > 0


def test_pictures_show_digits_that_one_can_see(trained: TrainedRun) -> None:
    """50 digits in rows of ten, each enlarged to 56 pixels; each row of originals is above the row of its means."""
    images = trained.folder / "images"
    samples, pairs = read_picture(images / "samples-0002.png"), read_picture(images / "reconstructions-0002.png")
    title, margin = 24, pairs.shape[2] - (10 * 58 + 2)
    assert samples.shape == (3, title + 5 * 60, 10 * 58 + 2)
    assert pairs.shape[1] == title + 5 * (2 * 60 + 8)
    for text in (samples[:, :title], pairs[:, :title], pairs[:, title : title + 60, :margin]):
        assert (text < 128).any()
    samples, pairs = samples[:, title:], pairs[:, title:, margin:]
    validation = Digits().images("val").pixels
    for column in range(10):
        left = 2 + 58 * column
        original = pairs[:, 2:58, left : left + 56]
        assert torch.equal(original[0, ::7, ::7], (validation[column, 0].float() / 16 * 255).round().to(torch.uint8))
        assert torch.equal(original, original[:, ::7, ::7].repeat_interleave(7, 1).repeat_interleave(7, 2))
        assert samples[:, 2:58, left : left + 56].float().std() > 5
        assert pairs[:, 66:110, left : left + 56].float().std() > 5


def test_results_say_the_number_and_what_it_is_a_number_of(trained: TrainedRun) -> None:
    recorded = results(trained.folder)
    metrics = recorded["metrics"]
    alone = ("active_units/z", "dead_dimensions/z")
    beside = ("rate", "distortion", "psnr", "mutual_information/z", "aggregate_gap/z", "nll", "nll_bpd", "nll_ess")
    beside = (*beside, "swap_cost", "mse")
    with_error = {*beside, *TERMS} - {*alone}
    assert {f"test/{name}" for name in (*alone, *with_error, *(f"{name}_stderr" for name in with_error))} == set(
        metrics
    )
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 < metrics["test/nll_stderr"] < 20
    assert metrics["test/nll"] < -metrics["test/elbo"]  # K = 4 is a tighter bound than the ELBO
    assert recorded["nll"]["num_samples"] == 4
    assert 1 <= metrics["test/nll_ess"] <= 4
    assert len(recorded["details"]["kl_per_dimension/z"]) == len(recorded["details"]["kl_per_dimension_stderr/z"]) == 8
    assert "factors" in recorded["left_out"]["Disentanglement"]
    assert recorded["units"]["psnr"] == "dB"
    assert recorded["evaluation"]["num_samples"] == 4
    assert recorded["seconds"].keys() == {"fit", "test"}
    assert "core" in recorded["machine"]
    assert recorded["data"]["num_images"] == 355
    assert recorded["model"]["init_args"]["likelihood"]["class_path"].endswith("Binomial")
    assert Path(recorded["checkpoint"]).samefile(trained.folder / "checkpoints" / "best.ckpt")
    assert recorded["seed"] == 0


def test_the_last_lines_name_folder_numbers_and_next_command(trained: TrainedRun) -> None:
    nll = results(trained.folder)["metrics"]["test/nll"]
    lines = trained.stdout.splitlines()
    rows = {line.split()[0]: line for line in lines[lines.index("") + 1 :] if line[:1].strip()}
    assert str(trained.folder) in rows["run"]
    assert f"nll {nll:.2f}" in rows["test"]
    assert "Binomial" in rows["given"]
    assert "4 importance samples, " in rows["given"]
    assert "active_units/z" in trained.stdout
    assert f"vae-lightning sample {trained.folder / 'checkpoints' / 'best.ckpt'}" in rows["next"]
    assert "wandb sync" in rows["W&B"]


def test_the_same_command_twice_makes_two_folders_and_the_same_numbers(trained: TrainedRun) -> None:
    runs = trained.folder.parent
    run_cli(*TRAIN, f"--runs_dir={runs.parent.parent}")
    folders = sorted(runs.iterdir())
    assert len(folders) == 2
    other = next(folder for folder in folders if folder != trained.folder)
    assert results(other)["metrics"] == results(trained.folder)["metrics"]


def test_a_test_by_itself_repeats_the_numbers_in_the_runs_own_folder(trained: TrainedRun, tmp_path: Path) -> None:
    folder = trained.copy_to(tmp_path)
    (folder / "results.json").unlink()
    best = folder / "checkpoints" / "best.ckpt"
    result = run_cli("test", "-c", folder / "config.yaml", "--ckpt_path", best, f"--runs_dir={tmp_path / 'other'}")
    assert not (tmp_path / "other").exists()
    before, after = results(trained.folder)["metrics"], results(folder)["metrics"]
    assert after == {name: pytest.approx(value, abs=1e-4) for name, value in before.items()}
    assert str(folder) in result.stdout


@pytest.mark.parametrize(("verb", "name"), [("sample", "samples"), ("reconstruct", "reconstructions")])
def test_a_picture_of_a_checkpoint(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, name: str
) -> None:
    folder = trained.copy_to(tmp_path)
    best = str(folder / "checkpoints" / "best.ckpt")
    assert main([verb, best, "--num_images=20"]) == 0
    output = folder / "images" / f"{name}.png"
    assert capsys.readouterr().out.strip() == str(output)
    picture = read_picture(output)
    assert picture.shape[2] >= 582
    assert picture.float().std() > 5
    again = tmp_path / "again.png"
    for seed, same in ((0, True), (1, False)):
        assert main([verb, best, "--num_images=20", f"--seed={seed}", f"--output={again}"]) == 0
        assert (again.read_bytes() == output.read_bytes()) == same


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(trained: TrainedRun, tmp_path: Path) -> None:
    folder = trained.copy_to(tmp_path)
    before = read_csv(folder / "metrics.csv")
    last = folder / "checkpoints" / "last.ckpt"
    off = ("--trainer.logger=false", "--trainer.max_epochs=4")
    run_cli("fit", "-c", folder / "config.yaml", "--ckpt_path", last, *off, f"--runs_dir={tmp_path / 'other'}")
    assert not (tmp_path / "other").exists()  # the run stays in its folder
    assert main(["fit", "-c", DIGITS, *EPOCHS, *off, f"--runs_dir={tmp_path / 'whole'}"]) == 0

    resumed, whole = weights(last), weights(only(tmp_path, "whole/vae/digits/*/checkpoints/last.ckpt"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    changed = weights(trained.folder / "checkpoints" / "last.ckpt")
    assert not any(torch.equal(resumed[name], changed[name]) for name in whole)

    after = read_csv(folder / "metrics.csv")
    assert after[: len(before)] == before
    unbroken = [row for row in read_csv(only(tmp_path, "whole/vae/digits/*/metrics.csv")) if "val/elbo" in row]
    assert [row for row in after if "val/elbo" in row] == unbroken


# -- what can be swapped from the command line ------------------------------------------------------------------------


def build(tmp_path: Path, *args: str) -> CLI:
    """Run one training and one validation step with these arguments."""
    quick = ("--trainer.logger=false", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu")
    return CLI(["fit", "-c", DIGITS, *quick, f"--runs_dir={tmp_path}", *args])


SLOTS: dict[str, tuple[Sequence[str], str, type, dict[str, Any]]] = {
    "encoder": (["--model.encoder=ConvEncoder", "--model.encoder.channels=[4,8]"], "encoder", networks.ConvEncoder, {}),
    "decoder": (["--model.decoder=ConvDecoder", "--model.decoder.channels=[4,8]"], "decoder", networks.ConvDecoder, {}),
    "posterior": (["--model.posterior.min_sigma=0.01"], "posterior", d.DiagonalNormal, {"min_scale": 0.01}),
    "prior": (["--model.prior=StandardNormal"], "prior", d.StandardNormal, {}),
    "continuous": (["--model.likelihood=ContinuousBernoulli"], "likelihood", d.ContinuousBernoulli, {}),
    "normal": (
        ["--model.likelihood=DiagonalNormal", "--model.likelihood.sigma=0.1", "--model.likelihood.learn_sigma=true"],
        "likelihood",
        d.DiagonalNormal,
        {"num_params": 1},
    ),
    "bernoulli": (
        ["--model.likelihood=Bernoulli", "--data.binarisation=threshold"],
        "likelihood",
        d.Bernoulli,
        {},
    ),
    "objective": (
        ["--model.objective=IWAE", "--model.objective.num_samples=4"],
        "objective",
        objectives.IWAE,
        {"num_samples": 4},
    ),
    "beta": (["--model.objective.beta=0.5"], "objective", objectives.ELBO, {"beta": objectives.Constant(0.5)}),
    "warm-up": (
        ["--model.objective.beta=LinearWarmup", "--model.objective.beta.num_steps=10"],
        "objective",
        objectives.ELBO,
        {"beta": objectives.LinearWarmup(10)},
    ),
    "bounds": (
        ["--model.objective=PIWAE", "--model.objective.num_bounds=4", "--model.objective.samples_per_bound=2"],
        "objective",
        objectives.PIWAE,
        {"num_samples": 8, "num_bounds": 4},
    ),
    "beta-tc": (
        ["--model.objective=BetaTC", "--model.objective.dataset_size=1000", "--model.objective.beta=3"],
        "objective",
        objectives.BetaTC,
        {"dataset_size": 1000, "beta": objectives.Constant(3.0)},
    ),
    "capacity": (
        [
            *("--model.objective=Capacity", "--model.objective.capacity=LinearWarmup"),
            *("--model.objective.capacity.num_steps=100", "--model.objective.capacity.end=25"),
        ],
        "objective",
        objectives.Capacity,
        {"capacity": objectives.LinearWarmup(100, end=25.0)},
    ),
    "kernel": (
        ["--model.objective=InfoVAE", "--model.objective.kernel=RBF", "--model.objective.kernel.width=2"],
        "objective",
        objectives.InfoVAE,
        {"kernel": objectives.RBF(2.0)},
    ),
    "cyclic": (
        ["--model.objective.beta=Cyclic", "--model.objective.beta.period=10"],
        "objective",
        objectives.ELBO,
        {"beta": objectives.Cyclic(10)},
    ),
}


@pytest.mark.parametrize("case", SLOTS)
def test_a_slot_is_swapped_without_code(tmp_path: Path, case: str) -> None:
    args, slot, cls, attributes = SLOTS[case]
    model = build(tmp_path, *args).model
    assert isinstance(model, VAE)
    part = getattr(model, slot)
    assert type(part) is cls
    assert {name: getattr(part, name) for name in attributes} == attributes


def test_all_six_slots_at_once_and_the_settings_of_their_classes(tmp_path: Path) -> None:
    args = [
        arg for case in ("encoder", "decoder", "posterior", "prior", "normal", "objective") for arg in SLOTS[case][0]
    ]
    model = build(tmp_path, *args, "--model.latent_size=3", "--model.encoder.activation=torch.nn.Tanh").model
    assert isinstance(model.likelihood.raw_sigma, nn.Parameter)
    assert model.encoder.out_shape == (6,)
    assert any(isinstance(layer, nn.Tanh) for layer in model.encoder.modules())
    assert [layer.out_channels for layer in model.encoder.modules() if isinstance(layer, nn.Conv2d)] == [4, 8]


def test_optimizer_and_scheduler_are_swapped_without_code(tmp_path: Path) -> None:
    cli = build(
        tmp_path,
        *("--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.01", "--model.optimizer.weight_decay=0.5"),
        *("--model.scheduler=torch.optim.lr_scheduler.StepLR", "--model.scheduler.step_size=1"),
        *("--model.scheduler.gamma=0.1", "--model.scheduler_interval=step"),
    )
    optimizer, schedule = cli.trainer.optimizers[0], cli.trainer.lr_scheduler_configs[0]
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert type(schedule.scheduler) is torch.optim.lr_scheduler.StepLR
    assert schedule.interval == "step"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)  # one step has been taken
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(cli.model.parameters()))


# -- the resolved configuration ---------------------------------------------------------------------------------------


def print_config(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["fit", *args, "--print_config"])
    assert not ended.value.code
    return capsys.readouterr().out


OVERRIDES = (
    "--model.encoder=ConvEncoder",
    "--model.objective.beta=LinearWarmup",
    "--model.objective.beta.num_steps=10",
)


def test_the_printed_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = print_config(capsys, "-c", DIGITS, *OVERRIDES)
    (tmp_path / "printed.yaml").write_text(printed)
    again = print_config(capsys, "-c", str(tmp_path / "printed.yaml"))
    assert yaml.safe_load(again) == yaml.safe_load(printed)
    init_args = yaml.safe_load(printed)["model"]["init_args"]
    assert init_args["encoder"]["class_path"].endswith("ConvEncoder")
    assert init_args["objective"]["init_args"]["beta"]["init_args"]["num_steps"] == 10


def test_a_runs_config_is_the_one_it_was_started_with(trained: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    kept = yaml.safe_load((trained.folder / "config.yaml").read_text())
    asked = yaml.safe_load(print_config(capsys, "-c", DIGITS, "--trainer.max_epochs=2", *EPOCHS))
    for section in ("model", "data", "trainer", "pictures", "checkpoint", "nll", "evaluation", "seed_everything"):
        assert kept[section] == asked[section]
    reread = yaml.safe_load(print_config(capsys, "-c", str(trained.folder / "config.yaml")))
    assert {name: reread[name] for name in kept} == kept


# -- mistakes -------------------------------------------------------------------------------------------------------


def make_files(folder: Path) -> None:
    """The files that the table of mistakes names."""
    (folder / "file").touch()
    (folder / "empty.ckpt").touch()
    (folder / "junk.ckpt").write_bytes(b"junk" * 100)
    torch.save({"a": 1}, folder / "plain.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": None}, folder / "no_hparams.ckpt")
    torch.save({"state_dict": [1], "hyper_parameters": {"_class_path": "a.B"}}, folder / "no_weights.ckpt")
    torch.save(nn.Linear(1, 1), folder / "pickled.ckpt")
    (folder / "broken.yaml").write_text("model: [unclosed\n")
    write_mnist(folder / "mnist")
    for name, broken in (("short", idx_bytes(np.zeros((60, 28, 28)))[:-1]), ("magic", b"<html>"), ("digest", None)):
        write_mnist(folder / name)
        if broken is not None:
            (folder / name / IDX_NAMES[0]).write_bytes(broken)
    write_mnist(folder / "mismatch")
    (folder / "mismatch" / IDX_NAMES[1]).write_bytes(idx_bytes(np.zeros(7)))
    write_mnist(folder / "gz", gz=True)
    whole = (folder / "gz" / f"{IDX_NAMES[0]}.gz").read_bytes()
    (folder / "gz" / f"{IDX_NAMES[0]}.gz").write_bytes(whole[: len(whole) // 2])
    write_binarized_mnist(folder / "binarized_mnist")
    write_binarized_mnist(folder / "amat" / "binarized_mnist")
    text = folder / "amat" / "binarized_mnist" / "binarized_mnist_train.amat"
    text.write_text(text.read_text()[:-100])


MNIST_IN = ("--data=MNIST", "--data.verify=false", "--data.data_dir={0}/")
FIT = ("fit", "-c", DIGITS)
TEST = ("test", "-c", DIGITS)

MISTAKES: dict[str, tuple[Sequence[str], int, str]] = {
    # unknown keys
    "key": ([*FIT, "--nonsense=3"], 2, "--nonsense"),
    "model-key": ([*FIT, "--model.laten_size=3"], 2, "model: .*laten_size"),
    "slot-key": ([*FIT, "--model.encoder.hiden_sizes=[3]"], 2, r"model\.encoder: .*hiden_sizes"),
    "trainer-key": ([*FIT, "--trainer.max_epoch=3"], 2, r"--trainer\.max_epoch"),
    "callback-key": ([*FIT, "--nll.num_sample=3"], 2, r"--nll\.num_sample"),
    "verb": (["trian", "-c", DIGITS], 2, r"'trian' \(did you mean train\?\); known: train, fit"),
    # wrong classes
    "no-class": (
        [*FIT, "--model.encoder=NoSuchNet"],
        2,
        r"model\.encoder: NoSuchNet .*ConvEncoder, GatedMLP, LadderMLP, LocalConv, MLP",
    ),
    "encoder": ([*FIT, "--model.encoder=ELBO"], 2, r"model\.encoder: ELBO is no Network"),
    "decoder": ([*FIT, "--model.decoder=Bernoulli"], 2, r"model\.decoder: Bernoulli is no Network"),
    "posterior": ([*FIT, "--model.posterior=StandardNormal"], 2, r"model\.posterior: StandardNormal is no Family"),
    "likelihood": ([*FIT, "--model.likelihood=MLP"], 2, r"model\.likelihood: MLP is no Family"),
    "prior": ([*FIT, "--model.prior=DiagonalNormal"], 2, r"model\.prior: DiagonalNormal is no Prior"),
    "objective": ([*FIT, "--model.objective=MLP"], 2, r"model\.objective: MLP is no Objective"),
    "foreign-class": ([*FIT, "--model.encoder=torch.nn.Linear"], 2, r"model\.encoder: torch\.nn\.Linear"),
    "model": ([*FIT, "--model=Digits"], 2, "model: Digits"),
    "data": ([*FIT, "--data=VAE"], 2, "data: VAE"),
    "optimizer": ([*FIT, "--model.optimizer=NoSuch"], 2, r"model\.optimizer: NoSuch"),
    # wrong values
    "no-config": (["fit", "-c", "configs/vae/nosuch.yaml"], 2, "nosuch.yaml"),
    "broken-config": (["fit", "-c", "{0}/broken.yaml"], 2, "broken.yaml"),
    "type": (
        [*FIT, "--model.latent_size=big"],
        2,
        r"model\.latent_size: Expected a int; Expected a tuple. Got value: big",
    ),
    "shape": ([*FIT, "--model.latent_size=[4,x,2]"], 2, r"model\.latent_size: .*Got value: x"),
    "negative": ([*FIT, "--model.latent_size=-1"], 2, "latent_size is -1"),
    "zero": ([*FIT, "--model.latent_size=0"], 2, "latent_size is 0"),
    "hidden": ([*FIT, "--model.encoder.hidden_sizes=[0]"], 2, r"hidden_sizes \[0\]"),
    "batch": ([*FIT, "--data.batch_size=0"], 2, "batch_size is 0"),
    "steps": ([*FIT, "--model.likelihood.num_steps=0"], 2, "num_steps is 0"),
    "samples": ([*FIT, "--nll.num_samples=-1"], 2, "num_samples -1"),
    "pictures": ([*FIT, "--pictures.num_images=-1"], 2, "num_images=0 turns pictures off"),
    "evaluation": ([*FIT, "--evaluation.num_samples=0"], 2, "evaluation: num_samples is 0"),
    "metric": ([*FIT, "--evaluation.also+=NoSuch"], 2, r"evaluation\.also: NoSuch"),
    "warm-up": (
        [*FIT, "--model.objective.beta=LinearWarmup", "--model.objective.beta.num_steps=0"],
        2,
        "num_steps is 0",
    ),
    "epochs": ([*FIT, "--trainer.max_epochs=-5"], 2, "max_epochs.* -5"),
    "devices": ([*FIT, "--trainer.accelerator=cpu", "--trainer.devices=0"], 2, "devices"),
    "rate": ([*FIT, "--model.optimizer.lr=-1"], 1, "learning rate: -1"),
    "grey": ([*FIT, "--model.likelihood=Bernoulli"], 1, r"Bernoulli .*--data\.binarisation=dynamic or threshold"),
    # data files
    "missing": ([*FIT, "--data=MNIST", "--data.data_dir={0}/none"], 1, r"train-images-idx3-ubyte.*/none.*DATA_DIR="),
    "digest": ([*FIT, "--data=MNIST", "--data.data_dir={0}/mnist"], 1, "mnist/train-images-idx3-ubyte: wrong digest"),
    "truncated": ([*FIT, *MNIST_IN[:2], MNIST_IN[2] + "short"], 1, "short/train-images-idx3-ubyte: truncated"),
    "truncated-gz": ([*FIT, *MNIST_IN[:2], MNIST_IN[2] + "gz"], 1, "gz/train-images-idx3-ubyte.gz: cannot be read"),
    "magic": ([*FIT, *MNIST_IN[:2], MNIST_IN[2] + "magic"], 1, "magic/train-images-idx3-ubyte: not an IDX file"),
    "mismatch": ([*FIT, *MNIST_IN[:2], MNIST_IN[2] + "mismatch"], 1, "train-labels-idx1-ubyte: expected 60 .* found 7"),
    "amat": ([*FIT, "--data=BinarizedMNIST", "--data.data_dir={0}/amat"], 1, "_train.amat, line 12: expected 784"),
    "amat-count": (
        [*FIT, "--data=BinarizedMNIST", "--data.data_dir={0}"],
        1,
        "_train.*: expected 50000 images, found 12",
    ),
    # objectives
    "no-dataset-size": ([*FIT, "--model.objective=BetaTC"], 2, "model.objective: .*required: dataset_size"),
    "no-goal": ([*FIT, "--model.objective=GECO"], 2, "model.objective: .*required: goal"),
    "no-bounds": ([*FIT, "--model.objective=MIWAE", "--model.objective.num_bounds=0"], 2, "MIWAE: num_bounds is 0"),
    # checkpoints
    "test-untrained": (TEST, 2, "test needs --ckpt_path"),
    "validate-untrained": (["validate", *TEST[1:]], 2, "validate needs --ckpt_path"),
    "predict-untrained": (["predict", *TEST[1:]], 2, "predict needs --ckpt_path"),
    "no-file": ([*TEST, "--ckpt_path={0}/none.ckpt"], 2, "none.ckpt: no such checkpoint"),
    "no-file-to-resume": ([*FIT, "--ckpt_path={0}/none.ckpt"], 2, "none.ckpt: no such checkpoint"),
    "empty": ([*TEST, "--ckpt_path={0}/empty.ckpt"], 2, "empty.ckpt: not a readable checkpoint"),
    "junk": ([*TEST, "--ckpt_path={0}/junk.ckpt"], 2, "junk.ckpt: not a readable checkpoint"),
    "pickled": ([*TEST, "--ckpt_path={0}/pickled.ckpt"], 2, "pickled.ckpt: not a readable checkpoint"),
    "foreign": ([*TEST, "--ckpt_path={0}/plain.ckpt"], 2, "plain.ckpt: not a checkpoint of vae_lightning"),
    "foreign-list": ([*TEST, "--ckpt_path={0}/list.ckpt"], 2, "list.ckpt: not a checkpoint of vae_lightning"),
    "no-hparams": ([*TEST, "--ckpt_path={0}/no_hparams.ckpt"], 2, "no_hparams.ckpt: not a checkpoint"),
    "no-weights": ([*TEST, "--ckpt_path={0}/no_weights.ckpt"], 2, "no_weights.ckpt: not a checkpoint"),
    "sample-junk": (["sample", "{0}/junk.ckpt"], 2, "junk.ckpt: not a readable checkpoint"),
    "reconstruct-none": (["reconstruct", "{0}/none.ckpt"], 2, "none.ckpt: no such checkpoint"),
    "sample-what": (["sample"], 2, "RUN"),
    "sample-key": (["sample", "{0}/junk.ckpt", "--nonsense=1"], 2, "--nonsense"),
    "sample-zero": (["sample", "{0}/junk.ckpt", "--num_images=0"], 2, "--num_images is 0"),
    # output
    "runs-dir": ([*FIT, "--runs_dir={0}/file"], 2, "file/vae/digits.*: cannot be written .*--runs_dir"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_files(folder)
    return folder


def complete(args: Sequence[str], files: Path, runs: Path) -> list[str]:
    command = [arg.format(files) for arg in args]
    if args[0] in ("sample", "reconstruct"):
        return command
    quick = ("--trainer.logger=false", *(() if "--trainer.max_epochs=-5" in command else ("--trainer.max_epochs=1",)))
    return [*command, *quick, *(() if any("runs_dir" in arg for arg in command) else (f"--runs_dir={runs}",))]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_one_clear_line(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    args, code, says = MISTAKES[case]
    monkeypatch.setattr(MNIST, "mirrors", ("http://127.0.0.1:1/",))
    try:
        exit_code: Any = main(complete(args, files, tmp_path / "runs"))
    except SystemExit as ended:
        exit_code = ended.code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("vae-lightning: error: ")
    assert re.search(says, lines[0]), lines[0]
    assert exit_code == code
    folders = [path for path in (tmp_path / "runs").rglob("*") if path.is_dir() and RUN_ID.fullmatch(path.name)]
    assert not [folder for folder in folders if code == 2 or not any(folder.iterdir())]


@pytest.mark.parametrize("case", ["model-key", "grey"])
def test_the_shell_sees_the_same_line_and_exit_code(files: Path, tmp_path: Path, case: str) -> None:
    args, code, says = MISTAKES[case]
    result = run_cli(*complete(args, files, tmp_path), expect=code)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert re.search(f"^vae-lightning: error: .*{says}", lines[0])
    assert "Traceback" not in result.stdout


def test_a_checkpoint_of_another_size_says_which_tensor(
    trained: TrainedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    best = trained.folder / "checkpoints" / "best.ckpt"
    args = ["test", "-c", DIGITS, f"--ckpt_path={best}", "--model.latent_size=4", f"--runs_dir={tmp_path}"]
    assert main(args) == 2
    error = capfd.readouterr().err
    assert re.fullmatch(r"vae-lightning: error: .*best\.ckpt does not fit .*\[256, 8\] there, \[256, 4\] here\n", error)


def test_resuming_from_weights_alone_is_refused(
    trained: TrainedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint without the optimizer's state can be tested, but not resumed."""
    whole = torch.load(trained.folder / "checkpoints" / "last.ckpt", weights_only=True)
    path = tmp_path / "weights.ckpt"
    torch.save({name: whole[name] for name in ("state_dict", "hyper_parameters")}, path)
    args = ["fit", "-c", DIGITS, f"--ckpt_path={path}", "--trainer.logger=false", f"--runs_dir={tmp_path / 'runs'}"]
    assert main(args) in (1, 2)
    assert re.fullmatch(r"vae-lightning: error: .*weights\.ckpt.*\n", capfd.readouterr().err)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_path": "os.path.Foo"},
        {"_class_path": "vae_lightning.models.Foo"},
        {"_class_path": "vae_lightning.nowhere.Foo"},
        {"encoder": {"class_path": "os.system"}},
        {"encoder": {"class_path": "torch.nn.Linear"}},
        {"latent_size": 5},
    ],
    ids=str,
)
def test_a_checkpoint_with_a_strange_model_is_refused(
    trained: TrainedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    whole = torch.load(trained.folder / "checkpoints" / "last.ckpt", weights_only=True)
    path = tmp_path / "strange.ckpt"
    torch.save({**whole, "hyper_parameters": {**whole["hyper_parameters"], **change}}, path)
    assert main(["sample", str(path), f"--output={tmp_path / 'a.png'}"]) == 2
    assert re.fullmatch(r"vae-lightning: error: .*strange\.ckpt.*\n", capfd.readouterr().err)
    assert not (tmp_path / "a.png").exists()


def test_a_dev_run_leaves_nothing(tmp_path: Path) -> None:
    build(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# -- starting up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--help"], ["--version"], []])
def test_help_and_version_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; from vae_lightning.__main__ import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'lightning', 'wandb', 'sklearn', 'numpy', 'jsonargparse'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", code, *args]
    result = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "vae-lightning" in result.stdout
    if args != ["--version"]:
        assert all(
            verb in result.stdout for verb in ("train", "fit", "validate", "test", "predict", "sample", "reconstruct")
        )
