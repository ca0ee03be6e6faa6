"""`clipmill search` and `clipmill cluster`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli_shared import CLIPS, EXIT_CODES, AsJson, DatasetFolder, TakeOver, console, nothing_came_out, say

if TYPE_CHECKING:
    from pipelines.search import SearchResult

app = typer.Typer()


@app.command(epilog=EXIT_CODES, rich_help_panel=CLIPS)
def search(
    dataset: DatasetFolder,
    text: Annotated[
        str | None, typer.Argument(help='What the clips show, such as "a dog on a beach".', show_default=False)
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="Find clips like this one: a clip id, or a picture file.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of clips.")] = 24,
    selection: Annotated[
        str | None, typer.Option(help="Search the clips of this selection only.", show_default=False)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="YAML file with the CLIP model's settings, as for `clipmill curate`; by default those of the dataset.",
            show_default=False,
        ),
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(
            help="Contact sheet, .html or .png; by default DATASET/report/search-TEXT.html.", show_default=False
        ),
    ] = None,
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Write no contact sheet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the clips nearest to a text, a clip or a picture, by their CLIP embeddings.

    Prints a table and writes a contact sheet of their pictures. The first search after a change of the dataset prepares
    a file, search/embeddings.arrow, that later searches map into memory.
    """
    from pipelines.config import CurateConfig
    from pipelines.grid import table
    from pipelines.search import search as run

    result = run(
        dataset,
        text,
        like=like,
        limit=limit,
        selection=selection,
        config=CurateConfig.from_file(config) if config else None,
        sheet=sheet,
        write_sheet=not no_sheet,
    )
    if as_json:
        values = asdict(result)
        del values["places"]
        print(json.dumps(values))
        _check_hits(result)
        return
    rows = (
        (
            hit.rank,
            f"{hit.cosine:.3f}",
            hit.clip_id,
            hit.uri.rpartition("/")[2],
            f"{hit.start_s:.1f} to {hit.end_s:.1f}",
            hit.caption,
        )
        for hit in result.hits
    )
    title = f"{result.query}: nearest {len(result.hits):,} of {result.searched:,} clips, {result.search_s * 1e3:.0f} ms"
    columns = ("", "cosine", "clip", "source", "seconds", "caption")
    console().print(table(title, columns, rows, whole=("clip",)))
    if result.sheet:
        say(f"contact sheet: {result.sheet}")
    _check_hits(result)


def _check_hits(result: "SearchResult") -> None:
    if not result.hits:
        nothing_came_out("none of the clips to search has an embedding")


@app.command(epilog=EXIT_CODES, rich_help_panel=CLIPS)
def cluster(
    dataset: DatasetFolder,
    clusters: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of clusters; by default the square root of the number of clips, at most 4096.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the sample and of the first centroids.")] = 0,
    iterations: Annotated[int, typer.Option(min=1, help="Rounds of k-means.")] = 20,
    sample_clips: Annotated[
        int, typer.Option(min=1, help="Clips to train on, chosen at random. More take more memory.")
    ] = 131_072,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train new clusters on the current clips, as a new version.")
    ] = False,
    take_over: TakeOver = False,
    as_json: AsJson = False,
) -> None:
    """Group the clips by content, with k-means on their CLIP embeddings: cluster, cluster_size and cluster_distance.

    Rerun the same command after footage was added: new clips are assigned to the same clusters. Other settings make a
    new version, which counts from then on; rules reach the older one as cluster@1.
    """
    from curation.dedup.clusters import ClusterConfig
    from pipelines.clustering import cluster as run
    from pipelines.grid import table

    config = ClusterConfig(clusters=clusters, seed=seed, iterations=iterations, sample_clips=sample_clips)
    result = run(dataset, config, retrain=retrain, take_over=take_over)
    if as_json:
        print(json.dumps(asdict(result)))
        return
    how = "trained" if result.trained else "as trained earlier"
    rows = [
        ("clusters", result.clusters, f"version {result.version}, {how}"),
        ("clips", result.clips, f"{result.smallest:,} to {result.largest:,} per cluster"),
        ("  without embedding", result.without_embedding, "in no cluster"),
        *((f"  cluster {each.cluster}", each.clips, each.caption or each.clip_id) for each in result.examples),
    ]
    console().print(table(f"clusters in {dataset}", ("", "count", ""), rows))
    say("Balance them with `balance: {by: cluster, power: 0.5, clips: N}` in the rules of `clipmill select`.")
