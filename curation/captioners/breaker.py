"""A circuit breaker: an endpoint that is down costs a few requests, not one per clip and not one per batch."""

import threading
import time
from collections.abc import Callable

from curation.captioners.base import NoCaption


class Breaker:
    """Circuit breaker of one endpoint in one process.

    After `limit` consecutive failures to reach it, no requests are sent for `pause_s`; then a single request probes it.
    A response closes the circuit, another failure starts the next pause.
    """

    def __init__(self, limit: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._pause_s, self._clock = limit, pause_s, clock
        self._in_a_row = 0
        self._reason: str | None = None
        self._next_try_s = 0.0
        self._lock = threading.Lock()

    def check(self) -> bool:
        """Whether this request probes an unavailable endpoint, and should not be retried.

        Raises NoCaption, with the last failure, for requests that must not be sent.
        """
        with self._lock:
            if self._reason is None:
                return False
            if self._clock() < self._next_try_s:
                raise NoCaption(f"not sent: the endpoint failed {self._in_a_row} times in a row: {self._reason}")
            self._next_try_s = self._clock() + self._pause_s
            return True

    def reached(self) -> None:
        """Record a response."""
        with self._lock:
            self._in_a_row, self._reason = 0, None

    def failed(self, reason: str, *, down: bool) -> NoCaption:
        """Count a failure. One that shows that the endpoint is there (not `down`) ends the row."""
        with self._lock:
            self._in_a_row = self._in_a_row + 1 if down else 0
            given_up = self._in_a_row >= self._limit
            self._reason = reason if given_up else None
            if given_up:
                self._next_try_s = self._clock() + self._pause_s
        return NoCaption(reason)
