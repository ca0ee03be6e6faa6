"""Scorers of a user, for tests: named by the address of a class in this file."""

import io
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill import ClipView, Config, Frames, Scorer, UserError, column


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


class Flicker(Scorer):
    """Mean change between frames of the clip itself."""

    name = "flicker"
    columns = (
        column("flicker", pa.float32(), "mean change of luma between frames", unit="8-bit levels"),
        column("flicker_times_s", pa.list_(pa.float32()), "times of the frames", unit="s"),
    )
    needs = (Frames(count=6, long_side_px=64), "duration_s")

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        rows = []
        for clip in batch:
            assert clip.columns["duration_s"] > clip.frame_times_s[-1]
            assert {max(image.shape) for image in clip.frames} == {64}
            luma = [image.astype(np.float32).mean(axis=2) for image in clip.frames]
            change = [np.abs(b - a).mean() for a, b in pairwise(luma)]
            rows.append({"flicker": np.mean(change), "flicker_times_s": clip.frame_times_s})
        return rows


class Packets(Scorer):
    """Number of frames of the clip as a file."""

    name = "packets"
    columns = (column("packets", pa.int32(), "frames in the file of the clip"),)
    needs = ("file",)

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        return [{"packets": self.frames_of(clip.file)} for clip in batch]

    def frames_of(self, file: bytes) -> int:
        with av.open(io.BytesIO(file)) as video:
            return sum(1 for _ in video.decode(video=0))


class Odd(Scorer):
    """Fails in as many ways as there are."""

    name = "odd"
    columns = (column("odd", pa.float32(), "none"), column("odd_text", pa.string(), "none"))
    needs = ("previews", "duration_s")

    class Config(Config):
        """Settings."""

        way: str
        """What it does wrong."""

    def load(self, device: str = "cpu") -> None:
        if self.config.way == "weights":
            raise UserError("the weights of odd are missing: put them into /weights")

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        if self.config.way == "every clip":
            raise ValueError("there is something wrong with this clip")
        if self.config.way == "some clips":
            return [self.some(clip) for clip in batch]
        rows: list[Any] = [{"odd": 1.0, "odd_text": "a"} for _ in batch]
        answers: dict[str, Any] = {
            "length": rows[1:],
            "column": [row | {"even": 1} for row in rows],
            "missing column": [{"odd": 1.0} for _ in rows],
            "no mapping": [1.0 for _ in rows],
            "no list": {"odd": 1.0},
            "type": [row | {"odd": "high"} for row in rows],
        }
        return answers.get(self.config.way, rows)

    def some(self, clip: ClipView) -> dict[str, Any]:
        if clip.columns["duration_s"] > 2.4:
            raise ValueError("too long for me")
        return {"odd": float("nan"), "odd_text": None}


class Flaky(Scorer):
    """Fails for the clips that a file names, while it is there; the value says whether it was."""

    name = "flaky"
    columns = (column("flaky", pa.float32(), "1, or 2 after a failure"),)
    needs = ("previews", "clip_id")

    class Config(Config):
        """Settings."""

        fails: str
        """File with the clips that fail."""

    may_change = ("fails",)

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        return [self.score_clip(clip) for clip in batch]

    def score_clip(self, clip: ClipView) -> dict[str, Any]:
        fails = Path(self.config.fails)
        if not fails.exists():
            return {"flaky": 2.0}
        return {"flaky_error": "not now"} if clip.columns["clip_id"] in fails.read_text() else {"flaky": 1.0}


class TakesAColumn(Odd):
    """A column of the dataset."""

    name = "greedy"
    columns = (column("motion", pa.float32(), "none"),)


class TakesAName(Odd):
    """The name of one of clipmill's."""

    name = "similarity"


class TakesAColumnOfAScore(Odd):
    """A column of another score."""

    name = "greedier"
    columns = (column("luma_pictures", pa.float32(), "none"),)


class NeedsSomething(Odd):
    """An input that is not there."""

    name = "needy"
    needs = ("previws",)


class Dizzy(Odd):
    """A name that cannot be a column."""

    name = "Dizzy Name"


class NoScorer:
    """Not a scorer."""


class SlowLuma(Luma):
    """Takes its time, so that a run can be killed at any moment of it."""

    name = "slow_luma"
    columns = (column("slow_luma", pa.float32(), "mean luma of three pictures"),)

    def score(self, batch: Sequence[ClipView]) -> list[dict[str, Any]]:
        time.sleep(0.2 * len(batch))
        return [{"slow_luma": row["luma"]} for row in super().score(batch)]
