"""Transparency: what is transparent is shown on black, as players do."""

from typing import Any

import av
from av.filter import Graph

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders of the alpha channel that WebM stores beside the picture; FFmpeg's own leave it out."""


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether the pixel format has an alpha channel."""
    return any(component.is_alpha for component in frame.format.components)


def stores_alpha(stream: Any) -> bool:
    """Whether a WebM stream says that it has an alpha channel beside the picture."""
    return stream.metadata.get("alpha_mode") == "1" and stream.codec_context.codec.canonical_name in ALPHA_DECODERS


def alpha_decoder(stream: Any) -> Any:
    """A decoder of the pictures with the alpha channel, for a stream that `stores_alpha`."""
    context = av.CodecContext.create(ALPHA_DECODERS[stream.codec_context.codec.canonical_name], "r")
    if stream.codec_context.extradata:
        context.extradata = stream.codec_context.extradata
    return context


class OnBlack:
    """Lays decoded frames with an alpha channel on black; others pass."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._input: tuple[int, int, str] | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame without alpha, in 4:4:4 or RGB."""
        if not has_alpha(frame):
            return frame
        if self._graph is None or self._input != (frame.width, frame.height, frame.format.name):
            self._input = (frame.width, frame.height, frame.format.name)
            self._graph = _graph(frame)
        self._graph.push(frame)
        shown = self._graph.pull()
        assert isinstance(shown, av.VideoFrame)
        return shown


def _graph(frame: av.VideoFrame) -> Graph:
    planar = frame.format.name.startswith(("yuva", "gbra"))
    deep = frame.format.components[0].bits > 8
    graph = Graph()
    graph.threads = 1
    rgb_alpha, rgb = ("gbrap16le", "gbrp16le") if deep else ("gbrap", "gbrp")
    opaque = (
        frame.format.name.replace("yuva", "yuv").replace("gbrap", "gbrp").replace("420", "444").replace("422", "444")
    )
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
        *([] if planar else [graph.add("format", f"pix_fmts={rgb_alpha}")]),
        graph.add("premultiply", "inplace=1"),
        graph.add("format", f"pix_fmts={opaque if planar else rgb}"),
        graph.add("buffersink"),
    ).configure()
    return graph
