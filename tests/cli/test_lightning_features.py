"""Lightning's flags, callbacks, strategies, precisions and loggers: each works, or is refused in one line."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Timer

from tests.helpers import DIGITS, REPOSITORY, only, read_csv, run_cli
from vae_lightning.__main__ import main
from vae_lightning.cli.lightning import CLI
from vae_lightning.distributions import Prior

FIT = (
    "fit",
    "-c",
    str(REPOSITORY / DIGITS),
    "--trainer.logger=false",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
)
STEPS = ("--trainer.max_steps=2", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1")

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints, which the tests do not read


@pytest.fixture(autouse=True)
def _only_the_verb(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Build only the parser of the command that is run, because the table has many commands."""
    if "args" in request.fixturenames:
        verbs = {"fit": CLI.subcommands()["fit"]}
        monkeypatch.setattr(CLI, "subcommands", staticmethod(lambda: verbs))


@pytest.fixture(autouse=True)
def _leave_as_found() -> Iterator[None]:
    """Restore the environment and torch's switches, which Lightning changes for the rest of a process."""
    environment, benchmark = dict(os.environ), torch.backends.cudnn.benchmark
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def trainer(**settings: Any) -> tuple[str, ...]:
    return tuple(f"--trainer.{name}={value}" for name, value in settings.items())


def callback(name: str, **arguments: Any) -> tuple[str, ...]:
    return (f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in arguments.items()))


def epochs(count: int) -> tuple[str, ...]:
    return trainer(
        max_steps=-1, max_epochs=count, limit_train_batches=4, limit_val_batches=1, check_val_every_n_epoch=1
    )


WORKS: list[tuple[str, ...]] = [
    *(trainer(precision=name) for name in ("32-true", "32", "bf16-mixed", "16-mixed")),
    *(trainer(accelerator=name) for name in ("auto", "cpu")),
    *(trainer(strategy=name) for name in ("auto", "single_device")),
    trainer(devices="auto"),
    trainer(num_nodes=1),
    trainer(deterministic="true"),
    trainer(deterministic="warn"),
    trainer(benchmark="true"),
    trainer(detect_anomaly="true"),
    trainer(profiler="simple"),
    trainer(profiler="advanced"),
    trainer(sync_batchnorm="true"),
    trainer(use_distributed_sampler="true"),
    trainer(reload_dataloaders_every_n_epochs=1),
    trainer(enable_model_summary="true"),
    trainer(enable_progress_bar="true"),
    trainer(enable_progress_bar="false"),
    trainer(enable_autolog_hparams="false"),
    trainer(model_registry="name"),
    trainer(inference_mode="false"),
    trainer(num_sanity_val_steps=1, limit_val_batches=1),
    trainer(log_every_n_steps=0),
    trainer(accumulate_grad_batches=2, max_steps=1),
    trainer(gradient_clip_val=0.5),
    trainer(gradient_clip_val=0.5, gradient_clip_algorithm="value"),
    trainer(min_epochs=1, min_steps=1),
    trainer(max_time="01:00:00:00"),
    trainer(plugins="AsyncCheckpointIO"),
    trainer(plugins="LightningEnvironment"),
    trainer(logger="true"),
    callback("Timer", duration="01:00:00:00"),
    callback("Timer", duration="{hours: 1}", interval="epoch"),
    callback("ModelSummary", max_depth=2),
    callback("RichModelSummary"),
    callback("RichProgressBar"),
    callback("TQDMProgressBar"),
    callback("LambdaCallback"),
    callback("EMA"),
    callback("GradientAccumulationScheduler", scheduling="{0: 2}"),
    ("--model.optimizer=torch.optim.LBFGS",),
    ("--model.optimizer=torch.optim.Adafactor",),
    ("--seed_everything=0",),
    ("--seed_everything=4294967295",),
]

SCHEDULER = "--model.scheduler=torch.optim.lr_scheduler"
LONG = (f"{SCHEDULER}.OneCycleLR", "--model.scheduler.max_lr=0.01", "--model.scheduler.total_steps=3")
CHECKED = ("--trainer.num_sanity_val_steps=1",)  # Lightning runs a trial validation before the first step
BY_STEP = (*LONG, "--model.scheduler_interval=step")
SPLIT = "splits the weights over devices"
SPAWNED = "choose ddp, which starts each process by this same command"
NOWHERE = "trainer.callbacks: {}: no metric {}; a validation logs val/elbo, val/kl"

