"""Videos whose timestamps are unusual, missing or wrong, with the truth about them. Every frame shows its number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.ffmpeg import ffmpeg
from tests.media import panning, write_video
from tests.training.shards import number_of, numbered

FRAMES, FPS = 60, 25
_HEIGHT, _STRIP = 80, 16
_X264 = {"preset": "veryfast", "crf": "12", "bf": "3", "g": "12", "sc_threshold": "0"}


@dataclass(frozen=True)
class TimedInput:
    """A file and what is in it: the number that each frame shows and its time from the first one."""

    path: Path
    numbers: Sequence[int] = range(FRAMES)
    times_s: Sequence[float] = tuple(i / FPS for i in range(FRAMES))
    joints: Sequence[int] = ()
    """Frames with which another recording starts."""
    timestamps: str = "container"
    tolerance_s: float = 0.0011
    other: dict[str, object] = field(default_factory=dict)
    """Further columns of the source's row."""


def frames_with_numbers(count: int = FRAMES, *, width: int = 128, seed: int = 0) -> list[np.ndarray]:
    """BGR frames of a moving texture; the strip at the bottom tells the number."""
    pictures = panning(height=_HEIGHT, pixels_per_frame=1, frames=count, seed=seed)
    shown = []
    for number, picture in enumerate(pictures):
        frame = np.empty((_HEIGHT + _STRIP, width, 3), np.uint8)
        frame[:_HEIGHT] = picture[:, :width]
        frame[_HEIGHT:] = 64 + numbered(number, _STRIP, width) // 2
        shown.append(frame)
    return shown


def number_in(frame_HWC: np.ndarray) -> int:
    """The number that a frame shows, after any encoding."""
    strip = frame_HWC[_HEIGHT + 4 : _HEIGHT + _STRIP - 2].astype(float)
    return number_of((strip - 64) * 2)


def encoded(path: Path, count: int = FRAMES, *, seed: int = 0, width: int = 128, **options: object) -> Path:
    """H.264 with B-frames, or as `options` of `write_video` say."""
    settings = {"fps": FPS, "options": _X264} | options
    return write_video(path, frames_with_numbers(count, seed=seed, width=width), **settings)  # type: ignore[arg-type]


def _copied(source: Path, path: Path, *, before: Sequence[str] = (), after: Sequence[str] = ()) -> Path:
    ffmpeg(*before, "-i", source, "-c", "copy", *after, path)
    return path


def _stamped(folder: Path, pts: Sequence[int], *, bf: int = 0) -> Path:
    """Matroska with these timestamps, in milliseconds, on the packets in the order of decoding."""
    source = encoded(folder / "source.mp4", len(pts), options=_X264 | {"bf": str(bf)})
    path = folder / "a.mkv"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as container, av.open(str(path), "w", container_options=options) as mkv:
        stream = mkv.add_stream_from_template(container.streams.video[0])
        for place, packet in enumerate(p for p in container.demux(video=0) if p.size):
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts, packet.dts, packet.duration = pts[place], place - 10_000, 40
            mkv.mux_one(packet)
    return path


def _joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def _recording(folder: Path, name: str, *, offset_s: float = 0, suffix: str = "ts", **options: object) -> Path:
    source = encoded(folder / f"{name}.mp4", **options)  # type: ignore[arg-type]
    muxer = ("-output_ts_offset", str(offset_s), "-f", {"ts": "mpegts", "mpg": "mpeg"}[suffix])
    return _copied(source, folder / f"{name}.{suffix}", after=muxer)


def _two(path: Path, **more: object) -> TimedInput:
    return TimedInput(
        path,
        numbers=[*range(FRAMES), *range(FRAMES)],
        times_s=[i / FPS for i in range(2 * FRAMES)],
        joints=[FRAMES],
        timestamps="rebuilt",
        **more,  # type: ignore[arg-type]
    )


def _milliseconds(pts: Sequence[int], numbers: Sequence[int] | None = None) -> dict[str, Sequence[float]]:
    return {"numbers": numbers or range(len(pts)), "times_s": [(p - pts[0]) / 1000 for p in pts]}


