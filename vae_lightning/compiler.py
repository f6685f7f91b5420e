"""The C++ compiler that torch.compile will use on a CPU. Only the standard library, for the doctor asks as well."""

from __future__ import annotations

import os
import shutil
import sys


def compiler_name() -> str:
    """What torch calls: the first word of CXX, else the system's."""
    named = os.environ.get("CXX", "").split()
    return named[0] if named else "clang++" if sys.platform == "darwin" else "g++"


def find_compiler() -> str | None:
    """Its path; None where there is none."""
    return shutil.which(compiler_name())
