"""Lists as people have them: exported by Excel, pandas and shells, in every encoding, with rows that are broken."""

import gzip
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as for_any
from hypothesis import strategies as st

from clipmill.errors import UserError
from curation.inputs import list_cells, list_text, lists
from curation.inputs.list_cells import captions_in, columns_of, metadata_text
from curation.inputs.list_text import encoding_of
from curation.inputs.sources import Listing, Source, list_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "deep/c.mp4", "café.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listed(folder: Path, content: bytes | str, suffix: str = ".csv") -> Listing:
    path = folder / f"list{suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list_sources([str(path)])


def captions(listing: Iterable[Source]) -> dict[str, tuple[str, ...]]:
    """Name -> captions, of sources that can be used."""
    return {Path(source.uri).name: source.captions for source in listing if source.error is None}


def problems(listing: Iterable[Source]) -> dict[str, str]:
    """Row -> why it cannot be used."""
    return {source.uri.rpartition("/")[2]: source.error.message for source in listing if source.error is not None}


# Encodings and separators


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encoding_separator_and_line_ends_are_recognized(folder: Path, encoding: str, separator: str, end: str):
    rows = [f"path{separator}caption", f'a.mp4{separator}"Zoë, a ""red"" one; | \t"', f"b.mp4{separator}déjà vu", ""]
    listing = listed(folder, end.join(rows).encode(encoding))
    assert captions(listing) == {"a.mp4": ('Zoë, a "red" one; |',), "b.mp4": ("déjà vu",)}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_excel_and_its_first_line(folder: Path, suffix: str):
    content = "sep=;\r\nPath;Caption;;\r\na.mp4;a cat;;\r\n;;;\r\nb.mp4;a dog;;\r\n"
    if suffix == ".txt":
        content = "Path\tCaption\t\t\r\na.mp4\ta cat\t\t\r\n\t\t\t\r\nb.mp4\ta dog\t\t\r\n"
    assert captions(listed(folder, content.encode("utf-16"), suffix)) == {"a.mp4": ("a cat",), "b.mp4": ("a dog",)}


def test_text_in_another_encoding_is_refused_by_row_and_says_what_to_do(folder: Path):
    for encoding, text in (("cp1251", "кошка идёт"), ("shift-jis", "黒い猫が歩く"), ("gbk", "一只黑猫")):
        listing = listed(folder, f"path,caption\na.mp4,{text}\nb.mp4,a dog\n".encode(encoding))
        assert captions(listing) == {"b.mp4": ("a dog",)}
        assert "save the list as UTF-8" in problems(listing)["a.mp4"]


def test_damaged_text_in_a_list_of_utf8_is_no_other_encoding(folder: Path):
    listing = listed(folder, "path,caption\na.mp4,Zoë\nb.mp4,caf".encode() + b"\xc3\ndeep/c.mp4,a cat\n")
    assert captions(listing) == {"a.mp4": ("Zoë",), "c.mp4": ("a cat",)}
    assert "not valid UTF-8" in problems(listing)["b.mp4"]


def test_a_name_in_another_encoding_or_with_backslashes_is_found(folder: Path):
    rows = [b"path", "café.mp4".encode("latin-1"), b"deep\\c.mp4", "cafe\u0301.mp4".encode(), b"C:\\videos\\a.mp4"]
    listing = listed(folder, b"\n".join(rows))
    assert captions(listing) == {"café.mp4": (), "c.mp4": ()}
    assert "a path of Windows" in "".join(problems(listing).values())


