"""Data and models of a package of its own that do not fit: one line of the command line, which says what fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers import REPOSITORY
from tests.outside.cases import TRUST, write_config
from vae_lightning.__main__ import main

M2, DIGITS = "semi_supervised.SemiSupervised", "semi_supervised.FewLabels"
TRANSITIONS, BALL = "transitions.Transitions", "transitions.GustyBall"
VQ, BARS = "with_cost.Codes", "with_cost.NoisyBars"
WITH_ELBO = "--model.objective=ELBO"
BAD: dict[str, tuple[str, str, list[str], str]] = {
    "no labels": (M2, "broken.NoLabels", [], "SemiSupervised needs label of each example, and the batch has x; "),
    "too large a label": (M2, "broken.FiveClasses", [], "has the label 9; the model has num_classes=5, so"),
    "no action_shape": (
        *(TRANSITIONS, "broken.NoActionShape", []),
        "Transitions needs action_shape, and the data set NoActionShape has none to give; choose other data",
    ),
    "no x_shape": (TRANSITIONS, BARS, [], "Transitions needs x_shape, and the data set NoisyBars has none to give"),
    "no images": (M2, BALL, [], "SemiSupervised needs image_shape, and the data set GustyBall has none to give"),
    "another action_shape": (
        *(TRANSITIONS, BALL, ["--model.action_shape=[3]"]),
        "--model.action_shape is [3], but GustyBall has []; leave the setting out",
    ),
    "another shape of x": (
        *(TRANSITIONS, "broken.WrongShape", []),
        "a batch is a dict with x: a tensor [B, 3], and optionally other tensors [B, ...], such as label: int64 [B]; "
        "change the data, or build the model with x_shape=(2,)",
    ),
    "another shape of an action": (TRANSITIONS, "broken.TwoForces", [], "its input is [25, 6]; it must be a tensor"),
    "another shape of a reward": (
        *(TRANSITIONS, "broken.ColumnOfRewards", []),
        "observed reward is [25, 1], and its p has the batch shape [1, 25] and the event shape []; they must be [25]",
    ),
    "a value without probability": ("broken.Halves", BALL, [], "observed done has the value 1.5, to which its p, Bern"),
    "shares": (
        *("broken.WrongShares", DIGITS, []),
        "the shares of an example sum to 2.718; exp(log_shares) must sum to 1 over the 10 rows",
    ),
    "a probability to exist": ("broken.Probability", DIGITS, [], "must be 0 or 1, never a probability"),
    "BetaTC": (
        *(M2, DIGITS, ["--model.objective=BetaTC", "--model.objective.dataset_size=1262"]),
        "BetaTC: needs a sample of every latent, and the model enumerates label; objectives that take an enumerated",
    ),
    "a cost that is not there": (
        *(M2, DIGITS, [WITH_ELBO, "--model.objective.costs={clasifier: 2}"]),
        "ELBO: costs names clasifier; the model's trace has classifier",
    ),
    "a negative cost": (
        VQ,
        BARS,
        [WITH_ELBO, "--model.objective.costs.codebook=-2"],
        "costs.codebook is -2.0; it must",
    ),
    "an observed that is not there": (
        *(TRANSITIONS, BALL, [WITH_ELBO, "--model.objective.observed={rewards: 2}"]),
        "ELBO: observed names rewards; the model's trace has done, reward",
    ),
    "found without its truth": (
        *(VQ, BARS, ["--evaluation.also+=FoundAccuracy"]),
        "FoundAccuracy does not apply: found has codes, and the batch has no codes",
    ),
    "nothing found": (
        *(TRANSITIONS, BALL, ["--evaluation.also+=FoundAccuracy"]),
        "FoundAccuracy does not apply: the model finds nothing (Trace.found is empty)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, data, flags, message = BAD[case]
    monkeypatch.chdir(REPOSITORY)
    config = write_config(tmp_path, "transitions", epochs=1)
    values = yaml.safe_load(config.read_text())
    values["model"], values["data"]["class_path"] = f"tests.outside.{model}", f"tests.outside.{data}"
    config.write_text(yaml.safe_dump(values))
    assert main(["train", "-c", str(config), TRUST, *flags]) in (1, 2)
    errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("INFO: ")]
    assert len(errors) == 1, errors
    assert errors[0].startswith("vae-lightning: error: ")
    assert message in errors[0]
