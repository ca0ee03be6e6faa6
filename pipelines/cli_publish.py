"""`clipmill publish`."""

from typing import Annotated

import typer

from pipelines.cli_shared import (
    EXIT_CODES,
    NOTHING_CAME_OUT,
    PARTIAL,
    SELECTIONS,
    Address,
    DatasetFolder,
    NumCpus,
    TakeOver,
    comma_separated,
    complain,
    given,
    say,
)

app = typer.Typer()


@app.command(epilog=EXIT_CODES, rich_help_panel=SELECTIONS)
def publish(
    dataset: DatasetFolder,
    out: Annotated[str, typer.Argument(help="New folder: a local path or any fsspec URL.", show_default=False)],
    selection: Annotated[str, typer.Option(help="Name of the selection to publish.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="Layout: hf (WebDataset shards), files, finetrainers, diffusion-pipe, musubi.")
    ] = "hf",
    captions: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated captioners or sources of captions, best first; by default the newest caption.",
            show_default=False,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Frame rate to resample to; 16 by default for diffusion-pipe and musubi, else that of each clip.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="YAML file with settings: lengths, shards, ...", show_default=False),
    ] = None,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
) -> None:
    """Write a selection as a folder for the Hugging Face Hub or another trainer, with a card and Croissant metadata.

    Nothing is uploaded; the card contains the upload command. Rerun to resume. The folder reveals no local path, user
    name or credential.
    """
    from typing import cast, get_args

    from clipmill.config import known_name
    from curation.publish.layouts import Target
    from curation.publish.plan import PublishConfig
    from pipelines.grid import size
    from pipelines.publish import publish as run

    target = cast(Target, known_name("layout", to, get_args(Target)))
    changes = given(captions=comma_separated(captions) or None, fps=fps)
    settings = (PublishConfig.from_file(config) if config else PublishConfig()).replace(**changes)
    result = run(
        dataset,
        selection,
        out,
        to=target,
        config=settings,
        take_over=take_over,
        address=address,
        num_cpus=num_cpus,
    )
    say(f"{out}: {result.clips:,} clips ({size(result.bytes)}), {result.written:,} written now")
    if result.without_caption:
        say(f"  {result.without_caption:,} clips have no caption: their text is empty")
    if not result.clips:
        complain("no clips were written; index.json has the reason for each")
        raise typer.Exit(NOTHING_CAME_OUT)
    say(f'  look at {out}/README.md, then: hf upload USER/NAME {out} --repo-type dataset --exclude ".clipmill/*"')
    if result.left_out:
        reasons = ", ".join(f"{count:,} {kind}" for kind, count in result.left_out.items())
        complain(f"{sum(result.left_out.values()):,} selected clips are not in {out}: {reasons}")
        raise typer.Exit(PARTIAL)
