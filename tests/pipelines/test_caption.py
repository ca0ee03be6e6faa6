"""`clipmill caption` on a dataset that is there: versions, selections, shards, fields, tokens, retries."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import webdataset

from clipmill import UserError, caption, curate, select, shard, status
from curation.dataset.joined import joined_query
from curation.dataset.tables import Dataset
from curation.selection.rules import Rules
from pipelines.config import CurateConfig
from tests.caption_server import CaptionServer, Reply, says
from tests.pipelines.corpora import WITHOUT_CLIP, content, many_small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

FILE = Path(__file__).with_name("captioners.py")
LEVELS, ECHO = f"{FILE}:Levels", f"{FILE}:Echo"
SCHEMA = {
    "type": "object",
    "properties": {
        "caption": {"type": "string"},
        "camera": {"type": "string", "enum": ["static", "pan"], "description": "movement of the camera"},
        "people": {"type": "integer", "minimum": 0},
        "styles": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["caption", "camera", "people"],
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = many_small(tmp_path_factory.mktemp("caption") / "in", 5)
    (folder / "0000.txt").write_text("a grey texture")
    return folder


@pytest.fixture(scope="module")
def curated(videos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("caption") / "dataset"
    curate([str(videos)], str(out), config=WITHOUT_CLIP, quiet=True)
    return out


@pytest.fixture
def dataset(curated: Path, tmp_path: Path) -> Dataset:
    return Dataset(str(shutil.copytree(curated, tmp_path / "dataset")))


def captioners(**settings: dict[str, Any]) -> CurateConfig:
    own = {name: settings.pop(name) for name in ("coca", "video", "merged") if name in settings}
    others = {f"{FILE}:{name}": values for name, values in settings.items()}
    return WITHOUT_CLIP.from_values(
        {**WITHOUT_CLIP.model_dump(), "captioners": {**own, "others": others}}, origin="test"
    )


def rows(dataset: Dataset, *names: str) -> dict[str, dict[str, Any]]:
    """clip_id -> the columns of the joined view."""
    with dataset.connect() as connection:
        query = joined_query(connection, ["clip_id", *names])
        found = connection.sql(f"SELECT * FROM ({query}) ORDER BY clip_id").to_arrow_table().to_pylist()
    by_id = {row.pop("clip_id"): row for row in found}
    assert len(by_id) == len(found)
    return by_id


def samples(folder: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """clip_id -> the text and the JSON of its sample."""
    tars = sorted(map(str, Path(folder).glob("*.tar")))
    return {
        s["__key__"]: (s["txt"].decode(), json.loads(s["json"]))
        for s in webdataset.WebDataset(tars, shardshuffle=False)
    }


def test_the_newest_caption_of_a_selection_is_in_its_shards(dataset: Dataset):
    before = content(dataset.url)
    selected = select(
        dataset.url, Rules.from_values({"name": "s", "rules": {"motion": {"drop_lowest": "50%"}}}, origin="t")
    )
    everything = Rules.from_values({"name": "all", "rules": {"duration_s": {"min": 0}}}, origin="t")
    assert 0 < selected.clips < selected.total_clips
    select(dataset.url, everything)
    result = caption(dataset.url, LEVELS, selection="s", quiet=True)
    assert (result.version, result.clips, result.captioned_now, result.failed_now) == (
        1,
        selected.clips,
        selected.clips,
        0,
    )
    assert (result.dataset_clips, result.uncovered) == (selected.total_clips, selected.total_clips - selected.clips)
    assert content(dataset.url) == before

    # `.txt` is the newest caption, the caption that came with a video where there is none, and else empty and counted.
    run = shard(dataset.url, "all", quiet=True)
    found, columns = samples(run.folder), rows(dataset, "caption", "captions", "levels_caption", "levels_level")
    assert {clip_id: text for clip_id, (text, _) in found.items()} == {
        i: row["caption"] or "" for i, row in columns.items()
    }
    captioned = {i: row for i, row in columns.items() if row["levels_caption"] is not None}
    assert len(captioned) == selected.clips
    assert all(i in row["levels_caption"] and row["caption"] == row["levels_caption"] for i, row in captioned.items())
    assert {row["caption"] for i, row in columns.items() if i not in captioned} <= {None, "a grey texture"}
    assert run.index["totals"]["uncaptioned"] == sum(not text for text, _ in found.values()) > 0
    for clip_id, (_, sample) in found.items():
        texts = [(c["source"], c["text"] or "") for c in columns[clip_id]["captions"]]
        assert [(c["source"], c["text"]) for c in sample["captions"]] == (texts or [("", "")])
        scores = {score["name"]: score["value"] for score in sample["scores"]}
        assert not {"caption", "levels_caption", "levels_error"} & {
            *scores,
            *(each["name"] for each in sample["labels"]),
        }
        if clip_id in captioned:
            assert texts[-1] == ("levels", columns[clip_id]["caption"])
            assert scores["levels_level"] == pytest.approx(columns[clip_id]["levels_level"])

    # A second version takes the place of the first, which stays.
    newer = caption(dataset.url, LEVELS, config=captioners(Levels={"word": "luma"}), quiet=True)
    assert (newer.version, newer.captioned_now, newer.changes) == (
        2, selected.total_clips, ("settings.word: was level, now luma",),
    )  # fmt: skip
    both = rows(dataset, "caption", "captions", "levels_caption@1")
    assert all(row["caption"].startswith("luma ") for row in both.values())
    assert [c["source"] for row in both.values() for c in row["captions"]].count("levels") == selected.total_clips
    assert sum(row["levels_caption@1"] is not None for row in both.values()) == selected.clips
    again = shard(dataset.url, "all", quiet=True)
    assert again.index["totals"]["uncaptioned"] == 0
    assert {text for text, _ in samples(again.folder).values()} == {row["caption"] for row in both.values()}
    assert caption(dataset.url, LEVELS, config=captioners(Levels={"word": "luma"}), quiet=True).captioned_now == 0
    counts = [(c.version, c.counted, c.clips) for c in status(dataset).captions]
    assert counts == [(1, False, selected.clips), (2, True, selected.total_clips)]


def test_curate_runs_the_same_captioners_with_the_same_captions(dataset: Dataset, videos: Path, tmp_path: Path):
    config, other = captioners(Levels={}, Echo={}), Dataset(str(tmp_path / "other"))
    curate([str(videos)], other.url, config=config, quiet=True)
    assert content(other.url) == content(dataset.url)
    for captioner in (LEVELS, ECHO):
        assert caption(dataset.url, captioner, config=config, quiet=True).version == 1
        again = caption(other.url, captioner, config=config, quiet=True)
        assert (again.version, again.captioned_now) == (1, 0)
    names = ("captions", "levels_level", "echo_caption", "echo_error")
    assert rows(other, *names) == rows(dataset, *names)
    texts = {row["echo_caption"] for row in rows(other, *names).values()}
    assert sum(text.startswith("sidecar: a grey texture | levels: level") for text in texts) == 1
    # Other captions are another version of what was made from them.
    caption(dataset.url, LEVELS, config=captioners(Levels={"word": "luma"}), quiet=True)
    result = caption(dataset.url, ECHO, quiet=True)
    assert (result.version, result.changes) == (2, ("captions.levels: was 1, now 2",))


def test_fields_are_columns_and_tokens_have_a_price(dataset: Dataset):
    clips = len(rows(dataset, "uri"))

    def reply(request: dict[str, Any]) -> Reply:
        assert request["response_format"]["json_schema"]["schema"] == SCHEMA
        number = len(server.requests)
        usage = {"prompt_tokens": 1000, "completion_tokens": 100}
        answer = {
            "caption": f"texture {number}",
            "camera": "pan" if number % 2 else "static",
            "people": 0,
            "styles": ["grey"],
        }
        if number == 1:
            return says(json.dumps(answer | {"camera": "crane"}), usage=usage)
        return says(json.dumps(answer), usage=usage)

    with CaptionServer(reply) as server:
        prices = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 10.0}
        settings = {"base_url": server.url, "model": "m", "frames": 8, "long_side_px": 96, "retries": 0}
        config = captioners(video={**settings, **prices, "json_schema": SCHEMA})
        result = caption(dataset.url, "video", config=config, quiet=True)
    assert (result.captioned_now, result.failed_now) == (clips - 1, 1)
    assert result.reason == "camera does not match the schema: 'crane' is not one of ['static', 'pan']"
    assert (result.tokens, result.price) == (1100 * clips, pytest.approx(clips * (1000 * 2 + 100 * 10) / 1e6))
    texts = [part["text"] for part in server.requests[0]["messages"][0]["content"] if part["type"] == "text"]
    assert [text for text in texts if text.endswith(" s")] == [f"{60 * (2 * i + 1) // 16 / 24:.2f} s" for i in range(8)]
    found = rows(dataset, "video_caption", "video_camera", "video_people", "video_styles", "video_error", "video_price")
    failed = [row for row in found.values() if row["video_caption"] is None]
    assert [row["video_error"] for row in failed] == [
        "camera does not match the schema: 'crane' is not one of ['static', 'pan']"
    ]
    assert failed[0]["video_price"] == pytest.approx(0.003)
    assert all(
        row["video_styles"] == ["grey"] and row["video_people"] == 0 for row in found.values() if row not in failed
    )
    panning = select(
        dataset.url, Rules.from_values({"name": "pan", "where": "video_camera = 'pan'"}, origin="t"), dry_run=True
    )
    assert panning.clips == sum(row["video_camera"] == "pan" for row in found.values()) > 0
    [count] = status(dataset).captions
    assert (count.failed, count.tokens, count.price) == (1, result.tokens, pytest.approx(result.price))


def test_failed_captions_are_asked_for_again_when_wanted(dataset: Dataset):
    before = {
        path: path.read_bytes()
        for name in ("clips", "previews", "sources")
        for path in Path(dataset.file(name)).iterdir()
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    no, yes = says(None, refusal="not now", usage=usage), says("a texture", usage=usage)
    with CaptionServer(lambda _: no if len(server.requests) % 2 else yes) as server:
        settings = {"base_url": server.url, "model": "m", "send": "file", "retries": 0}
        first = caption(dataset.url, "video", config=captioners(video=settings), quiet=True)
    assert 0 < first.failed_now < first.clips
    kept = {i: row for i, row in rows(dataset, "video_caption", "video_error").items() if row["video_caption"]}
    assert first.tokens == 9 * first.clips
    with CaptionServer([says("another texture", usage=usage)]) as server:
        config = captioners(video=settings | {"base_url": server.url})
        assert caption(dataset.url, "video", config=config, quiet=True).captioned_now == 0
        again = caption(dataset.url, "video", config=config, retry_failed=True, quiet=True)
    assert (again.version, again.captioned_now, len(server.requests)) == (1, first.failed_now, first.failed_now)
    assert again.tokens == 9 * (first.clips + first.failed_now), "what failed has cost something, too"
    found = rows(dataset, "video_caption", "video_error")
    assert {i: row for i, row in found.items() if i in kept} == kept
    assert {row["video_caption"] for i, row in found.items() if i not in kept} == {"another texture"}
    assert server.requests[0]["messages"][0]["content"][0]["video_url"]["url"].startswith("data:video/mp4;base64,AAAA")
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("captioner", "error"),
    [
        (f"{FILE}:NoColumns", "captioner no_columns: a field cannot be called 'error'"),
        (f"{FILE}:UnknownField", "captioner unknown_field returned the field 'camera'"),
        (f"{Path(__file__).with_name('scorers.py')}:Luma", "expected a subclass of clipmill.Captioner"),
        ("cocoa", "unknown captioner 'cocoa'.*Did you mean 'coca'"),
        ("video", "captioner video: base_url and model not set"),
    ],
)
def test_a_captioner_that_cannot_be_used_stops_the_run(dataset: Dataset, captioner: str, error: str):
    with pytest.raises(UserError, match=error):
        caption(dataset.url, captioner, quiet=True)
    assert not list(Path(dataset.url).glob("captions/*/v*/*.parquet"))
