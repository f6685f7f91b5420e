"""The shell lines of docs/own_videos.md, one after the other, on a folder as the page describes it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main

PAGE = (REPOSITORY / "docs" / "own_videos.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
QUICK = (
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.logger=false", "--nll.num_samples=2"),
    *("--trainer.accelerator=cpu", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"),
    "--pictures.num_images=2",
)


def clip(number: int, length: int = 14) -> list[Image.Image]:
    """Three white squares on black, of which one moves."""
    frames = []
    for time in range(length):
        frame = Image.new("RGB", (40, 40))
        for left, top in ((4, 4), (26, 26), (4 + time, 18 + number)):
            frame.paste((255, 255, 255), (left, top, left + 9, top + 9))
        frames.append(frame)
    return frames


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_shell_line_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAE_LIGHTNING_RUN_ID", raising=False)
    for number in range(10):
        folder = tmp_path / "my_clips" / f"{number:03d}"
        folder.mkdir(parents=True)
        for time, frame in enumerate(clip(number)):
            frame.save(folder / f"{time:03d}.png")
    first, *others = clip(3)
    first.save(tmp_path / "my_clips" / "010.gif", save_all=True, append_images=others)
    assert len(LINES) == 5
    for line in LINES:
        program, *args = shlex.split(line)
        assert program == "vae-lightning"
        assert main([*args, *(QUICK if args[0] == "train" else ())]) == 0, line
    images = tmp_path / "runs" / "stove" / "billiards" / "clips" / "images"
    drawn = {path.name for path in images.iterdir()}
    assert {"rollouts-0001.gif", "rollouts_test.gif", "rollouts_test.png", "reconstructions_rollouts.gif"} <= drawn
    assert {path.suffix for path in (tmp_path / "runs" / "unnamed" / "plain" / "images").iterdir()} == {".gif", ".png"}
