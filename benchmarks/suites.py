"""The suites: contenders, columns and claims. This file does not import torch, because contenders are commands."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ours
from benchmarks.report import ratio_of
from benchmarks.rounds import Claim, Column, Contender, Round, Suite, Values

CELEBA_TRAIN = 162_770
GPU_EPOCHS = 50  # of 3,008 images, for contenders on resident data: short epochs give too few samples of the GPU


@dataclass(frozen=True)
class Options:
    """The options of all suites. `data_dir` has MNIST in torchvision's layout; `real`: not synthetic bytes."""

    data_dir: Path
    real: bool
    scratch: Path
    device: str
    smoke: bool


def value(name: str) -> Callable[[Values], float | None]:
    return lambda values: values.get(name)


def ratio(above: str, below: str, name: str = "images_per_second") -> Callable[[Round], float | None]:
    return lambda one: ratio_of(one, above, below, name)


RATE = Column("images/s", value("images_per_second"))
FAR = Column("with cores far apart", value("far_images_per_second"))
GPU_BUSY = Column("GPU busy, %", value("gpu_busy"))
START_UP = Column("start-up, s", value("first_step_s"), ".1f")
MEMORY = Column("memory, MB", value("peak_memory_mb"))
THREADS = Column("threads", value("threads"))


# -- MNIST -------------------------------------------------------------------------------------------------------------


def mnist(options: Options) -> Suite:
    epochs = 2 if options.smoke else 5
    where = "real MNIST" if options.real else "synthetic bytes of MNIST's shape"
    return Suite(
        name="mnist",
        title=f"784-400-20-400-784, Adam 1e-3, batch 128, {where}, {epochs} epochs of which the first is warm-up",
        contenders=(*_mnist_peers(options, epochs), *_mnist_ours(options, epochs), *_mnist_ceilings(options, epochs)),
        columns=(RATE, FAR, START_UP, MEMORY, THREADS, Column("test ELBO, nats", value("elbo"), ".2f")),
        claims=_mnist_claims(options.device),
        notes=_MNIST_NOTES,
        base="reference",
    )


_NEAR_CORES = (
    "A host moves a virtual machine's cores every few seconds or minutes. If two cores share no cache, threads "
    "exchange data four times as slowly. The exchange time is measured before and after each epoch. images/s and the "
    "ratios come from epochs with near cores (at most twice the shortest exchange time seen), if a run has such an "
    "epoch; each contender runs up to three times until it has one. The next column has the other epochs."
)

_ALLOCATOR = (
    "The bare loops and ours keep freed memory (`keep_memory` in `vae_lightning/__main__.py`); the peers have the "
    "system's setting."
)

_MNIST_NOTES = (
    "images/s: the median over a run's epochs after the first, each measured from the end of the previous epoch, "
    "without validation. Start-up: from the start of the process to the end of the first training step, with imports "
    "and the reading of data.",
    _NEAR_CORES,
    _ALLOCATOR,
    "Ours trains on 50,000 images an epoch and keeps 10,000 to validate on; the others train on 60,000. Ours has 6/5 "
    "as many epochs, so that all have seen equally many images when the ELBO is measured.",
    "Test ELBO: 10,000 test images, one z each, by the same code. `reference`, `plain_lightning` and `pythae` are "
    "evaluated on grey pixels (a cross-entropy with grey values, which is no likelihood); `ours_dynamic` on a "
    "Bernoulli draw; all others on pixels thresholded at a half. Only numbers of the same pixels compare.",
    "Ours thresholds the pixels, because it refuses grey pixels under a Bernoulli: one comparison per pixel replaces "
    "the product per pixel of the recipe's scaling to [0, 1].",
    "Each contender has PyTorch's default threads, its logging and its bar, on a terminal. torch.compile reuses its "
    "cache from the first round, so a compiled contender starts faster in later rounds.",
)


def _peer(name: str, what: str, options: Options, epochs: int, *arguments: str) -> Contender:
    settings = (f"--data_dir={options.data_dir}", f"--epochs={epochs}", "--seed={seed}")
    return Contender(name, what, ("-m", "benchmarks.mnist", *arguments, *settings))


