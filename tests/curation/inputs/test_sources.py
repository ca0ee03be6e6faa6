"""Listing inputs: what is found, what is said of what is not, and that ids are stable."""

import os
import pickle
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as for_any
from hypothesis import strategies as st

from clipmill.errors import SourceError, UserError
from curation.inputs import lists, signed, stats
from curation.inputs.sources import LIST_SUFFIXES, list_sources, open_source, stat_source

ODD_NAMES = ["with space.mp4", "quote'\".mp4", "new\nline.mp4", "emoji 🎬.mp4", "semi;colon&amp.mp4", "50%.mp4"]


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_gives_its_videos_in_order_of_name(tmp_path: Path):
    for name in ("b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", "a.json", ".hidden.mp4", ".cache/d.mp4"):
        touch(tmp_path / name)
    uris = [s.uri for s in list_sources([str(tmp_path)])]
    assert uris == [str(tmp_path / name) for name in ("a.MKV", "b.mp4", "deep/er/c.webm")]


def test_globs_files_and_repetitions(tmp_path: Path):
    for name in ("a.mp4", "b.mp4", "c.mov"):
        touch(tmp_path / name)
    uris = [s.uri for s in list_sources([str(tmp_path / "*.mp4"), str(tmp_path / "c.mov"), str(tmp_path)])]
    assert uris == [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mov")]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_listed_and_can_be_opened(tmp_path: Path, name: str):
    touch(tmp_path / name, name.encode())
    for given in (str(tmp_path), str(tmp_path / name)):
        (source,) = list_sources([given])
        assert source.error is None
        with open_source(source.uri) as file:
            assert file.read() == name.encode()


def test_a_name_that_is_not_utf8_becomes_a_url_and_can_be_opened(tmp_path: Path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    with open(path, "wb") as file:
        file.write(b"content")
    (source,) = list_sources([str(tmp_path)])
    assert source.uri.startswith("file://")
    assert source.uri.endswith("caf%E9.mp4")
    source.uri.encode()
    with open_source(source.uri) as file:
        assert file.read() == b"content"
    (again,) = list_sources([source.uri])
    assert again.source_id == source.source_id


def test_a_folder_named_like_a_video_is_a_row(tmp_path: Path):
    (tmp_path / "x.mp4").mkdir()
    touch(tmp_path / "y.mp4" / "deep" / "in.mp4")
    touch(tmp_path / "ok.mp4")
    kinds = {Path(s.uri).name: s.error and s.error.kind for s in list_sources([str(tmp_path)])}
    assert kinds == {"ok.mp4": None, "x.mp4": "unreadable", "in.mp4": None}
    (folder,) = list_sources([str(tmp_path / "x.mp4")])
    assert folder.error.kind == "unreadable"


def test_a_name_that_is_not_utf8_and_does_not_exist_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path / "videos" / "a.mp4")
    monkeypatch.chdir(tmp_path)
    for given in ("videos/a\udcff.mp4", str(tmp_path / "videos" / "a\udcff.mp4")):
        with pytest.raises(UserError, match=r"videos/a%FF\.mp4 does not exist\. Did you mean '.*/videos/a\.mp4'\?"):
            list_sources([given])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("vidoes/a.mp4", r"vidoes/a.mp4 does not exist. Did you mean '.*/videos'\?"),
        ("videos/b.mp4", r"videos/b.mp4 does not exist. Did you mean '.*/videos/a.mp4'\?"),
        ("videos/other.webm", r"other.webm does not exist. .*/videos has no 'other.webm'"),
        ("videos/*.avi", r"no file matches .*videos/\*.avi"),
        ("videos/gone.mp4", r"gone.mp4: broken link"),
        ("videos/\0.mp4", r"is not a valid path"),
    ],
)
def test_an_input_that_does_not_exist_is_an_error_and_in_a_list_a_row(tmp_path: Path, given: str, said: str):
    touch(tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "gone.mp4").symlink_to("nowhere")
    with pytest.raises(UserError, match=said):
        list_sources([str(tmp_path / "videos" / "a.mp4"), str(tmp_path / given)])
    (tmp_path / "list.txt").write_text(f"videos/a.mp4\n{given}\n")
    good, bad = list_sources([str(tmp_path / "list.txt")])
    assert (good.error, bad.error.kind) == (None, "unreadable" if "\0" in given else "missing")


