"""`doctor`: print what this machine has for a training, and what to do if something is wrong.

The command downloads nothing. It imports torch and Lightning only after the checks of the packages have passed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vae_lightning.runs.machine import available_memory, compiler_name, find_compiler, num_cores
from vae_lightning.runs.suggestions import OneLineParser

_GIB = 2**30
MALWARE: Mapping[str, tuple[str, ...]] = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
"""Releases that steal credentials when they are imported: GHSA-w37p-236h-pfx3."""


class CheckResult(NamedTuple):
    """The result of one check, printed as one line.

    Args:
        name: What was checked.
        state: `ok`; `warn` if training runs, but perhaps not as the user wants; `FAIL` if training does not run.
        text: What the check has found.
        remedy: What the user can do about it.
    """

    name: str
    state: Literal["ok", "warn", "FAIL"]
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<6}{self.name:<14}{self.text}{f'; {self.remedy}' if self.remedy else ''}"


def main(args: Sequence[str]) -> int:
    """Print each result as soon as it is known; return 0 if training can run here, 1 if it cannot, 2 for a wrong flag.

    Args:
        args: The arguments after `doctor`.
    """
    description = "print what this machine has for a training, and what to do if something is wrong"
    parser = OneLineParser("vae-lightning doctor", description=description)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="the folder that runs are kept in")
    try:
        arguments = parser.parse_args(args)
    except SystemExit as ended:
        return int(ended.code or 0)
    failures = 0
    for result in examine(arguments.data_dir.expanduser(), arguments.runs_dir.expanduser()):
        failures += result.state == "FAIL"
        print(result, flush=True)
    print(f"training cannot run here: {failures} FAIL above" if failures else "training can run here")
    return 1 if failures else 0


def examine(data_dir: Path, runs_dir: Path) -> Iterator[CheckResult]:
    """Run the checks in order; the checks that need torch are left out if its import would fail or do harm.

    Args:
        data_dir: The folder of the data sets.
        runs_dir: The folder of all runs.
    """
    yield check_python()
    packages = check_packages()
    yield packages
    can_import = packages.state != "FAIL"
    if can_import:
        build = check_torch()
        yield build
        can_import = build.state != "FAIL"
    if can_import:
        yield check_device()
        yield check_precision()
    yield check_memory()
    yield check_shared_memory(num_devices() if can_import else 0)
    yield check_compiler()
    yield from check_data(data_dir) if can_import else ()
    yield check_wandb()
    yield check_disk(runs_dir)


# -- software ---------------------------------------------------------------------------------------------------------


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> CheckResult:
    """Check the version of Python.

    Args:
        version: The version; a test gives another.
    """
    text = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version < (3, 11):
        return CheckResult("python", "FAIL", text, "3.11 or newer is needed: make setup PYTHON=/path/to/python3.11")
    return CheckResult("python", "ok", text)


def check_packages(installed: Callable[[str], str | None] | None = None) -> CheckResult:
    """Compare the installed packages with the versions that pyproject.toml asks for, and with known malware.

    Args:
        installed: A function from a package's name to its version, or None if it is missing; None for this environment.
    """
    installed = installed or _version
    bad = [f"{name} {installed(name)}" for name, releases in MALWARE.items() if installed(name) in releases]
    if bad:
        remedy = "remove it, change every key and password of this machine, then: make setup"
        return CheckResult("packages", "FAIL", f"{', '.join(bad)} is malware that steals credentials", remedy)
    remedy = "make setup, or pip install -r requirements.lock"
    try:
        asked = {requirement.name: requirement.specifier for requirement in _requirements()}
    except ImportError:
        return CheckResult("packages", "FAIL", "packaging is missing, which Lightning needs", remedy)
    versions = {name: installed(name) for name in asked}
    wrong = [
        f"{name} {version or 'missing'} (asked for: {asked[name]})"
        for name, version in versions.items()
        if version is None or not asked[name].contains(version, prereleases=True)
    ]
    if wrong:
        return CheckResult("packages", "FAIL", ", ".join(wrong), remedy)
    names = ("lightning", "torch", "torchvision", "wandb")
    return CheckResult("packages", "ok", f"{', '.join(f'{name} {versions[name]}' for name in names)}: as asked for")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[Any]:
    """Return this package's requirements, from the checkout's pyproject.toml, else from the installed metadata."""
    from packaging.requirements import Requirement

    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        lines = tomllib.loads(project.read_text())["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires("vae_lightning") or () if "extra ==" not in line]
    return [Requirement(line) for line in lines]


def check_torch(load: Callable[[str], Any] = importlib.import_module) -> CheckResult:
    """Import torch and torchvision, before Lightning is imported: it fails if torchvision is of another build.

    Args:
        load: A function that imports a module by its name; a test gives another.
    """
    try:
        torch = load("torch")
    except Exception as error:
        return CheckResult("torch", "FAIL", f"cannot be imported ({_reason(error)})", "install it again: make setup")
    cuda = torch.version.cuda
    build = f"{torch.__version__}, built for {f'CUDA {cuda}' if cuda else 'the CPU alone'}"
    try:
        torchvision = load("torchvision")
    except Exception as error:
        remedy = "install both from one source: make setup, or pip with the same --index-url for both"
        if not cuda:
            text = f"torch is a CPU build but torchvision is not ({_reason(error)})"
            return CheckResult("torch", "FAIL", text, remedy)
        return CheckResult("torch", "FAIL", f"{build}; torchvision cannot be imported ({_reason(error)})", remedy)
    return CheckResult("torch", "ok", f"{build}; torchvision {torchvision.__version__} works beside it")


def check_compiler() -> CheckResult:
    """Look for a C++ compiler, which only torch.compile needs (`--speed.compile=true`)."""
    compiler = find_compiler()
    if compiler is None:
        text = f"no C++ compiler ({compiler_name()}), so no --speed.compile"
        return CheckResult("compiler", "warn", text, "on Debian: apt install g++")
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    lacks = "" if headers else ", without Python.h: --speed.compile may not work on a GPU"
    return CheckResult("compiler", "ok", f"{compiler}{lacks}")


# -- hardware ---------------------------------------------------------------------------------------------------------


def num_devices() -> int:
    """Return the number of GPUs that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_device() -> CheckResult:
    """Compute a sum on each GPU; if torch can use none, look for NVIDIA's driver."""
    import torch

    if not num_devices():
        return _no_gpu(torch.version.cuda)
    gpus = []
    for index in range(num_devices()):
        try:
            assert (torch.ones(8, device=f"cuda:{index}") * 2).sum().item() == 16
            free, total = torch.cuda.mem_get_info(index)
        except Exception as error:
            text = f"GPU {index} does not compute ({_reason(error)})"
            remedy = "install another torch build or driver, or give --trainer.accelerator=cpu"
            return CheckResult("device", "FAIL", text, remedy)
        gpus.append(f"{torch.cuda.get_device_name(index)}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free")
    return CheckResult("device", "ok", "; ".join(gpus))


