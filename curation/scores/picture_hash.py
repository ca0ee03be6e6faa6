"""Perceptual hashes of the stored pictures, to find near-duplicates without a model: PDQ (Meta, 2019)."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.columns import column
from clipmill.config import Config as Settings
from curation.scores.base import ClipView, Scorer
from curation.video.resize import Image

_GRID_PX = 64


class PictureHashConfig(Settings):
    """Settings of the picture hashes."""

    min_quality: int = Field(50, ge=0, le=100)
    """Minimum quality of a hash, 0 to 100: the hash of a picture with fewer details is left out, because such pictures
    have similar hashes. The default is PDQ's advice."""


class PictureHash(Scorer):
    """A hash of 256 bits per picture; re-encoded and resized pictures differ in a few bits."""

    name = "picture_hash"
    version = 1
    needs = ("previews",)
    Config = PictureHashConfig
    columns = (
        column(
            "picture_hash",
            pa.list_(pa.string()),
            "PDQ hash of the first, middle and last picture, 64 hexadecimal digits each; null for a picture with too "
            "few details",
        ),
        column(
            "picture_hash_quality",
            pa.int16(),
            "lowest quality of the three hashes: how many details the pictures have",
            unit="0 to 100",
            better="higher",
            bounds=(0, 100),
        ),
    )

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Columns picture_hash and picture_hash_quality per clip."""
        return [self._of_clip(clip.previews) for clip in batch]

    def _of_clip(self, pictures: Sequence[Image]) -> dict[str, Any]:
        hashes = [_pdq(picture) for picture in pictures]
        return {
            "picture_hash": [digits if quality >= self.config.min_quality else None for digits, quality in hashes],
            "picture_hash_quality": min(quality for _, quality in hashes),
        }


def _pdq(image_HWC: Image) -> tuple[str, int]:
    """The hash as hexadecimal digits, and its quality."""
    import pdqhash

    # PDQ hashes a grid of this size. Reduced by its own filter, a picture and its half differ in 26 bits; so in 5.
    grid_HWC = cv2.resize(image_HWC, (_GRID_PX, _GRID_PX), interpolation=cv2.INTER_AREA)
    bits, quality = pdqhash.compute(np.ascontiguousarray(grid_HWC[..., ::-1]))
    return np.packbits(bits.astype(np.uint8)).tobytes().hex(), int(quality)