def raw_h264(folder: Path) -> TimedInput:
    """No timestamps at all; copied out of an MP4, which puts the encoder's note first."""
    return TimedInput(_copied(encoded(folder / "base.mp4"), folder / "a.h264"), timestamps="rebuilt")


def raw_hevc(folder: Path) -> TimedInput:
    options = {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:keyint=12:bframes=3"}
    return TimedInput(encoded(folder / "a.hevc", codec="libx265", options=options), timestamps="rebuilt")


def avi_h264(folder: Path) -> TimedInput:
    """With a clock of 600 ticks per second, of which each frame is said to last one."""
    path = _copied(encoded(folder / "base.mp4"), folder / "a.avi")
    return TimedInput(path, timestamps="rebuilt", other={"start_s": 0.0})


def avi_h264_without_b_frames(folder: Path) -> TimedInput:
    return TimedInput(encoded(folder / "a.avi", options=_X264 | {"bf": "0"}))


def avi_h264_b_frames_begin_late(folder: Path) -> TimedInput:
    """The first second has none, and its timestamps look right. The decoder, too, learns late how long to wait."""
    shown, plain, reordered = frames_with_numbers(), folder / "plain.h264", folder / "reordered.h264"
    write_video(plain, shown[:25], fps=FPS, options=_X264 | {"bf": "0"})
    write_video(reordered, shown[25:], fps=FPS, options=_X264)
    path = _copied(_joined(folder / "both.h264", plain, reordered), folder / "a.avi", before=("-r", str(FPS)))
    return TimedInput(path, timestamps="rebuilt", tolerance_s=1.01 / FPS)


def avi_mpeg4(folder: Path) -> TimedInput:
    return TimedInput(encoded(folder / "a.avi", codec="mpeg4", options={"bf": "2", "g": "12", "b": "4M"}))


def avi_mpeg4_packed(folder: Path) -> TimedInput:
    """As DivX wrote it: a P-frame and the B-frame after it in one packet, then one that says nothing is coded."""
    source = encoded(folder / "source.avi", codec="mpeg4", options={"bf": "1", "g": "12", "b": "4M", "b_strategy": "0"})
    path = folder / "a.avi"
    with av.open(str(source)) as container, av.open(str(path), "w") as avi:
        stream = avi.add_stream_from_template(container.streams.video[0])
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        for place, content in enumerate(_packed(packets)):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, FPS)
            packet.pts = packet.dts = place
            packet.is_keyframe = _vop_type(content) == 0
            avi.mux_one(packet)
    return TimedInput(path, timestamps="rebuilt")


def _vop_type(content: bytes) -> int:
    """0 I, 1 P, 2 B."""
    return content[content.index(b"\x00\x00\x01\xb6") + 4] >> 6


def _packed(packets: list[bytes]) -> list[bytes]:
    not_coded = b"\x00\x00\x01\xb6\x50\x00\x00\x7f"
    packed: list[bytes] = []
    for place, content in enumerate(packets):
        if _vop_type(content) == 2:
            packed[-1] += content
            packed.append(not_coded)
        elif place == 0:
            vop = content.index(b"\x00\x00\x01\xb6")
            packed.append(content[:vop] + b"\x00\x00\x01\xb2DivX503b1393p" + content[vop:])
        else:
            packed.append(content)
    return packed


def matroska_rounded(folder: Path) -> TimedInput:
    pts = [round(i * 1000 / 60) for i in range(150)]
    return TimedInput(
        encoded(folder / "a.mkv", 150, pts=pts, time_base=Fraction(1, 1000), fps=60), **_milliseconds(pts)
    )


def matroska_in_order_of_decoding(folder: Path) -> TimedInput:
    return TimedInput(_stamped(folder, [40 * i for i in range(FRAMES)], bf=3), timestamps="rebuilt")