@for_any(text=st.text(max_size=40), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_what_can_be_written_is_recognized(text: str, encoding: str):
    with suppress(UnicodeEncodeError):
        content = f"path,caption\na.mp4,{text}".encode(encoding)
        assert content.decode(encoding) == content.decode(
            {"utf-8": "utf-8-sig"}.get(encoding_of(content), encoding_of(content))
        ) or text.startswith("\ufeff")


# Rows


def test_a_quote_that_is_not_closed_costs_its_row_alone(folder: Path):
    rows = ["path,caption", 'a.mp4,"never closed', "b.mp4,a dog", 'deep/c.mp4,"a ""cat"", and', 'a dog"', ""]
    assert captions(listed(folder, "\n".join(rows))) == {
        "a.mp4": ('"never closed',),
        "b.mp4": ("a dog",),
        "c.mp4": ('a "cat", and\na dog',),
    }
    listing = listed(folder, 'path,caption\na.mp4,"x" y, z" w\nb.mp4,a dog\n')
    assert captions(listing) == {"b.mp4": ("a dog",)}
    assert "quotes that do not match" in problems(listing)["list.csv#row-2"]


def test_quotes_within_a_cell_that_nobody_doubled_are_text(folder: Path):
    listing = listed(folder, 'path\tcaption\na.mp4\t"Stop" said the cat\nb.mp4\t"a ""red"" dog"\n', ".tsv")
    assert captions(listing) == {"a.mp4": ('"Stop" said the cat',), "b.mp4": ('a "red" dog',)}


def test_rows_of_another_width(folder: Path):
    listing = listed(
        folder, "path,caption,license\na.mp4,a cat\nb.mp4,a dog,CC0,,\ndeep/c.mp4,one, two,CC0\nstray\n,x,\n"
    )
    assert captions(listing) == {"a.mp4": ("a cat",), "b.mp4": ("a dog",)}
    assert problems(listing) == {
        "list.csv#row-4": "a row of 4 columns, expected 3",
        "list.csv#row-5": "a row of 1 columns, expected 3",
        "list.csv#row-6": "a row without an address",
    }
    assert "3 of 5 rows cannot be used" in listing.notes[0]


def test_very_long_lines_and_cells_and_nulls(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(list_text, "_MAX_LINE_CHARS", 2000)
    monkeypatch.setattr(list_text, "_MAX_RECORD_CHARS", 5000)
    monkeypatch.setattr(lists, "_MAX_CAPTION_BYTES", 1000)
    long, longer = "x" * 1500, "x" * 5000
    rows = ["path,caption", f"a.mp4,{long}", f"b.mp4,{longer}", "deep/c.mp4,a cat", "a\0.mp4,a dog", "b.mp4,a \0 dog"]
    listing = listed(folder, "\n".join(rows))
    assert captions(listing) == {"c.mp4": ("a cat",), "b.mp4": ("a \0 dog",)}
    assert len(problems(listing)) == 3
    many_lines = 'path,caption\na.mp4,"' + f"{'x' * 99}\n" * 60 + "b.mp4,a dog\n"
    assert captions(listed(folder, many_lines))["b.mp4"] == ("a dog",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.mp4\nb.mp4\n", {"a.mp4": (), "b.mp4": ()}),
        ("a.mp4,a cat\nb.mp4,a dog\n", {"a.mp4": ("a cat",), "b.mp4": ("a dog",)}),
        ("a cat;a.mp4\na dog;b.mp4\n", {"a.mp4": ("a cat",), "b.mp4": ("a dog",)}),
        ("a.mp4,12\nb.mp4,13\n", {"a.mp4": (), "b.mp4": ()}),
        ("7,a.mp4,a cat\n8,b.mp4,a dog\n", {"a.mp4": (), "b.mp4": ()}),
    ],
)
def test_a_table_without_a_header(folder: Path, content: str, expected: dict[str, tuple[str, ...]]):
    listing = listed(folder, content)
    assert captions(listing) == expected
    assert "no header" in listing.notes[0]
    first = next(iter(listing))
    assert len(first.captions) + len(first.metadata) == len(content.splitlines()[0].replace(";", ",").split(",")) - 1


@pytest.mark.parametrize(
    "names",
    [
        "uri",
        "URL",
        " Path ",
        "video_path",
        "Video Path",
        "videoPath",
        "contentUrl",
        "file_name",
        "FileName",
        "filepath",
    ],
)
def test_names_of_the_address_column(folder: Path, names: str):
    assert captions(listed(folder, f"id,{names},Caption\n1,a.mp4,a cat\n")) == {"a.mp4": ("a cat",)}


def test_a_list_of_webvid(folder: Path):
    (source,) = listed(folder, "videoid,contentUrl,duration,page_dir,name\n7,a.mp4,PT6S,x,A cat walks\n")
    assert source.captions == ("A cat walks",)
    assert source.metadata == {"videoid": "7", "duration": "PT6S", "page_dir": "x"}


def test_of_several_columns_the_first_known_name_counts_and_the_others_are_metadata(folder: Path):
    content = "url,path,title,caption,caption\nhttps://x.org/a?sig=SECRET&id=1,a.mp4,A title,a cat,a black cat\n"
    (source,) = listed(folder, content)
    assert source.captions == ("a cat",)
    assert source.metadata == {"url": "https://x.org/a?id=1", "title": "A title", "caption": "a black cat"}


def test_a_list_in_a_folder_named_by_a_pattern_is_a_list(folder: Path):
    (folder / "one.csv").write_text("path\na.mp4\n")
    (folder / "two.csv").write_text("path\nb.mp4\n")
    assert captions(list_sources([str(folder / "*.csv")])) == {"a.mp4": (), "b.mp4": ()}


def test_a_workbook_is_one_sentence(folder: Path):
    (folder / "list.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"list\.xlsx: unsupported list format; export it as CSV"):
        list_sources([str(folder / "list.xlsx")])


# What a cell means


@pytest.mark.parametrize("nothing", ["NULL", "nan", "NaN", "None", "null", "", " ", "N/A", "n/a", "#N/A", "<NA>"])
def test_what_is_no_caption_and_no_metadata(folder: Path, nothing: str):
    (source,) = listed(folder, f'path,caption,license\na.mp4,"{nothing}","{nothing}"\n')
    assert (source.captions, source.metadata) == ((), {})


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["first", "second"]', ["first", "second"]),
        ("['first', \"it's second\"]", ["first", "it's second"]),
        ("['first' 'second']", ["first", "second"]),
        ("['it\\'s first', None, 'two\\nlines']", ["it's first", "two\nlines"]),
        ('["first", null, "nan", ""]', ["first"]),
        ("[]", []),
        ("[laughs] a man falls", ["[laughs] a man falls"]),
        ("[1, 2]", ["[1, 2]"]),
        ("['a', open('/etc/passwd')]", ["['a', open('/etc/passwd')]"]),
        (["first", ["second"], None], ["first", "second"]),
        ([{"text": "first"}, {"caption": "second"}], ["first", "second"]),
        (float("nan"), []),
        (12, ["12"]),
        (None, []),
    ],
)
def test_captions_of_a_cell(cell: Any, expected: list[str]):
    assert list(captions_in(cell)) == expected


