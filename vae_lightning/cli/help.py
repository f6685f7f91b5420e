"""`vae-lightning --help`, made from Lightning's verbs and the first paragraph of each file in verbs/.

The files are read and not imported, because the help has to come at once.
"""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

_WIDTH = 40  # width of the left column
LIGHTNING_VERBS = {
    "train": ("-c vae/digits", "fit, then test the best checkpoint and print the results"),
    "fit": ("-c CONFIG", "fit alone"),
    "validate": ("-c CONFIG --ckpt_path FILE", "the validation numbers of a checkpoint"),
    "test": ("-c CONFIG --ckpt_path FILE", "the test numbers of a checkpoint, into results.json"),
    "predict": ("-c CONFIG --ckpt_path FILE", "mean and scale of q(z|x), into an npz file; --split=all"),
}
"""Usage and purpose of the verbs that Lightning's own command line runs."""

INIT_FROM = (
    "start a new fit from another run's weights: a run's folder (its best checkpoint), or a checkpoint. Slots and data "
    "may be others: what fits by name and shape is loaded, what does not is listed and starts fresh. A resumed run "
    "does not load them again; validate, test and predict ignore the flag"
)
"""The help of `--init_from`."""
SEEDS = (
    "train and test one run a seed; then print the mean and the standard error over these seeds of each test number "
    "and write them to seeds.json. The runs are <runs_dir>/<experiment>/<group>/seed-<SEED>; the group is --run_id, "
    "else a name made from the settings. So the same command goes on with the missing seeds, and further seeds join "
    "the group. If a run fails, the others are still trained; a wrong setting or a signal ends the command"
)
"""The help of `--seeds`, which `train` alone has."""

_HEAD = "Train, test and look at variational autoencoders: vae-lightning COMMAND ..."
_TAIL = """\
Any value of a config has a flag: --trainer.max_epochs=5 --model.latent_size=16 --model.objective=IWAE
--model.objective.num_samples=16 --data.data_dir=DIR --trainer.logger=false (no W&B). If a flag replaces a class, the
options that you gave for the old class are kept if the new one has them, and its own defaults are taken for the others.
CONFIG is a file, or the name of a config that vae-lightning configs lists: vae/mnist.
A config is code, because it names the classes to build: run none from a stranger.

A stopped run goes on in its folder by --ckpt_path last (the experiment's newest run), by --ckpt_path RUN, or, if it was
begun with --run_id NAME, by the same command. SIGTERM and Ctrl-C save first.

A model, network or data set of your own package works in every verb with --trust my_pkg, or with
trust = ["my_pkg"] under [tool.vae_lightning] in the pyproject.toml of the present folder.

  vae-lightning fit --help                      the flags of a verb
  vae-lightning fit -c CONFIG --print_config    the configuration that a run would use
"""


class Verb(NamedTuple):
    """The usage of a command, and its purpose in one sentence."""

    usage: str
    text: str


@cache
def own_verbs() -> dict[str, Verb]:
    """Return the commands beyond Lightning's by name: one for each file in verbs/ whose name begins with a letter."""
    files = sorted((Path(__file__).parent.parent / "verbs").glob("[a-z]*.py"))
    return {file.stem.replace("_", "-"): _read(file) for file in files}


def _read(file: Path) -> Verb:
    """Read usage and purpose from the first paragraph of the file's docstring: "`sample RUN`: draw samples ..."."""
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    usage, _, text = " ".join(doc.partition("\n\n")[0].split()).partition("`: ")
    return Verb(usage.lstrip("`"), text.rstrip("."))


def help_text() -> str:
    """Return the text of `vae-lightning --help`."""
    verbs = [Verb(f"{name} {usage}", text) for name, (usage, text) in LIGHTNING_VERBS.items()] + [*own_verbs().values()]
    return "\n".join([_HEAD, "", *(_row(verb) for verb in verbs), "", _TAIL])


def _row(verb: Verb) -> str:
    lines = textwrap.wrap(verb.text, 120 - 2 - _WIDTH)
    first = f"  {verb.usage}".ljust(_WIDTH)
    lines = [f"{first}  {lines[0]}", *(f"{'':{_WIDTH}}  {line}" for line in lines[1:])]
    return "\n".join(lines)