def matroska_two_identical(folder: Path) -> TimedInput:
    pts = [40 * (i - (i == 30)) for i in range(FRAMES)]
    return TimedInput(_stamped(folder, pts), timestamps="rebuilt")


def matroska_one_wrong(folder: Path) -> TimedInput:
    pts = [40 * i + (3_000_000 if i == 30 else 0) for i in range(FRAMES)]
    return TimedInput(_stamped(folder, pts), timestamps="rebuilt")


def matroska_half_an_hour_ahead(folder: Path) -> TimedInput:
    pts = [40 * i + (1_800_000 if i >= 60 else 0) for i in range(120)]
    return TimedInput(
        _stamped(folder, pts), **_milliseconds(pts), other={"lost_still_s": 1800.04, "lost_damage_s": 0.0}
    )


def matroska_two_hours_ahead_and_back(folder: Path) -> TimedInput:
    pts = [40 * i + (7_200_000 if 60 <= i < 120 else 0) for i in range(180)]
    times_s = [i / FPS for i in range(180)]
    path = _stamped(folder, pts)
    return TimedInput(path, numbers=range(180), times_s=times_s, joints=[60, 120], timestamps="rebuilt")


def matroska_beyond_an_hour_ahead(folder: Path) -> TimedInput:
    pts = [40 * i + (90_000_000 if i >= 60 else 0) for i in range(120)]
    times_s = [i / FPS for i in range(120)]
    return TimedInput(_stamped(folder, pts), numbers=range(120), times_s=times_s, joints=[60], timestamps="rebuilt")


def mpegts(folder: Path) -> TimedInput:
    return TimedInput(_recording(folder, "a"))


def mpegts_one_frame_a_second(folder: Path) -> TimedInput:
    path = _recording(folder, "a", count=12, fps=1)
    return TimedInput(path, numbers=range(12), times_s=range(12))


def mpegts_clock_wraps_soon(folder: Path) -> TimedInput:
    return TimedInput(_recording(folder, "a", offset_s=2**33 / 90_000 - 3))


def mpegts_joined(folder: Path) -> TimedInput:
    return _two(_joined(folder / "both.ts", _recording(folder, "a"), _recording(folder, "b", seed=1)))


def mpegts_joined_with_an_earlier_clock(folder: Path) -> TimedInput:
    parts = _recording(folder, "a", offset_s=40_000), _recording(folder, "b", seed=1)
    return _two(_joined(folder / "both.ts", *parts))


def mpegts_joined_with_a_later_clock(folder: Path) -> TimedInput:
    parts = _recording(folder, "a"), _recording(folder, "b", seed=1, offset_s=40_000)
    return _two(_joined(folder / "both.ts", *parts))


def mpegts_joined_with_another_size(folder: Path) -> TimedInput:
    return _two(_joined(folder / "both.ts", _recording(folder, "a"), _recording(folder, "b", seed=1, width=64)))


def mpeg_ps(folder: Path) -> TimedInput:
    return TimedInput(
        _recording(folder, "a", suffix="mpg", codec="mpeg2video", options={"bf": "2", "g": "12", "b": "4M"})
    )


def mpeg_ps_joined(folder: Path) -> TimedInput:
    mpeg2 = {"suffix": "mpg", "codec": "mpeg2video", "options": {"bf": "2", "g": "12", "b": "4M"}}
    parts = _recording(folder, "a", **mpeg2), _recording(folder, "b", seed=1, **mpeg2)  # type: ignore[arg-type]
    return _two(_joined(folder / "both.mpg", *parts))


def flv(folder: Path) -> TimedInput:
    return TimedInput(_copied(encoded(folder / "base.mp4"), folder / "a.flv"))


def mp4_from_a_phone(folder: Path) -> TimedInput:
    """Frames come when the sensor has them."""
    pts = [33 * i + i * 7919 % 13 for i in range(90)]
    return TimedInput(encoded(folder / "a.mp4", 90, pts=pts, time_base=Fraction(1, 1000)), **_milliseconds(pts))


