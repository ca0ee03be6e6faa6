"""Rows of lists as inputs: paths relative to the list, paths of other systems, addresses that a list may use."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import urljoin

import fsspec

from clipmill.addresses import redacted
from clipmill.archives import split_link
from clipmill.errors import SourceError, UserError, raise_if_stopped
from clipmill.storage import archive_filesystem, filesystem, is_local, reason_of
from curation.inputs.list_text import WESTERN
from curation.inputs.lists import Reading, read_rows
from curation.inputs.stats import Candidate, locate

_PROTOCOLS = {"file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss"}
"""Protocols that rows may use: plain stores. Caches, references and other chains are only accepted on the command
line; archives there and where the configuration allows them."""
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def listed(
    fs: fsspec.AbstractFileSystem, path: str, reading: Reading, *, archives: bool = False
) -> Iterator[Candidate]:
    """The inputs of a list; a row that cannot be used is one with an error. `archives` allows files inside archives.

    Raises UserError as `read_rows`.
    """
    for row in read_rows(fs, path, reading):
        try:
            if row.problem:
                yield _unusable_row(fs, row.address, row.problem)
                continue
            where = _resolved(fs, path, row.address, archives=archives)
            root = "" if "://" in row.address or _is_absolute(row.address) else posixpath.dirname(path)
            yield Candidate(*where, row.captions, root=root, metadata=row.metadata)
        except Exception as error:  # whatever one row is, the others are listed
            raise_if_stopped(error)
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {reason_of(error)}"
            yield _unusable_row(fs, row.address, reason)


def _resolved(
    fs: fsspec.AbstractFileSystem, path: str, given: str, *, archives: bool
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Where the address of a row is. Raises UserError for one that rows may not have."""
    link, archive = split_link(given)
    if archive:
        if not archives:
            raise UserError(
                "expected a path or a plain address in a list, got a file in an archive; for a list that you trust, "
                "set inputs: {archives_in_lists: true} in the configuration"
            )
        kind, _, member = link.partition("://")
        return archive_filesystem(*_resolved(fs, path, archive, archives=True), kind.lower()), member.strip("/")
    protocol, separator, rest = given.partition("://")
    if not separator:
        return _relative(fs, path, given)
    if protocol.lower() not in _PROTOCOLS or "::" in rest:
        raise UserError(f"expected a path or a plain address ({', '.join(sorted(_PROTOCOLS))}) in a list")
    return locate(given)


def _relative(fs: fsspec.AbstractFileSystem, path: str, given: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """A row without a protocol: an absolute path, or one relative to the list's folder."""
    if _WINDOWS_DRIVE.match(given):
        raise UserError("a path of Windows; expected a path on this machine, or one relative to the list")
    if _is_absolute(given):
        return filesystem(given)
    if path.startswith(("http://", "https://")):
        return fs, urljoin(path, given)
    return fs, next(_written_as(fs, posixpath.normpath(posixpath.join(posixpath.dirname(path), given))))


def _written_as(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[str]:
    """The path of a local file, which another system may have written with backslashes or in another encoding."""
    if is_local(fs) and ("\\" in path or not path.isascii()):
        other = path.replace("\\", "/")
        western = os.fsencode(other).decode(WESTERN, "replace")
        for candidate in (path, other, western, *(unicodedata.normalize(form, other) for form in ("NFC", "NFD"))):
            if "\0" not in candidate and os.path.lexists(candidate):
                yield candidate
    yield path


def _is_absolute(given: str) -> bool:
    return posixpath.isabs(given) or given.startswith("~/")


def _unusable_row(fs: fsspec.AbstractFileSystem, given: str, reason: str) -> Candidate:
    return Candidate(fs, given, error=SourceError("unreadable", redacted(reason)))