def test_lists_in_every_format_give_addresses_and_captions(tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        touch(tmp_path / "videos" / name)
    rows = {"url": ["videos/a.mp4", str(tmp_path / "videos/b.mp4")], "caption": ["a red, round thing", None]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    (tmp_path / "list.csv").write_text(f'id,url,caption\n1,videos/a.mp4,"a red, round thing"\n2,{rows["url"][1]},\n')
    (tmp_path / "list.txt").write_text(f"# a comment\nvideos/a.mp4\ta red, round thing\n\n{rows['url'][1]}\n")
    for suffix in ("parquet", "csv", "txt"):
        first, second = list_sources([str(tmp_path / f"list.{suffix}")])
        assert first.uri == str(tmp_path / "videos/a.mp4")
        assert first.captions == ("a red, round thing",)
        assert (second.captions, second.error) == ((), None)


def test_a_list_without_addresses_is_refused(tmp_path: Path):
    (tmp_path / "list.csv").write_text("name,caption\na,b\n")
    with pytest.raises(UserError, match=r"columns \['name', 'caption'\].*'uri'"):
        list(list_sources([str(tmp_path / "list.csv")]))
    with pytest.raises(UserError, match="does not exist"):
        list(list_sources([str(tmp_path / "none.csv")]))


def test_the_id_changes_with_the_file_and_only_then(tmp_path: Path):
    path = touch(tmp_path / "a.mp4", b"one")
    (first,) = list_sources([str(path)])
    (same,) = list_sources([f"{tmp_path}/../{tmp_path.name}/a.mp4"])
    assert first.source_id == same.source_id
    assert len(first.source_id) == 16
    path.write_bytes(b"two!")
    (changed,) = list_sources([str(path)])
    assert changed.source_id != first.source_id


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UserError, match="gopher"):
        list(list_sources(["gopher://host/a.mp4"]))


def test_lists_keep_numbers_as_they_are_written_and_all_captions(tmp_path: Path):
    touch(tmp_path / "007.mp4")
    (tmp_path / "list.csv").write_text("path,caption\n007.mp4,007\n007.mp4,a spy\n")
    (source,) = list_sources([str(tmp_path / "list.csv")])
    assert (source.error, source.captions) == (None, ("007", "a spy"))
    (tmp_path / "numbers.csv").write_text("path\n001\n")
    (missing,) = list_sources([str(tmp_path / "numbers.csv")])
    assert missing.uri.endswith("/001")


def test_a_bad_line_in_a_list_is_one_row_and_strange_separators_are_text(tmp_path: Path):
    touch(tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("gopher://x/y.mp4\na.mp4\tone\u2028caption\n", encoding="utf-8")
    bad, good = list_sources([str(tmp_path / "list.txt")])
    assert bad.error.kind == "unreadable"
    assert good.captions == ("one\u2028caption",)


def test_a_pipe_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "x.mp4")
    (source,) = list_sources([str(tmp_path)])
    assert (source.error.kind, "pipe" in source.error.message) == ("unreadable", True)


def test_a_store_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserError, match="cannot read s3://bucket"):
        list(list_sources(["s3://bucket/*.mp4"]))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


# Lists


BAD_ROWS = [
    "ftp://127.0.0.1:1/x.mp4",
    "zip://x::/etc/passwd",
    "tar://x.mp4::file:///x.tar",
    "reference://x::http://127.0.0.1:1/",
    "simplecache::http://127.0.0.1:1/x.mp4",
    "http://127.0.0.1:1/a::b.mp4",
    "http://[::1/x.mp4",
    "memory://x.mp4",
    "s3://",
    "://",
    "x" * 10_000,
    "a/" * 3000 + "x.mp4",
]


