"""Colors: a caption with the colour and the brightness of a clip. No model, so that it runs anywhere."""

from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill import Captioner, ClipView, Config, GeneratedCaption, column

_HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_BOUNDS = np.array([8, 22, 35, 80, 100, 130, 150, 172])
"""Upper ends of the hues above on OpenCV's scale, half degrees; beyond the last one it is red again."""
_GREY = "grey"


class Colors(Captioner):
    """Names the colour of most pixels that have one, over the stored pictures."""

    name = "colors"
    version = 1
    needs = ("previews", "duration_s")
    fields = (
        column("main", pa.string(), f"the most frequent of {', '.join((*_HUES, _GREY))}"),
        column("share", pa.float32(), "share of the pixels with that colour", unit="share, 0 to 1", bounds=(0, 1)),
    )

    class Config(Config):
        """Settings of the captioner colors."""

        min_chroma: float = Field(0.15, ge=0, le=1)
        """Saturation times value; paler and darker pixels count as grey."""
        dark_below: float = Field(0.35, ge=0, le=1)
        """Mean brightness below which a clip is dark."""

    def caption(self, batch: Sequence[ClipView]) -> list[GeneratedCaption]:
        """A caption per clip."""
        return [self._caption(clip) for clip in batch]

    def _caption(self, clip: ClipView) -> GeneratedCaption:
        pixels_N3 = np.concatenate([cv2.cvtColor(image, cv2.COLOR_BGR2HSV).reshape(-1, 3) for image in clip.previews])
        hue_N, saturation_N, value_N = pixels_N3.T
        name_N = np.searchsorted(_BOUNDS, hue_N, side="right") % len(_HUES)
        name_N[saturation_N / 255.0 * value_N < 255 * self.config.min_chroma] = len(_HUES)
        counts = np.bincount(name_N, minlength=len(_HUES) + 1)
        main = (*_HUES, _GREY)[int(counts.argmax())]
        light = "dark" if value_N.mean() < 255 * self.config.dark_below else "bright"
        return GeneratedCaption(
            text=f"A {light} clip of {clip.columns['duration_s']:.0f} seconds, mostly {main}.",
            fields={"main": main, "share": float(counts.max() / counts.sum())},
        )
