"""Progress display: a live bar on a terminal, an occasional plain line otherwise."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.metrics import export_progress
from pipelines.printable import printable

_SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """A context manager that shows what a run is doing, and counts units of work once their `total` is known.

    Writes to stderr; stdout is for results. Thread-safe.
    """

    def __init__(self, title: str, total: int | None = None, *, unit: str, quiet: bool = False) -> None:
        self.quiet = quiet
        self._title, self._total, self._unit = printable(title), total, unit
        self._done, self._detail = 0, ""
        self._console = Console(stderr=True)
        self._started_s = self._last_line_s = self._begun_s = time.monotonic()
        self._bar: Progress | None = None
        self._printed: tuple[int, str] | None = None
        """The count and the detail that were printed last."""

    def __enter__(self) -> "Reporter":
        if self._console.is_terminal and not self.quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self._unit, markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[end]}", markup=False),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, detail="", end="")
        elif not self.quiet and self._total is not None:
            self._line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self.quiet:
            self._line_if_new()

    def waiting(self, what: str) -> None:
        """Show what the run is doing or waiting for outside its units of work."""
        if self._bar is not None:
            self._bar.update(self._task, detail=printable(what))
        elif not self.quiet:
            self._line_if_new()
            self._print(f"{self._title}: {what}")

    def connecting(self, address: str | None) -> None:
        """Show that the run waits for Ray: the cluster at `address`, or one on this machine."""
        self.waiting(f"connecting to Ray at {address}" if address else "starting Ray")

    def begin(self, total: int) -> None:
        """Start counting `total` units."""
        self._total, self._done, self._detail = total, 0, ""
        self._begun_s = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, total=total, detail="", end="")
        elif not self.quiet:
            self._line()

    def advance(self, units: int = 1, detail: str = "") -> None:
        """Add finished units; `detail` is shown next to the count."""
        self._detail = detail
        self.reached(self._done + units)

    def reached(self, done: int) -> None:
        """Set the number of finished units."""
        self._done = max(done, self._done)
        if self._total is not None:
            export_progress(self._title, done=self._done, total=self._total, end_time_s=self.end_time_s())
        self._show()

    def detail(self, detail: str) -> None:
        """Show `detail` next to the count."""
        self._detail = detail
        self._show()

    def node_died(self, address: str) -> None:
        """Report that a node of the cluster died."""
        note(f"node {address} died; retrying its work on the other nodes")

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, detail=printable(self._detail), end=self._end())
        elif not self.quiet and time.monotonic() - self._last_line_s > _SECONDS_BETWEEN_LINES:
            self._line()

    def end_time_s(self) -> float | None:
        """When the run will end at its present speed, in seconds since 1970; None while that is not known."""
        if not self._total or not 0 < self._done < self._total:
            return None
        return time.time() + (time.monotonic() - self._begun_s) * (self._total - self._done) / self._done

    def _end(self) -> str:
        end_s = self.end_time_s()
        if end_s is None:
            return ""
        today = time.localtime().tm_yday, time.localtime().tm_year
        end = time.localtime(end_s)
        same_day = (end.tm_yday, end.tm_year) == today
        return time.strftime("ends about %H:%M" if same_day else "ends about %Y-%m-%d %H:%M", end)

    def _line_if_new(self) -> None:
        """Print the current count unless it was already printed or nothing has been counted."""
        if self._done and self._printed != (self._done, self._detail):
            self._line()

    def _line(self) -> None:
        self._printed = (self._done, self._detail)
        self._last_line_s = time.monotonic()
        elapsed_s = self._last_line_s - self._started_s
        detail = f", {self._detail}" if self._detail else ""
        end = f", {self._end()}" if self._end() else ""
        self._print(f"{self._title}: {self._done}/{self._total} {self._unit} after {elapsed_s:.0f} s{end}{detail}")

    def _print(self, line: str) -> None:
        self._console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def note(sentence: str) -> None:
    """Print a note to stderr."""
    text = "\n".join(printable(line) for line in sentence.splitlines())
    Console(stderr=True).print(f"note: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)
