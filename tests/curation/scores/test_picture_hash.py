"""Perceptual hashes: of copies close, of other pictures far, and duplicates by them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from clipmill.errors import UserError
from curation.dataset.score_versions import score_schema
from curation.dataset.tables import Dataset
from curation.dedup.config import DuplicatesConfig
from curation.dedup.duplicates import find_duplicates
from curation.scores.base import ClipView
from curation.scores.picture_hash import PictureHash
from tests.curation.dedup.test_duplicates import at, clip, stored, write


def picture(seed: int) -> NDArray[np.uint8]:
    """Smooth blobs of random colours, 180 x 320."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, (320, 180), interpolation=cv2.INTER_CUBIC)


def compressed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    small = cv2.resize(image, (160, 90), interpolation=cv2.INTER_AREA)
    ok, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 40])
    assert ok
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


def hashes(*clips: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    return PictureHash().score([ClipView(previews=pictures) for pictures in clips])


def differing_bits(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def test_copies_differ_in_few_bits_and_other_pictures_in_half() -> None:
    originals = [picture(i) for i in range(3)]
    first, again, other = hashes(
        originals, [compressed(image) for image in originals], [picture(10 + i) for i in range(3)]
    )
    assert all(len(digits) == 64 for digits in first["picture_hash"])
    for i in range(3):
        assert differing_bits(first["picture_hash"][i], again["picture_hash"][i]) <= 31
        assert 90 < differing_bits(first["picture_hash"][i], other["picture_hash"][i]) < 166


def test_a_picture_without_details_has_no_hash() -> None:
    plain = np.full((180, 320, 3), 90, np.uint8)
    (row,) = hashes([plain, picture(1), plain])
    assert [digits is None for digits in row["picture_hash"]] == [True, False, True]
    assert row["picture_hash_quality"] == 0


def with_hashes(path: Path, rows: list[Any], *, embeddings: bool = False) -> Dataset:
    """A dataset of clips with these values of the column picture_hash."""
    dataset = Dataset(str(path)).create_or_open({})
    clips = [clip(i, at(90 * i) if embeddings else None) for i in range(len(rows))]
    write(dataset, "one", [row | ({} if embeddings else {"embedding_error": "left out"}) for row in clips])
    schema = pa.schema([("clip_id", pa.string()), ("picture_hash", pa.list_(pa.string()))])
    table = [{"clip_id": f"c{i:05d}", "picture_hash": value} for i, value in enumerate(rows)]
    dataset.write_part("scores/picture_hash", "one", pa.Table.from_pylist(table, schema))
    return dataset


def test_duplicates_by_hashes_where_there_are_no_embeddings(tmp_path: Path) -> None:
    originals = [picture(i) for i in range(3)]
    plain = np.full((180, 320, 3), 90, np.uint8)
    rows = hashes(
        originals,
        [picture(20 + i) for i in range(3)],
        [compressed(image) for image in originals],
        [plain] * 3,
    )
    values = [row["picture_hash"] for row in rows]
    dataset = with_hashes(tmp_path / "d", [*values, ["not a hash"] * 3])
    result = find_duplicates(dataset)
    assert (result.by, result.clips, result.duplicates, result.without_embedding) == ("picture_hash", 3, 1, 2)
    ranks = {row["clip_id"]: (row["duplicate_rank"], row["duplicate_of"]) for row in stored(dataset).to_pylist()}
    assert ranks == {"c00000": (0, None), "c00001": (0, None), "c00002": (1, "c00000")}
    bits = np.mean([differing_bits(a, b) for a, b in zip(values[0], values[2], strict=True)])
    cosine = stored(dataset)["duplicate_cosine"][2].as_py()
    assert cosine == pytest.approx(1 - bits / 128, abs=1e-6)
    strict = find_duplicates(dataset, DuplicatesConfig(max_hash_bits=0))
    assert strict.duplicates == 0


def test_embeddings_come_first_and_hashes_can_be_asked_for(tmp_path: Path) -> None:
    same = hashes([picture(i) for i in range(3)])[0]["picture_hash"]
    dataset = with_hashes(tmp_path / "d", [same, same], embeddings=True)
    assert (find_duplicates(dataset).by, find_duplicates(dataset).duplicates) == ("embedding", 0)
    by_hash = find_duplicates(dataset, DuplicatesConfig(by="picture_hash"))
    assert (by_hash.by, by_hash.duplicates) == ("picture_hash", 1)
    without = Dataset(str(tmp_path / "without")).create_or_open({})
    write(without, "one", [clip(0, at(0))])
    with pytest.raises(UserError, match="has no column 'picture_hash': add it with `clipmill score"):
        find_duplicates(without, DuplicatesConfig(by="picture_hash"))


def test_the_columns_are_those_of_a_score() -> None:
    schema = score_schema(PictureHash.name, PictureHash.columns)
    (row,) = hashes([picture(i) for i in range(3)])
    assert set(row) <= set(schema.names)
