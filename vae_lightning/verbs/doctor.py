"""`doctor`: print what this machine has for a training, and what to do if something is wrong.

Nothing is fetched, and nothing heavy is imported before what it stands on is known to be sound.
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
"""Releases that stole credentials as they were imported: GHSA-w37p-236h-pfx3."""


class Finding(NamedTuple):
    """A line. `state`: `ok`; `warn`, training runs but not as one may want; `FAIL`, it does not."""

    name: str
    state: Literal["ok", "warn", "FAIL"]
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<6}{self.name:<14}{self.said}{f'; {self.remedy}' if self.remedy else ''}"


def main(args: Sequence[str]) -> int:
    """Print the findings as they come; 0 where training can run here, 1 where it cannot, 2 for a wrong flag."""
    parser = OneLineParser("vae-lightning doctor", description="what this machine has for a training")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="the folder that runs are kept in")
    try:
        given = parser.parse_args(args)
    except SystemExit as ended:
        return int(ended.code or 0)
    failures = 0
    for finding in examine(given.data_dir.expanduser(), given.runs_dir.expanduser()):
        failures += finding.state == "FAIL"
        print(finding, flush=True)
    print(f"training cannot run here: {failures} FAIL above" if failures else "training can run here")
    return 1 if failures else 0


def examine(data_dir: Path, runs_dir: Path) -> Iterator[Finding]:
    """Every line, in order; without the lines that need what cannot be imported, or not without harm."""
    yield check_python()
    packages = check_packages()
    yield packages
    sound = packages.state != "FAIL"
    if sound:
        build = check_torch()
        yield build
        sound = build.state != "FAIL"
    if sound:
        yield check_device()
        yield check_precision()
    yield check_memory()
    yield check_shared_memory(num_devices() if sound else 0)
    yield check_compiler()
    yield from check_data(data_dir) if sound else ()
    yield check_wandb()
    yield check_disk(runs_dir)


# -- software ---------------------------------------------------------------------------------------------------------


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    said = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version < (3, 11):
        return Finding("python", "FAIL", said, "it takes 3.11 or newer: make setup PYTHON=/path/to/python3.11")
    return Finding("python", "ok", said)


def check_packages(installed: Callable[[str], str | None] | None = None) -> Finding:
    """What is installed against what pyproject.toml asks for; and no release that is known to be malware."""
    installed = installed or _version
    bad = [f"{name} {installed(name)}" for name, versions in MALWARE.items() if installed(name) in versions]
    if bad:
        remedy = "remove it, change every key and password of this machine, then: make setup"
        return Finding("packages", "FAIL", f"{', '.join(bad)} is malware that steals credentials", remedy)
    remedy = "make setup, or pip install -r requirements.lock"
    try:
        asked = {requirement.name: requirement.specifier for requirement in _requirements()}
    except ImportError:
        return Finding("packages", "FAIL", "packaging is missing, which Lightning needs", remedy)
    found = {name: installed(name) for name in asked}
    wrong = [
        f"{name} {version or 'missing'} (asked for: {asked[name]})"
        for name, version in found.items()
        if version is None or not asked[name].contains(version, prereleases=True)
    ]
    if wrong:
        return Finding("packages", "FAIL", ", ".join(wrong), remedy)
    names = ("lightning", "torch", "torchvision", "wandb")
    return Finding("packages", "ok", f"{', '.join(f'{name} {found[name]}' for name in names)}: as asked for")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[Any]:
    """What the package itself asks for: from the checkout that it runs from, else from its installed metadata."""
    from packaging.requirements import Requirement

    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        lines = tomllib.loads(project.read_text())["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires("vae_lightning") or () if "extra ==" not in line]
    return [Requirement(line) for line in lines]


def check_torch(load: Callable[[str], Any] = importlib.import_module) -> Finding:
    """Torch and torchvision are tried before Lightning, which a torchvision of another build takes down with it."""
    try:
        torch = load("torch")
    except Exception as error:
        return Finding("torch", "FAIL", f"cannot be imported ({_reason(error)})", "install it anew: make setup")
    cuda = torch.version.cuda
    build = f"{torch.__version__}, built for {f'CUDA {cuda}' if cuda else 'the CPU alone'}"
    try:
        torchvision = load("torchvision")
    except Exception as error:
        remedy = "install both from one place: make setup, or pip with one --index-url for both"
        if not cuda:
            said = f"torch is a CPU build but torchvision is not ({_reason(error)})"
            return Finding("torch", "FAIL", said, remedy)
        return Finding("torch", "FAIL", f"{build}; torchvision cannot be imported ({_reason(error)})", remedy)
    return Finding("torch", "ok", f"{build}; torchvision {torchvision.__version__} works beside it")


def check_compiler() -> Finding:
    """Of use to torch.compile alone, which is off unless `--speed.compile=true`."""
    found = find_compiler()
    if found is None:
        said = f"no C++ compiler ({compiler_name()}), so no --speed.compile"
        return Finding("compiler", "warn", said, "on Debian: apt install g++")
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    lacks = "" if headers else ", without Python.h: --speed.compile may not work on a GPU"
    return Finding("compiler", "ok", f"{found}{lacks}")


# -- hardware ---------------------------------------------------------------------------------------------------------


def num_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_device() -> Finding:
    """Each GPU computes a sum; where there is none, whether there should be one."""
    import torch

    if not num_devices():
        return _no_gpu(torch.version.cuda)
    said = []
    for index in range(num_devices()):
        try:
            assert (torch.ones(8, device=f"cuda:{index}") * 2).sum().item() == 16
            free, total = torch.cuda.mem_get_info(index)
        except Exception as error:
            name = f"GPU {index} does not compute ({_reason(error)})"
            return Finding("device", "FAIL", name, "another torch build or driver, or --trainer.accelerator=cpu")
        said.append(f"{torch.cuda.get_device_name(index)}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free")
    return Finding("device", "ok", "; ".join(said))


def _no_gpu(cuda: str | None) -> Finding:
    cores = num_cores()
    said = f"CPU, {cores} core{'s' if cores != 1 else ''}; no GPU"
    if not (Path("/proc/driver/nvidia/version").is_file() or shutil.which("nvidia-smi")):
        return Finding("device", "ok", said)
    reason = f"a driver for CUDA {cuda} or newer, or docker run --gpus all" if cuda else "a CUDA build of torch"
    return Finding("device", "warn", f"{said} that torch can use, though NVIDIA's driver is here", f"it takes {reason}")


def check_precision() -> Finding:
    import torch

    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    said = "bf16-mixed by default, 32-true on request" if has_bf16 else "32-true by default"
    return Finding("precision", "ok", f"{said}; densities are float32 always")


def check_memory(available: int | None = None) -> Finding:
    free = available_memory() if available is None else available
    if free is None:
        return Finding("memory", "ok", "not known on this system")
    said = f"{free / _GIB:.1f} GiB available"
    if free < _GIB // 2:
        return Finding("memory", "FAIL", said, "a training of the digits takes about 0.5 GiB: end something else")
    if free < 2 * _GIB:
        return Finding("memory", "warn", said, "large images take more: --data.resident=mmap keeps them in a file")
    return Finding("memory", "ok", said)


def check_shared_memory(devices: int, folder: Path = Path("/dev/shm")) -> Finding:
    """Our loader has no worker processes and needs none of it; NCCL does, between several GPUs."""
    if not folder.is_dir():
        return Finding("shared memory", "ok", "none, and none is needed on this system")
    size = shutil.disk_usage(folder).total
    said = f"{folder}: {size / _GIB:.2f} GiB"
    if size < _GIB and devices > 1:
        return Finding("shared memory", "warn", f"{said}, too little for {devices} GPUs", "docker run --ipc=host")
    return Finding("shared memory", "ok", said)


# -- files ------------------------------------------------------------------------------------------------------------


def check_data(data_dir: Path) -> Iterator[Finding]:
    """A line for each data set that was fetched to `data_dir`: its files are read, its digests compared; else one line.

    Lightning is imported only if there is anything in `data_dir`.
    """
    sets = list(_fetched(data_dir)) if data_dir.is_dir() and any(data_dir.iterdir()) else []
    if not sets:
        said = f"none in {data_dir}; digits, faces and sprites need none, the others are fetched by their first run"
        yield Finding("data", "ok", said)
        return
    from vae_lightning.storage.files import MissingFileError
    from vae_lightning.types import UserError

    for cls in sets:
        try:
            yield Finding("data", "ok", f"{cls.__name__}: {_describe(cls(data_dir=str(data_dir)))}")
        except MissingFileError as error:
            yield Finding("data", "warn", f"{cls.__name__}: {error}")
        except UserError as error:  # which says what to do
            yield Finding("data", "FAIL", f"{cls.__name__}: {error}")


def _fetched(data_dir: Path) -> Iterator[Any]:
    """The classes of data sets whose `location` exists in `data_dir`."""
    from vae_lightning import data  # here, because it imports Lightning

    for cls in (getattr(data, name) for name in data.__all__):
        location = getattr(cls, "location", "")
        if location and (data_dir / location).exists():
            yield cls


def _describe(dataset: Any) -> str:
    """How many images each split has. Raises UserError where files are missing, or are not what they should be."""
    from vae_lightning.data.base import SPLITS, CachedImages
    from vae_lightning.storage.cache import read_header

    if isinstance(dataset, CachedImages):
        counts = list(dataset.source().splits.values())
        cached = read_header(dataset.cache_folder) is not None
        more = "cached" if cached else "not decoded yet: the first run does it"
        said = f"{more}; vae-lightning check-data reads every image"
    else:
        counts = [len(dataset.images(split).pixels) for split in SPLITS]
        said = "read whole" + (", digests right" if getattr(dataset, "verify", True) else "")
    return f"{' / '.join(f'{count:,}' for count in counts)} images, {said}"


def check_wandb(environment: Mapping[str, str] | None = None) -> Finding:
    """What a run would do, from the environment alone: the server is not asked, and the key is not shown."""
    from vae_lightning.runs.login import wandb_is_offline

    environment = os.environ if environment is None else environment
    key, mode = environment.get("WANDB_API_KEY", ""), environment.get("WANDB_MODE")
    if mode == "disabled":
        return Finding("W&B", "ok", "off (WANDB_MODE=disabled)")
    if key != key.strip(" \t\r\n\"'"):
        remedy = "write WANDB_API_KEY=... bare: docker's --env-file keeps both"
        return Finding("W&B", "warn", "WANDB_API_KEY has quotes or blanks around it and will be refused", remedy)
    if not wandb_is_offline():
        return Finding("W&B", "ok", "online: there is a login")
    reason = f"WANDB_MODE={mode}" if mode else "no login: wandb login, or WANDB_API_KEY, makes it online"
    return Finding("W&B", "ok", f"offline ({reason}); a run says how to upload it")


def check_disk(runs_dir: Path) -> Finding:
    """Whether a file can be written to where runs are kept, and how much more has room there."""
    folder = runs_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    remedy = "choose another folder by --runs_dir; in a container, give it to the user of the image"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        return Finding("disk", "FAIL", f"{runs_dir}: cannot be written ({error.strerror})", remedy)
    free = shutil.disk_usage(folder).free
    said = f"{runs_dir}: {free / _GIB:.1f} GiB free"
    if free < _GIB // 10:
        return Finding("disk", "FAIL", said, remedy)
    return Finding("disk", "ok", said) if free > 2 * _GIB else Finding("disk", "warn", said, "a run may fill it")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
