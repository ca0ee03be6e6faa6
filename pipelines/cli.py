"""The `clipmill` command line, one function per command: the curation commands. `cli_model` has the model commands.

Each command imports its dependencies when it runs, so that `clipmill --help` responds immediately.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated

import typer

from clipmill.errors import UserError
from pipelines import (
    cli_caption,
    cli_dataset,
    cli_doctor,
    cli_duplicates,
    cli_model,
    cli_plan,
    cli_publish,
    cli_score,
    cli_search,
    cli_shard,
)
from pipelines.cli_shared import (
    CAPTIONS_FAILED,
    DATASETS,
    EXIT_CODES,
    SELECTIONS,
    Address,
    AsJson,
    ConfigFile,
    CpuPrice,
    DatasetFolder,
    GpuPrice,
    Inputs,
    NumCpus,
    StoragePrice,
    TakeOver,
    TokenInPrice,
    TokenOutPrice,
    Without,
    complain,
    console,
    curate_config,
    nothing_came_out,
    run_command,
    say,
)

app = typer.Typer(
    name="clipmill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Curate raw videos into scored clips and WebDataset shards; train Stable Video Diffusion on them.",
    epilog=EXIT_CODES,
)


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


@app.command(epilog=EXIT_CODES, rich_help_panel=DATASETS)
def curate(
    inputs: Inputs,
    out: Annotated[str, typer.Option(help="Dataset folder: a local path or any fsspec URL.", show_default=False)],
    config: ConfigFile = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of inputs to process.", show_default=False)
    ] = None,
    without: Without = None,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Retry sources that an earlier run rejected.")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Scan inputs again that `clipmill remove` removed from the dataset.")
    ] = False,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
) -> None:
    """Detect shots, score clips, and write a dataset.

    Rerun the same command to resume: only missing work is done. A video that cannot be used becomes a row with the
    reason in the sources table; the run continues.
    """
    from pipelines import render
    from pipelines.curate import curate as run
    from pipelines.report import report_at_end

    settings = curate_config(config, without)
    result = run(
        inputs,
        out,
        config=settings,
        limit=limit,
        retry_rejected=retry_rejected,
        restore=restore,
        take_over=take_over,
        address=address,
        num_cpus=num_cpus,
    )
    render.print_curation(console(), result)
    report_at_end(out)
    if not result.status.clips:
        nothing_came_out("no clips were produced; see the reasons above")
    failed = {each.captioner: each.failed for each in result.status.captions if each.counted and each.failed}
    if failed:
        counts = ", ".join(f"{count:,} of {name}" for name, count in failed.items())
        complain(
            f"captions failed: {counts}. The clips were written without them; each failed caption has its error. Fix "
            f"the cause, then run `clipmill caption {out} --captioner NAME --retry-failed` with the same --config."
        )
        raise typer.Exit(CAPTIONS_FAILED)


@app.command(epilog=EXIT_CODES, rich_help_panel=SELECTIONS)
def select(
    dataset: DatasetFolder,
    preset: Annotated[
        str | None, typer.Option(help="Built-in selection rules; svd-paper by default.", show_default=False)
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="YAML file with rules to use instead of a preset.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the selection; defaults to the name of the rules.", show_default=False)
    ] = None,
    marks: Annotated[
        str | None,
        typer.Option(help="Marks exported from the report: keep, drop, bad cut, wrong score.", show_default=False),
    ] = None,
    clip_config: Annotated[
        str | None,
        typer.Option(
            help="YAML file with the CLIP model's settings, as for `clipmill curate`, for the texts and pictures of "
            "`like`; by default those of the dataset.",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Overwrite a selection of the same name that has different rules or clips."),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="Selection to compare with: also print which clips are added and removed, and by which rule.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the funnel without writing anything.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Skip rules whose column is missing from the dataset.")
    ] = False,
) -> None:
    """Select clips by rules on values or percentiles, and print how many clips each rule removed.

    Rerunning with the same rules on the same clips rewrites the selection; overwriting a different one requires
    --replace. Exits with 3 if no clip passes, or if a rule drops clips for a score that most clips lack.
    """
    from curation.dataset.caption_counts import caption_savings
    from curation.dataset.tables import Dataset
    from curation.selection.rules import load_rules
    from pipelines.config import CurateConfig
    from pipelines.render_selection import print_difference, print_selection, savings_sentence, shortfall
    from pipelines.report import report_at_end
    from pipelines.select import DEFAULT_PRESET, compare
    from pipelines.select import select as run

    if preset and config:
        raise UserError("--preset and --config are mutually exclusive; pass one of them")
    rules = load_rules(config) if config else preset or DEFAULT_PRESET
    clip = CurateConfig.from_file(clip_config) if clip_config else None
    difference = None
    if against:  # first, for the new selection may replace the one to compare with
        difference = compare(dataset, rules, against, marks=marks, clip_config=clip, allow_missing=allow_missing)
    selection = run(
        dataset,
        rules,
        name=name,
        marks=marks,
        clip_config=clip,
        allow_missing=allow_missing,
        replace=replace,
        dry_run=dry_run,
    )
    print_selection(console(), selection, dry_run=dry_run)
    with Dataset(dataset).connect() as connection:
        savings = caption_savings(connection, selection.total_clips - selection.clips)
    if sentence := savings_sentence(selection, savings):
        say(sentence)
    if difference:
        print_difference(console(), difference)
    if not dry_run:
        report_at_end(dataset, selection.name)
    if warning := shortfall(selection):
        nothing_came_out(warning)


@app.command(epilog=EXIT_CODES, rich_help_panel=SELECTIONS)
def report(
    dataset: DatasetFolder,
    selection: Annotated[
        str | None,
        typer.Option(help="Selection whose rules the page starts with; by default none.", show_default=False),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Selection to compare with.", show_default=False)] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write an HTML page for browsing clips and choosing thresholds: DATASET/report/SELECTION.html.

    The page is a single file that works offline. `clipmill curate` and `clipmill select` also write it.
    """
    from pipelines.report import report as run

    written = run(dataset, selection, against=against)
    say(f"{written.file}: {written.shown:,} of {written.clips:,} clips, {written.with_pictures:,} with pictures")
    if open_it:
        import webbrowser
        from pathlib import Path

        if "://" not in written.file:
            webbrowser.open(Path(written.file).resolve().as_uri())
        elif written.file.startswith(("https://", "http://")):
            webbrowser.open(written.file)
        else:
            say(f"a browser cannot open {written.file}: download it, or open its https address")