def written(folder: Path, rows: list[tuple[bytes, bytes]], suffix: str) -> str:
    """A list with these addresses and captions."""
    path = folder / f"list{suffix}"
    if suffix == ".parquet":
        columns = [pa.array(texts, pa.binary()).view(pa.binary()) for texts in zip(*rows, strict=True)]
        texts = [pa.Array.from_buffers(pa.string(), len(c), c.buffers()) for c in columns]
        pq.write_table(pa.table(dict(zip(("uri", "caption"), texts, strict=True))), path)
    elif suffix == ".csv":
        cells = [b",".join(b'"' + cell.replace(b'"', b'""') + b'"' for cell in row) for row in rows]
        path.write_bytes(b"\n".join([b"uri,caption", *cells, b""]))
    else:
        path.write_bytes(b"".join(b"\t".join(row) + b"\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
@pytest.mark.parametrize("bad", [*BAD_ROWS, b"caf\xe9\xff.mp4", "ok.mp4\tcaption \udcff"], ids=repr)
def test_whatever_one_row_is_the_others_are_listed(tmp_path: Path, suffix: str, bad: str | bytes):
    touch(tmp_path / "good.mp4")
    address, _, caption = os.fsencode(bad).partition(b"\t")
    rows = [(b"good.mp4", b"a"), (address, caption), (b"./good.mp4", b"b")]
    good, row = list_sources([written(tmp_path, rows, suffix)])
    assert (good.error, good.captions) == (None, ("a", "b"))
    assert row.error.kind in ("unreadable", "missing")
    row.uri.encode()


def test_a_name_in_a_list_need_not_be_utf8(tmp_path: Path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb") as file:
        file.write(b"content")
    (from_folder,) = list_sources([str(tmp_path)])
    for suffix in (".txt", ".csv", ".parquet"):
        (source,) = list_sources([written(tmp_path, [(b"caf\xe9.mp4", b"")], suffix)])
        assert source.source_id == from_folder.source_id


def test_rows_of_another_width_are_rows_of_their_own(tmp_path: Path):
    touch(tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("uri,caption\nx,y,z\na.mp4,a cat\nw\n")
    sources = {s.uri.rpartition("/")[2]: s for s in list_sources([str(tmp_path / "list.csv")])}
    assert sources.pop("a.mp4").captions == ("a cat",)
    assert [s.error.message for s in sources.values()] == [f"a row of {n} columns, expected 2" for n in (3, 1)]


def test_only_the_two_columns_of_a_list_are_read_and_repeated_text_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = 20_000
    heavy, caption = (
        pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([letter * 1_000_000]))
        for letter in "xy"
    )
    columns = {"unused": heavy, "uri": pa.array(["none.mp4"] * rows), "caption": caption}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")  # 20 GB a column, were it written out
    monkeypatch.setattr(lists, "_MAX_TEXT_BYTES", 20_000_000)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"more than .* of text; split it"):
        list_sources([str(tmp_path / "list.parquet")])
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


def test_a_list_has_at_most_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lists, "MAX_ROWS", 10)
    (tmp_path / "list.txt").write_text("x.mp4\n" * 11)
    with pytest.raises(UserError, match="more than 10 rows"):
        list_sources([str(tmp_path / "list.txt")])


@for_any(content=st.binary(max_size=300) | st.text(max_size=100).map(str.encode), suffix=st.sampled_from(LIST_SUFFIXES))
def test_any_bytes_are_a_list_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    header = b"uri,caption\n" if suffix == ".csv" else b""
    path.write_bytes(header + content.replace(b"://", b""))
    try:
        sources = list_sources([str(path)])
    except UserError as error:
        assert path.name in str(error)  # noqa: PT017
        return
    for source in sources:
        source.source_id.encode()
        assert source.error is None or source.error.kind in ("unreadable", "missing")


def test_a_damaged_parquet_list_is_one_sentence(tmp_path: Path):
    whole = Path(written(tmp_path, [(b"a.mp4", b"a cat")] * 50, ".parquet")).read_bytes()
    damaged = tmp_path / "damaged.parquet"
    for i in range(0, len(whole), 7):
        damaged.write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        try:
            list_sources([str(damaged)])
        except UserError as error:
            assert "damaged.parquet" in str(error)  # noqa: PT017
        damaged.write_bytes(whole[:i])
        with pytest.raises(UserError, match=r"damaged\.parquet"):
            list_sources([str(damaged)])


# Folders and links


def test_links_to_files_and_folders_are_followed_and_loops_end(tmp_path: Path):
    touch(tmp_path / "store" / "ab" / "cd", b"content")
    touch(tmp_path / "elsewhere" / "b.mp4")
    given = tmp_path / "given"
    touch(given / "z" / "c.mp4")
    (given / "a.mp4").symlink_to("../store/ab/cd")
    (given / "dangling.mp4").symlink_to("../store/not-fetched")
    (given / "linked").symlink_to("../elsewhere")
    (given / "z" / "loop").symlink_to("..")
    (given / "again").symlink_to("z")
    (given / "proc").symlink_to("/proc")
    listing = list_sources([str(given)])
    found = {s.uri.removeprefix(f"{given}/"): s.error and s.error.kind for s in listing}
    assert found == {
        **dict.fromkeys(("a.mp4", "linked/b.mp4", "z/c.mp4")),
        "dangling.mp4": "missing",
        "proc": "unreadable",
    }
    assert listing.passed_over == {"repeated folders": 2}
    (link,) = (s for s in listing if s.uri.endswith("a.mp4"))
    with open_source(link.uri) as file:
        assert file.read() == b"content"


def test_two_folders_of_links_to_each_other_are_listed_once(tmp_path: Path):
    for i in range(40):  # 2 to the 40 ways
        folder = tmp_path / "outside" / str(i)
        touch(folder / "v.mp4")
        for name in ("x", "y"):
            (folder / name).symlink_to(f"../{i + 1}")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "start").symlink_to("../outside/0")
    assert len([s for s in list_sources([str(tmp_path / "given")]) if s.error is None]) == 40


