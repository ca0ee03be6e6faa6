"""A proxy that injects faults: refused and broken connections, errors, slow responses."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BLOCK_BYTES, _SLOW_BLOCK_BYTES, _SLOW_S = 1 << 16, 1 << 12, 0.05
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_FAULTS = ("refused", "unavailable", "broken", "slow")


class FaultyProxy:
    """`endpoint` is its address, `behind` that of the server. `share` of the connections fail, none at first."""

    def __init__(self, behind: tuple[str, int], seed: int) -> None:
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self.behind = behind
        self.share, self.faults = 0.0, 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = "http://{}:{}".format(*self._listener.getsockname())
        threading.Thread(target=self._serve, daemon=True).start()

    @contextmanager
    def faulty(self, share: float) -> Iterator[None]:
        """Within the block, `share` of the connections fail."""
        self.share = share
        try:
            yield
        finally:
            self.share = 0.0

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client, self._draw()), daemon=True).start()

    def _draw(self) -> tuple[str, int]:
        """A fault or None, and the number of response bytes after which a connection breaks."""
        with self._lock:
            fault = self._rng.choice(_FAULTS) if self._rng.random() < self.share else ""
            self.faults += bool(fault)
            return fault, self._rng.choice((0, 100, 2_000, 8_000))

    def _forward(self, client: socket.socket, drawn: tuple[str, int]) -> None:
        fault, until_bytes = drawn
        with client, suppress(OSError):
            if fault == "refused":
                return
            if fault == "unavailable":
                client.recv(_BLOCK_BYTES)
                client.sendall(_UNAVAILABLE)
                return
            with socket.create_connection(self.behind) as server:
                asking = threading.Thread(target=_copy, args=(client, server), daemon=True)
                asking.start()
                _answer(server, client, fault, until_bytes)
                client.shutdown(socket.SHUT_RDWR)  # closing alone ends nothing while the other thread reads


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(_BLOCK_BYTES):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)


def _answer(server: socket.socket, client: socket.socket, fault: str, until_bytes: int) -> None:
    sent = 0
    while block := server.recv(_SLOW_BLOCK_BYTES if fault == "slow" else _BLOCK_BYTES):
        if fault == "broken" and sent + len(block) > until_bytes:
            client.sendall(block[: until_bytes - sent])
            return
        if fault == "slow":
            time.sleep(_SLOW_S)
        client.sendall(block)
        sent += len(block)
