"""Scorers of a user, for tests: named by the address of a class here, or by this file."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from clipmill.columns import column
from clipmill.config import Config
from curation.scores.base import ClipView, Scorer


class Luma(Scorer):
    """Mean of all pixels of the stored pictures."""

    name = "luma"
    columns = (
        column("luma", pa.float32(), "mean luma of three pictures", unit="share, 0 to 1", bounds=(0, 1)),
        column("luma_pictures", pa.list_(pa.float32()), "of each", unit="share, 0 to 1"),
    )

    class Config(Config):
        """Settings."""

        gain: float = Field(1.0, gt=0)
        """Factor of the result."""

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        rows = []
        for clip in batch:
            each = [self.config.gain * float(image.mean()) / 255 for image in clip.previews]
            rows.append({"luma": sum(each) / len(each), "luma_pictures": each})
        return rows