def _no_gpu(cuda: str | None) -> CheckResult:
    cores = num_cores()
    text = f"CPU, {cores} core{'s' if cores != 1 else ''}; no GPU"
    if not (Path("/proc/driver/nvidia/version").is_file() or shutil.which("nvidia-smi")):
        return CheckResult("device", "ok", text)
    reason = f"a driver for CUDA {cuda} or newer, or docker run --gpus all" if cuda else "a CUDA build of torch"
    return CheckResult(
        "device", "warn", f"{text} that torch can use, though NVIDIA's driver is here", f"torch needs {reason}"
    )


def check_precision() -> CheckResult:
    """Report the precision that a fit takes by default."""
    import torch

    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    text = "bf16-mixed by default, 32-true on request" if has_bf16 else "32-true by default"
    return CheckResult("precision", "ok", f"{text}; densities are float32 always")


def check_memory(available: int | None = None) -> CheckResult:
    """Check the free memory.

    Args:
        available: Free bytes; None to ask the system.
    """
    free = available_memory() if available is None else available
    if free is None:
        return CheckResult("memory", "ok", "not known on this system")
    text = f"{free / _GIB:.1f} GiB available"
    if free < _GIB // 2:
        return CheckResult("memory", "FAIL", text, "a training of the digits takes about 0.5 GiB: end another program")
    if free < 2 * _GIB:
        return CheckResult("memory", "warn", text, "large images need more: --data.resident=mmap keeps them in a file")
    return CheckResult("memory", "ok", text)


def check_shared_memory(devices: int, folder: Path = Path("/dev/shm")) -> CheckResult:
    """Check the shared memory, which NCCL needs between several GPUs; this package's loader needs none.

    Args:
        devices: The number of GPUs.
        folder: The folder that is the shared memory.
    """
    if not folder.is_dir():
        return CheckResult("shared memory", "ok", "none, and none is needed on this system")
    size = shutil.disk_usage(folder).total
    text = f"{folder}: {size / _GIB:.2f} GiB"
    if size < _GIB and devices > 1:
        return CheckResult("shared memory", "warn", f"{text}, too little for {devices} GPUs", "docker run --ipc=host")
    return CheckResult("shared memory", "ok", text)


