"""`clipmill duplicates`."""

from typing import Annotated

import typer

from clipmill.addresses import redacted
from clipmill.errors import UserError
from pipelines.cli_shared import CLIPS, EXIT_CODES, Address, ConfigFile, DatasetFolder, TakeOver, console, given

app = typer.Typer()


@app.command(epilog=EXIT_CODES, rich_help_panel=CLIPS)
def duplicates(
    dataset: DatasetFolder,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Minimum cosine similarity of duplicates; defaults to that of the last search.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="What to compare: embedding (CLIP) or picture_hash; defaults to embeddings where there are any.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Another dataset, such as a benchmark's test set or an older release: score each clip by its nearest "
            "clip there instead.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the score of --against, against_NAME; defaults to the name of that folder.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    take_over: TakeOver = False,
    address: Address = None,
) -> None:
    """Find near-duplicate clips (re-uploads, re-encodings) and write duplicate_rank: 0 for the best clip of each group.

    `clipmill curate` already does this at the end of each run. Use this command to search again with different
    settings or after merging tables. Settings that are not given default to those of the last search. With --address
    the kept clips are held by the cluster.
    """
    from contextlib import nullcontext

    from curation.dataset.commits import Change
    from curation.dataset.tables import Dataset
    from pipelines import render
    from pipelines.changes import changing
    from pipelines.duplicates import is_due, search_against, search_duplicates, settings_of

    opened = Dataset(dataset).open()
    if name and not against:
        raise UserError("--name names the score of --against; pass both, or neither")
    settings = settings_of(opened, config, given(min_cosine=min_cosine, by=by))
    other = Dataset(against).open() if against else None
    due = is_due(opened, settings, against=other, name=name)
    change = Change(command="duplicates", what=f"against {redacted(against)}" if against else "")
    with changing(opened, change, take_over=take_over) if due else nullcontext():
        if other is not None:
            result = search_against(opened, other, settings, name=name, address=address)
            render.print_against(console(), other.url, result)
        else:
            render.print_duplicates(console(), dataset, search_duplicates(opened, settings, address=address))
