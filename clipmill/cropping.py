"""Margins of a frame that are not shown, and frames without them."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.filter import Graph

from clipmill.video import Orientation


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Pixels to cut off at each side; of decoded frames unless said otherwise."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return any(self.sides)

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom: clockwise."""
        return self.left, self.top, self.right, self.bottom

    def plus(self, other: "Margins") -> "Margins":
        """What both cut off, one after the other."""
        return _margins([a + b for a, b in zip(self.sides, other.sides, strict=True)])

    def of_upright(self, orientation: Orientation) -> "Margins":
        """The same margins of the upright frame, from those of a decoded one."""
        left, top, right, bottom = self.sides
        sides = [right, top, left, bottom] if orientation.mirrored else [left, top, right, bottom]
        turns = orientation.rotation // 90
        return _margins(sides[-turns:] + sides[:-turns] if turns else sides)

    def of_decoded(self, orientation: Orientation) -> "Margins":
        """The inverse of `of_upright`."""
        turns = orientation.rotation // 90
        left, top, right, bottom = self.sides[turns:] + self.sides[:turns]
        return _margins([right, top, left, bottom] if orientation.mirrored else [left, top, right, bottom])


NO_MARGINS = Margins()


def _margins(sides: list[int]) -> Margins:
    left, top, right, bottom = sides
    return Margins(left=left, top=top, right=right, bottom=bottom)


class Cropper:
    """Cuts margins off decoded frames of any pixel format, without copying pixels; tags and timestamps stay.

    The corner is rounded to whole chroma samples, towards the margin.
    """

    def __init__(self, margins: Margins) -> None:
        self.margins = margins
        self._graph: Graph | None = None
        self._input: tuple[int, int, str] | None = None

    def __call__(self, frame: Any) -> Any:
        """An `av.VideoFrame` without the margins, or the frame itself where they leave nothing of it."""
        width = frame.width - self.margins.left - self.margins.right
        height = frame.height - self.margins.top - self.margins.bottom
        if not self.margins or min(width, height) < 1:
            return frame
        if self._graph is None or self._input != (frame.width, frame.height, frame.format.name):
            self._input = (frame.width, frame.height, frame.format.name)
            self._graph = _crop_graph(frame, width, height, self.margins)
        self._graph.push(frame)
        return self._graph.pull()


def _crop_graph(frame: Any, width: int, height: int, margins: Margins) -> Graph:
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
        ),
        graph.add("crop", f"{width}:{height}:{margins.left}:{margins.top}"),
        graph.add("buffersink"),
    ).configure()
    return graph
