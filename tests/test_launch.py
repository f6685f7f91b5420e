"""The launch files, checked as far as one machine allows: they parse, and every flag that they pass exists."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from tests.helpers import REPOSITORY
from vae_lightning.cli.lightning import DataCLI

LAUNCH = REPOSITORY / "launch"
CONFIG = ["-c", "configs/vae/celeba.yaml"]
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
TORCHRUN = {"HEAD": "node0", "NODES": "2", "VAE_LIGHTNING_RUN_ID": "celeba-1"}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def assert_understood(args: list[str]) -> Any:
    """Parse the command line with our own parser, and return the configuration of `fit`."""
    assert args[0] in ("fit", "train")
    cli = DataCLI(["fit", *args[1:]])
    return cli.config.fit


def assert_torchrun_understands(args: list[str]) -> tuple[Any, list[str]]:
    """Parse with torchrun's own parser; return its flags, and the command line that it passes to us."""
    given = get_args_parser().parse_args(args)
    assert (given.module, given.training_script) == (True, "vae_lightning")
    return given, list(given.training_script_args)


def run_script(tmp_path: Path, name: str, args: list[str], env: dict[str, str], code: int = 0) -> tuple[int, list[str]]:
    """Return a launcher's exit code, and the command lines that it gave to stand-ins of missing programs."""
    log = tmp_path / "log"
    for program, ends in (("torchrun", 0), ("srun", code), ("scontrol", 0), ("docker", code)):
        path = tmp_path / program
        path.write_text(f'#!/bin/sh\nprintf "%s" {program} >> {log}\nprintf "\\t%s" "$@" >> {log}\necho >> {log}\n')
        with path.open("a") as file:
            file.write(f"exit {ends}\n")
        path.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **env}
    done = subprocess.run(["bash", str(LAUNCH / name), *args], env=environment, check=False, capture_output=True)
    return done.returncode, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_scripts_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


def test_torchrun(tmp_path: Path) -> None:
    code, (line,) = run_script(tmp_path, "torchrun.sh", [*CONFIG, "--trainer.max_epochs=3"], TORCHRUN)
    given, ours = assert_torchrun_understands(line.split("\t")[1:])
    assert code == 0
    assert (given.nnodes, given.nproc_per_node, given.rdzv_endpoint, given.rdzv_id) == (
        *("2", "gpu", "node0:29400"),
        "celeba-1",
    )
    config = assert_understood(ours)
    assert (config.trainer.num_nodes, config.trainer.devices, config.trainer.max_epochs) == (2, "auto", 3)


@pytest.mark.parametrize("missing", TORCHRUN)
def test_torchrun_says_what_is_missing(tmp_path: Path, missing: str) -> None:
    env = {name: value for name, value in TORCHRUN.items() if name != missing}
    assert run_script(tmp_path, "torchrun.sh", CONFIG, env) == (1, [])


@pytest.mark.parametrize(
    ("ends", "code", "requeued"), [(0, 0, False), (138, 0, True), (1, 1, False), (143, 143, False)]
)
def test_slurm_requeues_after_its_signal_and_after_nothing_else(
    tmp_path: Path, ends: int, code: int, requeued: bool
) -> None:
    found, lines = run_script(tmp_path, "slurm.sbatch", CONFIG, SLURM, ends)
    assert (found, lines[1:]) == (code, ["scontrol\trequeue\t7"] if requeued else [])
    program, together, name, *ours = lines[0].split("\t")
    # a rank that dies must end the others, because they would wait for it
    assert (program, together, name) == ("srun", "--kill-on-bad-exit=1", "vae-lightning")
    config = assert_understood(ours)
    assert (config.trainer.num_nodes, config.trainer.devices) == (2, "4")


def test_slurm_options() -> None:
    options = dict(
        [*line.removeprefix("#SBATCH --").split("=", 1), ""][:2]
        for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    assert "requeue" in options
    signal, seconds = options["signal"].split("@")
    assert (signal, int(seconds) >= 60) == ("USR1", True)
    assert options["ntasks-per-node"] == options["gpus-per-node"]


def test_kubernetes() -> None:
    service, job = documents("kubernetes.yaml")
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["torchrun"]
    given, ours = assert_torchrun_understands(container["args"])
    assert int(given.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert given.rdzv_endpoint.startswith(f"{job['metadata']['name']}-0.{pod['subdomain']}:")
    assert service["metadata"]["name"] == pod["subdomain"]
    assert assert_understood(ours).trainer.num_nodes == int(given.nnodes)
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
    assert pod["securityContext"]["runAsNonRoot"] is True
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env == {"VAE_LIGHTNING_RUN_ID": given.rdzv_id, "WANDB_API_KEY": None}  # the key comes from a secret
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/app/runs", "/app/data", "/dev/shm"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_skypilot() -> None:
    (task,) = documents("skypilot.yaml")
    export, command = task["run"].splitlines()
    assert export == 'export VAE_LIGHTNING_RUN_ID="$SKYPILOT_TASK_ID"'
    words = shlex.split(command)
    assert words[:2] == ["exec", ".venv/bin/vae-lightning"]
    assert assert_understood(words[2:]).runs_dir in task["file_mounts"]
    assert task["resources"]["use_spot"] is True
    assert task["secrets"] == {"WANDB_API_KEY": ""}
    assert f"{task['setup'].split()[1]}:" in (REPOSITORY / "Makefile").read_text()


def test_every_key_of_the_sweep_is_a_flag() -> None:
    (sweep,) = documents("sweep.yaml")
    fixed = [word for word in sweep["command"] if not word.startswith("$")]
    assert (fixed[0], sweep["command"][-1]) == ("vae-lightning", "${args}")
    ends = [
        [f"--{name}={(space.get('values') or [space['min'], space['max']])[end]}" for end in (0, -1)]
        for name, space in sweep["parameters"].items()
    ]
    first, last = (assert_understood([*fixed[1:], *args]) for args in zip(*ends, strict=True))
    for name in sweep["parameters"]:
        key = name.replace("model.encoder.", "model.init_args.encoder.init_args.") if "encoder" in name else name
        key = key.replace("model.optimizer.", "model.init_args.optimizer.init_args.").replace(
            "data.", "data.init_args."
        )
        key = key.replace("model.latent", "model.init_args.latent")
        assert first[key] != last[key], name
    defaults = yaml.safe_load((REPOSITORY / "configs" / "defaults.yaml").read_text())
    assert sweep["metric"]["name"] == defaults["checkpoint"]["monitor"]
    assert sweep["metric"]["goal"].startswith(defaults["checkpoint"]["mode"])
