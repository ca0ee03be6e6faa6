"""Texts and pictures embedded in one call, and `similarity` against later captions, from stored embeddings."""

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from clipmill import Rules, UserError, caption, curate, embed_images, embed_texts, score, select
from curation.dataset.joined import joined_query
from curation.dataset.tables import Dataset
from curation.scores.clip_embedder import ClipEmbedderConfig
from pipelines.config import CurateConfig
from tests.curation.models import tiny_clip
from tests.media import texture
from tests.pipelines.corpora import many_small

LEVELS = f"{Path(__file__).with_name('captioners.py')}:Levels"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ClipEmbedderConfig:
    return ClipEmbedderConfig(model=str(tiny_clip(tmp_path_factory.mktemp("embed") / "clip")), pretrained=None)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = many_small(tmp_path_factory.mktemp("embed") / "in", 4)
    (folder / "0000.txt").write_text("a grey texture")
    return folder


def config(model: ClipEmbedderConfig, **more: Any) -> CurateConfig:
    return CurateConfig(without=("aesthetic", "text_area"), clip_embedder=model, duplicates=None, **more)


def rows(dataset: Dataset, *names: str) -> dict[str, dict[str, Any]]:
    with dataset.connect() as connection:
        query = joined_query(connection, ["clip_id", *names])
        found = connection.sql(f"SELECT * FROM ({query}) ORDER BY clip_id").to_arrow_table().to_pylist()
    return {row.pop("clip_id"): row for row in found}


def test_pictures_are_the_same_from_files_bytes_and_arrays(model: ClipEmbedderConfig, tmp_path: Path):
    image = np.stack([texture(60, 80, seed=i) for i in range(3)], axis=2).astype(np.uint8)
    png = tmp_path / "a.png"
    assert cv2.imwrite(str(png), image)
    rows_ND = embed_images([png, str(png), png.read_bytes(), image], config=model)
    assert rows_ND.shape == (4, 24)
    assert np.abs(np.linalg.norm(rows_ND, axis=1) - 1).max() < 1e-5
    assert np.abs(rows_ND - rows_ND[0]).max() < 1e-6
    assert np.abs(embed_images([image[:, :, ::-1].copy()], config=model) - rows_ND[0]).max() > 1e-3, "colours matter"
    texts_ND = embed_texts(["a dog", "a cat", "a dog"], config=model)
    assert texts_ND.shape == (3, 24)
    assert (texts_ND[0] == texts_ND[2]).all()


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (["no-such.jpg"], "image 0: file not found: no-such.jpg"),
        ([b"no picture"], "image 0: cannot identify image file"),
        ([np.zeros((4, 4), np.uint8)], r"image 0: expected \(height, width, 3\) uint8, got \(4, 4\) uint8"),
        ("a.jpg", "expected a list of pictures, got str"),
    ],
)
def test_what_is_no_picture_is_an_error_with_its_place(model: ClipEmbedderConfig, images: Any, reason: str):
    with pytest.raises(UserError, match=reason):
        embed_images(images, config=model)
    with pytest.raises(UserError, match="expected a list of texts"):
        embed_texts("a dog", config=model)


@pytest.mark.slow
def test_new_captions_are_compared_with_stored_embeddings(
    model: ClipEmbedderConfig, videos: Path, tmp_path: Path, local_ray: None
):
    dataset, footage = Dataset(str(tmp_path / "dataset")), shutil.copytree(videos, tmp_path / "in")
    curate([str(footage)], dataset.url, config=config(model), quiet=True)
    with_levels = Dataset(str(tmp_path / "with_levels"))
    curate([str(footage)], with_levels.url, config=config(model, captioners={"others": {LEVELS: {}}}), quiet=True)
    shutil.rmtree(footage)  # whatever follows reads no video
    assert score(dataset.url, "similarity", config=config(model), quiet=True).scored_now == 0
    before = rows(dataset, "similarity")
    assert sum(row["similarity"] is not None for row in before.values()) == 1

    caption(dataset.url, LEVELS, quiet=True)
    result = score(dataset.url, "similarity", config=config(model), quiet=True)
    assert (result.version, result.scored_now, result.failed_now) == (2, 4, 0)
    assert result.changes == ("captions.levels: was absent, now 1",)
    names = ("similarity", "similarity_captions", "embedding", "embedding_norm", "captions")
    found = rows(dataset, *names)
    for row in found.values():
        texts_ND = embed_texts([each["text"] for each in row["captions"]], dataset=dataset.url, config=model)
        cosines = texts_ND @ (np.array(row["embedding"], np.float32) * row["embedding_norm"])
        assert row["similarity_captions"] == pytest.approx(cosines.tolist(), abs=1e-6)
        assert row["similarity"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert rows(dataset, "similarity@1") == {i: {"similarity@1": row["similarity"]} for i, row in before.items()}
    # In one pass of curate: the same numbers, and nothing left to do.
    by_text = {str(row["captions"]): row["similarity"] for row in found.values()}
    assert len(by_text) == 4
    for row in rows(with_levels, *names).values():
        key = str(row["captions"]) if str(row["captions"]) in by_text else None
        assert key is not None
        assert row["similarity"] == pytest.approx(by_text[key], abs=1e-6)
    assert score(with_levels.url, "similarity", config=config(model), quiet=True).version == 1

    # Captions that come later within a version: these clips alone are scored again.
    half = sorted(found)[:2]
    where = f"clip_id IN ('{half[0]}', '{half[1]}')"
    select(dataset.url, Rules.from_values({"name": "half", "where": where}, origin="test"))
    words = config(model, captioners={"others": {LEVELS: {"word": "luma"}}})
    caption(dataset.url, LEVELS, selection="half", config=words, quiet=True)
    partly = score(dataset.url, "similarity", config=config(model), quiet=True)
    captioned = {i for i, row in rows(dataset, "captions").items() if row["captions"]}
    assert (partly.version, partly.scored_now, partly.failed_now) == (3, len(captioned), 4 - len(captioned))
    caption(dataset.url, LEVELS, config=words, quiet=True)
    rest = score(dataset.url, "similarity", config=config(model), quiet=True)
    assert (rest.version, rest.scored_now, rest.scored_before) == (3, 2, 2)
    assert all(len(r["captions"]) == len(r["similarity_captions"]) for r in rows(dataset, *names).values())

    other = ClipEmbedderConfig(model=str(tiny_clip(tmp_path / "other", seed=1)), pretrained=None)
    with pytest.raises(UserError, match="was embedded with other weights than those of"):
        embed_texts(["a dog"], dataset=dataset.url, config=other)
    redone = score(dataset.url, "similarity", config=config(other), quiet=True)
    assert (redone.version, redone.failed_now) == (4, 4), "another model needs the pictures again, which are gone"
