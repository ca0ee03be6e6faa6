"""Which sources of a dataset `clipmill remove` was asked for: by lists, addresses, ids, or a condition."""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipmill.errors import UserError
from clipmill.storage import is_local, shown
from curation.dataset.tables import Dataset
from curation.inputs.listed import listed
from curation.inputs.lists import Reading, is_list_name
from curation.inputs.stats import Candidate, locate, stored_uri
from curation.selection.condition import read_condition


@dataclass(frozen=True, kw_only=True)
class AskedSources:
    """What a request names."""

    sources: dict[str, str]
    """Source id -> uri, of those in the dataset."""
    addresses: tuple[str, ...] = ()
    """Given addresses that are not in the dataset."""


def asked_sources(dataset: Dataset, sources: Sequence[str], where: str | None) -> AskedSources:
    """Find the sources that are named by `sources`, each a list (see `curation.inputs.lists`), an address or a source
    id, or for which the SQL condition `where` on the sources table holds.

    Raises UserError for a list that cannot be read and for an invalid condition.
    """
    if where is not None:
        return AskedSources(sources=_matching(dataset, where))
    known = dataset.uris()
    ids_of: dict[str, list[str]] = {}
    for source_id, uri in known.items():
        ids_of.setdefault(uri, []).append(source_id)
    chosen: dict[str, str] = {}
    addresses: dict[str, None] = {}
    for candidate in _candidates(sources):
        uri, name = stored_uri(candidate), posixpath.basename(candidate.path)
        ids = [name] if name in known else ids_of.get(uri, [])
        chosen |= {source_id: known[source_id] for source_id in ids}
        if not ids:
            addresses[uri] = None
    return AskedSources(sources=chosen, addresses=tuple(addresses))


def _candidates(sources: Sequence[str]) -> Iterator[Candidate]:
    for given in sources:
        fs, path = locate(given)
        if is_list_name(path if is_local(fs) else path.partition("?")[0]):
            yield from listed(fs, path, Reading(name=shown(fs, path)), archives=True)
        else:
            yield Candidate(fs, path)


def _matching(dataset: Dataset, where: str) -> dict[str, str]:
    with dataset.connect() as connection:
        columns = [row[0] for row in connection.execute("DESCRIBE sources").fetchall()]
        condition = read_condition(connection, where, columns, rows="sources")
        if condition.missing:
            raise UserError(f"where: {condition.complaint}. Expected a condition on the columns of sources")
        query = f"SELECT source_id::VARCHAR, uri::VARCHAR FROM sources AS joined WHERE {condition.sql} ORDER BY 1"
        return dict(connection.execute(query).fetchall())