def mp4_edit_list_starts_within(folder: Path) -> TimedInput:
    """Cut without encoding anew: the packets before the start show nothing."""
    path = _copied(encoded(folder / "base.mp4", 90), folder / "a.mp4", before=("-ss", "0.6"))
    return TimedInput(path, numbers=range(15, 90), times_s=[i / FPS for i in range(75)])


def mp4_edit_list_delays(folder: Path) -> TimedInput:
    path = _copied(encoded(folder / "base.mp4"), folder / "a.mp4", before=("-itsoffset", "5"))
    return TimedInput(path, other={"start_s": 5.0})


def mp4_negative_start(folder: Path) -> TimedInput:
    path = _copied(encoded(folder / "base.mp4"), folder / "a.mp4", before=("-itsoffset", "-0.4"))
    return TimedInput(path, numbers=range(10, FRAMES), times_s=[i / FPS for i in range(FRAMES - 10)])


def mp4_one_frame_a_second(folder: Path) -> TimedInput:
    options = _X264 | {"bf": "2"}
    return TimedInput(encoded(folder / "a.mp4", 12, fps=1, options=options), numbers=range(12), times_s=range(12))


def mp4_one_frame_a_second_open_group_negative_start(folder: Path) -> TimedInput:
    """The second keyframe is followed by frames that are shown before it."""
    options = {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:keyint=4:min-keyint=4:bframes=3"}
    source = encoded(folder / "base.mp4", 12, fps=1, codec="libx265", options=options)
    path = _copied(source, folder / "a.mp4", before=("-itsoffset", "-2"))
    return TimedInput(path, numbers=range(2, 12), times_s=range(10))


def mp4_fragmented(folder: Path) -> TimedInput:
    path = _copied(encoded(folder / "base.mp4"), folder / "a.mp4", after=("-movflags", "frag_keyframe+empty_moov"))
    return TimedInput(path)


def mp4_still(folder: Path) -> TimedInput:
    """A frame that stands for half a minute."""
    pts = [40 * i + (30_000 if i >= 60 else 0) for i in range(120)]
    path = encoded(folder / "a.mp4", 120, pts=pts, time_base=Fraction(1, 1000))
    return TimedInput(path, **_milliseconds(pts), other={"lost_still_s": 30.04, "lost_damage_s": 0.0})


def mp4_one_frame(folder: Path) -> TimedInput:
    return TimedInput(encoded(folder / "a.mp4", 1), numbers=[0], times_s=[0.0])


def asf(folder: Path) -> TimedInput:
    return TimedInput(encoded(folder / "a.wmv", codec="wmv2", options={"b": "4M", "g": "12"}))


def webm(folder: Path) -> TimedInput:
    options = {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b": "0", "g": "12"}
    return TimedInput(encoded(folder / "a.webm", codec="libvpx-vp9", options=options))


INPUTS: dict[str, Callable[[Path], TimedInput]] = {
    make.__name__: make
    for make in (
        raw_h264,
        raw_hevc,
        avi_h264,
        avi_h264_without_b_frames,
        avi_h264_b_frames_begin_late,
        avi_mpeg4,
        avi_mpeg4_packed,
        matroska_rounded,
        matroska_in_order_of_decoding,
        matroska_two_identical,
        matroska_one_wrong,
        matroska_half_an_hour_ahead,
        matroska_two_hours_ahead_and_back,
        matroska_beyond_an_hour_ahead,
        mpegts,
        mpegts_one_frame_a_second,
        mpegts_clock_wraps_soon,
        mpegts_joined,
        mpegts_joined_with_an_earlier_clock,
        mpegts_joined_with_a_later_clock,
        mpegts_joined_with_another_size,
        mpeg_ps,
        mpeg_ps_joined,
        flv,
        mp4_from_a_phone,
        mp4_edit_list_starts_within,
        mp4_edit_list_delays,
        mp4_negative_start,
        mp4_one_frame_a_second,
        mp4_one_frame_a_second_open_group_negative_start,
        mp4_fragmented,
        mp4_still,
        mp4_one_frame,
        asf,
        webm,
    )
}
