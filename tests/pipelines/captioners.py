"""Captioners of users, in a file of their own: good ones, and some that break the contract."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill import Captioner, ClipView, Config, GeneratedCaption, column


class Levels(Captioner):
    """Says the mean level of the stored pictures."""

    name = "levels"
    fields = (column("level", pa.float32(), "mean level", unit="8-bit levels"),)
    needs = ("previews", "clip_id")

    class Config(Config):
        """Settings."""

        word: str = "level"
        """Before the number."""

    def caption(self, batch: Sequence[ClipView]) -> list[GeneratedCaption]:
        return [self.caption_clip(clip) for clip in batch]

    def caption_clip(self, clip: ClipView) -> GeneratedCaption:
        level = float(np.mean([image.mean() for image in clip.previews]))
        return GeneratedCaption(
            text=f"{self.config.word} {level:.1f} of {clip.columns['clip_id']}", fields={"level": level}
        )


class SlowLevels(Levels):
    """Takes its time, so that a run can be killed at any moment of it."""

    name = "slow_levels"

    def caption(self, batch: Sequence[ClipView]) -> list[GeneratedCaption]:
        time.sleep(0.2 * len(batch))
        return super().caption(batch)


class Echo(Captioner):
    """Repeats the other captions, as plain texts; fails for clips without any."""

    name = "echo"
    needs = ("captions",)

    def caption(self, batch: Sequence[ClipView]) -> list[Any]:
        return [" | ".join(f"{c.source}: {c.text}" for c in clip.captions) for clip in batch]


class NoColumns(Captioner):
    """A field with a name that is taken."""

    name = "no_columns"
    fields = (column("error", pa.string(), "none"),)


class UnknownField(Captioner):
    """Returns a field that it does not declare."""

    name = "unknown_field"
    needs = ("previews",)

    def caption(self, batch: Sequence[ClipView]) -> list[GeneratedCaption]:
        return [GeneratedCaption(text="a", fields={"camera": "pan"}) for _ in batch]