def test_captions_with_times_do_not_belong_in_a_list(folder: Path):
    rows = [{"path": "a.mp4", "captions": [{"text": "a cat", "start_s": 1}]}, {"path": "b.mp4", "captions": ["a dog"]}]
    listing = listed(folder, "\n".join(map(json.dumps, rows)), ".jsonl")
    assert captions(listing) == {"b.mp4": ("a dog",)}
    assert "docs/captions.md" in problems(listing)["a.mp4"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("CC0", "CC0"), (7, "7"), (7.5, "7.5"), (True, "true"), (["a", "b"], '["a", "b"]'), ([], None), (None, None),
        ({"name": "Zoë"}, '{"name": "Zoë"}'), ("https://u:p@x.org/?token=s", "https://x.org/"), ("none", None),
    ],
)  # fmt: skip
def test_metadata_is_text(value: Any, expected: str | None):
    assert metadata_text(value) == expected


def test_one_spelling_for_metadata():
    columns = columns_of(("Path", "Licence", "uploader", "Aesthetic Score", "aesthetic_score", "", "keywords"))
    assert list(columns.metadata.values()) == [
        "license", "author", "aesthetic_score", "aesthetic_score_2", "column_6", "tags",
    ]  # fmt: skip
    both = columns_of(("path", "licence", "license"))
    assert list(both.metadata.values()) == ["licence", "license"]


def test_what_is_not_kept_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lists, "MAX_METADATA_CHARS", 10)
    columns_of.cache_clear()
    monkeypatch.setattr(list_cells, "MAX_METADATA_NAMES", 2)
    listing = listed(folder, f"path,caption,license,essay,extra\na.mp4,a cat,CC0,{'x' * 11},1\nb.mp4,,CC0,short,\n")
    columns_of.cache_clear()
    assert [dict(source.metadata) for source in listing] == [{"license": "CC0"}, {"license": "CC0", "essay": "short"}]
    (note,) = listing.notes
    assert "kept as metadata: license, essay" in note
    assert "'extra' (too many columns)" in note
    assert "1 values of 'essay' (too long)" in note


def test_a_second_row_adds_its_caption_and_its_metadata(folder: Path):
    listing = listed(folder, "path,caption,license,id\na.mp4,a cat,,1\na.mp4,a black cat,CC0,2\na.mp4,a cat,CC0,1\n")
    (source,) = listing
    assert source.captions == ("a cat", "a black cat")
    assert source.metadata == {"license": "CC0", "id": "1"}
    assert any("id (1 rows)" in note and "license" not in note for note in listing.notes[1:])


def test_captions_beyond_the_limit_are_counted(folder: Path):
    listing = listed(folder, "path,caption\n" + "".join(f"a.mp4,caption {i}\n" for i in range(130)))
    assert len(next(iter(listing)).captions) == 100
    assert "30 captions beyond 100 of the same source were dropped" in listing.notes


# JSON and Parquet


ROWS: list[dict[str, Any]] = [
    {"video": "a.mp4", "caption": "a cat", "license": "CC0", "views": 12, "tags": ["x", "y"]},
    {"video": "b.mp4", "caption": ["a dog", "a black dog"], "views": 7},
]
READ = [
    ("a.mp4", ("a cat",), {"license": "CC0", "views": "12", "tags": '["x", "y"]'}),
    ("b.mp4", ("a dog", "a black dog"), {"views": "7"}),
]


