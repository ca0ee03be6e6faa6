"""Web servers, which are untrusted: what they have, and listings, read within a deadline and a limit on their size."""

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from clipmill.addresses import without_credentials
from clipmill.errors import UserError
from clipmill.store_requests import body_of, http_range

T = TypeVar("T")

_MAX_BYTES = 16 << 20
_DEADLINE_S = 60.0
_UNSATISFIABLE = 416
_LINK = re.compile(r"""<a\s(?:[^>]*?\s)?href=["']([^"']+)["']""", re.IGNORECASE)


async def _answered(question: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(question, _DEADLINE_S)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {_DEADLINE_S:g} s") from error


class WebFileSystem(HTTPFileSystem):
    """Files of a web server. fsspec reads the page of a folder whole, however long it is and takes."""

    async def _ls_real(self, url: str, detail: bool = True, **_: Any) -> list[Any]:
        page = await _answered(self._page(url))
        folder = f"{url.partition('?')[0].rstrip('/')}/"
        found = {urljoin(folder, link) for link in _LINK.findall(page)}
        # Links to what is below the folder; those without a path order the listing, or lead to the page itself.
        names = sorted(name for name in found if name.startswith(folder) and urlsplit(name[len(folder) :]).path)
        if not detail:
            return names
        kinds = (("directory" if name.endswith("/") else "file", name) for name in names)
        return [{"name": name, "size": None, "type": kind} for kind, name in kinds]

    async def _exists(self, path: str, strict: bool = False, **_: Any) -> bool:
        """Whether the server has it. fsspec takes a server that does not answer for one that says no."""
        return await _answered(self._has(path))

    async def _has(self, url: str) -> bool:
        try:
            async with http_range(self, url, 0, 1):
                return True
        except FileNotFoundError:
            return False
        except aiohttp.ClientResponseError as error:
            if error.status == _UNSATISFIABLE:  # an empty file
                return True
            raise

    async def _page(self, url: str) -> str:
        """The page at an address; empty if it is not HTML."""
        async with http_range(self, url, 0, _MAX_BYTES + 1) as response:
            if response.headers.get("Content-Type", "text/html").partition(";")[0] != "text/html":
                return ""
            content = await body_of(response, _MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UserError(f"the listing of {without_credentials(url)} is larger than {_MAX_BYTES:,} bytes")
        return content.decode(errors="ignore")
