"""Interlaced footage: found by looking at the picture, as FFmpeg's `idet` does, because flags are often wrong; and
deinterlaced.

Three consecutive frames are compared where something moves, in some rows. Two signs have to agree. The rows of an
interlaced frame are of two times, so neighbouring rows differ more than rows two apart; fine stripes do that, too. And
its fields fit those of the frame before and after unequally, always on the same side; textures do that, too, but on
either side. Film in interlaced video (3:2 pulldown) also has fields that are repeated from frame to frame.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import av
import cv2
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from curation.video.timed import Frame

Fields = Literal["progressive", "tff", "bff", "telecine_tff", "telecine_bff"]
"""How the frames of a video are made of fields: not at all; of two times, the top or the bottom field first; or of
film by 3:2 pulldown, with that order where a frame has two times."""
PROGRESSIVE: Fields = "progressive"

_ROWS = 10
"""In a group; even, as the first of each group is."""
_GROUPS, _COLUMNS = 6, 384
"""Of rows, and columns, that are looked at per frame; which ones varies, so that small motion is met in time."""
_MOVED_LEVELS = 10
_LEAST_PIXELS, _MOST_PIXELS = 24, 1 << 11
"""Moving pixels: fewer say nothing, more cost time."""
_COMB, _ORDER, _REPEATED = -0.12, 0.06, 0.7
"""Logarithms of ratios from which a frame is combed, its fields have an order, and a field is a repeated one. Measured:
interlaced -0.15 to 1.5, 0.07 to 2.2, below 0.4; progressive -0.7 to -0.13 (noise and stripes above), 0 to 0.4 on either
side; 3:2 pulldown has both kinds and in four of five frames a repeated field of 0.9 or more."""
_MOVING_COMB = 0.7
"""Change of the comb since the frame before, relative to it: 0 of stripes that stand still, 1 to 2 of motion."""
_LEAST_HITS, _LEAST_SHARE, _AGREEMENT = 2, 0.1, 0.8
_TELECINE_SHARE = 0.4
"""Of the moving frames with a repeated field: 0.8 in 3:2 pulldown, 0 in video."""
_CALM = 4
"""Progressive looks in a row after which only every second frame is looked at; twice and four times as many: every
fourth and eighth."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a frame looked like: the order of its fields if it is combed, and whether one of them was repeated."""

    pts: int
    order: Literal["tff", "bff"] | None
    repeated: bool


