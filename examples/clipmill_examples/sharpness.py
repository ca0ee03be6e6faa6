"""Sharpness: variance of the Laplacian of the stored pictures, low for blur."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from clipmill import ClipView, Config, Scorer, column


class Sharpness(Scorer):
    """The least sharp of first, middle and last picture decides."""

    name = "sharpness"
    version = 1
    needs = ("previews",)
    columns = (
        column(
            "sharpness",
            pa.float32(),
            "variance of the Laplacian of luma, the lowest of three pictures",
            unit="squared 8-bit levels",
            better="higher",
        ),
    )

    class Config(Config):
        """Settings of the sharpness score."""

        long_side_px: int = 160
        """Size at which pictures are compared: a large picture is not sharper for having more pixels."""

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Column sharpness per clip."""
        return [{"sharpness": min(map(self._of_picture, clip.previews))} for clip in batch]

    def _of_picture(self, image_HWC: np.ndarray) -> float:
        luma_HW = cv2.cvtColor(image_HWC, cv2.COLOR_BGR2GRAY)
        scale = self.config.long_side_px / max(luma_HW.shape)
        luma_HW = cv2.resize(luma_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return float(cv2.Laplacian(luma_HW, cv2.CV_32F).var())
