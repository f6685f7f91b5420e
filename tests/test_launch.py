"""The launch files, checked as far as one machine allows: they parse, and every flag that they pass exists."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
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


# -- optuna.py, the workflow, the hooks --------------------------------------------------------------------------------


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file launch/optuna.py as a module."""
    monkeypatch.setattr(sys, "path", [str(LAUNCH), *sys.path])  # as Python sets it for a file in this folder
    spec = importlib.util.spec_from_file_location("launch_optuna", LAUNCH / "optuna.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_flag_of_the_search_is_a_flag(search: ModuleType) -> None:
    from optuna.trial import FixedTrial

    drawn = {"width": 64, "latent_size": 3, "lr": 1e-3, "batch_size": 32}
    config = assert_understood(["fit", "-c", "vae/digits", *search.suggest(FixedTrial(drawn))])
    model = config.model.init_args
    assert (model.latent_size, model.encoder.init_args.hidden_sizes, config.data.init_args.batch_size) == (
        3,
        [64, 64],
        32,
    )
    assert model.optimizer.init_args.lr == 1e-3
    assert config.checkpoint.monitor == search.MONITOR


def test_a_search_goes_on_to_the_number_of_trials_and_prints_the_best_first(
    search: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optuna.trial import Trial, TrialState

    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, *[TrialState.COMPLETE] * 3]
    ran = []

    def run(trial: Trial, args: list[str], _: Path) -> tuple[TrialState, float | None]:
        ran.append(args)
        trial.report(-100.0 - trial.number, 1)
        return (state := states[trial.number]), 10.0 * trial.number - 99 if state is TrialState.COMPLETE else None

    monkeypatch.setattr(search, "run", run)
    for total, number in ((2, 3), (2, 3), (4, 5)):  # the failed trial does not count
        command = ["optuna.py", "-c", "a.yaml", f"--trials={total}", f"--folder={tmp_path}", "--data.data_dir=d"]
        monkeypatch.setattr(sys, "argv", command)
        assert search.main() == 0
        assert len(ran) == number
    assert len({tuple(args) for args in ran}) == len(ran)  # a study that goes on draws other values
    assert ran[0][-1] == "--data.data_dir=d"
    lines = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert lines[0].split() == ["trial", "state", "val/elbo", "batch_size", "latent_size", "lr", "width"]
    assert [line.split()[:3] for line in lines[1:]] == [
        *(["4", "complete", "-59.00"], ["3", "complete", "-69.00"], ["0", "complete", "-99.00"]),
        *(["2", "pruned", "-102.00"], ["1", "fail", "-"]),
    ]


def test_a_search_that_only_fails_ends(
    search: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in a flag of `fit`: three real processes would be waited for; their end is what counts."""
    monkeypatch.setattr(sys, "argv", ["optuna.py", "-c", "no/such", f"--folder={tmp_path}"])
    monkeypatch.setattr(search.sys, "executable", "/bin/false")
    assert search.main() == 1
    assert "the last 3 trials failed" in capsys.readouterr().err


def test_half_a_line_of_a_running_trial_is_not_read(search: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert search.read(path) == []
    path.write_text("step,epoch,train/elbo,val/elbo\n9,0,-5,\n9,0,,-7.5\n19,1,,-6.25\n29,2,,-6.1")
    assert search.read(path) == [(0, -7.5), (1, -6.25)]


@pytest.mark.slow
def test_a_real_search_of_two_trials(tmp_path: Path) -> None:
    small = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", f"--folder={tmp_path / 'study'}"]
    command = [sys.executable, str(LAUNCH / "optuna.py"), "-c", "vae/digits", "--trials=2", *small]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert re.search(r"\n +[01]  complete +-\d+\.\d\d ", done.stdout)
    assert len(list((tmp_path / "study").glob("trial-*/checkpoints/best.ckpt"))) == 2


def test_the_workflow_runs_what_a_submission_must_pass() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/check.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["make check", "make test"]
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in commands} <= targets


def test_the_hooks_are_those_of_make_check_at_the_locked_version() -> None:
    (entry,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["id"] for hook in entry["hooks"]} == {"ruff-check", "ruff-format"}
    locked = re.search(r"^ruff==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert entry["rev"] == f"v{locked[1]}"
