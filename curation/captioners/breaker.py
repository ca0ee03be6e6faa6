"""A circuit breaker: an endpoint that is down costs a few requests, not one per clip and not one per batch."""

import threading
import time
from collections.abc import Callable

from curation.captioners.base import NoCaption


class Breaker:
    """Of one endpoint, for as long as a process asks it.

    After `limit` failures in a row to reach it, nothing is asked for `pause_s`; then one request tries it, while the
    others still are not sent. An answer closes the circuit, another failure begins the next pause.
    """

    def __init__(self, limit: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._pause_s, self._clock = limit, pause_s, clock
        self._in_a_row = 0
        self._reason: str | None = None
        self._next_try_s = 0.0
        self._lock = threading.Lock()

    def check(self) -> bool:
        """Whether this request is the one that tries an endpoint that was given up; it is worth no retries.

        Raises NoCaption, with the failure that counted, for requests that are not to be sent.
        """
        with self._lock:
            if self._reason is None:
                return False
            if self._clock() < self._next_try_s:
                raise NoCaption(f"not sent: the endpoint failed {self._in_a_row} times in a row: {self._reason}")
            self._next_try_s = self._clock() + self._pause_s
            return True

    def reached(self) -> None:
        """The endpoint answered."""
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
