"""Which variables reach a child: of a store its own, of everything else none."""

import pytest

from curation.scan.credentials import child_environment, store_of

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s3",
    "FSSPEC_S3_KEY": "s3",
    "FSSPEC_S3": "s3",
    "GOOGLE_APPLICATION_CREDENTIALS": "gs",
    "AZURE_STORAGE_KEY": "az",
    "HF_TOKEN": "hf",
    "FSSPEC_SFTP_PASSWORD": "sftp",
    "OPENAI_API_KEY": "",
    "RAY_AUTH_TOKEN": "",
    "PYTHONPATH": "",
}


@pytest.mark.parametrize("store", ["", "s3", "gs", "az", "hf", "sftp", "https"])
def test_a_child_sees_the_credentials_of_its_store_alone(store: str):
    needed = {"PATH": "/bin", "TMPDIR": "/tmp", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    seen = child_environment(store, dict.fromkeys(SECRETS, "secret") | needed | {"https_proxy": "p"})
    assert {name for name in SECRETS if name in seen} == {name for name, of in SECRETS.items() if store and of == store}
    assert needed.items() <= seen.items()
    assert ("https_proxy" in seen) == bool(store)


@pytest.mark.parametrize(
    ("uri", "store"),
    [
        ("/a/b.mp4", ""),
        ("file:///a%20b.mp4", ""),
        ("s3://b/x.mp4", "s3"),
        ("S3A://b/x", "s3a"),
        ("https://h/x", "https"),
    ],
)
def test_the_store_of_an_address(uri: str, store: str):
    assert store_of(uri) == store