class FieldMeter:
    """Collects looks at the frames of a video, in order. Costs next to nothing where nothing moves."""

    def __init__(self) -> None:
        self._looks: list[Look] = []
        self._all = _Tally()
        self._offered = self._calm = 0

    def look(self, pts: int, before: av.VideoFrame, frame: av.VideoFrame, after: av.VideoFrame) -> Look | None:
        """Look at a frame between its neighbours; None where nothing can be seen: no motion, no luma plane."""
        self._offered += 1
        every = 1 << min(3, (self._calm // _CALM).bit_length())
        if self._offered % every or not _has_luma(frame):
            return None
        if _shape(before) != _shape(frame) or _shape(after) != _shape(frame):
            return None
        rows = (_rows(each, self._offered // every) for each in (before, frame, after))
        look = _compare(pts, *rows, thorough=self._all.tff + self._all.bff > 0)
        self._calm += 1
        if look is not None:
            self._looks.append(look)
            self._all.add(look)
            self._calm = 0 if look.order else self._calm
        return look

    @property
    def verdict(self) -> Fields:
        """Of all looks so far."""
        return self._all.verdict

    def of(self, look: Look | None) -> Fields:
        """Of one frame. Film in interlaced video also has whole frames, which stay as they are."""
        verdict = self.verdict
        if look is not None and look.order is not None and verdict == PROGRESSIVE:
            return "tff" if look.order == "tff" else "bff"
        if verdict.startswith("telecine") and (look is None or look.order is None):
            return PROGRESSIVE
        return verdict

    def between(self, start_pts: int, end_pts: int) -> Fields:
        """Of the looks within a clip; where they are too few, of all."""
        first = bisect_left(self._looks, start_pts, key=lambda look: look.pts)
        last = bisect_left(self._looks, end_pts, key=lambda look: look.pts)
        if self.verdict == PROGRESSIVE or last - first < _LEAST_HITS:
            return self.verdict
        within = _Tally()
        for look in self._looks[first:last]:
            within.add(look)
        return within.verdict


@dataclass(slots=True)
class _Tally:
    looks: int = 0
    tff: int = 0
    bff: int = 0
    repeated: int = 0

    def add(self, look: Look) -> None:
        self.looks += 1
        self.tff += look.order == "tff"
        self.bff += look.order == "bff"
        self.repeated += look.repeated

    @property
    def verdict(self) -> Fields:
        hits = self.tff + self.bff
        if hits < max(_LEAST_HITS, _LEAST_SHARE * self.looks) or max(self.tff, self.bff) < _AGREEMENT * hits:
            return PROGRESSIVE
        if self.repeated < _TELECINE_SHARE * self.looks:
            return "tff" if self.tff > self.bff else "bff"
        return "telecine_tff" if self.tff > self.bff else "telecine_bff"


def deinterlaced(frames: Iterable[Frame], fields: Fields) -> Iterator[Frame]:
    """The same frames, with the same pts, without combs; frames before and after help and are returned, too.

    bwdif keeps the first field of each frame and fills in the second from the neighbours; film is first put together
    from the fields of neighbouring frames (fieldmatch), without leaving the repeated frames out.
    """
    if fields == PROGRESSIVE:
        yield from frames
        return
    held: deque[Frame] = deque()
    graph: _Deinterlacer | None = None
    for combed in frames:
        if graph is not None and not graph.takes(combed.av_frame):
            yield from _replaced(held, graph.finish())
            graph = None
        graph = graph or _Deinterlacer(combed.av_frame, fields)
        held.append(combed)
        yield from _replaced(held, graph.push(combed.av_frame))
    if graph is not None:
        yield from _replaced(held, graph.finish())


def deinterlaced_one(
    frame: av.VideoFrame, before: av.VideoFrame | None, after: av.VideoFrame | None, fields: Fields
) -> av.VideoFrame:
    """One frame between its neighbours, without combs."""
    if fields == PROGRESSIVE:
        return frame
    graph = _Deinterlacer(frame, fields)
    window = [each for each in (before, frame, after) if each is not None and graph.takes(each)]
    made = [out for each in window for out in graph.push(each)] + list(graph.finish())
    return made[window.index(frame)]


class _Deinterlacer:
    """FFmpeg's filters over frames of one shape, one out for one in."""

    def __init__(self, first: av.VideoFrame, fields: Fields) -> None:
        self._shape = _shape(first)
        order = fields.removeprefix("telecine_")
        self._graph = Graph()
        self._graph.threads = 1
        base = Fraction(1, 25)
        self._entry = self._graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=base
        )
        steps = [("setfield", order)]
        if fields.startswith("telecine"):
            steps += [("fieldmatch", f"order={order}"), ("bwdif", f"mode=send_frame:parity={order}:deint=interlaced")]
        else:
            steps += [("bwdif", f"mode=send_frame:parity={order}:deint=all")]
        steps += [("format", first.format.name), ("setfield", "prog")]
        last = self._entry
        for name, options in steps:
            step = self._graph.add(name, options)
            last.link_to(step)
            last = step
        self._exit = self._graph.add("buffersink")
        last.link_to(self._exit)
        self._graph.configure()
        self._pushed = 0

    def takes(self, frame: av.VideoFrame) -> bool:
        return _shape(frame) == self._shape

    def push(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        pts, base = frame.pts, frame.time_base
        frame.pts, frame.time_base = self._pushed, Fraction(1, 25)
        self._pushed += 1
        self._entry.push(frame)
        frame.pts = pts
        if base is not None:
            frame.time_base = base
        return self._pull()

    def finish(self) -> Iterator[av.VideoFrame]:
        self._entry.push(None)
        return self._pull()

    def _pull(self) -> Iterator[av.VideoFrame]:
        while True:
            try:
                made = self._exit.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            assert isinstance(made, av.VideoFrame)
            yield made


def _replaced(held: deque[Frame], made: Iterable[av.VideoFrame]) -> Iterator[Frame]:
    for av_frame in made:
        combed = held.popleft()
        yield replace(combed, av_frame=av_frame)


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _has_luma(frame: av.VideoFrame) -> bool:
    name, bits = frame.format.name, frame.format.components[0].bits
    return (
        not frame.format.is_rgb
        and 8 <= bits <= 16
        and not name.startswith(("p0", "p2", "p4", "pal", "x"))
        and not name.endswith("be")
    )


def _rows(frame: av.VideoFrame, place: int) -> NDArray[np.uint8]:
    """8-bit luma of some groups of rows, one above the other; `place` varies which rows and columns."""
    plane, bits = frame.planes[0], frame.format.components[0].bits
    luma: NDArray[Any] = np.frombuffer(memoryview(plane), np.uint8 if bits == 8 else np.uint16)
    luma = luma.reshape(plane.height, -1)[:, : frame.width]
    height, width = luma.shape
    columns = min(width, _COLUMNS)
    left = (width - columns) * (place * 5 % 8) // 7
    chosen = luma[_places(height, place % 8), left : left + columns]
    return chosen if bits == 8 else (chosen >> (bits - 8)).astype(np.uint8)


@lru_cache(maxsize=64)
def _places(height: int, place: int) -> NDArray[np.int64]:
    """Rows in groups that are spread over the height."""
    groups = max(1, min(_GROUPS, height // _ROWS))
    apart = max(0, height - _ROWS) // groups
    tops = (np.arange(groups) * apart + apart * (place * 3 % 8) // 8) // 2 * 2
    return (tops[:, None] + np.arange(min(_ROWS, height))).reshape(-1)


def _compare(
    pts: int, before: NDArray[np.uint8], frame: NDArray[np.uint8], after: NDArray[np.uint8], *, thorough: bool
) -> Look | None:
    """Unless `thorough`, fields are compared only where there is a comb."""
    width = frame.shape[1]
    changed = cv2.max(cv2.absdiff(frame, before), cv2.absdiff(frame, after))
    moved = changed.reshape(-1, min(_ROWS, len(frame)), width)
    moved[:, 0] = moved[:, -1] = 0
    pixels = np.flatnonzero(moved > _MOVED_LEVELS)
    if len(pixels) < _LEAST_PIXELS:
        return None
    pixels = pixels[:: len(pixels) // _MOST_PIXELS + 1]
    here, above, below = (_at(frame, pixels + step) for step in (0, -width, width))
    comb = (np.abs(here - above).sum() + np.abs(here - below).sum()) / 2
    combed = _log_ratio(comb, np.abs(above - below).sum()) > _COMB
    if not combed and not thorough:
        return Look(pts, None, False)
    earlier, later = _at(before, pixels), _at(after, pixels)
    bottom = (pixels // width) % 2 == 1
    misfit_before, misfit_after = np.abs(above + below - 2 * earlier), np.abs(above + below - 2 * later)
    if_top_first = misfit_before[~bottom].sum() + misfit_after[bottom].sum()
    if_bottom_first = misfit_before[bottom].sum() + misfit_after[~bottom].sum()
    order = _log_ratio(if_top_first, if_bottom_first)
    combed = combed and abs(order) > _ORDER
    if combed:
        bend = above + below - 2 * here
        bend_before = _at(before, pixels - width) + _at(before, pixels + width) - 2 * earlier
        combed = bool(np.abs(bend - bend_before).sum() > _MOVING_COMB * np.abs(bend).sum())
    repeated = False
    if bottom.any() and not bottom.all():
        changes = (np.abs(here - earlier), np.abs(here - later))
        ratios = (_log_ratio(change[bottom].mean(), change[~bottom].mean()) for change in changes)
        repeated = any(abs(ratio) > _REPEATED for ratio in ratios)
    return Look(pts, ("tff" if order > 0 else "bff") if combed else None, repeated)


def _at(image: NDArray[np.uint8], pixels: NDArray[np.int64]) -> NDArray[np.int32]:
    return image.reshape(-1)[pixels].astype(np.int32)


def _log_ratio(first: float, second: float) -> float:
    return math.log((first + 1) / (second + 1))
