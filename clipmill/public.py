"""Redact what is published: addresses relative to a root, texts without local paths, passwords and tokens."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from clipmill.addresses import redacted, without_credentials
from clipmill.archives import split_link

_TOKEN = re.compile(
    r"\b(?:AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w.-]+|(?:AKIA|ASIA)[A-Z0-9]{12,}|gh[opsur]_\w{20,}|hf_\w{20,}|sk-[\w-]{16,}"
    r"|ya29\.[\w-]+)"
)
_SEPARATOR, _NAME = r"[/\\]", r"[^/\\\s'\"<>|,;()\[\]{}]"
_LOCAL_PATH = re.compile(
    rf"(?<![\w/\\.~:-])(?:file:(?://)?|~|[A-Za-z]:(?=[/\\]))?{_SEPARATOR}(?:{_NAME}+{_SEPARATOR}+)+({_NAME}*)"
)
"""An absolute path with at least one folder. A slash after a scheme, host or word character does not start one."""
_WHOLE_PATH = re.compile(r"(?:file://|~|[A-Za-z]:(?=[/\\]))?[/\\][^\n]*[/\\][^\n]*")
_HOMES = ("/home", "/Users")
_USER = re.compile(r"^((?!abfs|az|adl)[A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@")


@dataclass(frozen=True)
class PublicAddress:
    """Location of a source, without local folders or users: `path` below `root`."""

    root: str
    """An address such as https://host/videos; "local", "local-2", ... for folders of the machine that read them."""
    path: str


def public_addresses(uris: Iterable[str]) -> dict[str, PublicAddress]:
    """Each address below the deepest folder that holds all those of its store; local folders are not named.

    Files in the homes of different users, or in different folders below /, have different roots. A member of an archive
    keeps its form: zip://MEMBER::ARCHIVE, with the archive below the root.
    """
    stores: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for uri in sorted(set(uris)):
        member, location = _archive_and_member(uri)
        store, path = _store_of(location)
        stores[store][uri] = (member, path)
    local = [store for store in sorted(stores) if "://" not in store]
    found = {}
    for store, addresses in stores.items():
        folder = "/".join(_common([_folder(path) for _, path in addresses.values()]))
        name = "local" if store in local else f"{store}{folder}"
        if store in local[1:]:
            name = f"local-{local.index(store) + 1}"
        for uri, (member, path) in addresses.items():
            found[uri] = PublicAddress(name, member + path[len(folder) + 1 :])
    return found


def public_text(text: str) -> str:
    """A text without passwords, signatures, tokens and local folders; absolute paths are cut to the file name."""
    if _WHOLE_PATH.fullmatch(text.strip()) and "://" not in text.replace("file://", "", 1):
        return re.split(_SEPARATOR, text.strip().rstrip("/\\"))[-1]
    return _LOCAL_PATH.sub(lambda match: match.group(1), _TOKEN.sub("[removed]", redacted(text)))


def _archive_and_member(uri: str) -> tuple[str, str]:
    member, archive = split_link(uri)
    return (f"{member}::", archive) if archive else ("", uri)


def _store_of(location: str) -> tuple[str, str]:
    """The store, and the absolute path in it."""
    scheme, separator, rest = location.partition("://")
    if separator and scheme.lower() == "file":
        location = unquote(rest, errors="replace") if rest.startswith("/") else location
        separator = ""
    if not separator:
        return _anchor(location), location
    host, slash, path = _USER.sub(r"\1", without_credentials(location)).partition("://")[2].partition("/")
    return f"{scheme}://{host}", slash + path


def _anchor(path: str) -> str:
    """The folder that reveals only the machine: a home, or the first folder."""
    parts = path.split("/")
    return "/".join(parts[: 3 if path.startswith(tuple(f"{home}/" for home in _HOMES)) else 2])


def _folder(path: str) -> list[str]:
    return path.partition("?")[0].split("/")[:-1]


def _common(folders: Sequence[list[str]]) -> list[str]:
    first, last = min(folders), max(folders)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
