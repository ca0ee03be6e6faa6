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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import av
import cv2
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

if TYPE_CHECKING:
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
"""Logarithms of ratios from which a frame is combed, its fields have an order, and a field is a repeated one."""
_MOVING_COMB = 0.7
"""Change of the comb since the frame before, relative to it: 0 of stripes that stand still, 1 to 2 of motion."""
_LEAST_HITS, _LEAST_SHARE, _AGREEMENT = 2, 0.1, 0.8
"""Combed looks, their share of all, and the share of the more frequent order among them."""
_LEAST_ORDER = 0.05
"""Of all looks together, combed or not: 0.00 to 0.03 of progressive videos, noise included, 0.12 to 1.7 of interlaced
ones."""
_LEAST_LOOKS, _STEADY_ORDER, _SAME_SIGN = 6, 0.1, 0.65
_ORDER_PER_MISFIT = 0.8
"""Where motion is too slow to comb much, the order of the fields tells over many looks: 0.00 to 0.03 of real
progressive videos, 0.08 to 1.2 of interlaced ones. Drawn squares reach 0.35, but their frames fit themselves better
(misfit 0.6 to 2) than those of interlaced ones do (0 to 0.8)."""
_TELECINE_SHARE, _TELECINE_PIXELS = 0.4, 128
"""Of the looks with a repeated field: 0.8 in 3:2 pulldown, 0 in video; among those with enough moving pixels."""
_SETTLED = 64
"""Looks after which the verdict is taken anew only now and then."""
_CLEAN, _NO_ORDER, _CLEAN_SHARE = 1.1, 0.05, 0.6
"""Logarithms of the ratios from which on, or below which, a look is clean, and the share of clean looks that settles
that a video is progressive."""
_CALM = 4
"""Clean looks, or looks in a row at nothing that moves, after which only every second frame is looked at; twice and
four times as many: every fourth, eighth."""
_INTERLACED_HEIGHTS = (480, 486, 512, 576, 608, 1080, 1088)
"""Of video that was interlaced once. Other frames that are not flagged either are looked at half as often."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a frame looked like where it moves."""

    pts: int
    order: Literal["tff", "bff"] | None
    """Of its fields, if it is combed."""
    if_tff: float
    if_bff: float
    """Misfit of its fields with those before and after that are farther away if the top or the bottom one is first."""
    own: float
    """Misfit of its fields with each other."""
    repeated: bool | None
    """Whether one of its fields is that of the frame before or after; None where too little moves to say so."""
    clean: bool
    """Whether it fits itself so well that it cannot be interlaced, or its fields have no order."""


