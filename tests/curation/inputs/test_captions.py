"""Captions that come with a video: every way they are written down, also badly, and the clips they belong to."""

import itertools
import json
import math
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.inputs.captions import (
    MAX_CHARS,
    MAX_CLIP_BYTES,
    MAX_PER_CLIP,
    MAX_SOURCE_BYTES,
    Caption,
    TimedCaption,
    captions_between,
    captions_of_clips,
    clean,
    read_captions,
)
from curation.inputs.sources import Source, list_sources

FAMILY = "👩‍👩‍👧‍👦"
CAKE = "a cake rises in the oven of a small bakery"
HEBREW = "\u202bחתול הולך\u202c and \u200fقطة"


DESCRIPTIONS = [
    "Recorded in Tokyo on a rainy night",
    "Made in the mountains of Peru",
    "Captured in slow motion: a cat jumps",
    "Captured by GoPro surfers in Bali",
    "Recorded with OBS by a nervous streamer",
    "Handbrake turn on wet asphalt",
    "FFmpeg explained by a patient teacher",
    "Created by hand from clay",
    "Recorded in Vegas",
    "Produced by Anna in Apple Valley",
    "Made on a loom",
]
LEFT_BY_PROGRAMS = [
    "Created with HandBrake 1.5",
    "HandBrake 1.5.1 2022010100",
    "Made with Adobe Premiere Pro CC 2019 (Windows)",
    "Made with iMovie",
    "Recorded with OBS Studio 29",
    "Created by Windows Movie Maker",
    "Edited in DaVinci Resolve 18.6",
    "Captured on iPhone 12",
    "Rendered using Blender",
    "Encoded by x264 core 164",
    "Lavc58.54 libx264",
]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "a.b clip.mp4").write_bytes(b"x")
    return Source(uri=str(tmp_path / "a.b clip.mp4"))


def beside(source: Source, suffix: str, content: str | bytes | dict[str, Any]) -> None:
    content = json.dumps(content) if isinstance(content, dict) else content
    content = content.encode() if isinstance(content, str) else content
    Path(source.uri).with_suffix(suffix).write_bytes(content)


def read(source: Source, **metadata: str) -> list[TimedCaption]:
    return read_captions(source, metadata)


def texts(source: Source, **metadata: str) -> list[tuple[str, str | None]]:
    found = read(source, **metadata)
    assert all((t.caption.text is None) != (t.caption.error is None) for t in found)
    return [(t.caption.source, t.caption.text) for t in found]


def failure(source: Source) -> str:
    """The error of the only caption there is."""
    (timed,) = read(source)
    assert timed == TimedCaption(caption=timed.caption)
    assert (timed.caption.source, timed.caption.text) == ("sidecar", None)
    assert timed.caption.error
    return timed.caption.error


# Where captions come from


def test_captions_come_from_the_list_the_sidecars_and_the_container_in_this_order(source: Source):
    source = Source(uri=source.uri, captions=("from the list", "and another"))
    beside(source, ".txt", "from text")
    beside(source, ".json", {"caption": "from json"})
    assert texts(source, title="from the container") == [
        ("list", "from the list"),
        ("list", "and another"),
        ("sidecar", "from json"),
        ("sidecar", "from text"),
        ("metadata", "from the container"),
    ]


def test_no_captions_are_none(source: Source):
    assert read(source) == []


def test_the_same_text_counts_once_per_source(source: Source):
    source = Source(uri=source.uri, captions=("a cat", "a  cat\n"))
    beside(source, ".txt", "a cat\n")
    beside(source, ".json", {"captions": ["a cat", "a cat", {"text": "a cat", "source": "coca"}]})
    assert texts(source) == [("list", "a cat"), ("sidecar", "a cat"), ("coca", "a cat")]


@pytest.mark.parametrize("empty", ["", " \n\t ", "\ufeff", "\u200b\u2060", "\x00"])
def test_an_empty_caption_is_none(source: Source, empty: str):
    source = Source(uri=source.uri, captions=(empty,))
    beside(source, ".txt", empty)
    beside(source, ".json", {"caption": empty, "captions": [empty, {"text": empty}, {"text": None}]})
    assert texts(source, title=empty) == []
    beside(source, ".json", empty if empty != "\x00" else "")
    assert texts(source) == []


