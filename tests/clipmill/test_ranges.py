"""Byte ranges of stores: what is read, what is asked for, what is tried again and what is not."""

import logging
import os
import re
from collections.abc import Iterator

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill import retries
from clipmill.errors import RunStopped, UserError
from clipmill.range_cache import RangeCache
from clipmill.range_reader import GAP_BYTES, Pieces, RangeReader, requests_for
from clipmill.ranges import REQUEST_BYTES, StoredObject, find_object, name_of, read_range
from clipmill.retries import ChangedObject, retried
from tests.web_server import WebServer, web_server

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        server.files["/a.bin"] = CONTENT
        yield server


@pytest.fixture(params=["s3", "gs", "web", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """Where `CONTENT` is."""
    if request.param == "web":
        return f"{request.getfixturevalue('web').url}/a.bin"
    stores = {"s3": "s3_url", "gs": "gcs_url"}
    folder = request.getfixturevalue(stores[request.param]) if request.param in stores else "memory://ranges"
    with fsspec.open(f"{folder}/a.bin", "wb") as file:
        file.write(CONTENT)
    return f"{folder}/a.bin"


def test_a_range_is_read_from_every_kind_of_store(url: str) -> None:
    stored = find_object(url, retry_s=0)
    assert (stored.size_bytes, bool(stored.version)) == (len(CONTENT), True)
    assert read_range(stored, 5, 777, retry_s=0) == CONTENT[5:777]
    assert read_range(stored, 0, len(CONTENT), retry_s=0) == CONTENT
    assert read_range(stored, 9, 9, retry_s=0) == b""
    with pytest.raises(UserError, match="expected at least"):
        read_range(stored, 0, len(CONTENT) + 1)


def test_an_object_that_was_replaced_is_not_read(url: str, request: pytest.FixtureRequest) -> None:
    stored, other = find_object(url, retry_s=0), bytes(reversed(CONTENT))
    if url.startswith("http"):
        request.getfixturevalue("web").files["/a.bin"] = other
    else:
        with fsspec.open(url, "wb") as file:
            file.write(other)
    with pytest.raises(ChangedObject, match="changed since it was indexed: expected 102,400 bytes"):
        read_range(stored, 0, 10, retry_s=60)


def test_what_is_not_there_is_told_at_once(s3_url: str, web: WebServer) -> None:
    for url in (f"{s3_url}/nowhere", "s3://no-such-bucket-at-all/x", f"{web.url}/nowhere", "memory://nowhere/x"):
        with pytest.raises(FileNotFoundError, match="no such file, object or bucket"):
            find_object(url, retry_s=60)


def test_without_permission_nothing_is_tried_again(web: WebServer) -> None:
    web.errors += [403]
    with pytest.raises(UserError, match=r"permission denied .* credentials"):
        find_object(f"{web.url}/a.bin", retry_s=60)


def test_a_server_without_ranges_is_told(web: WebServer) -> None:
    stored = find_object(f"{web.url}/a.bin")
    web.ranges = False
    with pytest.raises(UserError, match="the server does not support range requests"):
        read_range(stored, 0, 10, retry_s=60)
    with pytest.raises(UserError, match="the server does not support range requests"):
        find_object(f"{web.url}/a.bin", retry_s=60)


def test_errors_that_pass_are_waited_out(web: WebServer) -> None:
    stored = find_object(f"{web.url}/a.bin")
    web.errors += [503, 500, 429]
    assert read_range(stored, 3, 9) == CONTENT[3:9]
    assert web.errors == []


def test_a_store_that_stays_down_stops_the_run_and_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_WARN_AFTER_S", 0.05)
    stored = StoredObject(url="http://127.0.0.1:9/a.tar?token=secret", size_bytes=10, version="")
    with caplog.at_level(logging.WARNING), pytest.raises(RunStopped) as stopped:
        read_range(stored, 0, 5, retry_s=1)
    assert re.match(r"cannot read http://127.0.0.1:9/a.tar: .* \(\d+ attempts in 1 s\)", str(stopped.value))
    assert ["retrying for up to 1 s" in message for message in caplog.messages] == [True]
    assert "secret" not in str(stopped.value) + caplog.text


def test_a_mistake_in_our_code_is_not_tried_again() -> None:
    tries = []

    def wrong() -> None:
        tries.append(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        retried(wrong, "s3://bucket", 60)
    assert tries == [1]


def test_names_are_without_queries_and_quotes() -> None:
    assert name_of("https://host/a%20b.tar?Signature=x/y.tar") == "a b.tar"
    assert name_of("s3://bucket/what?.tar") == "what?.tar"
    assert name_of("/disk/a.tar") == "a.tar"


OBJECTS = [StoredObject(url=f"memory://{name}", size_bytes=1 << 40, version="") for name in "ab"]
RANGES = st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 9_000)), max_size=4)


