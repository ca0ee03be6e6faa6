"""Buckets in the local stores of `tests.s3` and `tests.gcs`."""

import uuid

import fsspec


def new_bucket(protocol: str) -> str:
    """The address of a new, empty bucket."""
    name = f"clipmill-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem(protocol).mkdir(name)
    return f"{protocol}://{name}"


def forget_clients(protocol: str) -> None:
    """fsspec keeps clients for reuse; one made for another address must not be met again."""
    fsspec.get_filesystem_class(protocol).clear_instance_cache()