def test_a_name_that_cannot_have_a_sidecar_has_none(tmp_path: Path):
    path = tmp_path / ("x" * 251 + ".mp4")
    path.write_bytes(b"x")
    assert read(Source(uri=str(path))) == []


def test_a_name_that_is_not_utf8_has_its_sidecar(tmp_path: Path):
    for suffix, content in ((b".mp4", b"x"), (b".txt", b"a cat")):
        with open(os.fsencode(tmp_path) + b"/caf\xe9" + suffix, "wb") as file:
            file.write(content)
    (source,) = list_sources([str(tmp_path)])
    assert texts(source) == [("sidecar", "a cat")]


# Text files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["A cat.", f"{FAMILY} {HEBREW} 猫", "é" * 10_000])
def test_text_passes_unharmed_in_every_encoding_that_says_what_it_is(source: Source, encoding: str, text: str):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    beside(source, ".txt", mark + text.encode(encoding))
    assert texts(source) == [("sidecar", text)]


def test_lines_of_a_text_file_are_one_caption(source: Source):
    beside(source, ".txt", "A cat\r\n walks.\r\n\r\nIt\x00 rains\x07.\n")
    assert texts(source) == [("sidecar", "A cat walks. It rains.")]


def test_a_text_file_that_cannot_be_read_says_why(source: Source):
    beside(source, ".txt", "café".encode("latin-1"))
    assert failure(source) == "a.b clip.txt: not UTF-8 at byte 3 (unexpected end of data); save it as UTF-8"
    beside(source, ".txt", b"\xff\xfe\x00\xd8\x00\x00")
    assert "not UTF-16" in failure(source)
    beside(source, ".txt", b"x" * (5 << 20))
    assert "more than 4 MiB" in failure(source)
    beside(source, ".txt", "x" * (MAX_CHARS + 1))
    assert failure(source) == "a caption of 20,001 characters exceeds the limit of 20,000"
    beside(source, ".txt", "x" * MAX_CHARS)
    assert texts(source) == [("sidecar", "x" * MAX_CHARS)]


def test_a_folder_or_a_pipe_is_no_sidecar(source: Source):
    os.mkfifo(Path(source.uri).with_suffix(".txt"))
    assert "not a file" in failure(source)
    Path(source.uri).with_suffix(".txt").unlink()
    Path(source.uri).with_suffix(".txt").mkdir()
    assert "not a file" in failure(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_sidecar_that_may_not_be_read_says_so(source: Source):
    beside(source, ".txt", "a cat")
    Path(source.uri).with_suffix(".txt").chmod(0)
    assert "Permission denied" in failure(source)


# JSON files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"caption": "a"}, ["a"]),
        ({"text": "a"}, ["a"]),
        ({"title": "a", "url": "https://example.org", "views": 12}, ["a"]),
        ({"title": "b", "description": "a", "caption": ""}, ["a"]),
        ({"captions": ["a", "b"]}, ["a", "b"]),
        ({"captions": ["b"], "caption": "a"}, ["a", "b"]),
        ({"captions": ["a"], "title": "IMG_0042"}, ["a"]),
        ({"captions": []}, []),
        ({"caption": None}, []),
    ],
)
def test_json_forms(source: Source, content: dict[str, Any], expected: list[str]):
    beside(source, ".json", content)
    assert texts(source) == [("sidecar", text) for text in expected]


