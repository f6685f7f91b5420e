"""One file for each command beyond Lightning's: its help, its arguments, its work.

The name of the file is the name of the command, and the first paragraph of the docstring is its line in
`vae-lightning --help`. Each file defines `COMMAND`, which is a `Command` or a `DataCommand`. The one exception is
`doctor.py`, which `__main__` runs before torch is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command that has arguments of its own.

    Args:
        make_parser: A function of the program's name and the command's purpose; it returns the command's parser.
        run: A function of the parsed arguments and the packages that `--trust` names; it does the work.
    """

    make_parser: Callable[[str, str], argparse.ArgumentParser]
    run: Callable[[argparse.Namespace, list[str]], None]


@dataclass(frozen=True)
class DataCommand:
    """A command that takes the arguments of `fit` and works on the data set alone.

    Args:
        run: A function of the data set's recipe, a dict with `class_path` and `init_args`; it does the work.
    """

    run: Callable[[dict[str, Any]], None]
