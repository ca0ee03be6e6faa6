"""The MP4 of a clip: index first, time base of the source, timestamps from 0."""

import heapq
import io
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import av

_INDEX_BYTES = 4096
_INDEX_BYTES_PER_FRAME = 48
"""Room for the index (moov) in front of the media: at most 44 bytes per frame in stts, ctts, stss, stsz, stsc, stco. An
audio packet takes no more."""


def open_mp4(file: io.BytesIO, clip: Mapping[str, Any], extra_bytes: int, *, audio_packets: int = 0) -> Any:
    """Open an MP4 in `file`: index first, time base of the source, the same bytes on every run."""
    clock = str(clip["time_base_den"])
    options = {
        "moov_size": str(_INDEX_BYTES + extra_bytes + _INDEX_BYTES_PER_FRAME * (clip["frames"] + audio_packets)),
        "video_track_timescale": clock,
        "movie_timescale": clock,
        "fflags": "+bitexact",
        "movflags": "use_metadata_tags",  # or only names that MP4 knows are kept
    }
    return av.open(file, "w", format="mp4", container_options=options)


def mux(
    mp4: Any,
    stream: Any,
    packets: list[av.Packet],
    clip: Mapping[str, Any],
    *,
    first_pts: int,
    unit: int,
    audio: Iterable[av.Packet] = (),
) -> None:
    """Write packets with timestamps from 0 on; `unit` is how many ticks of the MP4's clock make one of their pts.

    `audio` packets have their own stream and clock, with timestamps from 0 on, or before for what is not to be heard.
    """
    pts = [packet.pts for packet in packets if packet.pts is not None]
    assert len(pts) == len(packets)
    shown = sorted(pts)
    end_pts = first_pts + (clip["end_pts"] - clip["start_pts"]) * clip["time_base_num"] // unit
    until = dict(zip(shown, [*shown[1:], end_pts], strict=True))
    # Decoding times are the display times, shifted so that none comes after its packet is shown: always valid.
    delay = max(decoded - displayed for decoded, displayed in zip(shown, pts, strict=True))
    for place, packet in enumerate(packets):
        # The muxer adds up decoding intervals, and the last packet has to close the sum.
        duration = until[pts[place]] - pts[place] if place + 1 < len(packets) else end_pts - shown[-1]
        packet.stream = stream
        packet.dts = (shown[place] - delay - first_pts) * unit
        packet.pts = (pts[place] - first_pts) * unit
        packet.duration = duration * unit
        packet.time_base = Fraction(1, clip["time_base_den"])
    for packet in heapq.merge(packets, audio, key=_decoded_at_s):
        mp4.mux_one(packet)


def _decoded_at_s(packet: av.Packet) -> Fraction:
    assert packet.dts is not None
    assert packet.time_base is not None
    return packet.dts * packet.time_base