def test_what_the_kernel_answers_is_never_a_video(tmp_path: Path):
    (tmp_path / "a.mp4").symlink_to("/proc/self/environ")
    (source,) = list_sources([str(tmp_path)])
    with pytest.raises(SourceError, match="below /proc"):
        open_source(source.uri)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_a_row(tmp_path: Path):
    touch(tmp_path / "secret" / "a.mp4")
    (tmp_path / "secret").chmod(0)
    (row,) = list_sources([str(tmp_path)])
    (tmp_path / "secret").chmod(0o700)
    assert (row.uri, row.error.kind) == (str(tmp_path / "secret"), "unreadable")


def test_a_folder_that_is_nested_too_deeply_is_a_row(tmp_path: Path):
    touch(tmp_path / "a.mp4")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    good, deep = list_sources([str(tmp_path)])
    assert (good.error, deep.error.kind, "too long" in deep.error.message) == (None, "unreadable", True)
    sources = list_sources([str(tmp_path / "**" / "*.mp4")])
    assert [s.error is None for s in sources] == [True, False]
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)  # pytest's own removal is recursive


def test_what_is_passed_over_is_counted_by_suffix(tmp_path: Path):
    for name in ("a.mp4", "a.txt", "a.json", "notes.txt", "b.JPG", "c.jpg", "README", ".git/x", "d.\x1b[31m", ".e.mp4"):
        touch(tmp_path / name)
    listing = list_sources([str(tmp_path)])
    assert listing.passed_over == {".txt": 1, ".jpg": 2, "without suffix": 1, "hidden": 2, "other": 1}
    assert listing.passed_over_sentence(2) == "2 .jpg, 2 hidden, 3 more"
    assert list_sources([str(tmp_path / "a.mp4")]).passed_over_sentence() == ""


def test_a_pattern_takes_videos_unless_it_says_more(tmp_path: Path):
    for name in ("a.mp4", "a.txt", "deep/b.mp4", "deep/er/c.mp4", "x.dat", "[1].mp4", ".h.mp4"):
        touch(tmp_path / name)

    def found(pattern: str) -> list[str]:
        return [s.uri.removeprefix(f"{tmp_path}/") for s in list_sources([str(tmp_path / pattern)])]

    assert found("*") == ["[1].mp4", "a.mp4", "deep/b.mp4", "deep/er/c.mp4"]
    assert found("*.dat") == ["x.dat"]
    assert found("**/*.mp4") == ["[1].mp4", "a.mp4", "deep/b.mp4", "deep/er/c.mp4"]
    assert found("de?p/*.mp4") == ["deep/b.mp4"]
    assert found("[1].mp4") == ["[1].mp4"]
    assert found("[[]1].mp4") == ["[1].mp4"]
    assert found(".*.mp4") == [".h.mp4"]