REFUSED: list[tuple[tuple[str, ...], str]] = [
    *((trainer(precision=p), f"trainer.precision is {p}; choose 32-true") for p in ("16-true", "bf16-true", "64-true")),
    *((trainer(precision=p), f"trainer.precision is {p}; choose 32-true") for p in ("64", "transformer-engine")),
    (trainer(precision="half"), "trainer.precision: Expected"),
    (trainer(accelerator="gpu"), "trainer: "),
    (trainer(accelerator="tpu"), "trainer: Requirement 'torch_xla"),
    (trainer(accelerator="abacus"), "invalid accelerator name"),
    *((trainer(strategy=s), SPAWNED) for s in ("ddp_spawn", "ddp_notebook", "ddp_fork")),
    *((trainer(strategy=s), SPAWNED) for s in ("ddp_spawn_find_unused_parameters_true",)),
    (trainer(strategy="{class_path: DDPStrategy, init_args: {start_method: spawn}}"), SPAWNED),
    *((trainer(strategy=s), SPLIT) for s in ("fsdp", "deepspeed_stage_2", "tensor_parallel", "tp", "model_parallel")),
    *((trainer(strategy=s), SPLIT) for s in ("FSDPStrategy", "ModelParallelStrategy")),
    (
        ("--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.tensor_parallel_size=2"),
        SPLIT,
    ),
    *((trainer(strategy=s), "invalid strategy name") for s in ("dp", "horovod")),
    *((trainer(devices=d), "`devices` selected with `CPUAccelerator`") for d in ("-1", "many", "[0]")),
    (trainer(devices=0), "Trainer(devices='0')"),
    (trainer(num_nodes=0), "`num_nodes` must be a positive integer"),
    *((trainer(accumulate_grad_batches=n), f"accumulate_grad_batches is {n}; it must be at least 1") for n in (0, -1)),
    *((trainer(check_val_every_n_epoch=n), f"check_val_every_n_epoch is {n}; it must be at least 1") for n in (0, -1)),
    *((trainer(gradient_clip_val=v), f"gradient_clip_val is {v}; it must be at least 0") for v in (-1, -0.5)),
    (trainer(gradient_clip_val=1.0, gradient_clip_algorithm="root"), "`gradient_clip_algorithm` root is invalid"),
    (trainer(log_every_n_steps=-1), "log_every_n_steps is -1; it must be at least 0"),
    (trainer(num_sanity_val_steps=-2), "num_sanity_val_steps is -2; it must be at least -1"),
    *((trainer(val_check_interval=v), "--trainer.limit_val_batches=0") for v in ("0", "0.0")),
    (("--model.encoder.normalisation=torch.nn.BatchNorm1d", "--data.batch_size=1"), "needs two or more examples"),
    (trainer(val_check_interval=21), "must be less than or equal to the number of the training batches (20)"),
    (trainer(val_check_interval=1.5), "invalid value 1.5 for val_check_interval"),
    (trainer(val_check_interval="soon"), "Invalid time format for `val_check_interval`"),
    (trainer(val_check_interval=0.5, check_val_every_n_epoch="null"), "should be an integer"),
    (trainer(limit_train_batches=1.5), "invalid value 1.5 for limit_train_batches"),
    (trainer(limit_train_batches=0.001), "0.001 * 20 < 1"),
    (trainer(overfit_batches=-1), "invalid value -1 for overfit_batches"),
    (trainer(fast_dev_run=-1), "fast_dev_run=-1 is not a valid configuration"),
    (trainer(max_epochs=-2, max_steps=-1), "`max_epochs` must be a non-negative integer or -1"),
    (trainer(max_steps=-2), "`max_steps` must be a non-negative integer or -1"),
    (trainer(max_time="5 minutes"), "Expected a string in the format DD:HH:MM:SS"),
    (trainer(reload_dataloaders_every_n_epochs=-1), "should be an int >= 0"),
    (trainer(profiler="xla"), "trainer.profiler is xla, which needs a TPU"),
    (trainer(profiler="stopwatch"), "it can only be one of ['simple', 'advanced', 'pytorch', 'xla']"),
    (trainer(barebones="true"), "trainer.barebones is True: a run writes metrics and checkpoints"),
    (trainer(default_root_dir="/there"), "give --runs_dir"),
    (trainer(enable_checkpointing="false"), "trainer.enable_checkpointing is False"),
    (trainer(plugins="BitsandbytesPrecision"), "trainer.plugins"),
    (("--trainer.plugins=MixedPrecision", "--trainer.plugins.precision=bf16-mixed", "--trainer.plugins.device=cpu"),
     "Received both `precision=32-true` and `plugins=MixedPrecision`"),
    (trainer(logger="MLFlowLogger"), "mlflow"),
    (trainer(logger="CometLogger"), "comet"),
    (trainer(logger="CSVLogger"), "save_dir"),
    (("--seed_everything=-1",), "seed_everything is -1; it must be a whole number from 0 to 4294967295"),
    (("--seed_everything=4294967296",), "seed_everything is 4294967296; it must be a whole number"),
    (("--seed_everything=true",), "seed_everything is True; it must be a whole number"),
    (callback("NoSuchCallback"), "NoSuchCallback cannot be imported"),
    (callback("EarlyStopping"), "monitor"),
    (CHECKED + callback("EarlyStopping", monitor="val/nope"), NOWHERE.format("EarlyStopping", "val/nope")),
    (CHECKED + callback("EarlyStopping", monitor="elbo"), NOWHERE.format("EarlyStopping", "elbo")),
    (epochs(1) + callback("EarlyStopping", monitor="val/nope"), "metric `val/nope` which is not available"),
    (CHECKED + callback("ModelCheckpoint", monitor="val/nope"), NOWHERE.format("ModelCheckpoint", "val/nope")),
    ((*CHECKED, "--checkpoint.monitor=val/nope"), "checkpoint.monitor: no metric val/nope; a validation logs"),
    ((*CHECKED, "--model.scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.scheduler.monitor=val/nope"),
     "model.scheduler: ReduceLROnPlateau: no metric val/nope; a validation logs"),
    (("--checkpoint.mode=most",), "`mode` can be min, max but got most"),
    (callback("Timer", duration="1s"), "Expected a string in the format DD:HH:MM:SS"),
    (callback("LearningRateFinder"), "LearningRateFinder: the rate is an argument of the optimizer"),
    (callback("BatchSizeFinder"), "BatchSizeFinder: the run's config.yaml would record another batch size"),
    (callback("BackboneFinetuning"), "BackboneFinetuning needs a model with a part named backbone; VAE has objective"),
    (callback("BaseFinetuning"), "NotImplementedError in BaseFinetuning.freeze_before_training"),
    (callback("ModelPruning", pruning_fn="l1_unstructured"), "ModelPruning: it changes the weights"),
    *((callback(name), f"{name}: Lightning tests") for name in ("WeightAveraging", "EMAWeightAveraging")),
    (callback("StochasticWeightAveraging", swa_lrs=0.01), "--trainer.callbacks+=EMA instead"),
    (callback("EMA") + callback("EMA"), "more than one stateful callback of type `EMA`"),
    (callback("ThroughputMonitor"), "batch_size_fn"),
    (callback("GradientAccumulationScheduler", scheduling="{-1: 2}"), "Epoch should be an int greater"),
    (trainer(accumulate_grad_batches=2) + callback("GradientAccumulationScheduler", scheduling="{0: 2}"),
     "You have set `accumulate_grad_batches` and are using the `GradientAccumulationScheduler`"),
    (("--speed.steps_per_call=2", *callback("GradientAccumulationScheduler", scheduling="{0: 2}")),
     "GradientAccumulationScheduler does nothing with --speed.steps_per_call"),
    (trainer(enable_progress_bar="false") + callback("RichProgressBar"), "found `RichProgressBar` in callbacks list"),
    (trainer(max_steps=-1, max_epochs=5) + LONG, "total_steps = 3 epochs, and the run has 5 epochs"),
    (trainer(max_steps=5) + BY_STEP, "total_steps = 3 steps, and the run has 5 steps"),
    (trainer(max_steps=-1, max_epochs=1) + BY_STEP, "total_steps = 3 steps, and the run has 20 steps"),
    (trainer(max_steps=-1, max_epochs=1, accumulate_grad_batches=4) + BY_STEP, "and the run has 5 steps"),
    (("--speed.steps_per_call=5", *trainer(max_steps=-1, max_epochs=1), *BY_STEP), "and the run has 16 steps"),
    (trainer(max_steps=-1, max_epochs=-1, max_time="00:00:00:01") + BY_STEP, "number of steps is not known"),
    ((f"{SCHEDULER}.ReduceLROnPlateau",), "must include a monitor"),
    (("--model.optimizer=torch.optim.SparseAdam",), "SparseAdam does not support dense gradients"),
    (("--model.optimizer.lr=-1",), "Invalid learning rate: -1"),
    ((*trainer(max_steps=-1, max_epochs=1), f"{SCHEDULER}.StepLR", "--model.scheduler.step_size=0"), "modulo by zero"),
]  # fmt: skip