def _mnist_peers(options: Options, epochs: int) -> tuple[Contender, ...]:
    pythae = _peer("pythae", "pythae's VAE and BaseTrainer", options, epochs)
    return (
        _peer("reference", "the recipe of pytorch/examples' VAE", options, epochs, "reference"),
        _peer(
            *("reference_threshold", "the same on thresholded pixels, for its ELBO", options, epochs, "reference"),
            "--pixels=threshold",
        ),
        _peer("plain_lightning", "Lightning, the ordinary way", options, epochs, "plain_lightning"),
        Contender("pythae", pythae.what, ("-m", "benchmarks.peer_pythae", *pythae.command[2:]), requires="pythae"),
    )


def _mnist_ours(options: Options, epochs: int) -> tuple[Contender, ...]:
    settings = (options.data_dir, round(epochs * 6 / 5))
    fast = ours.FASTEST["mnist", options.device]
    return (
        ours.mnist(
            *("ours", f"CLI, float32, {ours.SEVERAL}, thresholded pixels", *settings, "threshold", options.real),
            *(*ours.FLOAT32, ours.SEVERAL),
        ),
        ours.mnist(
            *("ours_compiled", f"the same as ours, {ours.COMPILED}", *settings, "threshold", options.real),
            *(*ours.FLOAT32, ours.SEVERAL, ours.COMPILED),
        ),
        ours.mnist(
            *("ours_default", "CLI, float32, its default settings", *settings, "threshold", options.real),
            *ours.FLOAT32,
        ),
        ours.mnist(
            "ours_dynamic",
            "the default, binarised anew in each epoch",
            *settings,
            "dynamic",
            options.real,
            *ours.FLOAT32,
        ),
        ours.mnist("ours_fast", f"the same as ours, {' '.join(fast)}", *settings, "threshold", options.real, *fast),
    )


def _mnist_ceilings(options: Options, epochs: int) -> tuple[Contender, ...]:
    def one(name: str, what: str, setting: str) -> Contender:
        return _peer(name, what, options, epochs, "ceiling", f"--setting={setting}")

    return (
        one("ceiling", "bare loop on resident data, fused Adam, logits", "float32"),
        one("ceiling_bf16", "bare loop, bf16 autocast", "bf16"),
        one("ceiling_compiled", "bare loop, network and loss compiled as one", "compiled"),
        one("ceiling_compiled_bf16", "bare loop, compiled so, bf16 autocast", "compiled_bf16"),
    )


def _mnist_claims(device: str) -> tuple[Claim, ...]:
    if device == "cuda":
        return (
            Claim("ours / plain Lightning", ratio("ours", "plain_lightning"), 8),
            Claim("ours_fast / plain Lightning", ratio("ours_fast", "plain_lightning"), None),
            Claim("ours / ceiling, compiled", ratio("ours", "ceiling_compiled"), 0.7),
            Claim("ours / ceiling, both compiled", ratio("ours_compiled", "ceiling_compiled"), None),
        )
    return (
        Claim("ours / reference recipe, float32", ratio("ours", "reference"), 1.9),
        Claim("ours / plain Lightning, float32", ratio("ours", "plain_lightning"), 2.2),
        Claim("ours / pythae, float32", ratio("ours", "pythae"), 1.45),
        Claim("ours, compiled / pythae, float32", ratio("ours_compiled", "pythae"), 1.45),
        Claim("ours at its fastest CPU setting / reference recipe", ratio("ours_fast", "reference"), 3.3),
        Claim("ELBO: ours_fast - reference_threshold, nats", _gap("elbo", "ours_fast", "reference_threshold"), _noise),
        Claim("ELBO: ours_fast - ours, nats", _gap("elbo", "ours_fast", "ours"), _noise),
        Claim("ELBO: ours - reference_threshold, nats", _gap("elbo", "ours", "reference_threshold"), None),
        Claim("ours / ceiling, float32, with logging and bar", ratio("ours", "ceiling"), 0.92),
        Claim("ours / ceiling, float32, both compiled", ratio("ours_compiled", "ceiling_compiled"), 0.92),
        Claim("ours_fast / ceiling_compiled_bf16", ratio("ours_fast", "ceiling_compiled_bf16"), 0.92),
        Claim("ours_fast / ceiling_bf16, which is not compiled", ratio("ours_fast", "ceiling_bf16"), None),
        Claim("ours with dynamic binarisation / reference recipe", ratio("ours_dynamic", "reference"), None),
    )


