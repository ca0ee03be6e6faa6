"""Videos of web servers: without ranges, without sizes, with signatures that change."""

import json
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.errors import SourceError
from curation.inputs.sources import list_sources, open_source
from curation.scan.one_pass import ScanConfig, rejected, scan
from curation.shots.spans import SpanConfig
from tests.media import panning, write_video


class Server(BaseHTTPRequestHandler):
    """A video at every address: /ranges with ranges, /plain and /silent without; /silent has no size and /broken less
    than it says. /signed wants a signature, and answers GET alone."""

    protocol_version = "HTTP/1.1"
    video = b""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        content, status, headers = self.video, 200, {}
        if self.path.startswith("/signed") and ("X-Amz-Signature=" not in self.path or not body):
            status, content = 403, b""
        elif self.path.startswith(("/ranges", "/signed")) and (wanted := self.headers.get("Range")):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(content), len(content))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            status, content = 206, content[int(first) : end]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.path.startswith("/silent"):
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            with suppress(OSError):
                self.wfile.write(content[: len(content) // 2] if self.path.startswith("/broken") else content)
            self.close_connection = self.close_connection or self.path.startswith("/broken")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    Server.video = write_video(tmp_path / "a.mp4", panning(height=64, pixels_per_frame=2, frames=48)).read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["ranges", "plain", "silent"])
def test_a_video_is_scanned_whether_the_server_has_ranges_or_not(web: str, tmp_path: Path, kind: str):
    (source,) = list_sources([f"{web}/{kind}/a.mp4"])
    config = ScanConfig(spans=SpanConfig(min_s=0.5))
    (local,) = list_sources([str(tmp_path / "a.mp4")])
    scanned, expected = scan(source, config), scan(local, config)
    assert scanned.source["frames"] == 48
    assert scanned.thumbnails == expected.thumbnails
    with open_source(source.location) as file:
        file.seek(100)
        assert file.read(50) == Server.video[100:150]


def test_a_copy_has_a_limit(web: str):
    for kind in ("plain", "silent"):
        with pytest.raises(
            SourceError, match=r"does not support range requests; a copy would exceed .*spool_bytes"
        ) as refused:
            open_source(f"{web}/{kind}/a.mp4", max_copy_bytes=1000)
        assert refused.value.kind == "unreadable"
    with open_source(f"{web}/ranges/a.mp4", max_copy_bytes=1000) as file:
        assert file.read() == Server.video


def test_a_download_that_breaks_off_is_unreadable(web: str):
    with pytest.raises(SourceError, match="cannot be opened") as refused:
        open_source(f"{web}/broken/a.mp4")
    assert refused.value.kind == "unreadable"


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_an_object_is_the_same_source_under_every_signature(web: str, tmp_path: Path, suffix: str):
    sources = []
    for signature in ("SECRET1", "SECRET2"):
        url = f"{web}/signed/a.mp4?X-Amz-Expires=9&X-Amz-Signature={signature}"
        row = {"url": url, "license": "CC0", "preview": f"{url}&size=1"}
        path = tmp_path / f"list{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([row]), path)
        else:
            separator = "\t" if suffix == ".tsv" else ","
            table = f"{separator.join(row)}\n{separator.join(row.values())}\n"
            path.write_text({".txt": url, ".jsonl": json.dumps(row), ".json": json.dumps([row])}.get(suffix, table))
        (source,) = list_sources([str(path)])
        assert (source.error, source.uri) == (None, f"{web}/signed/a.mp4")
        assert "SECRET" not in repr(source)
        assert "SECRET" not in repr(rejected(source, SourceError("empty", url)))
        with open_source(source.location) as file:
            assert file.read() == Server.video
        sources.append(source)
    assert sources[0].source_id == sources[1].source_id
    assert suffix == ".txt" or sources[0].metadata == {"license": "CC0", "preview": f"{web}/signed/a.mp4?size=1"}