@app.command(epilog=EXIT_CODES, rich_help_panel=DATASETS)
def status(
    dataset: DatasetFolder,
    rejected: Annotated[bool, typer.Option("--rejected", help="List every rejected source and the reason.")] = False,
    price_per_cpu_hour: CpuPrice = 0,
    price_per_gpu_hour: GpuPrice = 0,
    price_per_million_tokens_in: TokenInPrice = 0,
    price_per_million_tokens_out: TokenOutPrice = 0,
    price_per_gb_month: StoragePrice = 0,
    as_json: AsJson = False,
) -> None:
    """Show the contents of a dataset, sources, clips, selections and shards, and what each stage cost."""
    from curation.dataset.tables import Dataset
    from pipelines import render
    from pipelines.costs import Prices
    from pipelines.render_costs import print_costs
    from pipelines.status import FIRST_REJECTED
    from pipelines.status import status as run

    summary = run(Dataset(dataset), list_rejected=None if rejected else FIRST_REJECTED)
    if as_json:
        print(json.dumps(asdict(summary)))
        return
    render.print_status(console(), summary)
    prices = Prices(
        cpu_hour=price_per_cpu_hour,
        gpu_hour=price_per_gpu_hour,
        million_tokens_in=price_per_million_tokens_in,
        million_tokens_out=price_per_million_tokens_out,
        gb_month=price_per_gb_month,
    )
    print_costs(console(), summary.costs, summary.runs, prices, stored_bytes=summary.stored_bytes)
    if rejected:
        render.print_rejected(console(), summary)


@app.command(epilog=EXIT_CODES, rich_help_panel=DATASETS)
def inspect(
    videos: Inputs,
    config: ConfigFile = None,
    without: Without = None,
    stats: Annotated[
        str | None,
        typer.Option(help="Write the cut detectors' signals per frame to this CSV file.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the pipeline on videos and print metadata, transitions, clips and scores without a dataset."""
    from curation.dataset.schemas import SIGNAL_COLUMNS
    from pipelines import render
    from pipelines.inspect import FRAME_TIMES, signals_file
    from pipelines.inspect import inspect as run

    usable = 0
    with signals_file(stats) if stats else nullcontext() as write_signals:
        for seen in run(videos, curate_config(config, without)):
            usable += seen.error_kind is None
            if write_signals is not None:
                write_signals(seen)
            if as_json:
                values = asdict(seen)
                for name in (*SIGNAL_COLUMNS, FRAME_TIMES):
                    values["source"].pop(name, None)
                print(json.dumps(values), flush=True)
            else:
                render.print_inspection(console(), seen)
    if not usable:
        raise UserError("no usable input; see the reasons above")


app.add_typer(cli_dataset.app)
app.add_typer(cli_doctor.app)
app.add_typer(cli_duplicates.app)
app.add_typer(cli_plan.app)
app.add_typer(cli_score.app)
app.add_typer(cli_caption.app)
app.add_typer(cli_shard.app)
app.add_typer(cli_publish.app)
app.add_typer(cli_search.app)
app.add_typer(cli_model.app)


def main() -> None:
    """Run the command line; see `run_command`."""
    run_command(app)


if __name__ == "__main__":
    main()
