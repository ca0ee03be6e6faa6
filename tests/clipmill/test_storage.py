import errno
import gc
import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill import storage, web_listing
from clipmill.errors import UserError
from clipmill.local_files import open_regular
from clipmill.ranges import find_object, read_range
from clipmill.store_requests import within
from tests.web_server import web_server


class FullDisk(io.RawIOBase):
    """A file on a disk with room for `room` bytes."""

    def __init__(self, path: str, room: int) -> None:
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._room = room

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, content: Any) -> int:
        if len(content) > self._room:
            self._file.write(bytes(content)[: self._room])
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room -= len(content)
        return self._file.write(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def fail_half_way(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    with storage.atomic_write(fs, path) as file:
        file.write(content)
        raise KeyError("the writer's own error")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_open_for_writing", lambda fs, path: FullDisk(path, room=100))


def test_plain_paths_need_no_escaping(tmp_path: Path) -> None:
    name = 'it\'s "quoted"\n*[1]? 100%.bin'
    fs, path = storage.filesystem(str(tmp_path / "a b" / name))
    storage.write_bytes(fs, path, b"content")
    assert storage.read_bytes(fs, path) == b"content"
    assert storage.list_files(fs, str(tmp_path / "a b")) == [path]


def test_relative_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.filesystem("x/y")[1] == str(tmp_path / "x" / "y")


def test_unknown_protocol_is_a_user_error() -> None:
    with pytest.raises(UserError, match="nope"):
        storage.filesystem("nope://bucket/x")


def test_nothing_is_there_until_the_block_ends(tmp_path: Path) -> None:
    fs, path = storage.filesystem(str(tmp_path / "new" / "file.bin"))
    with storage.atomic_write(fs, path) as file:
        file.write(b"half")
        assert not Path(path).exists()
        assert storage.list_files(fs, str(tmp_path / "new")) == []
        file.write(b" and half")
    assert Path(path).read_bytes() == b"half and half"


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    fs, path = storage.filesystem(str(tmp_path / "file.bin"))
    storage.write_bytes(fs, path, b"old")
    with pytest.raises(KeyError):
        fail_half_way(fs, path, b"new")
    assert Path(path).read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.usefixtures("full_disk")
def test_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    fs, path = storage.filesystem(str(tmp_path / "file.bin"))
    with pytest.raises(UserError, match=r"file\.bin: No space left on device.*Free some space"):
        storage.write_bytes(fs, path, b"x" * 1000)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fs, path = storage.filesystem(str(tmp_path / "file" / "below.bin"))
    with pytest.raises(UserError, match="cannot write"):
        storage.write_bytes(fs, path, b"")


def test_leftovers_of_a_killed_writer_are_found_and_removed(tmp_path: Path) -> None:
    fs, path = storage.filesystem(str(tmp_path / "file.bin"))
    context = storage.atomic_write(fs, path)
    context.__enter__().write(b"half")  # never left: as after kill -9
    assert storage.list_files(fs, str(tmp_path)) == []
    assert len(storage.remove_leftovers(fs, str(tmp_path))) == 1
    assert list(tmp_path.iterdir()) == []


def test_listing_and_removing_what_is_not_there(tmp_path: Path) -> None:
    fs, path = storage.filesystem(str(tmp_path / "nothing"))
    assert storage.list_files(fs, path) == []
    assert storage.list_folders(fs, path) == []
    storage.remove(fs, path)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(fs, path)


def test_object_store_round_trip(s3_url: str) -> None:
    fs, folder = storage.filesystem(f"{s3_url}/some folder")
    storage.write_bytes(fs, f"{folder}/b.bin", b"b")
    storage.write_bytes(fs, f"{folder}/a.bin", b"a")
    storage.write_bytes(fs, f"{folder}/below/c.txt", b"c")
    assert storage.list_files(fs, folder, ".bin") == [f"{folder}/a.bin", f"{folder}/b.bin"]
    assert storage.list_folders(fs, folder) == [f"{folder}/below"]
    assert storage.address(fs, folder) == f"{s3_url}/some folder"
    storage.remove(fs, f"{folder}/a.bin")
    assert storage.list_files(fs, folder, ".bin") == [f"{folder}/b.bin"]


@pytest.mark.parametrize("size", [10, 6 << 20], ids=["one_put", "multipart"])
def test_object_store_aborts_an_upload(s3_url: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, folder = storage.filesystem(s3_url)
    monkeypatch.setattr(fs, "default_block_size", 5 << 20)
    with pytest.raises(KeyError):
        fail_half_way(fs, f"{folder}/file.bin", b"x" * size)
    gc.collect()  # a buffered file that is collected must not upload what it holds
    assert storage.list_files(fs, folder) == []
    assert fs.list_multipart_uploads(folder) == []


def test_missing_bucket_is_a_user_error(s3_url: str) -> None:
    fs, path = storage.filesystem(f"{s3_url}-not/x")
    with pytest.raises(UserError, match="bucket"):
        storage.write_bytes(fs, path, b"")


def test_stores_without_whole_uploads_rename() -> None:
    fs, path = storage.filesystem("memory://folder/file.bin")
    with storage.atomic_write(fs, path) as file:
        file.write(b"content")
        assert not storage.exists(fs, path)
    assert storage.read_bytes(fs, path) == b"content"
    assert storage.list_files(fs, "/folder") == [path]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"a": ', "Expecting value"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "digits"),
        (b"[1]", "expected an object, got list"),
        (b'{"a": 1, "a": 2}', "duplicate key"),
        (b"{}", "it has no 'a'"),
        (b'{"a": null}', "int"),
        (b'{"a": "x"}', "invalid literal"),
    ],
)
def test_a_damaged_json_file_is_one_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    fs, path = storage.filesystem(str(tmp_path / "x.json"))
    with pytest.raises(UserError, match=rf"x\.json is damaged: .*{reason}"):
        storage.read_json(fs, path, lambda values: int(values["a"]))


@given(st.binary(max_size=100) | st.text(alphabet='{}[]":,a1 \\u', max_size=40).map(str.encode))
def test_any_bytes_are_json_or_damaged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_bytes(content)
    fs, path = storage.filesystem(str(file))
    try:
        values = storage.read_json(fs, path, dict)
    except UserError as error:
        assert "any.json is damaged: " in str(error)  # noqa: PT017
        assert not _is_object(content)
    else:
        assert _is_object(content)
        assert repr(values) == repr(json.loads(content))


def _is_object(content: bytes) -> bool:
    """Whether it is a JSON object in UTF-8 whose objects have no key twice."""
    repeated = False

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        repeated = repeated or len(dict(pairs)) < len(pairs)
        return dict(pairs)

    try:
        return isinstance(json.loads(content.decode(), object_pairs_hook=noted), dict) and not repeated
    except ValueError:
        return False


def test_json_that_is_not_there_or_fine(tmp_path: Path) -> None:
    fs, path = storage.filesystem(str(tmp_path / "x.json"))
    with pytest.raises(FileNotFoundError):
        storage.read_json(fs, path, dict)
    storage.write_bytes(fs, path, b'{"a": {"b": [1]}}')
    assert storage.read_json(fs, path, lambda values: values["a"]["b"]) == [1]


def test_only_regular_files_outside_the_kernels_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular(str(tmp_path / "link")) as file:
        assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "environment").symlink_to("/proc/self/environ")
    refused = {
        "pipe": "pipe",
        ".": "folder",
        "environment": "/proc",
        "/sys/kernel/notes": "/sys",
        "/dev/null": "device",
    }
    for name, reason in refused.items():
        with pytest.raises(UserError, match=reason):
            open_regular(str(tmp_path / name))


