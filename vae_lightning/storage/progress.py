"""The progress of long work: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Show the progress of a loop: `with Progress("preparing", 1000) as progress: progress.advance(10)`.

    Args:
        title: What is done.
        total: The number of items.
        done: Items that were done before.
        min_seconds: Without a terminal, the time between two lines; shorter work prints none.
    """

    def __init__(self, title: str, total: int, done: int = 0, min_seconds: float = 5.0) -> None:
        self.title, self.total, self.done, self.min_seconds = title, total, done, min_seconds
        self._last = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, count: int) -> None:
        """Count items as done.

        Args:
            count: Their number.
        """
        self.done += count
        self._bar.update(self._task, completed=self.done)
        if self._bar.disable and time.monotonic() - self._last > self.min_seconds:
            self._last = time.monotonic()
            print(f"{self.title}: {self.done:,} of {self.total:,}", flush=True)
