"""The pages in docs/: their code runs as a user would run it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own_data_and_models.md").read_text()


def test_the_table_of_the_page_trains_from_a_package_of_its_own(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (command,) = re.findall(r"```sh\nvae-lightning (.*?)\n```", PAGE)
    (tmp_path / "my_pkg.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    args = [sys.executable, "-m", "vae_lightning", *shlex.split(command), "--trainer.logger=false"]
    done = subprocess.run(args, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (bound,) = re.findall(r"validation  val/elbo (-[\d.]+) at best", done.stdout)
    assert float(bound) > -18.2  # without a latent, N(0, 1) has -18.4 nats for 13 standardised columns
    assert (next((tmp_path / "runs" / "wines").iterdir()) / "results.json").is_file()


def test_every_file_that_a_page_links_exists() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
