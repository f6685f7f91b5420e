"""A class of the user's own that a slot cannot take: the line says why."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from vae_lightning.__main__ import main

WRONG = {
    "no-family": (
        "import torch\n\nclass Mine(torch.nn.Module): ...\n",
        r"mine\.Mine is no subclass of vae_lightning\.distributions\.families\.Family\b.*\n",
    ),
    "no-such-name": ("", r"mine\.Mine is no Family that can be imported; module 'mine' has no attribute 'Mine'.*\n"),
    "an-import-fails": (
        "import numpyy\n",
        r"mine\.Mine is no Family that can be imported; No module named 'numpyy'.*\n",
    ),
    "no-python": ("class Mine(:\n", r".*invalid syntax \(mine\.py, line 1\)\n"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_with_an_own_class_is_said(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason, and no list of the shipped classes in front of it, which nobody asked for."""
    text, says = WRONG[fault]
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(SystemExit):
        main(["fit", "--model=VAE", "--model.posterior=mine.Mine", "--data=Digits"])
    assert re.fullmatch(f"vae-lightning: error: model.*: {says}", capsys.readouterr().err)
