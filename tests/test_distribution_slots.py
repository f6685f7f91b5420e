"""Every posterior and every likelihood from the command line: a training step, a checkpoint, loading the checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning import distributions as d
from vae_lightning.__main__ import main
from vae_lightning.cli.lightning import CLI
from vae_lightning.models import VAE
from vae_lightning.models.loading import load_model

LEVELS = "--model.likelihood.num_levels=17"
PRIOR = "--model.prior=FamilyPrior"

# arguments; the posterior and likelihood that they give
CASES: dict[str, tuple[Sequence[str], type, type]] = {
    "full": (["--model.posterior=FullNormal"], d.FullNormal, d.Binomial),
    "low rank": (
        [
            "--model.posterior=LowRankNormal",
            "--model.posterior.rank=2",
            "--model.likelihood=DiscretizedLogistic",
            LEVELS,
        ],
        d.LowRankNormal,
        d.DiscretizedLogistic,
    ),
    "rank one": (
        [
            "--model.posterior=RankOneNormal",
            "--model.likelihood=MixtureOfDiscretizedLogistics",
            "--model.likelihood.num_components=3",
            LEVELS,
        ],
        d.RankOneNormal,
        d.MixtureOfDiscretizedLogistics,
    ),
    "Laplace": (
        ["--model.posterior=Laplace", "--model.likelihood=CategoricalLevels", LEVELS],
        d.Laplace,
        d.CategoricalLevels,
    ),
    "gamma": (
        ["--model.posterior=Gamma", PRIOR, "--model.prior.family=Gamma", "--model.likelihood=Laplace"],
        d.Gamma,
        d.Laplace,
    ),
    "beta": (
        ["--model.posterior=Beta", PRIOR, "--model.prior.family=Beta", "--model.likelihood=StudentT"],
        d.Beta,
        d.StudentT,
    ),
    "Dirichlet": (
        ["--model.posterior=Dirichlet", PRIOR, "--model.prior.family=Dirichlet", "--model.prior.learn=true"],
        d.Dirichlet,
        d.Binomial,
    ),
    "categorical": (
        [
            *("--model.posterior=Categorical", "--model.posterior.group_size=4"),
            "--model.posterior.straight_through=true",
            *(PRIOR, "--model.prior.family=Categorical", "--model.prior.family.group_size=4"),
        ],
        d.Categorical,
        d.Binomial,
    ),
    "relaxed categorical": (
        ["--model.posterior=RelaxedCategorical", PRIOR, "--model.prior.family=RelaxedCategorical"],
        d.RelaxedCategorical,
        d.Binomial,
    ),
    "IAF of maps": (
        ["--model.posterior=ConvIAF", "--model.posterior.hidden_channels=[8]", "--model.latent_size=[3,2,2]"],
        d.ConvIAF,
        d.Binomial,
    ),
    "linear IAF": (["--model.posterior=LinearIAF", "--model.prior=FlowPrior"], d.LinearIAF, d.Binomial),
    "RealNVP": (["--model.posterior=RealNVP", "--model.prior=LearnedNormal"], d.RealNVP, d.Binomial),
    "spline": (["--model.posterior=NeuralSplineFlow", "--model.objective=CIWAE"], d.NeuralSplineFlow, d.Binomial),
    "sphere": (["--model.posterior=VonMisesFisher", "--model.prior=UniformSphere"], d.VonMisesFisher, d.Binomial),
}

# arguments, exit code, text of the error's one line
MISTAKES: dict[str, tuple[Sequence[str], int, str]] = {
    "rank": (["--model.posterior=LowRankNormal", "--model.posterior.rank=9"], 2, "rank is 9; .* 8 dimensions"),
    "groups": (["--model.posterior=Dirichlet", "--model.posterior.group_size=3"], 2, "group_size is 3; .*divide the 8"),
    "maps": (
        ["--model.posterior=ConvIAF"],
        2,
        r"ConvIAF: is a flow of maps .* has shape \(8,\); .*--model.latent_size",
    ),
    "vectors": (["--model.posterior=IAF", "--model.latent_size=[3,2,2]"], 2, r"IAF: is a flow of vectors, .*ConvIAF"),
    "latent": (["--model.latent_size=[3,2]"], 2, r"latent_size is \[3, 2\]; .*\[channels, height, width\]"),
    "no gradient": (["--model.posterior=Categorical"], 1, "no pathwise gradient.*RelaxedCategorical"),
    "a likelihood": (["--model.posterior=Bernoulli"], 1, "posterior Bernoulli: .*no pathwise gradient.*DiagonalNormal"),
    "a family": ([PRIOR, "--model.prior.family=Nope"], 2, "Nope is no Family.*there are Bernoulli"),
    "a schedule": (["--model.objective.beta=Nope"], 2, "Nope is no Schedule.*there are Constant, Cyclic, LinearWarmup"),
    "another space": (
        ["--model.posterior=VonMisesFisher"],
        1,
        "latent z: .*VonMisesFisher.*StandardNormal.*UniformSphere",
    ),
    "levels": (["--model.likelihood=DiscretizedLogistic"], 1, "DiscretizedLogistic gives no probability to a pixel"),
    "the ends of an interval": (
        ["--model.likelihood=Beta"],
        1,
        "likelihood Beta gives no probability to a pixel of value [01], or an infinite density; .*ContinuousBernoulli",
    ),
    "no mean": (["--model.likelihood=ConvIAF"], 1, "likelihood ConvIAF does not know its mean.*DiagonalNormal"),
    "a flow of pixels": (["--model.likelihood=IAF"], 2, "IAF: is a flow of vectors, .*likelihood.*DiagonalNormal"),
    "bits": (
        ["--model.likelihood=DiagonalNormal", "--nll.bits_per_dimension=true"],
        1,
        "likelihood is a density.*DiscretizedLogistic.*--data.dequantise=true",
    ),
    "steps": (
        ["--model.likelihood=Repeated", "--model.likelihood.family=Binomial", "--model.likelihood.family.num_steps=16"],
        1,
        r"VAE: its p\(x\|z\), Binomial, has .* event shape \[\d+, 1, 8, 8\]; x is \[\d+, 1, 8, 8\]",
    ),
    "class": (["--model.posterior=Normal"], 2, r"Normal is no Family.*there are Bernoulli, Beta.*VonMisesFisher"),
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("case", CASES)
def test_trains_and_comes_back_from_its_checkpoint(tmp_path: Path, case: str) -> None:
    """The checkpoint is plain data. The model loaded from it has the same classes and weights, and draws pictures."""
    args, posterior, likelihood = CASES[case]
    quick = ("--trainer.logger=false", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu")
    d.Family.validate_args = False  # in float32 the sum of a simplex is sometimes off by more than 1e-6
    cli = CLI(["fit", "-c", DIGITS, *quick, f"--runs_dir={tmp_path}", *args])
    assert torch.isfinite(cli.trainer.callback_metrics["val/elbo"])
    cli.trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_model(tmp_path / "a.ckpt")
    assert isinstance(loaded, VAE)
    assert (type(loaded.posterior), type(loaded.likelihood)) == (posterior, likelihood)
    assert str(loaded) == str(cli.model)
    assert json.dumps(dict(loaded.hparams))
    samples = loaded.sample(3)
    assert samples.shape == (3, 1, 8, 8)
    assert torch.isfinite(samples).all()


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_one_clear_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    args, code, says = MISTAKES[case]
    quick = ("--trainer.logger=false", "--trainer.max_epochs=1", f"--runs_dir={tmp_path}")
    try:
        found: Any = main(["fit", "-c", DIGITS, *quick, *args])
    except SystemExit as ended:
        found = ended.code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert re.search(f"^vae-lightning: error: .*{says}", lines[0]), lines[0]
    assert found == code