def name_of(value: Any) -> str | None:
    return " ".join(word.removeprefix("--trainer.") for word in value)[:90] if isinstance(value, tuple) else ""


def test_there_are_some_hundred_rows() -> None:
    assert len(WORKS) + len(REFUSED) >= 100


@pytest.mark.parametrize("args", WORKS, ids=name_of)
def test_it_works(args: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps are trained, and a checkpoint holds them."""
    assert main([*FIT, *STEPS, *args, f"--runs_dir={tmp_path}"]) == 0, capsys.readouterr().err
    run = only(tmp_path, "vae/digits/*")
    steps = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps == (1 if "--trainer.max_steps=1" in args else 2)
    assert "Unable to serialize" not in (run / "config.yaml").read_text()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("args", "line"), REFUSED, ids=name_of)
def test_it_is_refused_in_one_line(
    args: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that cannot work says why, before the first step if the reason is known by then."""
    try:
        code = main([*FIT, *STEPS, *args, f"--runs_dir={tmp_path}"])
    except SystemExit as ended:  # raised by jsonargparse
        code = int(ended.code or 0)
    err = capsys.readouterr().err
    assert code in (1, 2), err
    (error,) = [text for text in err.splitlines() if "error" in text]
    assert error.startswith("vae-lightning: error: ")
    assert line in error
    assert "Traceback" not in err
    assert " object at 0x" not in err


@pytest.mark.skipif(importlib.util.find_spec("psutil") is not None, reason="psutil is installed: it works then")
def test_what_is_not_installed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, *STEPS, *callback("DeviceStatsMonitor"), f"--runs_dir={tmp_path}"]) == 2
    assert "`psutil` is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["ddp", "{class_path: DDPStrategy, init_args: {find_unused_parameters: true}}"])
