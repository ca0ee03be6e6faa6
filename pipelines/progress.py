"""Progress for people and for logs: a live bar on a terminal, a plain line now and then anywhere else."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """A context manager that counts `total` units of work. Writes to stderr, so that stdout stays for results."""

    def __init__(self, title: str, total: int, *, unit: str, quiet: bool = False) -> None:
        self._title, self._total, self._unit, self._quiet = title, total, unit, quiet
        self._done, self._detail = 0, ""
        self._console = Console(stderr=True)
        self._started_s = self._last_line_s = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "Reporter":
        if self._console.is_terminal and not self._quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self._unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, detail="")
        elif not self._quiet:
            self._line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet and self._done:
            self._line()

    def advance(self, units: int = 1, detail: str = "") -> None:
        """Count finished units; `detail` is shown beside them."""
        self._done += units
        self._detail = detail
        if self._bar is not None:
            self._bar.update(self._task, advance=units, detail=detail)
        elif not self._quiet and time.monotonic() - self._last_line_s > _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last_line_s = time.monotonic()
        elapsed_s = self._last_line_s - self._started_s
        detail = f", {self._detail}" if self._detail else ""
        line = f"{self._title}: {self._done}/{self._total} {self._unit} after {elapsed_s:.0f} s{detail}"
        self._console.print(line, highlight=False, soft_wrap=True)


def note(sentence: str) -> None:
    """Say on stderr what the user should know, whatever the progress."""
    Console(stderr=True).print(f"note: {sentence}", style="yellow", highlight=False, markup=False, soft_wrap=True)
