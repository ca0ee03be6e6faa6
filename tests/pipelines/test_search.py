"""`clipmill search` with a tiny CLIP: texts, clips, pictures, contact sheets, and models that do not fit."""

import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipmill import UserError, storage
from curation.dataset.schemas import CLIPS, PREVIEWS, SOURCES
from curation.dataset.tables import Dataset
from curation.scores.clip_embedder import ClipEmbedder, ClipEmbedderConfig
from curation.selection.rules import Rules
from pipelines import cli
from pipelines.cli_shared import NOTHING_CAME_OUT
from pipelines.config import CurateConfig
from pipelines.queries import picture_query, text_query
from pipelines.remove import remove
from pipelines.search import search
from pipelines.select import select
from tests.curation.models import tiny_clip

TEXTS = ["a red boat", "two dogs", "the sea", "a man & a <b>woman</b>", "snow", "a hot-air balloon over fields"]


def config_of(folder: Path) -> CurateConfig:
    return CurateConfig(clip_embedder=ClipEmbedderConfig(model=str(folder), pretrained=None))


def jpeg(seed: int) -> bytes:
    picture = np.random.default_rng(seed).integers(0, 255, (9, 16, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(picture, (160, 90), interpolation=cv2.INTER_NEAREST))[1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("search") / "clip")


@pytest.fixture(scope="module")
def embedder(clip: Path) -> ClipEmbedder:
    embedder = ClipEmbedder(config_of(clip).clip_embedder)
    embedder.load()
    return embedder


@pytest.fixture
def dataset(tmp_path: Path, clip: Path, embedder: ClipEmbedder) -> Dataset:
    """Six clips whose embeddings are those of six texts, in two parts; one more has none, and no pictures either."""
    dataset = Dataset(str(tmp_path / "d")).create_or_open({"clip_embedder": {"model": str(clip), "pretrained": None}})
    rows = [
        {
            "clip_id": f"{i:016x}-0-40",
            "source_id": f"{i:016x}",
            "uri": f"s3://bucket/folder/video <{i}>.mp4",
            "start_s": 1.0 * i,
            "end_s": i + 4.0,
            "duration_s": 4.0,
            "embedding": None if i == 6 else embedder.embed_texts([TEXTS[i]])[0].tolist(),
            "source_captions": [] if i == 6 else [0],
        }
        for i in range(7)
    ]
    for part, some in (("p0", rows[::2]), ("p1", rows[1::2])):
        pictures = [
            {"clip_id": row["clip_id"]}
            | {name: jpeg(int(row["clip_id"][:16], 16)) for name in ("first", "middle", "last")}
            for row in reversed(some)
            if row["embedding"]
        ]
        sources = [
            {"source_id": row["source_id"], "status": "ok", "captions": [{"source": "list", "text": t} for t in texts]}
            for row in some
            for texts in [TEXTS[int(row["clip_id"][:16], 16) :][:1]]
        ]
        dataset.write_part("previews", part, pa.Table.from_pylist(pictures, schema=PREVIEWS))
        dataset.write_part("clips", part, pa.Table.from_pylist(some, schema=CLIPS))
        dataset.write_part("sources", part, pa.Table.from_pylist(sources, schema=SOURCES))
    storage.write_json(dataset.fs, dataset.file("models.json"), {"digests": {"clip": embedder.weights.digest()}})
    return dataset


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_finds_the_clip_that_shows_it(dataset: Dataset, embedder: ClipEmbedder, text: str):
    result = search(dataset.url, text)
    assert (result.searched, len(result.hits)) == (6, 6)
    assert result.hits[0].caption == text
    assert result.hits[0].cosine == pytest.approx(1, abs=2e-3)
    expected = embedder.embed_texts(TEXTS) @ embedder.embed_texts([text])[0]
    for hit in result.hits:
        assert hit.cosine == pytest.approx(expected[TEXTS.index(str(hit.caption))], abs=2e-3)
    assert [hit.rank for hit in result.hits] == [1, 2, 3, 4, 5, 6]
    assert [hit.cosine for hit in result.hits] == sorted((hit.cosine for hit in result.hits), reverse=True)


def test_a_clip_finds_others_and_not_itself(dataset: Dataset):
    known = search(dataset.url, TEXTS[2]).hits
    result = search(dataset.url, like=known[0].clip_id, limit=3)
    assert result.searched == 5
    assert [hit.clip_id for hit in result.hits] == [hit.clip_id for hit in known[1:4]]
    assert (result.hits[0].start_s, result.hits[0].uri) == (known[1].start_s, known[1].uri)


def test_a_picture_is_embedded_upright(dataset: Dataset, embedder: ClipEmbedder, tmp_path: Path):
    upright = Image.open(io.BytesIO(jpeg(5))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown rotated by 90 degrees clockwise
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    expected = embedder.embed_images([np.asarray(upright)[:, :, ::-1]])[0]
    found = picture_query(dataset, str(tmp_path / "turned.png"))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    result = search(dataset.url, like=str(tmp_path / "turned.png"))
    nearest = max(range(6), key=lambda i: float(embedder.embed_texts([TEXTS[i]])[0] @ expected))
    assert result.hits[0].caption == TEXTS[nearest]


def test_only_the_clips_of_a_selection(dataset: Dataset):
    select(dataset.url, Rules.from_values({"name": "late", "where": "start_s >= 3"}, origin="test"))
    result = search(dataset.url, TEXTS[0], selection="late")
    assert result.searched == 3
    assert {hit.caption for hit in result.hits} == set(TEXTS[3:])
    with pytest.raises(UserError, match="'late'"):
        search(dataset.url, TEXTS[0], selection="lat")


def test_the_sheet_shows_pictures_and_escapes_texts(dataset: Dataset):
    result = search(dataset.url, TEXTS[3])
    page = Path(str(result.sheet)).read_text()
    assert page.count("<img ") == 18
    assert "a man &amp; a &lt;b&gt;woman&lt;/b&gt;" in page
    assert "<b>" not in page
    assert page.count("data:image/jpeg;base64,") == 18
    assert search(dataset.url, TEXTS[4]).sheet != result.sheet
    assert search(dataset.url, TEXTS[4], write_sheet=False).sheet is None


def test_a_sheet_as_png(dataset: Dataset, tmp_path: Path):
    for limit, columns in ((6, 4), (2, 2)):
        search(dataset.url, "日本", limit=limit, sheet=str(tmp_path / "sheet.png"))
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.width == 16 + columns * 316
            assert np.asarray(sheet.convert("L")).std() > 20
    for part in ("p0", "p1"):
        (Path(dataset.path) / "previews" / f"{part}.parquet").unlink()
    search(dataset.url, "snow", sheet=str(tmp_path / "without.png"))
    assert "no pictures" in Path(str(search(dataset.url, "snow").sheet)).read_text()
    with pytest.raises(UserError, match=r"\.html, \.htm, \.png"):
        search(dataset.url, "snow", sheet="sheet.gif")


def test_queries_that_are_none(dataset: Dataset, tmp_path: Path):
    (tmp_path / "text.jpg").write_text("not a picture")
    for arguments, message in (
        ({}, "a text or --like"),
        ({"text": "a", "like": "b"}, "a text or --like"),
        ({"text": "  "}, "is empty"),
        ({"like": "nobody"}, "neither a clip of .* nor a picture file"),
        ({"like": f"{6:016x}-0-40"}, "neither a clip"),
        ({"like": str(tmp_path / "text.jpg")}, r"cannot search for the picture .*text\.jpg: "),
        ({"like": str(tmp_path)}, r"cannot search for the picture .*: this is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            search(dataset.url, **arguments)


def test_another_model_is_refused(dataset: Dataset, tmp_path: Path):
    other = tiny_clip(tmp_path / "clip", seed=1)
    with pytest.raises(UserError, match="was embedded with other weights"):
        text_query(dataset, "snow", config_of(other))
    moved = Dataset(str(tmp_path / "moved")).create_or_open({"clip_embedder": {"model": "clip-9", "pretrained": None}})
    with pytest.raises(
        UserError, match=r"the CLIP model of the dataset cannot be loaded: .* Pass a file with its settings"
    ):
        text_query(moved, "snow")


def test_a_model_that_has_moved_is_named_in_a_file(dataset: Dataset, clip: Path, tmp_path: Path, monkeypatch, capsys):
    description = json.loads((Path(dataset.path) / "dataset.json").read_text())
    description["config"]["clip_embedder"]["model"] = "clip"
    (Path(dataset.path) / "dataset.json").write_text(json.dumps(description))
    (tmp_path / "curate.yaml").write_text(f"clip_embedder: {{model: {clip}, pretrained: null}}\n")
    arguments = ["search", dataset.url, "two dogs", "--config", str(tmp_path / "curate.yaml")]
    assert run(monkeypatch, *arguments, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["hits"][0]["caption"] == "two dogs"
    assert "places" not in printed
    assert run(monkeypatch, *arguments, "--limit", "2", "--no-sheet") == 0
    printed = capsys.readouterr().out
    assert "two dogs: nearest 2 of 6 clips" in printed
    assert "contact sheet" not in printed


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["clipmill", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_texts_and_pictures_in_rules(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    selection = select(
        dataset.url, Rules.from_values({"name": "dogs", "like": {"text": "two dogs", "min": 0.99}}, origin="test")
    )
    assert selection.clips == 1
    assert len(selection.resolved["like"][0]["embedding"]) == 24
    assert "embedding" not in selection.rules["like"][0]
    (tmp_path / "picture.jpg").write_bytes(jpeg(1))
    (tmp_path / "rules.yaml").write_text(f"like: {{picture: {tmp_path / 'picture.jpg'}, drop_lowest: 50%}}\n")
    assert run(monkeypatch, "select", dataset.url, "--config", str(tmp_path / "rules.yaml"), "--against", "dogs") == 0
    printed = capsys.readouterr().out
    assert "picture" in printed
    assert "dropped by likeness" in printed
    again = select(dataset.url, Rules.from_values(selection.resolved, origin="again").named("again"))
    assert again.clips_sha256 == selection.clips_sha256


def test_a_removal_takes_the_copy_of_the_embeddings_along(dataset: Dataset):
    first = search(dataset.url, TEXTS[1]).hits[0]
    copy = Path(dataset.path) / "search" / "embeddings.arrow"
    assert copy.exists()
    remove(dataset.url, where=f"source_id = '{first.clip_id[:16]}'", reason="test", quiet=True)
    assert not copy.exists()
    again = search(dataset.url, TEXTS[1])
    assert again.searched == 5
    assert first.clip_id not in {hit.clip_id for hit in again.hits}


def test_a_search_without_any_hit_has_an_empty_result(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys):
    rules = Rules.from_values({"name": "bare", "where": "embedding IS NULL"}, origin="test")
    assert select(dataset.url, rules).clips == 1
    for options in (["--no-sheet"], ["--json"]):
        assert run(monkeypatch, "search", dataset.url, TEXTS[0], "--selection", "bare", *options) == NOTHING_CAME_OUT
        assert "none of the clips to search has an embedding" in capsys.readouterr().err


def test_a_dataset_that_cannot_be_written_is_searched_without_a_sheet(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
):
    for name in ("report", "search"):
        Path(dataset.file(name)).write_bytes(b"not a folder")
    assert run(monkeypatch, "search", dataset.url, TEXTS[0], "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["sheet"] is None
    assert "no contact sheet: cannot write" in printed.err
    assert run(monkeypatch, "search", dataset.url, TEXTS[0], "--sheet", str(tmp_path / "sheet.html")) == 0
    assert (tmp_path / "sheet.html").is_file()
    assert run(monkeypatch, "search", dataset.url, TEXTS[0], "--sheet", dataset.file("report", "x.html")) == 2