@given(st.lists(st.tuples(st.sampled_from(OBJECTS), RANGES), max_size=12))
def test_requests_cover_all_pieces_once_and_little_else(
    places: list[tuple[StoredObject, list[tuple[int, int]]]],
) -> None:
    wanted = [Pieces(stored=stored, ranges=tuple(ranges)) for stored, ranges in places]
    requests = requests_for(wanted)
    parts = [part for request in requests for part in request.parts]
    assert sorted(parts) == [(i, j) for i, pieces in enumerate(wanted) for j in range(len(pieces.ranges))]
    for request in requests:
        covered = sorted(wanted[i].ranges[j] for i, j in request.parts)
        assert all(wanted[i].stored == request.stored for i, _ in request.parts)
        assert request.start == covered[0][0]
        assert request.end == max(offset + size for offset, size in covered)
        end = request.start
        for offset, size in covered:
            assert offset - end <= GAP_BYTES
            end = max(end, offset + size)
    for one in requests:  # none could have shared a request with another
        others = [other for other in requests if other != one and other.stored == one.stored]
        assert not any(one.end <= other.start <= one.end + GAP_BYTES for other in others)


def test_large_requests_are_divided() -> None:
    half = REQUEST_BYTES // 2 + 1
    wanted = [Pieces(stored=OBJECTS[0], ranges=((i * half, half),)) for i in range(3)]
    assert [(request.start, request.end) for request in requests_for(wanted)] == [
        (i * half, (i + 1) * half) for i in range(3)
    ]


def test_neighbours_share_a_request_and_a_second_reading_needs_none(web: WebServer, tmp_path) -> None:
    stored = find_object(f"{web.url}/a.bin")
    wanted = [Pieces(stored=stored, ranges=((i * 1000, 400), (i * 1000 + 500, 300))) for i in (3, 0, 2, 50)]
    expected = [[CONTENT[o : o + n] for o, n in pieces.ranges] for pieces in wanted]
    for cached in (False, True):
        reader = RangeReader(cache=RangeCache(tmp_path, 1 << 30))
        web.asked.clear()
        assert [future.result(10) for future in reader.submit(wanted)] == expected
        assert reader.requests == len(web.asked) == (0 if cached else 2)
        while not cached and len(list(tmp_path.glob("*/*"))) < len(wanted):
            pass  # entries are written after the answer


def test_an_error_reaches_everyone_who_waits_for_its_request(web: WebServer) -> None:
    stored = find_object(f"{web.url}/a.bin")
    del web.files["/a.bin"]
    wanted = [Pieces(stored=stored, ranges=((0, 10),)), Pieces(stored=stored, ranges=((20, 10), (90_000, 10)))]
    for future in RangeReader().submit(wanted):
        with pytest.raises(FileNotFoundError, match=r"a\.bin"):
            future.result(10)


def test_a_client_made_before_a_fork_is_not_used_after_it(url: str) -> None:
    stored = find_object(url)
    assert read_range(stored, 0, 10) == CONTENT[:10]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, read_range(stored, 10, 20))
        os._exit(0)
    assert os.read(reader, 10) == CONTENT[10:20]
    os.waitpid(child, 0)
