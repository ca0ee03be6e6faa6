"""The command line: `clipmill curate | select | shard | status | inspect`."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from curation.errors import UserError
from pipelines import render
from pipelines.config import CurateConfig
from pipelines.inspect import inspect as inspect_videos

DONE, FAILED, BAD_REQUEST, NOTHING_CAME_OUT, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = """
Exit codes: 0 done; 1 failed on the way (run the same command again: what is done stays done); 2 a request that
cannot be carried out, or no usable input; 3 it ran, but the result is empty; 130 interrupted.
"""

app = typer.Typer(
    name="clipmill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Raw videos in, scored clips in a table, selected WebDataset shards out.",
    epilog=EXIT_CODES,
)

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs, s3:// or any fsspec URL, or a .txt, .csv or .parquet list with an address "
        "column (uri, url, path, file or video) and, if you like, a caption column.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML with settings that differ from the defaults.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output, on stdout alone.")]


@app.command()
def inspect(videos: Inputs, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show what the pipeline sees in a video: probe, transitions, clips, scores. Writes nothing."""
    console, usable = Console(), 0
    for seen in inspect_videos(videos, _config(config)):
        usable += seen.error_kind is None
        if as_json:
            print(json.dumps(asdict(seen)), flush=True)
        else:
            render.print_inspection(console, seen)
    if not usable:
        raise UserError("no usable input: see the reason for each above")


def _config(path: Path | None) -> CurateConfig:
    return CurateConfig.from_file(path) if path else CurateConfig()


def main() -> None:
    """Run the command line and exit with one of the codes above; errors of the user's are one sentence on stderr."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = BAD_REQUEST
    except UserError as error:
        _complain(str(error))
        code = BAD_REQUEST
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; run the same command again to go on")
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else DONE)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _complain(sentence: str) -> None:
    Console(stderr=True).print(f"clipmill: {render.printable(sentence)}", style="red", highlight=False, markup=False)


if __name__ == "__main__":
    main()
