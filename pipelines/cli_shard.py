"""`clipmill shard` and `clipmill fetch`: samples into shards, and some of them back out."""

from typing import Annotated, Literal

import typer

from clipmill.errors import UserError
from pipelines.cli_shared import (
    EXIT_CODES,
    NOTHING_CAME_OUT,
    PARTIAL,
    SELECTIONS,
    Address,
    DatasetFolder,
    NumCpus,
    TakeOver,
    complain,
    console,
    given,
    nothing_came_out,
    say,
)

app = typer.Typer()


@app.command(epilog=EXIT_CODES, rich_help_panel=SELECTIONS)
def shard(
    dataset: DatasetFolder,
    selection: Annotated[str, typer.Option(help="Name of the selection to write.", show_default=False)],
    images: Annotated[
        bool, typer.Option("--images", help="Write the middle frame of each clip as JPEG, for image pretraining.")
    ] = False,
    frames: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="With --images: evenly spaced frames of each clip.", show_default=False),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="YAML file with shard settings: images_per_shard, extraction (crf, jpeg_quality, limits, ...).",
            show_default=False,
        ),
    ] = None,
    clips_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Samples per clip shard; 100 by default.", show_default=False)
    ] = None,
    audio: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option(help="keep: write the sound of clips, too, as AAC. Dropped by default.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Shuffle seed; 0 by default.", show_default=False)] = None,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
) -> None:
    """Write the selected clips as WebDataset shards: DATASET/shards/SELECTION/*.tar and index.json."""
    from curation.shards.write import ShardConfig
    from pipelines import render
    from pipelines.shard import shard as run

    if images and clips_per_shard is not None:
        raise UserError(
            "--clips-per-shard applies to clip shards; with --images, set images_per_shard in a --config file"
        )
    if frames is not None and not images:
        raise UserError("--frames applies to --images; clip shards have all frames")
    if images and audio == "keep":
        raise UserError("--audio keep applies to clip shards; images have no sound")
    settings = ShardConfig.from_file(config) if config else ShardConfig()
    extraction = settings.extraction.replace(**given(audio=audio, frames_per_clip=frames))
    settings = settings.replace(**given(clips_per_shard=clips_per_shard, seed=seed), extraction=extraction)
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
        nothing_came_out("no clips were written; index.json has the reason for each")
    if result.partial:
        complain(
            f"{totals['clips']:,} of {totals['selected']:,} selected clips were written: {totals['failed']:,} "
            f"failed, {totals['gone']:,} are no longer in the dataset. {result.folder}/index.json lists the reasons."
        )
        raise typer.Exit(PARTIAL)


@app.command(epilog=EXIT_CODES, rich_help_panel=SELECTIONS)
def fetch(
    shards: Annotated[
        str, typer.Argument(help="Folder of shards: a local path or any fsspec URL.", show_default=False)
    ],
    out: Annotated[str, typer.Option(help="Local folder for the samples.", show_default=False)],
    where: Annotated[
        str | None,
        typer.Option(
            help="SQL condition on the columns of clips.parquet, e.g. \"motion > 5 AND license = 'CC0'\".",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[list[str] | None, typer.Option(help="Clip id; repeatable.", show_default=False)] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of samples, chosen at random.", show_default=False)
    ] = None,
) -> None:
    """Download some samples of shards by byte range, without downloading the shards.

    Writes CLIP_ID.mp4 (or .jpg), .txt and .json, and clips.parquet with their captions, scores and metadata. Rerun to
    resume.
    """
    from pipelines.fetch import fetch as run
    from pipelines.grid import size

    result = run(shards, out, where=where, clip_ids=clip or (), limit=limit)
    say(
        f"{result.out}: {result.wanted:,} samples, {result.fetched:,} fetched ({size(result.bytes)}), "
        f"{result.there_before:,} already there"
    )
    if result.failed:
        reasons = "; ".join(dict.fromkeys(result.failed.values()))
        complain(f"{len(result.failed):,} of {result.wanted:,} samples could not be fetched: {reasons[:500]}")
        raise typer.Exit(NOTHING_CAME_OUT if result.empty else PARTIAL)
