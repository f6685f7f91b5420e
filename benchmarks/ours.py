"""How ours is called: the CLI as a user types it, with a stopwatch. All flags that the benchmark adds stand here."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rounds import Contender

HERE = Path(__file__).parent
PROGRAM = ("-m", "vae_lightning")
TIMER = "--trainer.callbacks+=benchmarks.timing.EpochTimer"

FLOAT32 = ("--trainer.precision=32-true", "--matmul_precision=highest")  # as torch has it for the others, no TF32
SEVERAL = "--speed.steps_per_call=16"  # for steps of a few milliseconds: the same weights bit for bit
COMPILED = "--speed.compile=true"
FASTEST = {  # the fastest setting found, by suite and device: change it here
    ("mnist", "cpu"): ("--trainer.precision=bf16-mixed", COMPILED, SEVERAL),
    ("mnist", "cuda"): ("--trainer.precision=bf16-mixed", COMPILED, SEVERAL),
    ("celeba", "cpu"): ("--trainer.precision=bf16-mixed", "--speed.channels_last=true"),
    ("celeba", "cuda"): ("--trainer.precision=bf16-mixed", "--speed.channels_last=true", COMPILED),
}


def fit(config: str, data_dir: Path, epochs: int, *flags: str) -> tuple[str, ...]:
    """A fit with its real logging: metrics.csv, W&B (offline), the bar. Its run is thrown away with its folder."""
    given = ("-c", str(HERE / config), f"--data.data_dir={data_dir}", f"--trainer.max_epochs={epochs}")
    return (*PROGRAM, "fit", *given, "--seed_everything={seed}", "--runs_dir=runs", *flags, TIMER)


def mnist(name: str, what: str, data_dir: Path, epochs: int, pixels: str, verify: bool, *flags: str) -> Contender:
    """On 50,000 images an epoch, since 10,000 are ours to validate on; ends with the ELBO of the test images."""
    elbo = ("--trainer.callbacks+=benchmarks.final.TestELBO", f"--trainer.callbacks.data_dir={data_dir}")
    flags = (f"--data.binarisation={pixels}", f"--data.verify={str(verify).lower()}", *flags)
    command = (*fit("mnist.yaml", data_dir, epochs, *flags), *elbo, f"--trainer.callbacks.pixels={pixels}")
    return Contender(name, what, command)


def celeba(name: str, what: str, data_dir: Path, epochs: int, batch_size: int, *flags: str) -> Contender:
    flags = ("--data.verify=false", f"--data.batch_size={batch_size}", *flags)
    return Contender(name, what, fit("celeba.yaml", data_dir, epochs, *flags))
