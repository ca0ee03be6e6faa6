"""A local S3 server for tests, and what is asked of it; conftest imports the fixtures."""

from collections.abc import Iterator
from typing import Any

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from tests.stores import forget_clients, new_bucket


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server that lives as long as the tests; AWS_* variables point all clients to it.

    Child processes (Ray workers too) inherit the variables, provided they start after the fixture.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget_clients("s3")
        yield endpoint
    forget_clients("s3")
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str) -> str:
    """An empty bucket of its own, as `s3://bucket`."""
    return new_bucket("s3")


@pytest.fixture
def s3_requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The S3 operations of this process from now on, with their keys or prefixes."""
    called: list[tuple[str, str]] = []
    call = s3fs.S3FileSystem._call_s3

    async def noted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        called.append((method, kwargs.get("Key") or kwargs.get("Prefix", "")))
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", noted)
    return called
