"""The commands of our contenders: the CLI as a user types it, with a stopwatch. All flags of the benchmark are here."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rounds import Contender

HERE = Path(__file__).parent
PROGRAM = ("-m", "vae_lightning")
TIMER = "--trainer.callbacks+=benchmarks.timing.EpochTimer"

FLOAT32 = (
    "--trainer.precision=32-true",
    "--matmul_precision=highest",
)  # torch's default, as for the other contenders: no TF32
SEVERAL = "--speed.steps_per_call=16"  # for steps of a few milliseconds; the weights stay equal bit for bit
COMPILED = "--speed.compile=true"
FASTEST = {  # the fastest setting found, by suite and device
    ("mnist", "cpu"): ("--trainer.precision=bf16-mixed", COMPILED, SEVERAL),
    ("mnist", "cuda"): ("--trainer.precision=bf16-mixed", COMPILED, SEVERAL),
    ("celeba", "cpu"): ("--trainer.precision=bf16-mixed", "--speed.channels_last=true"),
    ("celeba", "cuda"): ("--trainer.precision=bf16-mixed", "--speed.channels_last=true", COMPILED),
}


def fit(config: str, data_dir: Path, epochs: int, *flags: str) -> tuple[str, ...]:
    """A fit with its usual logging: metrics.csv, W&B (offline), the bar. The run's folder is removed afterwards."""
    settings = ("-c", str(HERE / config), f"--data.data_dir={data_dir}", f"--trainer.max_epochs={epochs}")
    return (*PROGRAM, "fit", *settings, "--seed_everything={seed}", "--runs_dir=runs", *flags, TIMER)


def mnist(name: str, what: str, data_dir: Path, epochs: int, pixels: str, verify: bool, *flags: str) -> Contender:
    """Train on 50,000 images per epoch, because 10,000 are for validation; then record the ELBO of the test images."""
    elbo = ("--trainer.callbacks+=benchmarks.final.TestELBO", f"--trainer.callbacks.data_dir={data_dir}")
    flags = (f"--data.binarisation={pixels}", f"--data.verify={str(verify).lower()}", *flags)
    command = (*fit("mnist.yaml", data_dir, epochs, *flags), *elbo, f"--trainer.callbacks.pixels={pixels}")
    return Contender(name, what, command)


def celeba(name: str, what: str, data_dir: Path, epochs: int, batch_size: int, *flags: str) -> Contender:
    flags = ("--data.verify=false", f"--data.batch_size={batch_size}", *flags)
    return Contender(name, what, fit("celeba.yaml", data_dir, epochs, *flags))
