"""Sidecars on the web and in object stores."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest
import s3fs

from curation.inputs.sources import Source
from tests.curation.inputs.captions import read, texts

# Other places


def test_on_the_web_the_query_stays(tmp_path: Path):
    class Folder(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.path = self.path if self.path.endswith("?key=1") else "/forbidden"
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "a.txt").write_text("a cat")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Folder, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        uri = f"{base}/a.mp4"
        assert texts(Source(uri=f"{uri}?key=1")) == [("sidecar", "a cat")]
        assert texts(Source(uri=uri)) == []
        server.shutdown()


def test_on_an_object_store_each_sidecar_costs_one_request_whether_it_is_there_or_not(
    s3_url: str, s3_requests: list[tuple[str, str]]
):
    with fsspec.open(f"{s3_url}/a.txt", "wb") as file:
        file.write(b"a cat")
    s3_requests.clear()
    assert texts(Source(uri=f"{s3_url}/a.mp4")) == [("sidecar", "a cat")]
    assert [method for method, _ in s3_requests] == ["get_object"] * 3
    s3_requests.clear()
    assert texts(Source(uri=f"{s3_url}/b.mp4")) == []
    assert [method for method, _ in s3_requests] == ["get_object"] * 3


def test_an_empty_object_is_no_caption(s3_url: str):
    fsspec.filesystem("s3").pipe(f"{s3_url}/a.txt", b"")
    assert texts(Source(uri=f"{s3_url}/a.mp4")) == []


def test_a_store_that_forbids_what_it_does_not_list_has_no_sidecar(s3_url: str, monkeypatch: pytest.MonkeyPatch):
    async def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", forbidden)
    assert texts(Source(uri=f"{s3_url}/a.mp4")) == []


def test_a_store_that_fails_is_an_error(s3_url: str, monkeypatch: pytest.MonkeyPatch):
    async def failing(*_: Any, **__: Any) -> None:
        raise OSError(5, "the store is on fire")

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", failing)
    for timed, name in zip(read(Source(uri=f"{s3_url}/a.mp4")), ("a.json", "a.txt", "a.info.json"), strict=True):
        assert timed.caption.text is None
        assert timed.caption.error == f"{name}: cannot read {s3_url}/{name}: the store is on fire."
