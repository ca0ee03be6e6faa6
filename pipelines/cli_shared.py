"""Shared by the commands: exit codes, common options, terminal output."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from clipmill.errors import INTERRUPTED, EmptyResult, RunStopped, UserError, interrupt, raise_if_stopped
from pipelines.printable import log_to_stderr, printable

if TYPE_CHECKING:
    from pipelines.config import CurateConfig

FAILED, BAD_REQUEST, NOTHING_CAME_OUT, CAPTIONS_FAILED, PARTIAL = 1, 2, 3, 4, 5

EXIT_CODES = (
    "Exit codes: 0 success; 1 the run stopped before it finished (rerun the same command to resume); 2 invalid request "
    "or no usable input; 3 the result is empty; 4 some captions failed; 5 some selected clips or samples were not "
    "written; 130 interrupted."
)

DATASETS, CLIPS, SELECTIONS, MODELS = "Datasets", "Scores and captions", "Selections and shards", "Models"
"""Panels of `clipmill --help`."""

DatasetFolder = Annotated[
    str, typer.Argument(help="Dataset folder: a local path or any fsspec URL.", show_default=False)
]
Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs, archives (.zip, .tar), s3:// or any fsspec URL, or lists (.csv, .tsv, .jsonl, "
        ".json, .parquet, .txt) with a column of addresses (path, url, file_name, ...) and optional captions and "
        "metadata.",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Address of a Ray cluster; defaults to RAY_ADDRESS, else starts Ray on this machine.", show_default=False
    ),
]
NumCpus = Annotated[
    int | None,
    typer.Option(min=1, help="Number of CPUs for a local Ray; defaults to all available.", show_default=False),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file with settings that override the defaults.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Without = Annotated[
    str | None,
    typer.Option(help="Comma-separated scores to skip: similarity, aesthetic, text_area.", show_default=False),
]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="Replace a live run that owns the output folder: it stops at its next commit, and this run continues.",
    ),
]


CpuPrice = Annotated[
    float, typer.Option("--price-per-cpu-hour", min=0, help="Price of one CPU hour.", show_default=False)
]
GpuPrice = Annotated[
    float, typer.Option("--price-per-gpu-hour", min=0, help="Price of one GPU hour.", show_default=False)
]
TokenInPrice = Annotated[
    float,
    typer.Option(
        "--price-per-million-tokens-in",
        min=0,
        help="Price of a million prompt tokens of captioning endpoints.",
        show_default=False,
    ),
]
TokenOutPrice = Annotated[
    float,
    typer.Option(
        "--price-per-million-tokens-out", min=0, help="Price of a million completion tokens.", show_default=False
    ),
]
StoragePrice = Annotated[
    float, typer.Option("--price-per-gb-month", min=0, help="Price of 1 GB stored for a month.", show_default=False)
]


def run_command(command: Callable[[], object]) -> None:
    """Run a command and exit with a code from `EXIT_CODES` if it fails; a UserError is printed without a traceback.

    SIGTERM ends it like Ctrl-C, and logs of libraries go to stderr.
    """
    signal.signal(signal.SIGTERM, interrupt)
    log_to_stderr()
    try:
        with _stopped_by_the_machine():
            command()
    except UserError as error:
        complain(str(error))
        codes = {RunStopped: FAILED, EmptyResult: NOTHING_CAME_OUT}
        sys.exit(next((code for kind, code in codes.items() if isinstance(error, kind)), BAD_REQUEST))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextmanager
def _stopped_by_the_machine() -> Iterator[None]:
    """Translate what this machine lacks, such as room for a temporary file, into RunStopped."""
    try:
        yield
    except OSError as error:
        raise_if_stopped(error)
        raise


def curate_config(address: str | None, without: str | None) -> "CurateConfig":
    """The configuration of `curate` from the options --config and --without. Raises UserError."""
    from clipmill.config import known_name
    from curation.scores.columns import SCORE_COLUMNS
    from pipelines.config import CurateConfig

    config = CurateConfig.from_file(address) if address else CurateConfig()
    names = [known_name("score", name, SCORE_COLUMNS) for name in comma_separated(without)]
    return config.model_copy(update={"without": tuple(sorted({*config.without, *names}))})


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def comma_separated(text: str | None) -> list[str]:
    """The names in an option."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def console() -> Console:
    """A console on stdout; 110 columns wide if stdout is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=110)


def say(text: str) -> None:
    """Print lines to stdout without markup or wrapping; unprintable characters are escaped."""
    lines = "\n".join(printable(line) for line in text.splitlines())
    console().print(lines, markup=False, soft_wrap=True)


def complain(sentence: str) -> None:
    """Print an error to stderr."""
    text = "\n".join(printable(line) for line in sentence.splitlines())
    Console(stderr=True).print(f"clipmill: {text}", style="red", highlight=False, markup=False, soft_wrap=True)


def location(text: str) -> Path | str:
    """A local path as a Path; an fsspec URL unchanged."""
    return text if "://" in text else Path(text)


def nothing_came_out(sentence: str) -> NoReturn:
    complain(sentence)
    raise typer.Exit(NOTHING_CAME_OUT)
