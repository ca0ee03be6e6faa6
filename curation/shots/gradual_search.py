"""The search for gradual changes in a window of frames: wipes, dissolves, then changes of any other shape."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stretch:
    """N consecutive samples without a cut or a blank frame among them, M of which are evenly spaced in time."""

    samples: Sequence[Sample]
    times_N: NDArray[np.float64]
    picks_M: NDArray[np.int64]
    """Positions of the evenly spaced samples."""
    thumbs_MP: NDArray[np.float32]
    """Their thumbs of P pixels."""

    @classmethod
    def of(cls, samples: Sequence[Sample], least_s: float) -> "_Stretch | None":
        """None for fewer samples than a search needs, or less than `least_s`."""
        if len(samples) < _LEAST_SAMPLES or samples[-1].time_s - samples[0].time_s < least_s:
            return None
        times_N = np.array([sample.time_s for sample in samples])
        wanted = np.arange(times_N[0], times_N[-1], 1 / _SAMPLES_PER_S)
        picks_M = np.unique(np.searchsorted(times_N, wanted).clip(0, len(times_N) - 1))
        if len(picks_M) < _LEAST_SAMPLES:
            return None
        thumbs_MP = np.stack([thumb(samples[pick].luma) for pick in picks_M])
        return cls(samples=samples, times_N=times_N, picks_M=picks_M, thumbs_MP=thumbs_MP)

    @property
    def pick_times_M(self) -> NDArray[np.float64]:
        return self.times_N[self.picks_M]

    def luma(self, position: int) -> Luma:
        return self.samples[position].luma

    def frames(self, start: int, end: int) -> FrameSpan:
        """A gradual change between these positions."""
        return FrameSpan("dissolve", self.samples[start].index, self.samples[end].index)


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

    def search(self, samples: Sequence[Sample], until_s: float = np.inf) -> float | None:
        """Search consecutive samples without a cut or a blank frame among them.

        `until_s`: time of the last one if more may follow. Returns the time up to which samples are needed to tell the
        end of a change; None if they are not.
        """
        stretch = _Stretch.of(samples, self._config.gradual_min_s)
        if stretch is None:
            return None
        due_s: list[float] = []
        for search in (self._wipes, self._dissolves, self._others):
            for old, new, certain in search(stretch):
                settled_s = float(stretch.times_N[new]) + _SETTLED_S
                if settled_s > until_s:
                    self._unsettled.append(stretch.frames(old, new))
                    due_s.append(settled_s)
                    continue
                self.found.append(stretch.frames(*gradual_bounds(samples, old, new, certain=certain)))
                self._recent.append(self.found[-1])
        return max(due_s, default=None)

    def _wipes(self, stretch: _Stretch) -> Iterator[_Change]:
        """Straight wipes."""
        times_N = stretch.times_N
        refused: list[Sweep] = []
        for sweep in find_sweeps(stretch.thumbs_MP, stretch.pick_times_M, **self._limits):
            start, end = (int(i) for i in times_N.searchsorted((sweep.start_s, sweep.end_s)).clip(0, len(times_N) - 1))
            if self._is_known(stretch, start, end) or any(sweep.resembles(other) for other in refused):
                continue
            refused.append(sweep)
            bounds = self._wipe(stretch, sweep, start, end)
            if isinstance(bounds, str):
                self._refuse(stretch, start, end, bounds)
            else:
                yield *bounds, "wipe"

    def _dissolves(self, stretch: _Stretch) -> Iterator[_Change]:
        """Dissolves, and changes of any shape between shots that hardly move."""
        picks_M = stretch.picks_M
        detail_2M = np.array([stretch.samples[pick].detail for pick in picks_M]).T
        step = int(np.median(np.diff(picks_M)))
        refused: list[tuple[int, int]] = []
        for candidate in find_gradual(stretch.thumbs_MP, stretch.pick_times_M, detail_2M, **self._limits):
            old, new = int(picks_M[candidate.old]), int(picks_M[candidate.new])
            if any(abs(old - a) <= 2 * step and abs(new - b) <= 2 * step for a, b in refused):
                continue
            if self._is_known(stretch, old, new):
                continue
            reason = self._why_not_gradual(stretch, old, new, candidate)
            if reason is not None:
                refused.append((old, new))
                self._refuse(stretch, old, new, reason)
            elif candidate.dips:
                yield *dissolve_bounds(stretch.samples, old, new, reach=2 * step), "dissolve"
            else:
                yield old, new, ""

    def _others(self, stretch: _Stretch) -> Iterator[_Change]:
        """Changes of any shape, also between moving shots."""
        c, lumas = self._config, [stretch.luma(pick) for pick in stretch.picks_M]
        for a, b in find_replaced(lumas, stretch.pick_times_M, min_s=c.gradual_min_s, max_s=c.gradual_max_s):
            old, new = int(stretch.picks_M[a]), int(stretch.picks_M[b])
            if self._is_known(stretch, old, new):
                continue
            first, last = stretch.luma(old), stretch.luma(new)
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

    def _wipe(self, stretch: _Stretch, sweep: Sweep, start: int, end: int) -> tuple[int, int] | str:
        """The last old and the first new frame of a wipe, as positions in the stretch, or why there is none."""
        least, times_N = self._config.changed_share, stretch.times_N
        reason = _too_little(changed_share(stretch.luma(start), stretch.luma(end)), least)
        if reason is not None:
            return reason
        first, last = times_N.searchsorted((sweep.start_s - _BESIDE_WIPE_S, sweep.end_s + _BESIDE_WIPE_S))
        bounds = wipe_bounds([sample.luma for sample in stretch.samples[first:last]], times_N[first:last], sweep)
        if bounds is None:
            return "no edge moves across the whole frame, as in a wipe"
        old, new = (int(first) + i for i in bounds)
        return why_same_shot(stretch.luma(old), stretch.luma(new), least) or (old, new)

    def _why_not_gradual(self, stretch: _Stretch, old: int, new: int, candidate: Candidate) -> str | None:
        """Why a proposed gradual change is none; None for a dissolve or wipe."""
        first, middle, last = (stretch.luma(i) for i in (old, (old + new) // 2, new))
        if not (candidate.dips or wiped(first, middle, last)):
            return "the frames between are not a blend of the two pictures"
        return why_same_shot(first, last, self._config.changed_share)

    def _refuse(self, stretch: _Stretch, old: int, new: int, reason: str) -> None:
        frames = stretch.frames(old, new)
        self._refused.add(frames.kind, frames.start, frames.end, reason)

    def _is_known(self, stretch: _Stretch, old: int, new: int) -> bool:
        """Whether a gradual change that touches these frames was found already."""
        frames = stretch.frames(old, new)
        return any(span.touches(frames.start, frames.end) for span in (*self._recent, *self._unsettled))


def _too_little(share: float, least: float) -> str | None:
    return f"{share:.0%} of the frame changed, less than {least:.0%}" if share < least else None
