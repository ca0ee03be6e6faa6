"""The command line of `clipmill`: one function per command. Here, curation; the model's are in `cli_model`.

What a command needs is imported when it runs, so that `clipmill --help` answers at once.
"""

import json
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from clipmill.errors import RunStopped, UserError
from pipelines import cli_model
from pipelines.cli_shared import (
    BAD_REQUEST,
    CAPTIONS_FAILED,
    EXIT_CODES,
    FAILED,
    NOTHING_CAME_OUT,
    PARTIAL,
    Address,
    NumCpus,
    TakeOver,
    complain,
    console,
    say,
)
from pipelines.printable import log_to_stderr

if TYPE_CHECKING:
    from pipelines.config import CurateConfig

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
    str | None, typer.Option("--config", help="YAML with settings that differ from the defaults.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output, on stdout alone.")]


DatasetFolder = Annotated[str, typer.Argument(help="Dataset folder, local or any fsspec URL.", show_default=False)]
Without = Annotated[
    str | None,
    typer.Option(
        help="Scores to leave out, separated by commas: similarity, aesthetic, text_area.", show_default=False
    ),
]


def _print_version(asked: bool) -> None:
    if asked:
        from clipmill import __version__

        print(f"clipmill {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(epilog=EXIT_CODES)
def curate(
    inputs: Inputs,
    out: Annotated[str, typer.Option(help="Dataset folder, local or any fsspec URL.", show_default=False)],
    config: ConfigFile = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take at most this many inputs.", show_default=False)] = None,
    without: Without = None,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try sources again that an earlier run rejected.")
    ] = False,
    retry_captions: Annotated[
        bool, typer.Option("--retry-captions", help="Re-caption sources whose captions failed.")
    ] = False,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
) -> None:
    """Find the shots of every video, score every clip, and write the tables of a dataset.

    Run the same command again after an interruption: only what is missing is done. Bad videos are rows with a
    reason in the sources table and stop nothing.
    """
    from curation.captioners import CAPTIONERS
    from pipelines import render
    from pipelines.curate import curate as run
    from pipelines.report import report_at_end

    settings = _config(config, without)
    result = run(
        inputs,
        out,
        config=settings,
        limit=limit,
        retry_rejected=retry_rejected,
        retry_captions=retry_captions,
        take_over=take_over,
        address=address,
        num_cpus=num_cpus,
    )
    render.print_curation(console(), result)
    report_at_end(out)
    if not result.status.clips:
        _nothing_came_out("no clips were produced: see the reasons above")
    failed = {name: count for name, count in result.status.captions_failed.items() if name in CAPTIONERS}
    if failed:
        counts = ", ".join(f"{count:,} of {name}" for name, count in failed.items())
        complain(
            f"captions failed: {counts}. The clips are there with all else; the reasons are in their captions. Once "
            "the cause is mended, run the same command with --retry-captions."
        )
        raise typer.Exit(CAPTIONS_FAILED)


@app.command(epilog=EXIT_CODES)
def duplicates(
    dataset: DatasetFolder,
    min_cosine: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="How near copies are; by default as in the last search.", show_default=False),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Find re-uploads and re-encodings among the clips: the column duplicate_rank, 0 for the best of each group.

    `clipmill curate` does this by itself; this is for other settings, and after tables were copied together. Settings
    that are not given are those of the last search.
    """
    from curation.dataset.tables import Dataset
    from curation.dedup.duplicates import DuplicatesConfig, find_duplicates, last_config
    from pipelines import render
    from pipelines.config import CurateConfig
    from pipelines.status import models_of

    opened = Dataset(dataset).open()
    recorded = last_config(opened)
    values = recorded.model_dump() if recorded else dict(models_of(opened).get("duplicates") or {})
    if config:
        values = (CurateConfig.from_file(config).duplicates or DuplicatesConfig()).model_dump()
    if min_cosine is not None:
        values["min_cosine"] = min_cosine
    settings = DuplicatesConfig.from_values(values, origin="duplicates")
    render.print_duplicates(console(), dataset, find_duplicates(opened, settings))


@app.command(epilog=EXIT_CODES)
def select(
    dataset: DatasetFolder,
    preset: Annotated[
        str | None, typer.Option(help="Rules that come along, by name; by default svd-paper.", show_default=False)
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with your own rules instead.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the selection; by default the rules' own.", show_default=False)
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace a selection of this name that has other rules or other clips."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the funnel and write nothing.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Skip rules on columns that the dataset does not have.")
    ] = False,
) -> None:
    """Choose clips by rules, by value or by percentile, and show what each rule removed.

    A name that holds the same rules and the same clips is written again; anything else under it needs --replace.
    Exits with 3 when no clip passed, or when a rule dropped clips for a score that most clips do not have.
    """
    from curation.selection.rules import load_rules
    from pipelines import render
    from pipelines.report import report_at_end
    from pipelines.select import DEFAULT_PRESET
    from pipelines.select import select as run

    if preset and config:
        raise UserError("--preset and --config are two sets of rules: give one of them")
    rules = load_rules(config) if config else preset or DEFAULT_PRESET
    selection = run(dataset, rules, name=name, allow_missing=allow_missing, replace=replace, dry_run=dry_run)
    render.print_selection(console(), selection, dry_run=dry_run)
    if not dry_run:
        report_at_end(dataset, selection.name)
    if warning := render.shortfall(selection):
        _nothing_came_out(warning)


@app.command(epilog=EXIT_CODES)
def report(
    dataset: DatasetFolder,
    selection: Annotated[
        str | None,
        typer.Option(help="Selection whose rules the page starts with; without it, no rules.", show_default=False),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another selection, to compare the first with.", show_default=False)
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write a page to choose thresholds on: DATASET/report/SELECTION.html, one file that needs no network.

    `clipmill curate` and `clipmill select` write it at their end.
    """
    from pipelines.report import report as run

    written = run(dataset, selection, against=against)
    say(f"{written.file}: {written.shown:,} of {written.clips:,} clips, {written.with_pictures:,} with pictures")
    if open_it:
        import webbrowser
        from pathlib import Path

        webbrowser.open(Path(written.file).resolve().as_uri() if "://" not in written.file else written.file)