class Endless(BaseHTTPRequestHandler):
    """/hang never answers; anything else is a body without end, /range one that claims to be the range asked for."""

    def do_GET(self) -> None:
        if self.path == "/hang":
            self.server.stopped.wait()  # type: ignore[attr-defined]
            return
        self.send_response(206 if self.path == "/range" else 200)
        if self.path == "/range":
            self.send_header("Content-Range", f"{self.headers['Range'].replace('=', ' ')}/1000")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"x" * 65536)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_web_server_neither_fills_the_memory_nor_holds_us_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_listing, "_MAX_BYTES", 1 << 20)
    monkeypatch.setattr(web_listing, "_DEADLINE_S", 0.2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.daemon_threads, server.stopped = True, Event()  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    fs, _ = storage.filesystem(base)
    try:
        with pytest.raises(UserError, match="limit of 1,000 bytes"):
            storage.read_limited(fs, f"{base}/endless?token=secret", max_bytes=1000)
        with pytest.raises(UserError, match=r"hang: no answer within 0\.2 s"):
            storage.read_limited(fs, f"{base}/hang", max_bytes=1000, deadline_s=0.2)
        for listed in (storage.list_files, storage.list_folders, lambda fs, path: fs.glob(f"{path}/*.tar")):
            with pytest.raises(UserError, match=r"endless/? is larger than 1,048,576 bytes"):
                listed(fs, f"{base}/endless")
        with pytest.raises(UserError, match=r"hang: no answer within 0\.2 s"):
            storage.list_files(fs, f"{base}/hang")
        with pytest.raises(UserError, match=r"hang: no answer within 0\.2 s"):
            storage.exists(fs, f"{base}/hang")
        stored = find_object(f"{base}/range")
        assert (stored.size_bytes, read_range(stored, 10, 30)) == (1000, b"x" * 20)
    finally:
        server.stopped.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()


def test_a_server_that_is_not_there_is_no_missing_file() -> None:
    with web_server() as server:
        server.files |= {"/a": b"x", "/empty": b""}
        fs, _ = storage.filesystem(server.url)
        found = [storage.exists(fs, f"{server.url}/{name}") for name in ("a", "empty", "b")]
        assert found == [True, True, False]
        server.errors.append(403)
        with pytest.raises(UserError, match=r"cannot read .*: 403"):
            storage.exists(fs, f"{server.url}/a")
    with pytest.raises(UserError, match=r"cannot read http://127\.0\.0\.1:1/x: Connect call failed"):
        storage.exists(fs, "http://127.0.0.1:1/x")


APACHE = """<a href="?C=N;O=D">Name</a> <a href="/">Parent Directory</a> <A class="x" HREF='a.tar'>a.tar</A>
<a href="sub/">sub/</a> <a href="b%20c.tar?sig=1">b</a> <a href="/shards/d.tar">d</a> <a href="../../etc/e.tar">e</a>
<a href="https://elsewhere.example/f.tar">f</a> <a href="#top">top</a>"""


def test_a_listing_of_a_web_server_is_of_what_is_below_the_folder() -> None:
    with web_server() as server:
        server.files["/shards"] = APACHE.encode()
        fs, path = storage.filesystem(f"{server.url}/shards/")
        files = ["a.tar", "b%20c.tar?sig=1", "d.tar"]
        assert storage.list_files(fs, path) == [f"{server.url}/shards/{name}" for name in files]
        assert storage.list_folders(fs, path) == [f"{server.url}/shards/sub"]
        server.files["/shards"] = b""
        assert storage.list_files(fs, path) == []


def test_a_store_that_cannot_be_cancelled_does_not_hold_us_up_either() -> None:
    fs, path = storage.filesystem("memory://slow")
    release = Event()
    with pytest.raises(TimeoutError, match="no answer within"):
        within(0.05, fs, release.wait)
    release.set()
    assert within(10, fs, lambda: path) == path


def test_no_credential_is_in_an_error() -> None:
    with pytest.raises(UserError, match="nope://") as unknown:
        storage.filesystem("nope://user:SECRET@host/x")
    fs, path = storage.filesystem("http://user:SECRET@127.0.0.1:1/x?X-Amz-Signature=SECRET&id=7")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/x\?id=7") as refused:
        storage.read_limited(fs, path, max_bytes=10)
    assert "SECRET" not in f"{unknown.value} {refused.value}"


@pytest.mark.parametrize(("wanted", "kind"), [(None, "gcsfs.core"), ("true", "gcsfs.extended_gcsfs")])
def test_google_cloud_storage_is_read_without_grpc_unless_the_user_wants_it(wanted: str | None, kind: str) -> None:
    pytest.importorskip("gcsfs")
    code = "from clipmill import storage; print(type(storage.filesystem('gs://bucket/a')[0]).__module__)"
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NO_GCE_CHECK": "true"}
    environment |= {} if wanted is None else {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": wanted}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == kind