# Web servers and signatures


class Server(BaseHTTPRequestHandler):
    """/hang never answers; /endless is HTML without end; the rest is a video of 7 bytes, for those who have the key."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        if self.path.startswith("/hang"):
            self.server.stopped.wait()  # type: ignore[attr-defined]
            return
        allowed = "/open" in self.path or "X-Amz-Signature=" in self.path
        status = 404 if "/none" in self.path else 200 if allowed else 403
        self.send_response(status)
        if "/endless" in self.path:
            self.send_header("Content-Type", "text/html")
        else:
            self.send_header("Content-Length", "7" if status == 200 else "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with suppress(OSError):
            while "/endless" in self.path:
                self.wfile.write(b"x" * 65536)
            if "X-Amz-Signature=" in self.path or "/open" in self.path:
                self.wfile.write(b"content")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads, server.stopped = True, Event()  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.stopped.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_an_address_on_the_command_line_is_a_file_and_its_body_is_not_fetched(web: str):
    (source,) = list_sources([f"{web}/endless/open"])
    assert source.error is None


def test_what_a_web_server_says_decides_the_kind(web: str, tmp_path: Path):
    rows = [f"{web}/open.mp4", f"{web}/none.mp4", f"{web}/forbidden.mp4", "http://127.0.0.1:1/refused.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    good, missing, forbidden, refused = list_sources([str(tmp_path / "list.txt")])
    assert (good.error, good.size_bytes) == (None, 7)
    assert missing.error.kind == "missing"
    assert (forbidden.error.kind, "403" in forbidden.error.message) == ("unreadable", True)
    assert refused.error.kind == "unreadable"
    with pytest.raises(UserError, match=r"none\.mp4 does not exist"):
        list_sources([f"{web}/none.mp4"])


def test_a_server_that_does_not_answer_costs_seconds_not_hours(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stats, "_STAT_DEADLINE_S", 0.2)
    (tmp_path / "list.txt").write_text("".join(f"{web}/hang{i}.mp4\n" for i in range(2000)) + "none.mp4\n")
    *hanging, local = list_sources([str(tmp_path / "list.txt")])
    assert {s.error.kind for s in hanging} == {"unreadable"}
    assert sum("skipped: " in s.error.message for s in hanging) > 1800
    assert local.error.kind == "missing"


def test_signatures_are_used_but_not_kept(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    host = web.removeprefix("http://")
    first, second = (f"http://user:SECRET@{host}/a.mp4?id=7&X-Amz-Signature=SECRET{i}" for i in (1, 2))
    (source,), (renewed,) = list_sources([first]), list_sources([second])
    assert (source.error, source.uri) == (None, f"{web}/a.mp4?id=7")
    assert source.source_id == renewed.source_id
    with open_source(pickle.loads(pickle.dumps(source)).location) as file:
        assert file.read() == b"content"
    assert "SECRET" not in repr(source)
    refused = stat_source(source.uri)
    assert (refused.error.kind, "403" in refused.error.message) == ("unreadable", True)
    (tmp_path / "signed.csv").write_text(f"uri\n{second}\n")
    monkeypatch.setenv(signed.SIGNED_LIST, str(tmp_path / "signed.csv"))
    opened = signed.signed_address(source.uri)
    assert stat_source(opened).source_id == source.source_id
    with open_source(opened) as file:
        assert file.read() == b"content"


def test_no_signature_is_in_a_reason(web: str, tmp_path: Path):
    secret = "?X-Amz-Credential=SECRET&token=SECRET"
    rows = [f"{web}/forbidden.mp4{secret}", f"http://127.0.0.1:1/x.mp4{secret}", f"ftp://u:SECRET@h/x{secret}"]
    (tmp_path / "list.txt").write_text("\n".join([*rows, f"zip://x::http://u:SECRET@h/{secret}"]))
    for source in list_sources([str(tmp_path / "list.txt")]):
        assert source.error.kind == "unreadable"
        assert "SECRET" not in f"{source.error} {source!r}"
