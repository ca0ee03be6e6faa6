"""Some sources of a part are uncommitted, and a kill at any moment of that loses and doubles nothing."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill import storage
from clipmill.errors import UserError
from curation.dataset.failed_captions import count_failed_captions, sources_with_failed_captions
from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.dataset.tables import Dataset
from curation.dataset.uncommit import finish_uncommit, uncommit

KINDS = {"a": "failed", "b": None, "c": "failed", "d": "nothing_to_merge"}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """One part of four sources with two clips each; what each one's caption failed of, if it did."""
    dataset = Dataset(str(tmp_path / "dataset")).create_or_open({})
    clips = [
        {
            "clip_id": f"{source}-{i}-m{i + 1}",
            "source_id": source,
            "captions": [{"source": "video", "text": None if kind else "a texture", "error_kind": kind, "error": kind}],
        }
        for source, kind in KINDS.items()
        for i in range(2)
    ]
    previews = [{"clip_id": clip["clip_id"]} for clip in clips]
    dataset.write_part("previews", "part", pa.Table.from_pylist(previews, PREVIEWS))
    dataset.write_part("clips", "part", pa.Table.from_pylist(clips, CLIPS))
    sources = [{"source_id": source, "status": "ok", "clips": 2} for source in KINDS]
    dataset.write_part("sources", "part", pa.Table.from_pylist(sources, SOURCES))
    return dataset


def held(dataset: Dataset) -> tuple[set[str], list[str], int]:
    """Sources, the sources of the clips, and how many previews there are."""
    with dataset.connect() as connection:
        clips = [row[0] for row in connection.execute("SELECT source_id FROM clips ORDER BY 1").fetchall()]
    previews = dataset.read_part("previews", "part").num_rows if dataset.parts("previews") else 0
    return set(dataset.statuses()), clips, previews


def test_only_sources_whose_captions_failed_are_named(dataset: Dataset):
    assert sources_with_failed_captions(dataset, ["video"]) == {"part": {"a", "c"}}
    assert sources_with_failed_captions(dataset, ["coca"]) == {}
    assert count_failed_captions(dataset) == {"video": 4}


def test_the_rows_of_some_sources_go_and_the_others_stay(dataset: Dataset):
    uncommit(dataset, {"part": {"a"}})
    dataset.remove_unfinished()
    assert held(dataset) == ({"b", "c", "d"}, ["b", "b", "c", "c", "d", "d"], 6)
    uncommit(dataset, {"part": {"b", "c", "d"}})
    dataset.remove_unfinished()
    assert held(dataset) == (set(), [], 0)


def writes(monkeypatch: pytest.MonkeyPatch, allowed: int) -> Iterator[None]:
    """Let so many writes pass; the next one is where the process is killed."""
    left = iter([None] * allowed)
    for name in ("write_bytes", "remove"):
        real = getattr(storage, name)

        def counted(*arguments: object, real=real) -> None:
            next(left)
            real(*arguments)

        monkeypatch.setattr(storage, name, counted)
    real_write = Dataset.write_part

    def write_part(*arguments: object) -> None:
        next(left)
        real_write(*arguments)

    monkeypatch.setattr(Dataset, "write_part", write_part)
    return left


@pytest.mark.parametrize("allowed", range(6))
def test_after_a_kill_at_any_write_the_next_run_finds_all_or_nothing(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, allowed: int
):
    with monkeypatch.context() as patch:
        writes(patch, allowed)
        try:
            uncommit(dataset, {"part": {"a", "c"}})
        except StopIteration:
            assert allowed < 5
    finish_uncommit(dataset)
    dataset.remove_unfinished()
    untouched = set(KINDS), ["a", "a", "b", "b", "c", "c", "d", "d"], 8
    assert held(dataset) == (({"b", "d"}, ["b", "b", "d", "d"], 4) if allowed else untouched)
    assert not storage.exists(dataset.fs, dataset.file("uncommit.json"))


@pytest.mark.parametrize(
    "note", ["[" * 100_000, "[]", '"x"', '{"part": "a"}', '{"part": [1]}', '{"../../outside": ["a"]}', "{"]
)
def test_a_damaged_note_is_one_sentence_and_leads_nowhere(dataset: Dataset, note: str):
    outside = Path(dataset.path).parent / "outside.parquet"
    outside.write_bytes(Path(dataset.file("clips", "part.parquet")).read_bytes())
    before = outside.read_bytes()
    Path(dataset.file("uncommit.json")).write_text(note)
    with pytest.raises(UserError, match=r"uncommit\.json is damaged"):
        finish_uncommit(dataset)
    assert outside.read_bytes() == before
