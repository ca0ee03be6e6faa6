"""Signed addresses of this run, given for stored addresses, which have no signature."""

import os
from functools import lru_cache

from clipmill.addresses import without_credentials
from clipmill.archives import split_link
from clipmill.storage import filesystem
from curation.inputs.lists import read_rows

SIGNED_LIST = "CLIPMILL_SIGNED_LIST"
"""Environment variable with a list of signed addresses, used to open stored addresses, which have no signature."""


def signed_address(uri: str) -> str:
    """The address with its signature, if the list of signed addresses has it; otherwise unchanged."""
    link, archive = split_link(uri)
    if archive:
        return f"{link}::{signed_address(archive)}"
    listed = os.environ.get(SIGNED_LIST)
    web = uri.startswith(("http://", "https://"))
    return _signed_addresses(listed).get(without_credentials(uri), uri) if listed and web else uri


@lru_cache(maxsize=1)
def _signed_addresses(path: str) -> dict[str, str]:
    return {without_credentials(row.address): row.address for row in read_rows(*filesystem(path)) if not row.problem}