def test_one_process_under_ddp(strategy: str, tmp_path: Path) -> None:
    """The command runs in a new process, because the process then belongs to a process group."""
    run_cli(*FIT, *STEPS, f"--trainer.strategy={strategy}", f"--runs_dir={tmp_path}")
    assert (only(tmp_path, "vae/digits/*") / "checkpoints" / "last.ckpt").is_file()


# -- what works does its work -----------------------------------------------------------------------------------------


def fit(folder: Path, *args: str) -> Path:
    assert main([*FIT, *args, f"--runs_dir={folder}"]) == 0
    return only(folder, "vae/digits/*")


def state(run: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return dict(torch.load(run / "checkpoints" / name, weights_only=True))


def test_early_stopping_stops(tmp_path: Path) -> None:
    """With mode="min" a rising ELBO counts as worse, so the run ends after one epoch of patience."""
    run = fit(tmp_path, *epochs(6), *callback("EarlyStopping", monitor="val/elbo", mode="min", patience=1))
    assert state(run)["global_step"] == 2 * 4


def test_a_learning_rate_monitor_logs_the_rate(tmp_path: Path) -> None:
    decay = (f"{SCHEDULER}.ExponentialLR", "--model.scheduler.gamma=0.5")
    run = fit(tmp_path, *epochs(2), "--trainer.log_every_n_steps=1", *callback("LearningRateMonitor"), *decay)
    rates = [float(row["lr-Adam"]) for row in read_csv(run / "metrics.csv") if "lr-Adam" in row]
    assert rates == [1e-3, 5e-4]


def test_no_clipping_is_no_clipping(tmp_path: Path) -> None:
    """gradient_clip_val=0 means no clipping in Lightning, not a gradient of zero."""
    plain, zero = (fit(tmp_path / str(clip), *STEPS, *trainer(gradient_clip_val=clip)) for clip in ("null", 0))
    weights = state(plain)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in state(zero)["state_dict"].items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_a_timer_ends_goes_on_exactly(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each batch counts as a second: the time ends at batch 7 of the second epoch of 20, within an accumulated step."""

    def count(self: Any, batches: int = 1) -> float:
        self.batches = getattr(self, "batches", 0) + batches
        return float(self.batches)

    check = Timer._check_time_remaining
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, _="": count(self, 0))
    monkeypatch.setattr(Timer, "_check_time_remaining", lambda self, trainer: (count(self), check(self, trainer))[1])
    args = (
        *trainer(max_epochs=3, accumulate_grad_batches=accumulate, check_val_every_n_epoch=2),
        *("--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=1"),
    )
    whole = fit(tmp_path / "whole", *args)
    timed = (*args, "--run_id=timed")
    # 28 and not 27, because on_fit_start also asks for the time
    run = fit(tmp_path / "cut", *timed, *callback("Timer", duration="00:00:00:28"))
    assert state(run)["global_step"] == (27 if accumulate == 1 else 14)
    capsys.readouterr()
    fit(tmp_path / "cut", *timed)
    assert "goes on from last.ckpt" in capsys.readouterr().out
    assert state(run)["global_step"] == state(whole)["global_step"]
    weights = state(whole)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in state(run)["state_dict"].items())


def test_a_timer_is_kept_in_the_config(tmp_path: Path) -> None:
    """Lightning's default of `interval` is an Enum, which YAML cannot write."""
    run = fit(tmp_path, *STEPS, *callback("Timer", duration="01:00:00:00"))
    (kept,) = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert kept["init_args"] == {"duration": "01:00:00:00", "interval": "step", "verbose": True}


def test_a_schedule_that_is_too_short_for_a_longer_run_is_refused_when_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = (*BY_STEP, "--run_id=once", f"--runs_dir={tmp_path}", "--trainer.num_sanity_val_steps=0")
    assert main([*FIT, *args, "--trainer.max_steps=3"]) == 0
    assert main([*FIT, *args, "--trainer.max_steps=5"]) == 1
    assert "total_steps = 3 steps, and the run has 5 steps" in capsys.readouterr().err


def test_a_rate_that_falls_to_zero_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(
        tmp_path,
        *STEPS,
        f"{SCHEDULER}.PolynomialLR",
        "--model.scheduler.total_iters=1",
        "--model.scheduler_interval=step",
    )
    assert (
        "PolynomialLR ends after total_iters = 1 steps, and the run has 2 steps: the rate is 0"
        in capsys.readouterr().out
    )


# -- a run without a validation has no best checkpoint ----------------------------------------------------------------


@pytest.fixture(scope="module")
def without_best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is trained for two steps and tested, without a validation."""
    folder = tmp_path_factory.mktemp("without_best")
    args = ("--nll.num_samples=2", "--trainer.limit_test_batches=1", f"--runs_dir={folder}")
    assert main(["train", *FIT[1:], *STEPS, *args]) == 0
    return only(folder, "vae/digits/*")


def test_train_tests_the_last_checkpoint(without_best: Path) -> None:
    results = yaml.safe_load((without_best / "results.json").read_text())
    assert Path(results["checkpoint"]).name == "last.ckpt"


VERBS = [
    ("sample", "{run}", "--output={run}/a.png"),
    ("reconstruct", "{run}", "--output={run}/b.png"),
    ("impute", "{run}", "--steps=1", "--num_images=2", "--output={run}/c.png"),
    ("fit-prior", "{run}", "--prior=LearnedNormal"),
    *(
        (verb, "-c", "{run}/config.yaml", "--ckpt_path={run}", f"--trainer.limit_{verb}_batches=1")
        for verb in ("test", "predict")
    ),
    ("validate", "-c", "{run}/config.yaml", "--ckpt_path={run}"),
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_every_verb_falls_back_on_it_and_says_so(
    verb: tuple[str, ...], without_best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Prior, "fit_steps", 2)
    assert main([word.format(run=without_best) for word in verb]) == 0
    assert "has no best.ckpt, which a validation writes: last.ckpt is used" in capsys.readouterr().err


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path)]) == 2
    assert f"{tmp_path}: no checkpoint in {tmp_path / 'checkpoints'}" in capsys.readouterr().err