def test_json_entries_may_have_times_and_a_source(source: Source):
    entries = [
        {"text": "a", "start_s": 1, "end_s": 4.5, "source": "coca"},
        {"text": "a", "start_s": 5, "end_s": 6, "source": "coca"},
        {"text": "b", "start_s": 2.0},
        {"text": "c", "end_s": 2.0, "source": "my-own_2"},
        {"text": "d", "start_s": None, "end_s": None, "source": None},
    ]
    beside(source, ".json", {"captions": entries})
    assert read(source) == [
        TimedCaption(caption=Caption(source="coca", text="a"), start_s=1.0, end_s=4.5),
        TimedCaption(caption=Caption(source="coca", text="a"), start_s=5.0, end_s=6.0),
        TimedCaption(caption=Caption(source="sidecar", text="b"), start_s=2.0),
        TimedCaption(caption=Caption(source="my-own_2", text="c"), end_s=2.0),
        TimedCaption(caption=Caption(source="sidecar", text="d")),
    ]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('{"text": "a", "start_s": NaN}', "\"start_s\" is 'nan', expected seconds"),
        ('{"text": "a", "end_s": Infinity}', "\"end_s\" is 'inf'"),
        ('{"text": "a", "end_s": 1e999}', '"end_s" is'),
        ('{"text": "a", "end_s": 1' + "0" * 1000 + "}", '"end_s" is'),
        ('{"text": "a", "start_s": -1}', '"start_s" is'),
        ('{"text": "a", "start_s": true}', '"start_s" is'),
        ('{"text": "a", "start_s": "1"}', '"start_s" is'),
        ('{"text": "a", "start_s": 4, "end_s": 1}', "its end, 1 s, must be after its start, 4 s"),
        ('{"text": "a", "end_s": 0}', "must be after its start"),
        ('{"text": "a", "start": 4}', "unknown key 'start'. Did you mean 'start_s'?"),
        ('{"text": 7}', '"text" is a number, expected text'),
        ('{"text": "a", "source": "../etc"}', 'expected "source" to be'),
        ('{"text": "a", "source": ["x"]}', 'expected "source" to be'),
        ("7", "got a number; expected"),
        ('["a"]', "got a list; expected"),
        (f'"{"x" * 20_001}"', "20,001 characters"),
    ],
)
def test_a_bad_entry_fails_alone(source: Source, entry: str, reason: str):
    beside(source, ".json", f'{{"captions": ["good", {entry}, "fine"]}}')
    first, bad, last = read(source)
    assert (first.caption.text, last.caption.text) == ("good", "fine")
    assert bad == TimedCaption(caption=bad.caption)
    assert bad.caption.text is None
    assert reason in bad.caption.error
    assert "20,001" in reason or bad.caption.error.startswith("caption 2: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"caption": "a"', "invalid JSON"),
        ("a cat", "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        ('{"n": 1' + "0" * 5000 + "}", "invalid JSON"),
        ('["a"]', "got a list"),
        ('"a"', "got text"),
        ("null", "got null"),
        ('{"name": "a"}', "none of the keys captions, caption, text, description, title found"),
        ('{"captions": "a"}', '"captions" is text'),
        ('{"captions": {"text": "a"}}', '"captions" is an object'),
        (json.dumps({"captions": ["a"] * 10_001}), "10,001 captions exceed the limit of 10,000"),
    ],
)
def test_a_json_file_of_another_shape_says_what_is_expected(source: Source, content: str, reason: str):
    beside(source, ".json", content)
    error = failure(source)
    assert error.startswith("a.b clip.json: ")
    assert reason in error
    assert "expected {" in error or "exceed" in error


def test_halves_of_characters_do_not_pass(source: Source):
    beside(source, ".json", '{"caption": "a \\ud83d cat \\u0000 \\ud83d\\ude00"}')
    assert texts(source) == [("sidecar", "a cat 😀")]


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_whatever_a_sidecar_holds_it_is_captions_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    folder = tmp_path_factory.getbasetemp()
    for suffix in (".txt", ".json"):
        (folder / f"any{suffix}").write_bytes(content)
    for timed in read_captions(Source(uri=str(folder / "any.mp4")), {}):
        said = timed.caption.text or timed.caption.error
        assert said
        assert said == clean(said)
        said.encode()


@given(st.text())
def test_clean_is_done_once_and_for_all(text: str):
    cleaned = clean(text)
    assert cleaned is None or (clean(cleaned) == cleaned and "\n" not in cleaned and cleaned.strip() == cleaned)


# Links


def linked(tmp_path: Path, target: Path | str, folder: str = "input") -> list[TimedCaption]:
    """What is read of a video whose .txt is a link, when the folder `input` was given."""
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "a.mp4").write_bytes(b"x")
    (place / "a.txt").symlink_to(target)
    return read_captions(Source(uri=str(place / "a.mp4"), root=str(tmp_path / "input")), {})


@pytest.mark.parametrize("target", ["/proc/self/environ", "/etc/passwd", "/dev/zero", "../outside.txt"])
def test_a_link_to_a_file_elsewhere_is_not_a_caption(tmp_path: Path, target: str):
    (tmp_path / "outside.txt").write_text("a secret")
    (timed,) = linked(tmp_path, target)
    assert timed.caption.text is None
    assert timed.caption.error.startswith("a.txt: ")


