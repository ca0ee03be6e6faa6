"""Captions that come with a video: every way they are written down, also badly, and the clips they belong to."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.inputs.caption import Caption, TimedCaption, clean
from curation.inputs.captions import MAX_CHARS, read_supplied
from curation.inputs.sources import Source, list_sources
from tests.curation.inputs.captions import beside, read, texts

FAMILY = "👩‍👩‍👧‍👦"


HEBREW = "\u202bחתול הולך\u202c and \u200fقطة"


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
        ('{"text": "a", "start_s": 4, "end_s": 1}', "expected its end after its start, got start 4 s and end 1 s"),
        ('{"text": "a", "end_s": 0}', "got start 0 s and end 0 s"),
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
    for timed in read_supplied(Source(uri=str(folder / "any.mp4")), {}).captions:
        said = timed.caption.text or timed.caption.error
        assert said
        assert said == clean(said)
        said.encode()


@given(st.text())
def test_clean_is_done_once_and_for_all(text: str):
    cleaned = clean(text)
    assert cleaned is None or (clean(cleaned) == cleaned and "\n" not in cleaned and cleaned.strip() == cleaned)
