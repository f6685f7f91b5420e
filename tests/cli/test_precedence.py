"""The order of settings: the command line, the later config, the earlier config, the defaults; no environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.cli.lightning import DataCLI


@pytest.mark.parametrize(
    ("args", "epochs"),
    [
        ([], 200),  # from digits.yaml
        (["-c", "{0}/five.yaml"], 5),
        (["-c", "{0}/five.yaml", "-c", "{0}/six.yaml"], 6),
        (["-c", "{0}/six.yaml", "-c", "{0}/five.yaml"], 5),
        (["-c", "{0}/five.yaml", "--trainer.max_epochs=7"], 7),
        (["--trainer.max_epochs=7"], 7),
    ],
)
def test_the_last_word_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], epochs: int) -> None:
    monkeypatch.chdir(REPOSITORY)
    for name in ("PL_FIT__TRAINER__MAX_EPOCHS", "VAE_LIGHTNING_FIT__TRAINER__MAX_EPOCHS"):
        monkeypatch.setenv(name, "9")  # Lightning's CLI can read one of these; this package's does not
    for name, value in (("five", 5), ("six", 6)):
        (tmp_path / f"{name}.yaml").write_text(f"trainer: {{max_epochs: {value}}}\n")
    settings = DataCLI(["fit", "-c", DIGITS, *(arg.format(tmp_path) for arg in args)]).config.fit
    assert settings.trainer.max_epochs == epochs
    assert settings.trainer.check_val_every_n_epoch == 5  # from digits.yaml, which the later config does not change
    assert settings.checkpoint.monitor == "val/elbo"  # from defaults.yaml
