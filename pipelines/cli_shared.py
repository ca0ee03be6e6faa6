"""What the commands of `clipmill` share: exit codes, an option, the terminal."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from pipelines.printable import printable

FAILED, BAD_REQUEST, NOTHING_CAME_OUT, CAPTIONS_FAILED, PARTIAL = 1, 2, 3, 4, 5

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed on the way (run the same command again: what is done stays done); 2 a request that "
    "cannot be carried out, or no usable input; 3 it ran, but the result is empty; 4 it ran, but captions failed; "
    "5 it ran, but some selected clips or samples were not written; 130 interrupted."
)

Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to run on; without it, RAY_ADDRESS or this machine.", show_default=False),
]
NumCpus = Annotated[
    int | None,
    typer.Option(min=1, help="CPUs of a Ray on this machine; by default all that may be used.", show_default=False),
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Stop another run that is writing there, at its next commit.")
]


def console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=110)


def say(text: str) -> None:
    """Print lines on stdout as they are, unprintable characters apart."""
    lines = "\n".join(printable(line) for line in text.splitlines())
    console().print(lines, markup=False, soft_wrap=True)


def complain(sentence: str) -> None:
    """Say on stderr what is wrong."""
    text = "\n".join(printable(line) for line in sentence.splitlines())
    Console(stderr=True).print(f"clipmill: {text}", style="red", highlight=False, markup=False, soft_wrap=True)
