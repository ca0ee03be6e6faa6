"""Read many byte ranges of objects: merged requests, several connections, a cache on the local disk."""

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from clipmill.range_cache import RangeCache
from clipmill.ranges import REQUEST_BYTES, Range, StoredObject, read_range
from clipmill.retries import RETRY_S

GAP_BYTES = 4 << 10
"""Largest gap between ranges to merge into one request: covers the headers between the files of a tar."""
_CONNECTIONS = 8
"""Concurrent requests of one reader. boto's clients keep ten connections."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Byte ranges of an object that belong together: the files of a sample."""

    stored: StoredObject
    ranges: tuple[Range, ...]


@dataclass(kw_only=True)
class Request:
    """One range to request, and the pieces in it."""

    stored: StoredObject
    start: int
    end: int
    parts: list[tuple[int, int]] = field(default_factory=list)
    """(index of the `Pieces`, index of the range within them)."""


def requests_for(wanted: Sequence[Pieces]) -> list[Request]:
    """Merge ranges of an object that are at most `GAP_BYTES` apart into requests of at most `REQUEST_BYTES`, sorted by
    the first piece in each."""
    parts = sorted(
        (pieces.stored.url, offset, size, i, j)
        for i, pieces in enumerate(wanted)
        for j, (offset, size) in enumerate(pieces.ranges)
    )
    requests: list[Request] = []
    for url, offset, size, i, j in parts:
        last = requests[-1] if requests else None
        if (
            last is None
            or last.stored.url != url
            or offset - last.end > GAP_BYTES
            or max(last.end, offset + size) - last.start > REQUEST_BYTES
        ):
            last = Request(stored=wanted[i].stored, start=offset, end=offset)
            requests.append(last)
        last.end = max(last.end, offset + size)
        last.parts.append((i, j))
    return sorted(requests, key=lambda request: min(request.parts))


class RangeReader:
    """Reads pieces of objects with several connections. For one process: create it after a fork."""

    def __init__(
        self, *, retry_s: float = RETRY_S, cache: RangeCache | None = None, connections: int = _CONNECTIONS
    ) -> None:
        self.requests, self.read_bytes, self.wanted_bytes, self.wanted = 0, 0, 0, 0
        """Requests and bytes read so far, and the number and bytes of the `Pieces` that they were for."""
        self._retry_s, self._cache, self._connections = retry_s, cache, connections
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def submit(self, wanted: Sequence[Pieces]) -> list[Future[list[bytes]]]:
        """Start reading; returns a future per item: the contents of its ranges, or the error of `read_range`."""
        futures: list[Future[list[bytes]]] = [Future() for _ in wanted]
        missing = []
        for i, pieces in enumerate(wanted):
            if self._cache is not None and self._cache.has(_cache_key(pieces)):
                self._start(partial(self._from_cache, pieces, futures[i]))
            else:
                missing.append(i)
        self._request([wanted[i] for i in missing], [futures[i] for i in missing])
        return futures

    def _request(self, wanted: Sequence[Pieces], futures: Sequence[Future[list[bytes]]]) -> None:
        contents: list[dict[int, bytes]] = [{} for _ in wanted]
        for i, pieces in enumerate(wanted):
            if not pieces.ranges:
                futures[i].set_result([])
        for request in requests_for(wanted):
            self._start(partial(self._answer, request, wanted, contents, futures))

    def _answer(
        self,
        request: Request,
        wanted: Sequence[Pieces],
        contents: Sequence[dict[int, bytes]],
        futures: Sequence[Future[list[bytes]]],
    ) -> None:
        try:
            content = read_range(request.stored, request.start, request.end, retry_s=self._retry_s)
        except BaseException as error:
            with self._lock:
                for i in {i for i, _ in request.parts if not futures[i].done()}:
                    futures[i].set_exception(error)
            return
        complete = []
        with self._lock:
            self.requests += 1
            self.read_bytes += len(content)
            for i, j in request.parts:
                offset, size = wanted[i].ranges[j]
                self.wanted_bytes += size
                contents[i][j] = content[offset - request.start : offset - request.start + size]
                if len(contents[i]) == len(wanted[i].ranges) and not futures[i].done():
                    complete.append(i)
            self.wanted += len(complete)
        for i in complete:
            ordered = [contents[i].pop(j) for j in range(len(wanted[i].ranges))]
            futures[i].set_result(ordered)
            if self._cache is not None:
                self._cache.put(_cache_key(wanted[i]), b"".join(ordered))

    def _from_cache(self, pieces: Pieces, future: Future[list[bytes]]) -> None:
        assert self._cache is not None
        content = self._cache.get(_cache_key(pieces))
        ends = list(itertools.accumulate(size for _, size in pieces.ranges))
        if content is None or len(content) != ends[-1]:  # removed since `submit`
            self._request([pieces], [future])
            return
        future.set_result([content[end - size : end] for end, (_, size) in zip(ends, pieces.ranges, strict=True)])

    def _start(self, job: Callable[[], None]) -> None:
        """Run a job on a daemon thread; concurrent.futures would finish all queued jobs before the process exits."""
        self._jobs.put(job)
        if len(self._threads) < self._connections:
            thread = threading.Thread(target=self._work, daemon=True, name="clipmill-ranges")
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()


def _cache_key(pieces: Pieces) -> str:
    return repr((pieces.stored.address, pieces.stored.size_bytes, pieces.stored.version, pieces.ranges))