def _gap(name: str, mine: str, other: str) -> Callable[[Round], float | None]:
    def gap(one: Round) -> float | None:
        a, b = one.get(mine, {}).get(name), one.get(other, {}).get(name)
        return None if a is None or b is None else a - b

    return gap


def _noise(gaps: list[float]) -> float | None:
    """The lower bound of a gap that is zero on average: minus Student's t (97.5 %) times the standard error.

    Chance alone falls below this bound in one of forty measurements. Each round has its own seed. Fewer than three
    rounds give no bound.
    """
    from scipy.stats import t  # type: ignore[import-untyped]  # scipy comes with scikit-learn

    return None if len(gaps) < 3 else -t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5


# -- CelebA's shape ----------------------------------------------------------------------------------------------------


def celeba(options: Options) -> Suite:
    epochs, batch_size = (2 if options.smoke else 3), (256 if options.device == "cuda" else 64)
    sizes = ("400", "192") if options.smoke else ("5000", "3008")
    folder = options.scratch / "celeba"
    title = f"3 x 64 x 64, convolutional VAE, Adam 1e-3, batch {batch_size}, {sizes[1]} generated JPEGs of 178 x 218"
    on_gpu = options.device == "cuda"
    train = (*_celeba_peers(options, folder / "train", epochs, batch_size),)
    return Suite(
        name="celeba",
        title=f"{title}, {epochs} epochs of which the first is warm-up",
        prepare=(("-m", "benchmarks.celeba_data", str(folder), *sizes), _celeba(folder / "train", "cache").command),
        contenders=(*train, *_celeba_data(folder / "train")),
        columns=(
            RATE,
            *((GPU_BUSY,) if on_gpu else (FAR,)),
            START_UP,
            MEMORY,
            Column("epoch of 162,770 images, s", _epoch_s),
            Column("data, us/image by the clock", value("image_us"), ",.2f"),
            Column("data, us/image of processor time", value("image_cpu_us"), ",.2f"),
            Column("prepare 202,599, s", value("all_s"), ".1f"),
        ),
        claims=_celeba_claims(options.device),
        notes=(*((_GPU_NOTE,) if on_gpu else (_NEAR_CORES,)), *_CELEBA_NOTES),
        base="jpeg_lightning",
    )


_GPU_NOTE = (
    "GPU busy: the fraction of the time in which a kernel ran, as nvidia-smi reports it (ten samples a second), over "
    f"the epochs after the first. Ours and the ceilings have {GPU_EPOCHS} epochs, so that there are enough samples."
)

_CELEBA_NOTES = (
    _ALLOCATOR,
    "The JPEGs are blobs with grain, as large as CelebA's files on average (7.1 kB); training leaves out the last 64 "
    "files.",
    "The network is our ConvEncoder and ConvDecoder for all: channels 32, 64, 128, 256, a hidden layer of 320, 64 "
    "latents; a Gaussian likelihood with sigma 0.1.",
    "Data alone: the claim per core uses processor time, because a second thread reads ahead in ours. The table also "
    "has the time by the clock.",
    "`prepare`: two sizes in new folders, t(N) = fixed + N cost; the column is fixed + 202,599 cost. The files "
    "have just been written, so they are in the system's cache.",
)


def _celeba(data_dir: Path, contender: str, *arguments: str, name: str = "", what: str = "") -> Contender:
    command = ("-m", "benchmarks.celeba", contender, f"--data_dir={data_dir}", "--seed={seed}", *arguments)
    return Contender(name or contender, what, command)


