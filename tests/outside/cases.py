"""The three models and their data as cases of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 3e-3}}
CLASSIFY = {"class_path": "ELBO", "init_args": {"costs": {"classifier": 50}}}
CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "labels": ("semi_supervised.SemiSupervised", "semi_supervised.FewLabels", {"objective": CLASSIFY}, 10),
    "transitions": ("transitions.Transitions", "transitions.GustyBall", {}, 16),
    "costs": ("with_cost.Codes", "with_cost.NoisyBars", {}, 10),
}
TRUST = "--trust=tests"


def write_config(folder: Path, case: str, epochs: int = 0, **changes: Any) -> Path:
    """Write the configuration of a case as YAML; `changes` are further arguments of the model."""
    model, data, arguments, default = CASES[case]
    config = {
        "model": {"class_path": f"tests.outside.{model}", "init_args": {"optimizer": ADAM, **arguments, **changes}},
        "data": {"class_path": f"tests.outside.{data}", "init_args": {"batch_size": 64, "eval_batch_size": 50}},
        "trainer": {"max_epochs": epochs or default, "log_every_n_steps": 1, "logger": False, "accelerator": "cpu"},
        "nll": {"num_samples": 4},
        "runs_dir": str(folder / "runs"),
    }
    path = folder / f"{case}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
