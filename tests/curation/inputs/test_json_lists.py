"""Lists as JSON under another suffix or layout than expected, and lists that were written for other programs."""

import json
from pathlib import Path

import pytest

from clipmill.errors import UserError
from curation.inputs.sources import Listing, list_sources

ROWS = [{"path": "a.mp4", "caption": "a cat", "license": "CC0"}, {"path": "b.mp4", "caption": ["a dog", "a wall"]}]
READ = [("a.mp4", ("a cat",), {"license": "CC0"}), ("b.mp4", ("a dog", "a wall"), {})]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "it's.mp4", "file 1.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listed(folder: Path, content: str, suffix: str) -> Listing:
    path = folder / f"list{suffix}"
    path.write_text(content)
    return list_sources([str(path)])


def rows_of(listing: Listing) -> list[tuple[str, tuple[str, ...], dict[str, str]]]:
    return [(Path(source.uri).name, source.captions, dict(source.metadata)) for source in listing]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "\n".join(map(json.dumps, ROWS)),
        "\n\n".join(map(json.dumps, ROWS)) + "\n",
        json.dumps({"videos": ROWS}, indent=1),
        json.dumps({row["path"]: {k: v for k, v in row.items() if k != "path"} for row in ROWS}, indent=1),
    ],
    ids=["array", "indented", "row per line", "jq", "lines", "blank lines", "object", "mapping"],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])
def test_the_content_decides_between_json_and_json_lines(folder: Path, content: str, suffix: str):
    assert rows_of(listed(folder, content, suffix)) == READ


def test_a_line_with_an_address_and_captions_is_one_row(folder: Path):
    assert rows_of(listed(folder, '["a.mp4", ["a cat", "a wall"]]', ".jsonl")) == [("a.mp4", ("a cat", "a wall"), {})]
    both = '[["a.mp4", "a cat"], ["b.mp4", "a dog"]]'
    assert [captions for _, captions, _ in rows_of(listed(folder, both, ".jsonl"))] == [("a cat",), ("a dog",)]


def test_a_broken_line_costs_no_other(folder: Path):
    lines = ['{"path": "a.mp4"', json.dumps(ROWS[1]), json.dumps(ROWS[0])]
    listing = listed(folder, "\n".join(lines), ".jsonl")
    assert [source.error is None for source in listing] == [False, True, True]
    listing = listed(folder, "\n".join(reversed(lines)), ".json")
    assert [source.error is None for source in listing] == [True, True, False]


def test_a_list_for_concat(folder: Path):
    content = "ffconcat version 1.0\nfile 'a.mp4'\nfile 'it'\\''s.mp4'\nfile 1.mp4\n"
    assert [name for name, *_ in rows_of(listed(folder, content, ".txt"))] == ["a.mp4", "it's.mp4", "file 1.mp4"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_an_empty_list_is_refused_as_empty(folder: Path, suffix: str):
    with pytest.raises(UserError, match="is empty"):
        listed(folder, "", suffix)