def _celeba_peers(options: Options, data_dir: Path, epochs: int, batch_size: int) -> list[Contender]:
    sizes = (f"--epochs={epochs}", f"--batch_size={batch_size}")
    resident = GPU_EPOCHS if options.device == "cuda" and not options.smoke else epochs
    fast = ours.FASTEST["celeba", options.device]
    settings, last = (data_dir, resident, batch_size), "--speed.channels_last=true"

    def ceiling(name: str, setting: str, what: str) -> Contender:
        arguments = (f"--setting={setting}", f"--epochs={resident}", f"--batch_size={batch_size}")
        return _celeba(data_dir, "ceiling", *arguments, name=name, what=what)

    contenders = [
        _celeba(data_dir, "jpeg_lightning", *sizes, what="plain Lightning, JPEG + PIL + ToTensor, 2 workers, float32"),
        ours.celeba("ours", "CLI on the cache, float32", *settings, *ours.FLOAT32),
        ours.celeba("ours_channels_last", f"the same, {last}", *settings, *ours.FLOAT32, last),
        ours.celeba("ours_fast", f"CLI on the cache, {' '.join(fast)}", *settings, *fast),
        ceiling("ceiling", "float32", "bare loop on resident bytes, float32"),
        ceiling("ceiling_channels_last", "channels_last", "bare loop, float32, channels_last"),
        ceiling("ceiling_fast", "bf16_channels_last", "bare loop, bf16 autocast, channels_last"),
    ]
    if options.device == "cuda":
        mixed = ("--precision=bf16-mixed",)
        what = "plain Lightning, JPEG + PIL + ToTensor, 2 workers, bf16-mixed"
        contenders.insert(1, _celeba(data_dir, "jpeg_lightning", *sizes, *mixed, name="jpeg_lightning_bf16", what=what))
        setting = "bf16_channels_last_compiled"
        contenders.append(ceiling("ceiling_compiled", setting, "bare loop, bf16, channels_last, compiled"))
    return contenders


def _celeba_data(data_dir: Path) -> tuple[Contender, ...]:
    return (
        _celeba(data_dir, "data_jpeg", what="data alone, one core: JPEG + PIL + ToTensor"),
        _celeba(data_dir, "data_ours", what="data alone, one core: our float batches of 64"),
        _celeba(data_dir, "prepare", what="JPEGs into our cache, all cores"),
    )


def _epoch_s(values: Values) -> float | None:
    rate = values.get("images_per_second")
    return CELEBA_TRAIN / rate if rate else None


def _celeba_claims(device: str) -> tuple[Claim, ...]:
    same = "ceiling_compiled" if device == "cuda" else "ceiling_fast"  # as `ours.FASTEST` has it
    everywhere = (
        Claim("ours_fast / ceiling of the same setting", ratio("ours_fast", same), 0.95),
        Claim("data alone, per core: JPEG + PIL + ToTensor / our float batches", _data_gain, 100, style=",.0f"),
        Claim("preparing 202,599 JPEGs, s", lambda one: one.get("prepare", {}).get("all_s"), 60, True, ".1f"),
    )
    if device == "cuda":
        return (
            *everywhere,
            Claim("GPU busy in ours_fast, %", lambda one: one.get("ours_fast", {}).get("gpu_busy"), 95, style=".0f"),
        )
    return (
        Claim("ours / ceiling, float32, each in its faster layout", _celeba_float32, 0.95),
        Claim("ours at its fastest / JPEG in plain Lightning", ratio("ours_fast", "jpeg_lightning"), 2.2),
        *everywhere,
    )


def _celeba_float32(one: Round) -> float | None:
    """Ours / ceiling, each in its faster layout; the CPU decides which layout is faster."""

    def faster(*names: str) -> float | None:
        rates = [one[name]["images_per_second"] for name in names if name in one]
        return max(rates) if len(rates) == len(names) else None

    mine, bare = faster("ours", "ours_channels_last"), faster("ceiling", "ceiling_channels_last")
    return mine / bare if mine and bare else None


