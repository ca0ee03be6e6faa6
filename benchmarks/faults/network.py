"""A local S3 server behind a proxy that injects faults."""

import logging

from moto.server import ThreadedMotoServer

from benchmarks.faults.proxy import FaultyProxy


class FaultyStore(FaultyProxy):
    """An S3 server behind such a proxy."""

    def __init__(self, seed: int) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
        self._server.start()
        super().__init__(self._server.get_host_and_port(), seed)

    def close(self) -> None:
        """Stop the server and the proxy."""
        super().close()
        self._server.stop()
