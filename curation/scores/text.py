"""On-screen text: share of the frame covered by detected text boxes (paper 3.1 and App. C, with CRAFT there).

The detector is PP-OCR's, through rapidocr, alone: what the text says does not matter here.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pydantic import Field
from shapely import MultiPolygon, Polygon, box, union_all

from clipmill.config import Config
from curation.scores.base import ClipView, Scorer
from curation.scores.columns import TEXT_AREA_COLUMNS
from curation.video.resize import Image

_MOST_BOXES, _MOST_CORNERS = 100, 16
"""Kept per frame and per box, for showing; the area is of all."""
_NO_SCORE = {"text_area": None, "text_area_frames": None, "text_boxes": None}


class TextConfig(Config):
    """Settings of the text detector."""

    long_side_px: int = Field(640, ge=64, le=4096)
    """Long side to which the text detector downscales an image; smaller ones keep their size. Raise it, and
    `thumbnail_long_side_px`, for small text."""
    min_confidence: float = Field(0.6, ge=0, le=1)
    """Minimum confidence of a text box, 0 to 1. Raise it if textures are detected as text, lower it if faint text is
    missed."""
    giant_share: float = Field(0.3, ge=0, le=1)
    """A box whose shorter side exceeds this share of the frame's must be confirmed at half scale, because the detector
    sometimes reports the whole frame as one giant letter."""
    giant_confidence: float = Field(0.8, ge=0, le=1)
    """Minimum confidence, 0 to 1, of such a large box, at full and at half scale."""
    giant_overlap: float = Field(0.7, ge=0, le=1)
    """Minimum overlap (intersection over union, 0 to 1) of such a large box with one found at half scale."""


class TextArea(Scorer):
    """Scorer `text_area`: union of the text boxes over the frame's area, for each of three frames, and the largest.

    PP-OCR has a trap: on many frames without text it takes the whole frame, or its most salient object, for one
    giant letter. Real giant text comes out the same when the frame is shown at half size on a canvas of the same
    size; these phantoms do not.
    """

    name = "text_area"
    Config = TextConfig
    columns = TEXT_AREA_COLUMNS
    needs = ("thumbnails",)

    def __init__(self, config: TextConfig | None = None) -> None:
        super().__init__(config)
        self._engine: Any = None

    def load(self, device: str = "cpu") -> None:
        """Load the detector that comes inside rapidocr's wheel; it runs on the CPU whatever `device` says."""
        from rapidocr import RapidOCR

        one_thread = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
        self._engine = RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.use_rec": False,
                "Global.log_level": "error",
                "Global.use_vertical_padding": False,
                "Det.limit_type": "max",
                "Det.limit_side_len": self.config.long_side_px,
                "Det.box_thresh": self.config.min_confidence,
                **one_thread,
            }
        )

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Columns text_area, text_area_frames, text_boxes, text_area_error per clip."""
        return [self._score_clip(clip) for clip in batch]

    def _score_clip(self, clip: ClipView) -> dict[str, Any]:
        try:
            found = [self._boxes(image) for image in clip.thumbnails]
            areas = [_covered(boxes, image) for boxes, image in zip(found, clip.thumbnails, strict=True)]
            outlines = [
                {"frame": frame, "corners": _corners(polygon, image)}
                for frame, (boxes, image) in enumerate(zip(found, clip.thumbnails, strict=True))
                for polygon, _ in boxes[:_MOST_BOXES]
            ]
        except Exception as error:  # a detector that fails on one clip must not end the batch
            return _NO_SCORE | {"text_area_error": f"{type(error).__name__}: {error}"}
        if not areas:
            return _NO_SCORE | {"text_area_error": "the clip has no thumbnails"}
        return {"text_area": max(areas), "text_area_frames": areas, "text_boxes": outlines, "text_area_error": None}

    def area(self, image_HWC: Image) -> float:
        """Share (0 to 1) of one BGR image that is covered by the union of its text boxes."""
        return _covered(self._boxes(image_HWC), image_HWC)

    def _boxes(self, image_HWC: Image) -> list[tuple[Polygon, float]]:
        boxes = self._detect(image_HWC)
        giant_px = self.config.giant_share * min(image_HWC.shape[:2])
        giants = [b for b in boxes if _shorter_side(b[0]) > giant_px]
        if not giants:
            return boxes
        confirmed = [b for b in self._detect_at_half_size(image_HWC) if b[1] >= self.config.giant_confidence]
        confirmed_giants = [
            giant
            for giant in giants
            if giant[1] >= self.config.giant_confidence
            and any(_overlap(giant[0], polygon) >= self.config.giant_overlap for polygon, _ in confirmed)
        ]
        return [b for b in boxes if b not in giants] + confirmed_giants

    def _detect(self, image_HWC: Image) -> list[tuple[Polygon, float]]:
        assert self._engine is not None, "load() comes before score()"
        result = self._engine(np.ascontiguousarray(image_HWC), use_det=True, use_cls=False, use_rec=False)
        if result.boxes is None:
            return []
        boxes = [
            (Polygon(corners).buffer(0), float(confidence))
            for corners, confidence in zip(result.boxes, result.scores, strict=True)
        ]
        # A box without area covers nothing; corners in a wrong order may leave two pieces, of which the larger counts.
        return [(_one_piece(polygon), confidence) for polygon, confidence in boxes if polygon.area > 0]

    def _detect_at_half_size(self, image_HWC: Image) -> list[tuple[Polygon, float]]:
        """Boxes found in the image at half size, in the coordinates of the full one."""
        height, width = image_HWC.shape[:2]
        half = cv2.resize(image_HWC, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        top, left = (height - half.shape[0]) // 2, (width - half.shape[1]) // 2
        bottom, right = height - half.shape[0] - top, width - half.shape[1] - left
        canvas = cv2.copyMakeBorder(half, top, bottom, left, right, cv2.BORDER_REPLICATE)
        return [
            (Polygon((np.array(polygon.exterior.coords) - (left, top)) * 2), confidence)
            for polygon, confidence in self._detect(canvas)
        ]


def _covered(boxes: Sequence[tuple[Polygon, float]], image_HWC: Image) -> float:
    height, width = image_HWC.shape[:2]
    covered = union_all([polygon for polygon, _ in boxes])
    return float(covered.intersection(box(0, 0, width, height)).area / (height * width))


def _corners(polygon: Polygon, image_HWC: Image) -> list[float]:
    """x, y, x, y, ... as shares of width and height."""
    height, width = image_HWC.shape[:2]
    corners = np.array(polygon.exterior.coords[:-1])[:_MOST_CORNERS] / (width, height)
    return [float(share) for share in corners.ravel()]


def _one_piece(polygon: Polygon | MultiPolygon) -> Polygon:
    return max(polygon.geoms, key=lambda piece: piece.area) if isinstance(polygon, MultiPolygon) else polygon


def _shorter_side(polygon: Polygon) -> float:
    corners = np.array(polygon.minimum_rotated_rectangle.exterior.coords)
    return float(np.linalg.norm(np.diff(corners, axis=0), axis=1)[:2].min())


def _overlap(first: Polygon, second: Polygon) -> float:
    """Intersection over union."""
    union = first.union(second).area
    return first.intersection(second).area / union if union else 0.0
