"""Set-up of every test: distributions check their arguments, the seed is fixed, and there is no W&B account.

After the run, a table shows the time that each test folder took.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
import torch

from vae_lightning.distributions import Family

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 uses deprecated names
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tests run on the CPU; those that need a GPU ask for one
# torch makes its compiler's cache when it is imported, by default in the system's folder of temporary files
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "torchinductor"))
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other cores run other workers


LONGEST = ("test_lightning_features", "test_signals", "test_cli", "test_ddp", "test_own_package", "test_hostile")
"""The slowest files, which start first: `--dist=loadfile` hands out whole files, so the last one should be short."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds and the number of tests of each folder, over all workers: set-up, call and tear-down."""
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for report in (one for reports in terminalreporter.stats.values() for one in reports):
        if isinstance(report, pytest.TestReport):
            folder = str(PurePosixPath(report.nodeid.partition("::")[0]).parent)
            seconds[folder] += report.duration
            tests[folder] += report.when == "call"
    terminalreporter.section("what each folder took")
    for folder, total in seconds.most_common():
        terminalreporter.write_line(f"{total:7.1f} s  {tests[folder]:5} tests  {folder}")


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep in pytest's folder, which is removed, what programs leave behind if they are killed, and torchrun always."""
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def _validate_distributions() -> Iterator[None]:
    """Turn on torch's argument checks, which the families leave off for speed."""
    Family.validate_args = True
    yield
    Family.validate_args = False


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "VAE_LIGHTNING_RUN_ID", "VAE_LIGHTNING_CHOSEN_RUN", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(0)
