"""A local S3 server for tests; conftest imports the fixture."""

import uuid
from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer


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
        _forget_clients()
        yield endpoint
    _forget_clients()
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str) -> str:
    """An empty bucket of its own, as `s3://bucket`."""
    url = f"s3://clipmill-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(url.removeprefix("s3://"))
    return url


def _forget_clients() -> None:
    """fsspec keeps clients for reuse; one made for another address must not be met again."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
