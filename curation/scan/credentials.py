"""Environment of a child that reads untrusted videos: required variables and the credentials of one store.

Variables that are not listed here do not reach the child, so a compromised decoder finds no credentials of other
services in its environment. The child of a local source gets no credentials at all.
"""

from collections.abc import Mapping

from clipmill.archives import split_link

_NEEDED = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TZDIR"),
    *("TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
)
_NEEDED_PREFIXES: tuple[str, ...] = ("LC_", "OMP_", "OPENBLAS_", "MKL_", "MALLOC_", "OPENCV_")

_NETWORK = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "XDG_CONFIG_HOME", "FSSPEC_CONFIG_DIR"),
)
"""Variables needed for every remote store. A proxy's address may contain a password."""

_CLIENTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("s3", "s3a"), ("AWS_", "S3FS_", "BOTO_")),
    (("gs", "gcs"), ("GOOGLE_", "GCLOUD_", "GCE_", "GCSFS_", "CLOUDSDK_", "STORAGE_EMULATOR_HOST")),
    (("az", "abfs", "abfss", "adl"), ("AZURE_", "MSI_", "IDENTITY_")),
    (("hf",), ("HF_", "HUGGINGFACE_", "HUGGING_FACE_")),
)
"""Protocols of a store, and the prefixes of the variables that its client reads."""


def store_of(uri: str) -> str:
    """The protocol of an address, of its archive if it is in one; "" for a local file."""
    while archive := split_link(uri)[1]:
        uri = archive
    protocol, separator, _ = uri.partition("://")
    return protocol.lower() if separator and protocol != "file" else ""


def child_environment(store: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The part of `environment` that a child needs to read from `store`, a protocol as returned by `store_of`."""
    names, prefixes = set(_NEEDED), _NEEDED_PREFIXES
    if store:
        protocols, of_client = next((client for client in _CLIENTS if store in client[0]), ((store,), ()))
        of_fsspec = tuple(f"FSSPEC_{protocol.upper()}" for protocol in protocols)
        names.update(_NETWORK, of_fsspec)
        prefixes = (*prefixes, *of_client, *(f"{name}_" for name in of_fsspec))
    return {name: value for name, value in environment.items() if name in names or name.startswith(prefixes)}