def rows_of(listing: Listing) -> list[tuple[str, tuple[str, ...], dict[str, str]]]:
    return [(Path(source.uri).name, source.captions, dict(source.metadata)) for source in listing]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", "\n".join(map(json.dumps, ROWS))),
        (".ndjson", "\r\n".join(map(json.dumps, ROWS)).encode("utf-16")),
        (".json", json.dumps(ROWS)),
        (".json", json.dumps({"videos": ROWS}, indent=1).encode("utf-8-sig")),
        (".json", json.dumps({row["video"]: {k: v for k, v in row.items() if k != "video"} for row in ROWS})),
        (".jsonl.gz", gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    ],
    ids=["jsonl", "utf-16", "array", "object", "mapping", "gz"],
)
def test_json_lists(folder: Path, suffix: str, content: str | bytes):
    assert rows_of(listed(folder, content, suffix)) == READ


def test_addresses_alone_as_json(folder: Path):
    for suffix, content in ((".jsonl", '"a.mp4"\n["b.mp4", "a dog"]\n'), (".json", '["a.mp4", ["b.mp4", "a dog"]]')):
        assert captions(listed(folder, content, suffix)) == {"a.mp4": (), "b.mp4": ("a dog",)}
    assert captions(listed(folder, '{"a.mp4": "a cat", "b.mp4": ["a dog"]}', ".json")) == {
        "a.mp4": ("a cat",),
        "b.mp4": ("a dog",),
    }


def test_a_bad_line_of_json_is_one_row(folder: Path):
    lines = ['{"path": "a.mp4"', "7", '{"name": "x"}', "[" * 100_000, '{"path": "\\ud800.mp4"}', '{"path": "b.mp4"}']
    listing = listed(folder, "\n".join(lines), ".jsonl")
    assert captions(listing) == {"b.mp4": ()}
    assert len(problems(listing)) == 5
    with pytest.raises(UserError, match=r"columns \['name', 'caption'\].*'uri'"):
        listed(folder, '[{"name": "a.mp4", "caption": "x"}]', ".json")
    with pytest.raises(UserError, match="is not an array"):
        listed(folder, '{"caption": "a cat"}', ".json")


@pytest.mark.parametrize("key", ["captions", "tags"])
def test_a_cell_that_is_nested_too_deeply_is_one_row(folder: Path, key: str):
    deep = f'{{"path": "a.mp4", "{key}": {"[" * 900}"x"{"]" * 900}}}'
    listing = listed(folder, f'{deep}\n{{"path": "b.mp4"}}\n', ".jsonl")
    assert "b.mp4" in captions(listing)
    assert set(problems(listing).values()) <= {"a cell is nested too deeply"}


def test_parquet_with_types(folder: Path):
    table = pa.table(
        {
            "video": pa.array(["a.mp4", "b.mp4"]).dictionary_encode(),
            "captions": pa.array([["a cat", None], ["a dog", "nan"]]),
            "license": ["CC0", None],
            "score": pa.array([0.5, None], pa.float32()),
            "taken": pa.array([0, 86_400_000], pa.date64()),
            "embedding": pa.array([[1.0], [2.0]]),
            "thumbnail": pa.array([b"\xff\xd8", b""]),
        }
    )
    pq.write_table(table, folder / "list.parquet")
    listing = list_sources([str(folder / "list.parquet")])
    assert rows_of(listing) == [
        ("a.mp4", ("a cat",), {"license": "CC0", "score": "0.5", "taken": "1970-01-01"}),
        ("b.mp4", ("a dog",), {"taken": "1970-01-02"}),
    ]
    assert "'embedding' (of type list<element: double>), 'thumbnail' (of type binary)" in listing.notes[0]


def test_parquet_with_the_videos_inside_is_one_sentence(folder: Path):
    pq.write_table(pa.table({"video": [{"bytes": b"x", "path": "a.mp4"}]}), folder / "list.parquet")
    with pytest.raises(UserError, match="contains the videos themselves in column 'video'"):
        list_sources([str(folder / "list.parquet")])


def test_a_compressed_list_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lists, "_MAX_FILE_BYTES", 10_000)
    with pytest.raises(UserError, match="when decompressed"):
        listed(folder, gzip.compress(b"path\n" + b"a.mp4\n" * 10_000), ".csv.gz")
    with pytest.raises(UserError, match="cannot be read"):
        listed(folder, gzip.compress(b"path\na.mp4\n")[:-9], ".csv.gz")


ANY_CELLS = st.text(alphabet="a.mp4,;\t|\"'\n\r\0é \ufeff[]{}", max_size=60)


@for_any(content=ANY_CELLS, suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]), header=st.booleans())
def test_any_table_is_a_list_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: str, suffix: str, header: bool
):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_text(("path,caption\n" if header else "") + content, newline="", encoding="utf-8")
    try:
        sources = list_sources([str(path)])
    except UserError as error:
        assert path.name in str(error)  # noqa: PT017
        return
    for source in sources:
        source.source_id.encode()
        assert source.error is None or source.error.kind in ("unreadable", "missing")