def _data_gain(one: Round) -> float | None:
    """The ratio of processor times. They include the thread that reads ahead, whose work the clock does not show."""
    return ratio_of({"a": one.get("data_jpeg", {}), "b": one.get("data_ours", {})}, "a", "b", "image_cpu_us")


# -- evaluation and start-up -------------------------------------------------------------------------------------------


def nll(options: Options) -> Suite:
    num_images, num_samples = (200, 100) if options.smoke else (1000, 5000)
    model = ("--model=" + str(options.scratch / "nll.pt"), f"--data_dir={options.data_dir}")
    sizes = (f"--num_images={num_images}", f"--num_samples={num_samples}", "--seed={seed}")

    def one(name: str, what: str, requires: str = "") -> Contender:
        return Contender(name, what, ("-m", "benchmarks.nll", name, *model, *sizes), requires)

    return Suite(
        name="nll",
        title=f"-log p(x) by K = {num_samples:,} importance samples on {num_images:,} test images",
        prepare=(("-m", "benchmarks.nll", "train", *model),),
        contenders=(
            one("image_by_image", "pythae's way, restated: 100 samples of one image at a time"),
            one("pythae", "pythae's own get_nll, with the same weights", "pythae"),
            one("ours", "log_marginal_likelihood, 20 samples of an image at a time"),
        ),
        columns=(
            Column(RATE.title, RATE.value, ",.1f"),
            *(() if options.device == "cuda" else (Column(FAR.title, FAR.value, ",.1f"),)),
            Column("nats/image", value("nll"), ".3f"),
        ),
        claims=(
            Claim("ours / image by image", ratio("ours", "image_by_image"), 10),
            Claim("ours / pythae's get_nll", ratio("ours", "pythae"), None),
            Claim("value: ours - image by image, nats", _gap("nll", "ours", "image_by_image"), _noise, style=".3f"),
            Claim("value: image by image - ours, nats", _gap("nll", "image_by_image", "ours"), _noise, style=".3f"),
        ),
        notes=(
            "MNIST's network (784-400-20-400-784) after one epoch, float32 for all; ours has its sums in float64. The "
            "first tenth of the images is warm-up. All contenders keep freed memory (`keep_memory`).",
            *(() if options.device == "cuda" else (_NEAR_CORES,)),
        ),
    )


def startup(options: Options) -> Suite:
    config = ("-c", str(ours.HERE / "mnist.yaml"))
    verify = f"--data.verify={str(options.real).lower()}"
    contenders = (
        Contender("import_torch", "import torch", ("-c", "import torch")),
        Contender("import_torchvision", "import torchvision", ("-c", "import torchvision")),
        Contender("import_lightning", "import lightning.pytorch", ("-c", "import lightning.pytorch")),
        Contender("help", "--help", (*ours.PROGRAM, "--help")),
        Contender("fit_help", "fit --help", (*ours.PROGRAM, "fit", "--help")),
        Contender("print_config", "fit --print_config", (*ours.PROGRAM, "fit", *config, "--print_config")),
        Contender(
            *("first_step", "fit, from the command to the end of the first step"),
            ours.fit("mnist.yaml", options.data_dir, 1, "--trainer.max_steps=1", verify),
        ),
    )
    return Suite(
        name="startup",
        title="seconds from the command",
        contenders=contenders,
        columns=(
            Column("whole command, s", value("wall_s"), ".2f"),
            Column("to the first step, s", value("first_step_s"), ".2f"),
        ),
    )


SMOKE = {  # one contender of each kind; the others differ only by a flag
    "mnist": ["reference", "plain_lightning", "pythae", "ours_fast", "ceiling_bf16"],
    "celeba": ["jpeg_lightning", "ours_fast", "ceiling_fast", "data_jpeg", "data_ours", "prepare"],
    "nll": ["image_by_image", "pythae", "ours"],
    "startup": ["help", "first_step"],
}
SUITES: dict[str, Callable[[Options], Suite]] = {"mnist": mnist, "celeba": celeba, "nll": nll, "startup": startup}