@app.command(epilog=EXIT_CODES)
def shard(
    dataset: DatasetFolder,
    selection: Annotated[str, typer.Option(help="Name of the selection to write.", show_default=False)],
    images: Annotated[bool, typer.Option("--images", help="Middle frames as JPEG, for image pretraining.")] = False,
    config: Annotated[
        str | None,
        typer.Option(
            help="YAML: images_per_shard, extraction (crf, preset, jpeg_quality, limits, ...).", show_default=False
        ),
    ] = None,
    clips_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Samples in one clip shard; by default 100.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Shuffle seed; by default 0.", show_default=False)] = None,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
) -> None:
    """Write the selected clips as WebDataset shards: DATASET/shards/SELECTION/*.tar and index.json."""
    from curation.shards.write import ShardConfig
    from pipelines import render
    from pipelines.shard import shard as run

    if images and clips_per_shard is not None:
        raise UserError("--clips-per-shard is for clip shards: with --images, set images_per_shard in a --config file")
    given = {"clips_per_shard": clips_per_shard, "seed": seed}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = (ShardConfig.from_file(config) if config else ShardConfig()).model_copy(update=changes)
    result = run(
        dataset,
        selection,
        images=images,
        config=settings,
        take_over=take_over,
        address=address,
        num_cpus=num_cpus,
    )
    render.print_shards(console(), result)
    totals = result.index["totals"]
    if not totals["samples"]:
        _nothing_came_out("no clip could be written: index.json has the reason for each")
    if result.partial:
        complain(
            f"{totals['samples']:,} of {totals['selected']:,} selected clips were written: {totals['failed']:,} "
            f"failed, {totals['gone']:,} are no longer in the dataset. {result.folder}/index.json lists them with "
            "reasons."
        )
        raise typer.Exit(PARTIAL)


@app.command(epilog=EXIT_CODES)
def status(
    dataset: DatasetFolder,
    rejected: Annotated[bool, typer.Option("--rejected", help="List every rejected source with its reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a dataset holds: sources, clips, selections and shards."""
    from curation.dataset.tables import Dataset
    from pipelines import render
    from pipelines.status import FIRST_REJECTED
    from pipelines.status import status as run

    summary = run(Dataset(dataset), list_rejected=None if rejected else FIRST_REJECTED)
    if as_json:
        print(json.dumps(asdict(summary)))
        return
    render.print_status(console(), summary)
    if rejected:
        render.print_rejected(console(), summary)


@app.command(epilog=EXIT_CODES)
def inspect(videos: Inputs, config: ConfigFile = None, without: Without = None, as_json: AsJson = False) -> None:
    """Show what the pipeline sees in a video: probe, transitions, clips, scores. Writes nothing."""
    from pipelines import render
    from pipelines.inspect import inspect as run

    usable = 0
    for seen in run(videos, _config(config, without)):
        usable += seen.error_kind is None
        if as_json:
            print(json.dumps(asdict(seen)), flush=True)
        else:
            render.print_inspection(console(), seen)
    if not usable:
        raise UserError("no usable input: see the reason for each above")


app.add_typer(cli_model.app)


def _nothing_came_out(sentence: str) -> NoReturn:
    complain(sentence)
    raise typer.Exit(NOTHING_CAME_OUT)


def _config(address: str | None, without: str | None) -> "CurateConfig":
    from clipmill.config import known_name
    from curation.scores.columns import SCORE_COLUMNS
    from pipelines.config import CurateConfig

    config = CurateConfig.from_file(address) if address else CurateConfig()
    names = [known_name("score", name.strip(), SCORE_COLUMNS) for name in (without or "").split(",") if name.strip()]
    return config.model_copy(update={"without": tuple(sorted({*config.without, *names}))})


def main() -> None:
    """Run the command line and exit with one of the codes above; a user's mistake is one sentence on stderr."""
    signal.signal(signal.SIGTERM, _interrupt)
    log_to_stderr()
    try:
        app()
    except UserError as error:
        complain(str(error))
        sys.exit(FAILED if isinstance(error, RunStopped) else BAD_REQUEST)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
