"""The pages on a project of one's own, on resume and on choices, and the tutorials: their commands and code run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.forks import start_python
from tests.helpers import REPOSITORY, clean_environment
from vae_lightning.__main__ import main
from vae_lightning.cli import seeds
from vae_lightning.verbs import new

DOCS = REPOSITORY / "docs"
PAGES = ("own_project", "resume_and_preemption", "which")
SMALL = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
SMALL += ["--trainer.check_val_every_n_epoch=1", "--trainer.logger=false", "--nll.num_samples=2"]
SMALL += ["--trainer.log_every_n_steps=1", "--evaluation.metrics=[]", "--pictures.num_images=1"]


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text()


def commands(page: str) -> list[str]:
    """Return the lines of a page's shell blocks without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text(page), re.DOTALL)
    return [line.partition(" #")[0].rstrip() for block in blocks for line in block.splitlines()]


class Shell:
    """Runs the lines of a page one after another in this process, with a small budget, beside one finished run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.trained = monkeypatch, 0
        monkeypatch.chdir(folder)
        monkeypatch.setattr(seeds, "_run", main)

    def run(self, line: str) -> None:
        run = max(Path().glob("runs/**/config.yaml"), key=lambda path: path.stat().st_mtime_ns, default=Path("RUN/c"))
        words = shlex.split(line.replace("RUN", str(run.parent)))
        if words[0] == "cd":
            self.monkeypatch.chdir(words[1])
        elif words[0] == "vae-lightning":
            self.vae_lightning(words[1:])
        elif words[0] == "make":  # tests/test_projects.py runs these targets of the same project
            assert re.search(rf"^{words[1]}:", (new.TEMPLATES / "Makefile").read_text(), re.MULTILINE)
        elif words[0] == "python":  # tests/test_launch.py runs the file
            assert (REPOSITORY / words[1]).is_file()
        else:
            raise AssertionError(f"no test runs {line}")

    def vae_lightning(self, args: list[str]) -> None:
        args, _, output = (shlex.join(args)).partition(" '>' ")
        words = shlex.split(args)
        if words[0] in ("train", "fit"):
            self.trained += 1
            epochs = [word for word in words if word.startswith("--trainer.max_epochs=")]
            words += [*SMALL, f"--trainer.max_epochs={3 + self.trained if epochs else self.trained}"]
        if output:  # the shell writes what the command prints
            process = start_python("-m", "vae_lightning", *words, cwd=Path.cwd(), env=clean_environment())
            Path(output).write_text(process.communicate(timeout=60)[0])
        else:
            assert main(words) == 0, shlex.join(words)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the command line shows no warnings either
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_its_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(tmp_path, monkeypatch)
    (tmp_path / "my_photos").mkdir()
    for number, pixels in enumerate(torch.randint(0, 256, (40, 20, 30, 3), dtype=torch.uint8).numpy()):
        Image.fromarray(pixels).save(tmp_path / "my_photos" / f"{number}.png")
    for line in commands(page):
        if line.startswith("until "):
            continue  # the test below
        if "RUN" in line and not list(Path().glob("runs/**/config.yaml")):
            config = "first" if Path("configs").is_dir() else "vae/digits"
            shell.vae_lightning(["train", "-c", config])
        shell.run(line)


def test_the_loop_goes_on_until_the_run_is_complete_or_wrong(tmp_path: Path) -> None:
    (line,) = (line for line in commands("resume_and_preemption") if line.startswith("until "))
    for codes in ([143, 137, 0], [1, 2]):
        (tmp_path / "left").write_text("\n".join(map(str, codes)))
        program = 'code=$(head -n 1 left); sed -i 1d left; echo "$@" >> said; exit $code\n'
        for name, body in (("vae-lightning", program), ("sleep", "")):
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}")
            (tmp_path / name).chmod(0o755)
        env = {"PATH": f"{tmp_path}{os.pathsep}/usr/bin:/bin"}
        subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, check=False, timeout=60)
        said = (tmp_path / "said").read_text().splitlines()
        assert said == ["train -c vae/digits --run_id mine"] * len(codes)
        (tmp_path / "said").unlink()


def test_the_data_set_of_the_page_is_one() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text("own_project"), re.DOTALL)
    names: dict[str, type] = {}
    exec(code, names)
    batch = next(iter(names["Noise"](batch_size=16).val_dataloader()))
    assert batch["x"].shape[1:] == (1, 8, 8)


def test_the_page_of_choices_has_every_class_of_the_slots() -> None:
    """README lists the classes of each slot."""
    readme = (REPOSITORY / "README.md").read_text()
    page = text("which")
    for slot, title in (("posterior", "Posterior"), ("likelihood", "Likelihood"), ("prior", "Prior")):
        (row,) = re.findall(rf"^\| {slot} \| (.*) \|$", readme, re.MULTILINE)
        section = page.partition(f"## {title}")[2].partition("\n## ")[0]
        assert [name for name in re.findall(r"`([A-Z]\w+)`", row) if f"`{name}`" not in section] == [], slot
    (row,) = re.findall(r"^\| objective \| (.*) \|$", readme, re.MULTILINE)
    section = page.partition("## Objective")[2].partition("\n## ")[0]
    assert [name for name in re.findall(r"`(\w+)`", row) if f"`{name}`" not in section] == []


def test_pages_are_short() -> None:
    assert [page for page in PAGES if len(text(page).splitlines()) > 120] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_and_look", "write_a_posterior"])
def test_a_tutorial_runs(name: str, tmp_path: Path) -> None:
    """With a tenth of its epochs; its own assertions hold."""
    path = DOCS / "tutorials" / f"{name}.py"
    code = re.sub(r"max_epochs=\d+", "max_epochs=3", path.read_text())
    code = re.sub(r"assert float\(trainer.*", "", code)  # the number that it reaches in all its epochs
    (tmp_path / path.name).write_text(code)
    process = start_python(str(tmp_path / path.name), cwd=tmp_path, env=clean_environment())
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "val/elbo" in out
    if name == "train_and_look":
        assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"samples.png", "reconstructions.png"}
