"""The conditions of a measurement: the machine, the versions, the commit, the system's load."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from vae_lightning.runs.machine import num_cores

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "lightning", "torchvision", "torchmetrics", "pythae", "wandb", "numpy", "pillow", "vae_lightning")


def machine() -> dict[str, str]:
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = _field(cpu, "model name") or platform.processor() or platform.machine()
    flags = (_field(cpu, "flags") or _field(cpu, "Features")).split()
    family = f" (family {_field(cpu, 'cpu family')}, model {_field(cpu, 'model')})" if _field(cpu, "model") else ""
    return {
        "CPU": model + family,
        "cores": str(num_cores()),
        "flags": ", ".join(flag for flag in FLAGS if flag in flags) or "none of interest",
        "memory": _memory(),
        "GPU": ", ".join(gpus()) or "none",
        "system": platform.platform(),
    }


def file_name(facts: dict[str, str]) -> str:
    """The name of the results' files, such as `xeon-processor-2-cores`."""
    words = re.sub(r"\(.*?\)", " ", facts["CPU"].partition(" (family")[0]).replace("CPU", "")
    gpu = "" if facts["GPU"] == "none" else "-" + facts["GPU"].partition(",")[0]
    return re.sub(r"[^a-z0-9]+", "-", f"{words}-{facts['cores']}-cores{gpu}".lower()).strip("-")


def conditions() -> dict[str, str]:
    """The conditions of one suite; they may differ between the suites of one file."""
    threads = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "KMP_", "MKL_"))}
    return {
        "versions": f"python {platform.python_version()}, " + ", ".join(_version(name) for name in PACKAGES),
        "commit": commit(),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "thread settings of the environment": ", ".join(f"{k}={v}" for k, v in threads.items()) or "none",
    }


def commit() -> str:
    root = Path(__file__).parent.parent
    found = _output(["git", "-C", str(root), "rev-parse", "--short", "HEAD"])
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--", "vae_lightning", "benchmarks/*.py"])
    return (found or "none") + (" with changes" if found and changed else "")


def gpus() -> list[str]:
    return _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()


def _output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1) if found else ""


def _memory() -> str:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{size / 2**30:.0f} GiB"
