"""A batch of clips for captioners, the CLIP embedder and scorers: rows, pictures and frames."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from clipmill.errors import SourceError
from clipmill.pipeline import Frames, Need
from curation.dataset.schemas import CLIPS
from curation.inputs.caption import Caption
from curation.scores.base import ClipView, Embeddings, needs_clip
from curation.scores.pictures import Pictures
from curation.video.resize import Image

GENERATED = "generated_captions"
"""Key of a row with generated captions, in the format of the column `captions`, which has the supplied ones."""
Jpegs = tuple[bytes, ...]
"""First, middle and last picture of a clip; empty if it has none."""


class ClipBatch:
    """Clips of one or several sources. Stages read `views()` and fill `rows`."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        thumbnails: Sequence[Jpegs] = (),
        previews: Sequence[Jpegs] = (),
        part: str = "",
    ) -> None:
        self.rows = rows
        """Rows of the clips table, with columns of other scores added."""
        self.thumbnails: list[Jpegs] = list(thumbnails) or [()] * len(rows)
        self.previews: list[Jpegs] = list(previews) or [()] * len(rows)
        self.embeddings: list[Embeddings | None] = [None] * len(rows)
        self.footage: dict[Need, list[Any]] = {}
        """`Frames` -> `ClipFrames` of each clip; "file" -> the bytes of each."""
        self.unread: dict[tuple[int, Need], SourceError] = {}
        """Number of a clip and a need -> why that could not be read."""
        self.part = part
        """Of the dataset, if all are of one."""

    @classmethod
    def joined(cls, batches: Sequence["ClipBatch"]) -> "ClipBatch":
        """The clips of several batches with the same footage, which share their rows with this one."""
        if len(batches) == 1:
            return batches[0]
        joined = cls([], part="")
        for batch in batches:
            before = len(joined.rows)
            joined.unread |= {(before + i, need): error for (i, need), error in batch.unread.items()}
            for need, found in batch.footage.items():
                joined.footage.setdefault(need, []).extend(found)
            for name in ("rows", "thumbnails", "previews", "embeddings"):
                getattr(joined, name).extend(getattr(batch, name))
        return joined

    def divided(self, clips: int) -> Iterator["ClipBatch"]:
        """Batches of at most `clips` clips, which share their rows with this one."""
        for start in range(0, len(self.rows), clips):
            some = slice(start, start + clips)
            batch = ClipBatch(self.rows[some], self.thumbnails[some], self.previews[some], self.part)
            batch.embeddings = self.embeddings[some]
            yield batch

    def views(self, needs: Sequence[Need]) -> list[ClipView | SourceError]:
        """The view of each clip with `needs`, or why one of them could not be read."""
        return [self._view(i, needs) for i in range(len(self.rows))]

    def _view(self, i: int, needs: Sequence[Need]) -> ClipView | SourceError:
        for need in needs:
            if (i, need) in self.unread:
                return self.unread[i, need]
        if "previews" in needs and not self.preview(i):
            return SourceError("missing", "the dataset has no pictures of the clip")
        row = self.rows[i]
        frames = [self.footage[need][i] for need in needs if isinstance(need, Frames)]
        return ClipView(
            thumbnails=self._thumbnails[i] if "thumbnails" in needs else (),
            previews=Pictures(self.previews[i] if "previews" in needs else ()),
            captions=_captions(row) if "captions" in needs else (),
            embeddings=self.embeddings[i] if needs_clip(needs) else None,
            frames=frames[0].images() if frames else (),
            frame_times_s=tuple(frames[0].times_s) if frames else (),
            file=self.footage["file"][i] if "file" in needs else b"",
            columns={str(need): row.get(str(need)) for need in needs if need in CLIPS.names and need != "captions"},
        )

    def preview(self, i: int) -> Jpegs:
        """The small pictures of a clip: those of the dataset, or made from its thumbnails."""
        self.previews[i] = self.previews[i] or tuple(map(_smaller, self.thumbnails[i]))
        return self.previews[i]

    @cached_property
    def _thumbnails(self) -> list[tuple[Image, ...]]:
        return [tuple(map(decode_jpeg, jpegs)) for jpegs in self.thumbnails]


def _smaller(jpeg: bytes) -> bytes:
    """Half the size."""
    small = decode_jpeg(jpeg, cv2.IMREAD_REDUCED_COLOR_2)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def decode_jpeg(jpeg: bytes, flags: int = cv2.IMREAD_COLOR) -> Any:
    """(height, width, 3) uint8 BGR; with IMREAD_REDUCED_COLOR_2 at half the size."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
    assert image is not None, "a thumbnail that the scan itself compressed"
    return image


def _captions(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    """The supplied captions, then the generated ones."""
    return tuple(Caption(**caption) for caption in (*row["captions"], *row.get(GENERATED, ())))