# -- files ------------------------------------------------------------------------------------------------------------


def check_data(data_dir: Path) -> Iterator[CheckResult]:
    """Read each data set in `data_dir` and compare its digests; one line for each, or one line if there is none.

    Lightning is imported only if `data_dir` holds anything.

    Args:
        data_dir: The folder of the data sets.
    """
    sets = list(_fetched(data_dir)) if data_dir.is_dir() and any(data_dir.iterdir()) else []
    if not sets:
        text = f"no files in {data_dir}; digits, faces and sprites need none, a first run downloads the others"
        yield CheckResult("data", "ok", text)
        return
    from vae_lightning.storage.files import MissingFileError
    from vae_lightning.types import UserError

    for cls in sets:
        try:
            yield CheckResult("data", "ok", f"{cls.__name__}: {_describe(cls(data_dir=str(data_dir)))}")
        except MissingFileError as error:
            yield CheckResult("data", "warn", f"{cls.__name__}: {error}")
        except UserError as error:  # its message says what to do
            yield CheckResult("data", "FAIL", f"{cls.__name__}: {error}")


def _fetched(data_dir: Path) -> Iterator[Any]:
    """Yield the classes of the data sets whose `location` exists in `data_dir`."""
    from vae_lightning import data  # here, because it imports Lightning

    for cls in (getattr(data, name) for name in data.__all__):
        location = getattr(cls, "location", "")
        if location and (data_dir / location).exists():
            yield cls


def _describe(dataset: Any) -> str:
    """Return the number of images of each split; raise UserError if a file is missing or has a wrong digest."""
    from vae_lightning.data.base import SPLITS, CachedImages
    from vae_lightning.storage.cache import read_header

    if isinstance(dataset, CachedImages):
        counts = list(dataset.source().splits.values())
        cached = read_header(dataset.cache_folder) is not None
        state = "cached" if cached else "not decoded yet: the first run decodes them"
        detail = f"{state}; vae-lightning check-data reads every image"
    else:
        counts = [len(dataset.images(split).pixels) for split in SPLITS]
        detail = "read whole" + (", digests right" if getattr(dataset, "verify", True) else "")
    return f"{' / '.join(f'{count:,}' for count in counts)} images, {detail}"


def check_wandb(environment: Mapping[str, str] | None = None) -> CheckResult:
    """Report whether a run would record online, from the environment alone.

    W&B's server is not asked, and the key is not shown.

    Args:
        environment: The environment's variables; None for `os.environ`.
    """
    from vae_lightning.runs.login import wandb_is_offline

    environment = os.environ if environment is None else environment
    key, mode = environment.get("WANDB_API_KEY", ""), environment.get("WANDB_MODE")
    if mode == "disabled":
        return CheckResult("W&B", "ok", "off (WANDB_MODE=disabled)")
    if key != key.strip(" \t\r\n\"'"):
        remedy = "write WANDB_API_KEY=... without them: docker's --env-file does not remove them"
        return CheckResult("W&B", "warn", "WANDB_API_KEY has quotes or blanks around it and will be refused", remedy)
    if not wandb_is_offline():
        return CheckResult("W&B", "ok", "online: there is a login")
    reason = f"WANDB_MODE={mode}" if mode else "no login: for online, wandb login or WANDB_API_KEY"
    return CheckResult("W&B", "ok", f"offline ({reason}); a run prints how to upload its record")


def check_disk(runs_dir: Path) -> CheckResult:
    """Write a file to the folder of the runs, or to its nearest parent, and report the free space.

    Args:
        runs_dir: The folder of all runs, which need not exist.
    """
    folder = runs_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    remedy = "choose another folder by --runs_dir; in a container, make the image's user its owner"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        return CheckResult("disk", "FAIL", f"{runs_dir}: cannot be written ({error.strerror})", remedy)
    free = shutil.disk_usage(folder).free
    text = f"{runs_dir}: {free / _GIB:.1f} GiB free"
    if free < _GIB // 10:
        return CheckResult("disk", "FAIL", text, remedy)
    return (
        CheckResult("disk", "ok", text)
        if free > 2 * _GIB
        else CheckResult("disk", "warn", text, "a run may fill the disk")
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