def test_a_link_within_the_input_is_a_caption(tmp_path: Path):
    (tmp_path / "input" / "texts").mkdir(parents=True)
    (tmp_path / "input" / "texts" / "1.txt").write_text("a cat")
    assert [t.caption.text for t in linked(tmp_path, "../../texts/1.txt", folder="input/deep/videos")] == ["a cat"]


@pytest.mark.parametrize("store", [".git/annex/objects/a/b", ".dvc/cache/files/md5/ab", "blobs"])
def test_a_link_into_the_content_store_around_the_input_is_a_caption(tmp_path: Path, store: str):
    (tmp_path / "snapshots").mkdir()
    (tmp_path / store).mkdir(parents=True)
    (tmp_path / store / "cdef").write_text("a cat")
    assert [t.caption.text for t in linked(tmp_path, tmp_path / store / "cdef")] == ["a cat"]


def test_a_linked_folder_has_the_captions_beside_its_videos(tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.mp4").write_bytes(b"x")
    (tmp_path / "other" / "a.txt").write_text("a cat")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "link").symlink_to("../other")
    (source,) = list_sources([str(tmp_path / "input")])
    assert texts(source) == [("sidecar", "a cat")]


# The container


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"title": "A cat walks"}, "A cat walks"),
        ({"title": "Sunset"}, "Sunset"),
        ({"TITLE": "A cat", "DESCRIPTION": "A black cat walks."}, "A black cat walks."),
        ({"com.apple.quicktime.description": "A cat"}, "A cat"),
        ({"description": "https://example.org/v?1", "title": "A cat walks"}, "A cat walks"),
        ({"title": "猫が歩く"}, "猫が歩く"),
        ({"title": f"Made with love: {CAKE}"}, f"Made with love: {CAKE}"),
        ({"comment": "A cat walks"}, "A cat walks"),
        ({"artist": "Somebody", "encoder": "Lavf61", "handler_name": "Video Handler"}, None),
        ({"title": "IMG_0042.MOV"}, None),
        ({"title": "dQw4w9WgXcQ"}, None),
        ({"title": "2019-07-21 10:00"}, None),
        ({"title": "A.B_Clip"}, None),
        ({"title": "a.b clip.mp4"}, None),
        ({"title": "Untitled"}, None),
        *(({"title": text}, text) for text in DESCRIPTIONS),
        *(({"comment": text}, None) for text in LEFT_BY_PROGRAMS),
        ({"comment": "Lavf58.29.100"}, None),
        ({"comment": "vid:v0f044gc0000cbk7"}, None),
        ({"comment": "Caf\ufffd au lait"}, None),
        ({"comment": "\x00"}, None),
    ],
)
def test_the_first_tag_that_says_something_is_a_caption(source: Source, tags: dict[str, str], text: str | None):
    assert texts(source, **tags) == ([("metadata", text)] if text else [])


# Clips


def timed(start_s: float | None, end_s: float | None, text: str = "t") -> TimedCaption:
    return TimedCaption(caption=Caption(source="sidecar", text=text), start_s=start_s, end_s=end_s)


@pytest.mark.parametrize(
    ("start_s", "end_s", "belongs"),
    [
        (None, None, True),
        (10.0, 14.0, True),
        (0.0, 100.0, True),
        (10.0, 12.0, True),
        (10.0, 11.9, False),
        (12.0, 30.0, True),
        (12.1, 30.0, False),
        (11.0, 13.0, True),
        (0.0, 10.0, False),
        (14.0, 20.0, False),
        (30.0, 40.0, False),
        (12.0, None, True),
        (13.0, None, False),
        (None, 12.0, True),
        (None, 5.0, False),
    ],
)
def test_a_caption_belongs_to_a_clip_of_which_it_covers_half(start_s: float, end_s: float, belongs: bool):
    assert bool(captions_between([timed(start_s, end_s)], 10.0, 14.0)) == belongs


def test_a_clip_has_each_caption_once_in_order_and_not_endlessly_many():
    captions = [timed(None, None, "b"), timed(0, 5, "a"), timed(1, 6, "a"), timed(9, 12, "c")]
    assert [c.text for c in captions_between(captions, 0, 6)] == ["b", "a"]
    many = captions_between([timed(None, None, str(i)) for i in range(1000)], 0, 6)
    assert [c.text for c in many] == [*map(str, range(MAX_PER_CLIP)), None]
    assert many[-1].error == "1000 captions for one clip; only the first 32 were kept"


