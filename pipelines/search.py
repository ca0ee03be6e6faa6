"""`clipmill search`: the clips of a dataset nearest to a text, a clip or a picture, by their stored embeddings."""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.embeddings import ClipEmbeddings, open_embeddings
from curation.dataset.nearest import cosines, nearest
from curation.dataset.rows import rows_of_clips
from curation.dataset.tables import Dataset
from curation.report.contact_sheet import Card, html_sheet, png_sheet
from curation.selection.saved import load_selection, selected_ids
from pipelines.config import CurateConfig
from pipelines.progress import note

_COLUMNS = ("clip_id", "uri", "start_s", "end_s", "caption")
_SHEETS = (".html", ".htm", ".png")
_SLUG = 40


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A clip that was found."""

    rank: int
    """From 1, the nearest."""
    clip_id: str
    cosine: float
    """Cosine similarity to the query, -1 to 1."""
    uri: str
    start_s: float
    end_s: float
    caption: str | None
    """Its newest caption."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Result of a search. searched = clips with an embedding, of the selection or the dataset."""

    dataset: str
    query: str
    """Description of the query."""
    searched: int
    hits: tuple[Hit, ...]
    search_s: float
    """Time of the search in the matrix, without loading a model."""
    sheet: str | None = None
    """The contact sheet."""
    places: Mapping[str, str] = field(default_factory=dict, repr=False)
    """clip_id -> the part that its pictures are in."""


def search(
    dataset: str,
    text: str | None = None,
    *,
    like: str | None = None,
    limit: int = 24,
    selection: str | None = None,
    config: CurateConfig | None = None,
    sheet: str | None = None,
    write_sheet: bool = True,
) -> SearchResult:
    """Find the clips whose embeddings are nearest to a text, or to a clip (its id) or picture (a file) in `like`.

    `selection` limits the search to its clips. `config` says where the CLIP model is, if not where the dataset says; a
    clip needs none. The contact sheet is `sheet`, an .html or .png file, or `report/search-....html` in the dataset, if
    that can be written.
    Raises UserError: no embeddings, no such clip or picture, another CLIP model, both or neither of text and like.
    """
    if (text is None) == (like is None):
        raise UserError("expected either a text or --like with a clip id or a picture")
    if sheet is not None and not sheet.lower().endswith(_SHEETS):
        raise UserError(f"expected a contact sheet that ends in {', '.join(_SHEETS)}, got {sheet!r}")
    opened = Dataset(dataset).open()
    if selection is not None:
        load_selection(opened, selection)
    with opened.connect() as connection, open_embeddings(opened, connection) as embeddings:
        query, query_D, itself = _query(opened, embeddings, text, like, config)
        started_s = time.monotonic()
        cosine_N = cosines(embeddings, query_D)
        if selection is not None:
            chosen = embeddings.rows_of(selected_ids(opened, selection)["clip_id"].cast(pa.string()))
            outside = np.full(len(cosine_N), True)
            outside[chosen] = False
            cosine_N[outside] = np.nan
        if itself is not None:
            cosine_N[embeddings.rows_of(pa.array([itself]))] = np.nan
        rows = nearest(cosine_N, limit)
        search_s = time.monotonic() - started_s
        clip_ids, places = embeddings.clip_ids.take(pa.array(rows)).to_pylist(), embeddings.places(rows)
        found = rows_of_clips(opened, connection, clip_ids, _COLUMNS)
    result = SearchResult(
        dataset=dataset,
        query=query,
        searched=int(np.count_nonzero(~np.isnan(cosine_N))),
        hits=_hits(clip_ids, cosine_N[rows], found),
        search_s=search_s,
        places={clip_id: part for clip_id, (part, _) in zip(clip_ids, places, strict=True)},
    )
    if sheet is not None:
        return _with_sheet(opened, result, sheet)
    try:
        return _with_sheet(opened, result, None) if write_sheet else result
    except UserError as error:  # of a dataset of others, most often
        note(f"no contact sheet: {error} --sheet FILE writes it elsewhere.")
        return result


def _query(
    dataset: Dataset, embeddings: ClipEmbeddings, text: str | None, like: str | None, config: CurateConfig | None
) -> tuple[str, NDArray[np.float32], str | None]:
    """Description and embedding of the query, and its clip id if it is a clip."""
    if text is not None:
        from pipelines.queries import text_query  # loads PyTorch, which a clip does not need

        return text, text_query(dataset, text, config), None
    assert like is not None
    known_D = embeddings.embedding(like)
    if known_D is not None:
        return f"like clip {like}", known_D, like
    fs, path = storage.filesystem(like)
    if not storage.exists(fs, path):
        raise UserError(
            f"--like {like!r} is neither a clip of {dataset.url} with an embedding nor a picture file: expected a "
            "clip_id, as search and the report show them, or the address of a picture"
        )
    from pipelines.queries import picture_query

    return f"like {storage.shown(fs, path)}", picture_query(dataset, like, config), None


def _hits(
    clip_ids: Sequence[str], cosine_N: NDArray[np.float32], row_of: Mapping[str, Mapping[str, Any]]
) -> tuple[Hit, ...]:
    return tuple(
        Hit(rank=i + 1, cosine=round(float(cosine), 6), **row_of[clip_id])
        for i, (clip_id, cosine) in enumerate(zip(clip_ids, cosine_N, strict=True))
    )


def _with_sheet(dataset: Dataset, result: SearchResult, sheet: str | None) -> SearchResult:
    pictures = _pictures(dataset, result)
    cards = [
        Card(
            title=f"{hit.rank}. cosine {hit.cosine:.3f}",
            caption=hit.caption or "",
            where=f"{hit.uri.rpartition('/')[2]}, {hit.start_s:.1f} to {hit.end_s:.1f} s",
            clip_id=hit.clip_id,
            jpegs=pictures.get(hit.clip_id, ()),
        )
        for hit in result.hits
    ]
    subtitle = f"nearest {len(cards):,} of {result.searched:,} clips in {storage.shown(dataset.fs, dataset.path)}"
    fs, path = (
        storage.filesystem(sheet) if sheet else (dataset.fs, dataset.file("report", f"{_slug(result.query)}.html"))
    )
    content = png_sheet if path.lower().endswith(".png") else html_sheet
    written = content(result.query, subtitle, cards)
    storage.write_bytes(fs, path, written if isinstance(written, bytes) else written.encode())
    return replace(result, sheet=storage.shown(fs, path))


def _pictures(dataset: Dataset, result: SearchResult) -> dict[str, tuple[bytes | None, ...]]:
    """clip_id -> first, middle and last picture, of the clips that have them."""
    found: dict[str, tuple[bytes | None, ...]] = {}
    available = set(dataset.parts("previews"))
    for part in sorted(set(result.places.values()) & available):
        ids = dataset.read_part("previews", part, ["clip_id"])["clip_id"].to_pylist()
        rows = [i for i, clip_id in enumerate(ids) if result.places.get(clip_id) == part]
        table = dataset.read_part("previews", part, ["clip_id", "first", "middle", "last"], np.array(rows, np.int64))
        found |= {row["clip_id"]: (row["first"], row["middle"], row["last"]) for row in table.to_pylist()}
    return found


def _slug(query: str) -> str:
    """A file name for a query: its letters and digits, and a digest that tells it from similar ones."""
    words = re.sub(r"[^a-z0-9]+", "-", query.lower())[:_SLUG].strip("-")
    return "-".join(filter(None, ("search", words, hashlib.sha256(query.encode()).hexdigest()[:6])))
