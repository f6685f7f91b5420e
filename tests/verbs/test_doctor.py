"""`vae-lightning doctor`: each check on a sound machine and on a broken one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers import clean_environment, write_mnist
from vae_lightning.__main__ import main
from vae_lightning.data import MNIST
from vae_lightning.verbs import doctor

GIB = 2**30


def run(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from vae_lightning.__main__ import main; code = main(['doctor', *sys.argv[1:]]);"
        "print({'lightning', 'wandb'} & set(sys.modules)); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, args)]
    environment = {**clean_environment(), **env}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_all_is_well_on_a_machine_without_data_network_or_gpu(tmp_path: Path) -> None:
    result = run(f"--data_dir={tmp_path}", f"--runs_dir={tmp_path}", http_proxy="http://127.0.0.1:1")
    *lines, verdict, imported = result.stdout.splitlines()
    assert (result.returncode, result.stderr, verdict) == (0, "", "training can run here")
    assert imported == "set()"  # this saves seconds, and a broken package is not touched
    names = [line[6:20].strip() for line in lines]
    hardware = ["device", "precision", "memory", "shared memory"]
    assert names == ["python", "packages", "torch", *hardware, "compiler", "data", "W&B", "disk"]
    assert all(line.startswith(("ok    ", "warn  ")) for line in lines)


def test_what_is_broken_is_not_imported_and_ends_in_one(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms is not there')"
    )
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    result = run(f"--data_dir={tmp_path}", f"--runs_dir={tmp_path}", PYTHONPATH=path)
    assert (result.returncode, result.stderr) == (1, "")
    assert "FAIL  torch " in result.stdout
    assert "(operator torchvision::nms is not there); install both from one source" in result.stdout
    assert result.stdout.splitlines()[-2:] == ["training cannot run here: 1 FAIL above", "set()"]


def test_a_wrong_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


# -- software ---------------------------------------------------------------------------------------------------------


def test_python() -> None:
    assert doctor.check_python().state == "ok"
    result = doctor.check_python((3, 10, 4))
    assert result.state == "FAIL"
    assert str(result).startswith("FAIL  python        3.10.4 on ")
    assert "3.11 or newer" in result.remedy


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("torch", "2.9.1", r"torch 2.9.1 \(asked for: >=2.11\)"),
        ("lightning", "2.6.5", "lightning 2.6.5"),
        ("lightning", "2.6.2", "lightning 2.6.2 is malware that steals credentials"),
        ("pytorch-lightning", "2.6.3", "pytorch-lightning 2.6.3 is malware"),
        ("jsonargparse", "5.0.0", "jsonargparse 5.0.0"),
        ("wandb", None, "wandb missing"),
    ],
)
def test_packages(name: str, version: str | None, says: str) -> None:
    assert doctor.check_packages().state == "ok"
    result = doctor.check_packages(lambda asked: version if asked == name else doctor._version(asked))
    assert result.state == "FAIL"
    assert re.search(says, result.text), result.text
    assert "make setup" in result.remedy


def test_the_installed_metadata_asks_for_what_pyproject_does(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {str(requirement) for requirement in doctor._requirements()}
    lines = [*here, "pytest>=8 ; extra == 'dev'"]
    monkeypatch.setattr(doctor, "__file__", "/nowhere/vae_lightning/verbs/doctor.py")
    monkeypatch.setattr("importlib.metadata.requires", lambda _: lines)
    assert {str(requirement) for requirement in doctor._requirements()} == here


def loader(cuda: str | None, fails: str = "") -> Any:
    def load(name: str) -> Any:
        if name == fails:
            raise RuntimeError("operator torchvision::nms\ndoes not exist")
        return SimpleNamespace(__version__="2.15.0", version=SimpleNamespace(cuda=cuda))

    return load


def test_torch() -> None:
    assert doctor.check_torch(loader("13.2")).text == (
        "2.15.0, built for CUDA 13.2; torchvision 2.15.0 works beside it"
    )
    assert doctor.check_torch(loader(None)).text.startswith("2.15.0, built for the CPU alone")
    result = doctor.check_torch(loader(None, "torchvision"))
    reason = "operator torchvision::nms does not exist"
    assert result[1:3] == ("FAIL", f"torch is a CPU build but torchvision is not ({reason})")
    assert "the same --index-url" in result.remedy
    assert doctor.check_torch(loader("13.2", "torchvision")).state == "FAIL"
    assert doctor.check_torch(loader("13.2", "torch")).text == f"cannot be imported ({reason})"


def test_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_compiler().state == "warn"
    (tmp_path / "g++").touch(mode=0o755)
    assert doctor.check_compiler().text.startswith(str(tmp_path / "g++"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert "without Python.h" in doctor.check_compiler().text


# -- hardware ---------------------------------------------------------------------------------------------------------


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, computes: bool = True) -> None:
    """Pretend to have `count` GPUs, which compute on the CPU or raise an error."""

    def ones(n: int, device: str) -> torch.Tensor:
        if not computes:
            raise RuntimeError(f"no kernel image is available for execution on {device}")
        return torch.zeros(n) + 1

    monkeypatch.setattr("torch.ones", ones)
    for name, value in (("is_available", True), ("device_count", count), ("get_device_name", "GPU of a test")):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value: value)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (30 * GIB, 40 * GIB))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: not including_emulation)


def test_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (doctor.num_devices(), doctor.check_device().state) == (0, "ok")
    assert "no GPU" in doctor.check_device().text
    assert doctor.check_precision().text.startswith("32-true by default")
    with_gpus(monkeypatch, 2)
    assert doctor.check_device().text == "; ".join(["GPU of a test, 30 of 40 GiB free"] * 2)
    assert doctor.check_precision().text.startswith("bf16-mixed by default")
    with_gpus(monkeypatch, 1, computes=False)
    assert doctor.check_device()[1:3] == (
        "FAIL",
        "GPU 0 does not compute (no kernel image is available for execution on cuda:0)",
    )


@pytest.mark.parametrize(("cuda", "says"), [("13.2", "a driver for CUDA 13.2 or newer"), (None, "a CUDA build")])
def test_a_driver_that_torch_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, says: str
) -> None:
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = doctor._no_gpu(cuda)
    assert result.state == "warn"
    assert says in result.remedy


@pytest.mark.parametrize(("gib", "state"), [(0.3, "FAIL"), (1, "warn"), (16, "ok")])
def test_memory(gib: float, state: str) -> None:
    result = doctor.check_memory(int(gib * GIB))
    assert (result.state, result.text) == (state, f"{gib:.1f} GiB available")
    assert bool(result.remedy) is (state != "ok")
    assert doctor.check_memory().state == "ok"


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=64 * 2**20))
    states = {devices: doctor.check_shared_memory(devices, tmp_path).state for devices in (0, 1, 2)}
    assert states == {0: "ok", 1: "ok", 2: "warn"}
    assert "--ipc=host" in doctor.check_shared_memory(8, tmp_path).remedy
    assert doctor.check_shared_memory(8, tmp_path / "none").state == "ok"


# -- files ------------------------------------------------------------------------------------------------------------


def test_data_that_is_right_missing_and_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (none,) = doctor.check_data(tmp_path)
    assert none.state == "ok"
    write_mnist(tmp_path / "MNIST" / "raw")
    (broken,) = doctor.check_data(tmp_path)  # the files that this test writes have other digests than MNIST
    assert broken.state == "FAIL"
    assert "train-images-idx3-ubyte: wrong digest" in broken.text
    monkeypatch.setattr(MNIST, "digests", dict.fromkeys(MNIST.digests, (None, None)))
    (right,) = doctor.check_data(tmp_path)
    assert (right.state, right.text) == ("ok", "MNIST: 50 / 10 / 12 images, read whole, digests right")
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    (missing,) = doctor.check_data(tmp_path)
    assert missing.state == "warn"
    assert "t10k-labels-idx1-ubyte not found in" in missing.text


def test_celeba_says_whether_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "celeba").mkdir()
    (missing,) = doctor.check_data(tmp_path)
    assert (missing.state, "list_eval_partition.txt not found" in missing.text) == ("warn", True)
    (tmp_path / "celeba/list_eval_partition.txt").write_text("1.jpg 0\n2.jpg 1\n3.jpg 2\n")
    (partial,) = doctor.check_data(tmp_path)
    assert partial.state == "FAIL"
    assert "expected (162770, 19867, 19962) images" in partial.text


@pytest.mark.parametrize(
    ("environment", "state", "says"),
    [
        ({}, "ok", "offline (no login"),
        ({"WANDB_API_KEY": "0" * 40}, "ok", "online"),
        ({"WANDB_API_KEY": f'"{"0" * 40}"'}, "warn", "quotes or blanks"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "ok", "offline (WANDB_MODE=offline)"),
        ({"WANDB_MODE": "disabled"}, "ok", "off (WANDB_MODE=disabled)"),
    ],
)
def test_wandb(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], state: str, says: str) -> None:
    for name in ("API_KEY", "MODE", "SILENT", "INIT_TIMEOUT", "IDENTITY_TOKEN_FILE"):
        monkeypatch.setenv(f"WANDB_{name}", "")  # monkeypatch then removes what the function sets
        monkeypatch.delenv(f"WANDB_{name}")
    monkeypatch.setenv("NETRC", os.devnull)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = doctor.check_wandb()
    assert result.state == state
    assert says in result.text
    assert "0" * 40 not in str(result)


@pytest.mark.parametrize(("free", "state"), [(GIB // 20, "FAIL"), (GIB, "warn"), (9 * GIB, "ok")])
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    assert doctor.check_disk(tmp_path / "not" / "yet").state == state
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    result = doctor.check_disk(tmp_path)
    assert (result.state, result.text) == ("FAIL", f"{tmp_path}: cannot be written (Permission denied)")
    assert "--runs_dir" in result.remedy
