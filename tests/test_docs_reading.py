"""The shell lines of docs/reading_a_run.md, one after the other, as a reader would type them."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.verbs.report import MEANINGS

PAGE = (REPOSITORY / "docs" / "reading_a_run.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
FEW = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1")
QUICK = (*FEW, "--trainer.log_every_n_steps=1", "--nll.num_samples=2", "--trainer.accelerator=cpu")
LOGGERS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the loggers' packages are theirs
def test_every_shell_line_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a logger's package is not installed, its line is parsed, and the error names the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAE_LIGHTNING_RUN_ID", raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "y")
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    assert len(LINES) == 10
    for line in LINES:
        program, *args = shlex.split(line)
        assert program == "vae-lightning"
        logger = next((name for name in LOGGERS if name in line), None)
        quiet = [] if logger else ["--trainer.logger=false"]
        more = [*QUICK, *quiet] if args[0] == "train" else []
        code = main([*args, *more])
        errors = capsys.readouterr().err
        if logger is None or find_spec(LOGGERS[logger]):
            assert code == 0, f"{line}\n{errors}"
        else:
            assert code == 2
            assert f"install -U '{LOGGERS[logger]}" in errors
    assert (tmp_path / "compare.html").is_file()
    assert (tmp_path / "first.html").is_file()


def test_the_page_explains_numbers_that_there_are() -> None:
    explained = re.findall(r"^\| `?(\w+)`?[, |]", PAGE, re.MULTILINE)
    assert set(explained) - {"number", "effective"} <= set(MEANINGS)