@given(
    cuts=st.lists(st.floats(0, 100), min_size=2, max_size=6, unique=True).map(sorted),
    start_s=st.floats(0, 100),
    length_s=st.floats(0.1, 100),
)
def test_of_clips_in_a_row_those_get_a_caption_that_it_mostly_covers(
    cuts: list[float], start_s: float, length_s: float
):
    caption = timed(start_s, start_s + length_s)
    for first_s, last_s in itertools.pairwise(cuts):
        covered_s = max(0.0, min(last_s, start_s + length_s) - max(first_s, start_s))
        share = covered_s / (last_s - first_s)
        if not math.isclose(share, 0.5, rel_tol=1e-6):
            assert bool(captions_between([caption], first_s, last_s)) == (share > 0.5)


_BOUND = st.none() | st.integers(0, 12).map(float)


@given(
    captions=st.lists(st.tuples(_BOUND, _BOUND, st.sampled_from("abc")), max_size=12),
    clips=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=6),
)
def test_all_clips_at_once_get_what_each_gets_by_the_rule(captions: list[Any], clips: list[tuple[int, int]]):
    chosen = [timed(*caption) for caption in captions]
    spans = [(float(start), float(start + length)) for start, length in clips]

    def covers(caption: TimedCaption, start_s: float, end_s: float) -> bool:
        first_s = start_s if caption.start_s is None else max(start_s, caption.start_s)
        last_s = end_s if caption.end_s is None else min(end_s, caption.end_s)
        return last_s - first_s >= (end_s - start_s) / 2

    expected = [list(dict.fromkeys(c.caption for c in chosen if covers(c, *span))) for span in spans]
    assert captions_of_clips(chosen, spans) == expected
    assert [captions_between(chosen, *span) for span in spans] == expected


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, MAX_CHARS), max_size=MAX_PER_CLIP + 2),
    clips=st.integers(1, 3000),
    letter=st.sampled_from(["x", "\u00e9", "\u732b", "\U0001f431"]),
)
def test_captions_times_clips_are_bounded(sizes: list[int], clips: int, letter: str):
    captions = [timed(None, None, letter * size) for size in sizes]
    rows = captions_of_clips(captions, [(float(i), i + 1.0) for i in range(clips)])
    note_bytes = 200
    assert len(rows) == clips
    for row in rows:
        assert sum(len((c.text or "").encode()) for c in row) <= MAX_CLIP_BYTES
        assert len(row) <= MAX_PER_CLIP + 1
    assert sum(len((c.text or "").encode()) for row in rows for c in row) <= MAX_SOURCE_BYTES + note_bytes * clips


def test_captions_are_left_out_only_when_there_are_too_many_and_it_is_said():
    clips_s = [(float(i), i + 1.0) for i in range(3840)]
    assert (
        captions_of_clips([timed(None, None, "a cat")], clips_s) == [[Caption(source="sidecar", text="a cat")]] * 3840
    )
    for row in captions_of_clips([timed(None, None, "a cat"), timed(None, None, "x" * MAX_CHARS)], clips_s):
        assert [c.text for c in row] == ["a cat", None]
        assert "captions dropped" in row[1].error


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


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The S3 operations that are called from now on."""
    called: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        called.append(method)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return called


def test_on_an_object_store_each_sidecar_costs_one_request_whether_it_is_there_or_not(s3_url: str, requests: list[str]):
    with fsspec.open(f"{s3_url}/a.txt", "wb") as file:
        file.write(b"a cat")
    requests.clear()
    assert texts(Source(uri=f"{s3_url}/a.mp4")) == [("sidecar", "a cat")]
    assert requests == ["get_object", "get_object"]
    requests.clear()
    assert texts(Source(uri=f"{s3_url}/b.mp4")) == []
    assert requests == ["get_object", "get_object"]


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
    for timed, name in zip(read(Source(uri=f"{s3_url}/a.mp4")), ("a.json", "a.txt"), strict=True):
        assert timed.caption.text is None
        assert timed.caption.error == f"{name}: cannot read {s3_url}/{name}: the store is on fire."
