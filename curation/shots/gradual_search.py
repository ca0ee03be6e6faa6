"""The search for gradual changes in a window of frames: wipes, dissolves, then changes of any other shape."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curation.shots.cut_spans import FrameSpan
from curation.shots.ends import gradual_bounds
from curation.shots.gradual import (
    Candidate,
    Luma,
    Sample,
    changed_share,
    dissolve_bounds,
    find_gradual,
    same_scene,
    thumb,
    wiped,
    zoomed,
)
from curation.shots.refused import RefusedCuts
from curation.shots.replaced import find_replaced
from curation.shots.wipes import Sweep, find_sweeps, wipe_bounds

if TYPE_CHECKING:
    from curation.shots.cuts import CutConfig

_Change = tuple[int, int, str]
"""About the last old and the first new sample, and what is certain about it: see `gradual_bounds`."""

_SAMPLES_PER_S = 12.0
_LEAST_SAMPLES = 6
_SETTLED_S = 1.2
"""Time of the new shot that must have been seen to tell where a change ends."""
_BESIDE_WIPE_S = 0.5


def why_same_shot(old_HW: Luma, new_HW: Luma, least_changed: float) -> str | None:
    """Why two frames belong to one shot; None if they do not."""
    reason = _too_little(changed_share(old_HW, new_HW), least_changed)
    if reason is None and same_scene(old_HW, new_HW):
        return "camera motion: the earlier picture reappears, shifted"
    return reason


class GradualSearch:
    """Finds gradual changes in successive windows, which overlap. Call `begin` for each, then `search`."""

    def __init__(self, config: "CutConfig", refused: RefusedCuts) -> None:
        self._config = config
        self._refused = refused
        self.found: list[FrameSpan] = []
        """All gradual changes so far, in no order."""
        self._recent: list[FrameSpan] = []
        self._unsettled: list[FrameSpan] = []

    def begin(self, first_frame: int) -> None:
        """Begin with a window that starts at this frame."""
        self._recent = [span for span in self._recent if span.end >= first_frame]
        self._unsettled.clear()

    def search(self, stretch: Sequence[Sample], until_s: float = np.inf) -> float | None:
        """Search consecutive samples without a cut or a blank frame among them.

        `until_s`: time of the last one if more may follow. Returns the time up to which samples are needed to tell the
        end of a change; None if they are not.
        """
        c = self._config
        if len(stretch) < _LEAST_SAMPLES or stretch[-1].time_s - stretch[0].time_s < c.gradual_min_s:
            return None
        times = np.array([sample.time_s for sample in stretch])
        wanted = np.arange(times[0], times[-1], 1 / _SAMPLES_PER_S)
        picks = np.unique(np.searchsorted(times, wanted).clip(0, len(times) - 1))
        if len(picks) < _LEAST_SAMPLES:
            return None
        due_s: list[float] = []
        thumbs = np.stack([thumb(stretch[pick].luma) for pick in picks])
        for search in (self._wipes, self._dissolves, self._others):
            for old, new, certain in search(stretch, times, picks, thumbs):
                settled_s = float(times[new]) + _SETTLED_S
                if settled_s > until_s:
                    self._unsettled.append(FrameSpan("dissolve", stretch[old].index, stretch[new].index))
                    due_s.append(settled_s)
                    continue
                start, end = gradual_bounds(stretch, old, new, certain=certain)
                self.found.append(FrameSpan("dissolve", stretch[start].index, stretch[end].index))
                self._recent.append(self.found[-1])
        return max(due_s, default=None)

    def _wipes(
        self,
        stretch: Sequence[Sample],
        times_N: NDArray[np.float64],
        picks: NDArray[np.int64],
        thumbs: NDArray[np.float32],
    ) -> Iterator[_Change]:
        """Straight wipes."""
        refused: list[Sweep] = []
        for sweep in find_sweeps(thumbs, times_N[picks], **self._limits):
            start, end = (int(i) for i in times_N.searchsorted((sweep.start_s, sweep.end_s)).clip(0, len(times_N) - 1))
            if self._is_known(stretch, start, end) or any(sweep.resembles(other) for other in refused):
                continue
            refused.append(sweep)
            bounds = self._wipe(stretch, times_N, sweep, start, end)
            if isinstance(bounds, str):
                self._refuse(stretch, start, end, bounds)
            else:
                yield *bounds, "wipe"

    def _dissolves(
        self,
        stretch: Sequence[Sample],
        times_N: NDArray[np.float64],
        picks: NDArray[np.int64],
        thumbs: NDArray[np.float32],
    ) -> Iterator[_Change]:
        """Dissolves, and changes of any shape between shots that hardly move."""
        detail = np.array([stretch[pick].detail for pick in picks]).T
        step = int(np.median(np.diff(picks)))
        refused: list[tuple[int, int]] = []
        for candidate in find_gradual(thumbs, times_N[picks], detail, **self._limits):
            old, new = int(picks[candidate.old]), int(picks[candidate.new])
            if any(abs(old - a) <= 2 * step and abs(new - b) <= 2 * step for a, b in refused):
                continue
            if self._is_known(stretch, old, new):
                continue
            reason = self._why_not_gradual(stretch, old, new, candidate)
            if reason is not None:
                refused.append((old, new))
                self._refuse(stretch, old, new, reason)
            elif candidate.dips:
                yield *dissolve_bounds(stretch, old, new, reach=2 * step), "dissolve"
            else:
                yield old, new, ""

    def _others(
        self,
        stretch: Sequence[Sample],
        times_N: NDArray[np.float64],
        picks: NDArray[np.int64],
        thumbs: NDArray[np.float32],
    ) -> Iterator[_Change]:
        """Changes of any shape, also between moving shots."""
        c, lumas = self._config, [stretch[pick].luma for pick in picks]
        for a, b in find_replaced(lumas, times_N[picks], min_s=c.gradual_min_s, max_s=c.gradual_max_s):
            old, new = int(picks[a]), int(picks[b])
            if self._is_known(stretch, old, new):
                continue
            first, last = stretch[old].luma, stretch[new].luma
            reason = why_same_shot(first, last, c.changed_share)
            if reason is None and zoomed(first, last):
                reason = "a zoom: the earlier picture reappears at another size"
            if reason is None:
                yield old, new, ""
            else:
                self._refuse(stretch, old, new, reason)

    @property
    def _limits(self) -> dict[str, float]:
        c = self._config
        return {"min_s": c.gradual_min_s, "max_s": c.gradual_max_s, "min_change": c.gradual_change}

    def _wipe(
        self, stretch: Sequence[Sample], times_N: NDArray[np.float64], sweep: Sweep, start: int, end: int
    ) -> tuple[int, int] | str:
        """The last old and the first new frame of a wipe, as places in the stretch, or why there is none."""
        least = self._config.changed_share
        reason = _too_little(changed_share(stretch[start].luma, stretch[end].luma), least)
        if reason is not None:
            return reason
        first, last = times_N.searchsorted((sweep.start_s - _BESIDE_WIPE_S, sweep.end_s + _BESIDE_WIPE_S))
        bounds = wipe_bounds([sample.luma for sample in stretch[first:last]], times_N[first:last], sweep)
        if bounds is None:
            return "no edge moves across the whole frame, as in a wipe"
        old, new = (int(first) + i for i in bounds)
        return why_same_shot(stretch[old].luma, stretch[new].luma, least) or (old, new)

    def _why_not_gradual(self, stretch: Sequence[Sample], old: int, new: int, candidate: Candidate) -> str | None:
        """Why a proposed gradual change is none; None for a dissolve or wipe."""
        first, middle, last = (stretch[i].luma for i in (old, (old + new) // 2, new))
        if not (candidate.dips or wiped(first, middle, last)):
            return "the frames between are not a blend of the two pictures"
        return why_same_shot(first, last, self._config.changed_share)

    def _refuse(self, stretch: Sequence[Sample], old: int, new: int, reason: str) -> None:
        self._refused.add("dissolve", stretch[old].index, stretch[new].index, reason)

    def _is_known(self, stretch: Sequence[Sample], old: int, new: int) -> bool:
        """Whether a gradual change that touches these frames was found already."""
        start, end = stretch[old].index, stretch[new].index
        return any(span.touches(start, end) for span in (*self._recent, *self._unsettled))


def _too_little(share: float, least: float) -> str | None:
    return f"{share:.0%} of the frame changed, less than {least:.0%}" if share < least else None
