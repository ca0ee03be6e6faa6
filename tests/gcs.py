"""A local Google Cloud Storage server for tests; conftest imports the fixture."""

import importlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer

import pytest

from tests.stores import forget_clients, new_bucket


@pytest.fixture(scope="session")
def gcs_endpoint() -> Iterator[str]:
    """The address of a server of GCS's JSON API that lives as long as the tests; environment variables point all
    clients to it, without credentials. Child processes that start after the fixture inherit them.
    """
    pytest.importorskip("gcsfs", reason="needs the extra [gcs]")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs the extra [dev]")
    storage = importlib.import_module("gcp_storage_emulator.storage").Storage(use_memory_fs=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(emulator.RequestHandler, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", endpoint)
        environment.setenv("NO_GCE_CHECK", "true")  # no search for a machine's own credentials
        environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # as clipmill.storage sets it
        forget_clients("gs")
        yield endpoint
    forget_clients("gs")
    server.shutdown()
    server.server_close()


@pytest.fixture
def gcs_url(gcs_endpoint: str) -> str:
    """An empty bucket of its own, as `gs://bucket`."""
    return new_bucket("gs")