class FieldMeter:
    """Collects looks at the frames of a video, in order. Costs next to nothing where nothing moves."""

    def __init__(self) -> None:
        self._looks: list[Look] = []
        self._verdict: Fields = PROGRESSIVE
        self._judged = 0
        """Looks that the verdict is of."""
        self._offered = self._calm = self._still = 0
        self._likely = False

    def look(self, pts: int, before: av.VideoFrame, frame: av.VideoFrame, after: av.VideoFrame) -> Look | None:
        """Look at a frame between its neighbours; None where nothing can be seen: no motion, no luma plane."""
        self._offered += 1
        self._likely = self._likely or frame.interlaced_frame or frame.height in _INTERLACED_HEIGHTS
        every = (1 if self._likely else 2) << min(3, (max(self._calm, self._still) // _CALM).bit_length())
        if (self._offered - 1) % every or not _has_luma(frame):
            return None
        if _shape(before) != _shape(frame) or _shape(after) != _shape(frame):
            return None
        rows = (_rows(each, self._offered // every) for each in (before, frame, after))
        look = _compare(pts, *rows)
        self._still = self._still + 1 if look is None else 0
        if look is not None:
            self._looks.append(look)
            self._calm = 0 if look.order else self._calm + look.clean
            self._likely = self._likely or look.order is not None
            if len(self._looks) - self._judged >= (4 if len(self._looks) <= _SETTLED else _SETTLED) or (
                look.order and len(self._looks) < _SETTLED
            ):
                self._judge()
        return look

    @property
    def verdict(self) -> Fields:
        """Of all looks so far."""
        self._judge()
        return self._verdict

    def _judge(self) -> None:
        if self._judged < len(self._looks):
            self._verdict, self._judged = _verdict(self._looks), len(self._looks)

    def of(self, look: Look | None) -> Fields:
        """Of one frame. Film in interlaced video also has whole frames, which stay as they are."""
        verdict = self._verdict  # brought up to date now and then
        if look is not None and look.order is not None and verdict == PROGRESSIVE:
            return "tff" if look.order == "tff" else "bff"
        if verdict.startswith("telecine") and (look is None or look.order is None):
            return PROGRESSIVE
        return verdict

    def between(self, start_pts: int, end_pts: int) -> Fields:
        """Of the looks within a clip; where they are too few, of all."""
        first = bisect_left(self._looks, start_pts, key=lambda look: look.pts)
        last = bisect_left(self._looks, end_pts, key=lambda look: look.pts)
        whole = self.verdict
        if whole == PROGRESSIVE or last - first < _LEAST_LOOKS:
            return whole
        return _verdict(self._looks[first:last])


def deinterlaced(frames: "Iterable[Frame]", fields: Fields) -> "Iterator[Frame]":
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


def _replaced(held: "deque[Frame]", made: Iterable[av.VideoFrame]) -> "Iterator[Frame]":
    for av_frame in made:
        combed = held.popleft()
        yield replace(combed, av_frame=av_frame)


def _verdict(looks: Sequence[Look]) -> Fields:
    order = _combed_order(looks) or _steady_order(looks)
    if order is None:
        return PROGRESSIVE
    told = [look.repeated for look in looks if look.repeated is not None]
    if sum(told) < _TELECINE_SHARE * max(1, len(told)):
        return order
    return "telecine_tff" if order == "tff" else "telecine_bff"


def _combed_order(looks: Sequence[Look]) -> Literal["tff", "bff"] | None:
    tff, bff = (sum(look.order == order for look in looks) for order in ("tff", "bff"))
    if tff + bff < max(_LEAST_HITS, _LEAST_SHARE * len(looks)) or max(tff, bff) < _AGREEMENT * (tff + bff):
        return None
    together = _log_ratio(sum(look.if_tff for look in looks), sum(look.if_bff for look in looks))
    if abs(together) < _LEAST_ORDER or (together > 0) != (tff > bff):
        return None
    return "tff" if tff > bff else "bff"


def _steady_order(looks: Sequence[Look]) -> Literal["tff", "bff"] | None:
    if len(looks) < _LEAST_LOOKS or sum(look.clean for look in looks) > _CLEAN_SHARE * len(looks):
        return None
    misfits = 1 + np.array([(look.if_tff, look.if_bff, look.own) for look in looks])
    for_tff, for_bff, own = np.log(misfits).T
    orders, misfit = for_tff - for_bff, np.minimum(for_tff, for_bff) - own
    total_tff, total_bff, total_own = np.log(misfits.sum(axis=0))
    for order, fit in (
        (total_tff - total_bff, min(total_tff, total_bff) - total_own),
        (np.median(orders), np.median(misfit)),
    ):
        same = np.mean(orders * order > 0)
        if abs(order) > max(_STEADY_ORDER, _ORDER_PER_MISFIT * fit - _STEADY_ORDER) and same > _SAME_SIGN:
            return "tff" if order > 0 else "bff"
    return None


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


def _compare(pts: int, before: NDArray[np.uint8], frame: NDArray[np.uint8], after: NDArray[np.uint8]) -> Look | None:
    width = frame.shape[1]
    changed = cv2.max(cv2.absdiff(frame, before), cv2.absdiff(frame, after))
    moved = changed.reshape(-1, min(_ROWS, len(frame)), width)
    moved[:, 0] = moved[:, -1] = 0
    pixels = np.flatnonzero(moved > _MOVED_LEVELS)
    if len(pixels) < _LEAST_PIXELS:
        return None
    pixels = pixels[:: len(pixels) // _MOST_PIXELS + 1]
    bottom = pixels // width % 2
    here, above, below = (_at(frame, pixels + step) for step in (0, -width, width))
    earlier, later, around = _at(before, pixels), _at(after, pixels), above + below
    top_before, bottom_before = _by_field(around - 2 * earlier, bottom)
    top_after, bottom_after = _by_field(around - 2 * later, bottom)
    if_tff, if_bff = top_before + bottom_after, bottom_before + top_after
    own = float(np.abs(around - 2 * here).sum())
    comb = (np.abs(here - above).sum() + np.abs(here - below).sum()) / 2
    order = _log_ratio(if_tff, if_bff)
    combed = _log_ratio(comb, np.abs(above - below).sum()) > _COMB
    stripes = False
    if combed:
        bend_before = _at(before, pixels - width) + _at(before, pixels + width) - 2 * earlier
        stripes = bool(np.abs(around - 2 * here - bend_before).sum() <= _MOVING_COMB * own)
    fits = _log_ratio(min(if_tff, if_bff), own) > _CLEAN
    combed = combed and not stripes and not fits and abs(order) > _ORDER
    repeated = None
    bottoms = int(bottom.sum())
    if min(bottoms, len(pixels) - bottoms) > _TELECINE_PIXELS // 4 and len(pixels) > _TELECINE_PIXELS:
        changes = (_by_field(here - other, bottom) for other in (earlier, later))
        ratios = (_log_ratio(odd / bottoms, even / (len(pixels) - bottoms)) for even, odd in changes)
        repeated = any(abs(ratio) > _REPEATED for ratio in ratios)
    clean = stripes or fits or abs(order) < _NO_ORDER
    return Look(pts, ("tff" if order > 0 else "bff") if combed else None, if_tff, if_bff, own, repeated, clean)


def _by_field(difference: NDArray[np.int32], bottom: NDArray[np.int64]) -> tuple[float, float]:
    """Sums of the sizes in the top and in the bottom field."""
    size = np.abs(difference)
    of_bottom = float(size @ bottom)
    return float(size.sum()) - of_bottom, of_bottom


def _at(image: NDArray[np.uint8], pixels: NDArray[np.int64]) -> NDArray[np.int32]:
    return image.reshape(-1)[pixels].astype(np.int32)


def _log_ratio(first: float, second: float) -> float:
    return math.log((first + 1) / (second + 1))
