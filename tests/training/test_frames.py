"""Which frames are taken, by their timestamps, and that they are the ones, upright and of the size."""

import io
import random
import struct
import tracemalloc
import zlib
from fractions import Fraction
from functools import partial
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.shards import number_of, numbered, video
from training import frames
from training.buckets import bucket_sizes, nearest_size
from training.frames import sample_picture, sample_video
from training.sample_error import SampleError


def taken(content: bytes, *, length: int = 4, rate: float = 12.0, reader: str = "pyav", seed: int = 0) -> list[int]:
    """The numbers of the frames that are taken."""
    sampled = sample_video(
        content,
        lengths=(length,),
        rates=(rate,),
        size_for=partial(nearest_size, ((64, 96),)),
        crop="center",
        rng=random.Random(seed),
        reader=reader,  # type: ignore[arg-type]
    )
    assert sampled.frames_TCHW.shape == (length, 3, 64, 96)
    return [number_of(frame_CHW.transpose(1, 2, 0)) for frame_CHW in sampled.frames_TCHW]


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(("fps", "rate", "stride"), [(24, 12.0, 2), (24, 8.0, 3), (24, 100.0, 1), (30, 6.0, 5)])
def test_frames_follow_each_other_at_the_rate(fps: int, rate: float, stride: int, reader: str) -> None:
    numbers = taken(video(40, fps=fps), rate=rate, reader=reader)
    assert [after - before for before, after in pairwise(numbers)] == [stride] * 3


def test_both_readers_take_the_same_frames() -> None:
    content = video(40)
    assert [taken(content, seed=seed) for seed in range(5)] == [
        taken(content, seed=s, reader="decord") for s in range(5)
    ]


def test_times_count_and_not_indices() -> None:
    """Ten frames at 24/s, then ten at 6/s: at 6/s every fourth of the first, every one of the others."""
    pts = [*range(10), *range(10, 50, 4)]
    content = video(20, fps=24, pts=pts, time_base=Fraction(1, 24))
    times_s = [place / 24 for place in pts]
    numbers = taken(content, length=8, rate=6.0)
    assert [times_s[n] for n in numbers] == pytest.approx([times_s[numbers[0]] + i / 6 for i in range(8)], abs=1 / 24)


@pytest.mark.parametrize(("rotation", "turns"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_a_phone_s_video_comes_upright(rotation: int, turns: int) -> None:
    content = video([np.ascontiguousarray(np.rot90(numbered(9), -turns)) for _ in range(8)], rotation=rotation)
    assert taken(content, length=2) == [9, 9]


def test_pixels_that_are_wider_than_high_are_stretched() -> None:
    """48 x 64 stored, pixels twice as wide: shown as 96 x 64."""
    narrow = [numbered(5)[:, ::2] for _ in range(8)]
    assert taken(video(narrow, sample_aspect_ratio=Fraction(2)), length=2) == [5, 5]


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("size", [(32, 48), (128, 192)])
def test_colours_come_as_red_green_and_blue(reader: str, rotation: int, size: tuple[int, int]) -> None:
    colour = (200, 120, 40)
    stored = (96, 64) if rotation else (64, 96)
    picture = np.broadcast_to(np.array(colour, np.uint8), (*stored, 3))
    fitting = {"size_for": partial(nearest_size, (size,)), "crop": "center", "rng": random.Random(0)}
    content = video([picture] * 8, rotation=rotation)
    sampled = sample_video(content, lengths=(2,), rates=(12.0,), reader=reader, **fitting)  # type: ignore[arg-type]
    assert sampled.frames_TCHW.mean((0, 2, 3)) == pytest.approx(colour, abs=4)
    png = cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()
    assert sample_picture(png, **fitting).mean((0, 2, 3)) == pytest.approx(colour)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [66, 98, 100, 104])
def test_every_column_is_there_without_resizing(width: int) -> None:
    content = video([np.full((64, width, 3), 200, np.uint8)] * 8)
    size_for = partial(nearest_size, ((64, width),))
    sampled = sample_video(content, lengths=(2,), rates=(12.0,), size_for=size_for, crop="center", rng=random.Random(0))
    assert sampled.frames_TCHW.min() > 190


@pytest.mark.parametrize("width", [8, 16, 66, 98, 104, 130, 136, 138])
def test_without_resizing_frames_are_those_of_ffmpeg(width: int) -> None:
    """Also where neighbouring pixels have other colours, as the width does not decide how chroma is interpolated."""
    picture = np.random.default_rng(0).choice(np.array([30, 220], np.uint8), (64, width, 3))
    content = video([picture] * 8)
    size_for = partial(nearest_size, ((64, width),))
    sampled = sample_video(content, lengths=(1,), rates=(12.0,), size_for=size_for, crop="center", rng=random.Random(0))
    shown = sampled.frames_TCHW[0].transpose(1, 2, 0).astype(float)
    with av.open(io.BytesIO(content)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert min(np.abs(shown - frame).mean() for frame in frames) < (0.5 if width >= 16 else 20)


def test_the_middle_is_cut_out_or_a_part_by_chance() -> None:
    picture = np.zeros((64, 192, 3), np.uint8)
    picture[:, 64:128] = 255
    content = video([picture] * 8)

    def cut(crop: str, seed: int) -> float:
        size_for = partial(nearest_size, ((64, 64),))
        sampled = sample_video(
            content,
            lengths=(2,),
            rates=(12.0,),
            size_for=size_for,
            crop=crop,
            rng=random.Random(seed),  # type: ignore[arg-type]
        )
        return float(sampled.frames_TCHW.mean())

    assert cut("center", 0) > 250
    assert len({round(cut("random", seed)) for seed in range(6)}) > 3


def test_what_cannot_be_read_says_why() -> None:
    with pytest.raises(SampleError, match="too_short: 3 frames within"):
        taken(video(3))
    with pytest.raises(SampleError, match="decode_error"):
        taken(b"no video")
    with pytest.raises(SampleError, match="decode_error: 2 bytes that are not JPEG, PNG, WEBP"):
        sample_picture(b"no", size_for=partial(nearest_size, ((8, 8),)), crop="center", rng=random.Random(0))
    whole = video(40)
    with pytest.raises(SampleError, match="decode_error"):
        taken(whole[: len(whole) // 2])


WHOLE = video(16)


def test_a_codec_that_nobody_knows_is_told() -> None:
    with pytest.raises(SampleError, match="no decoder"):
        taken(WHOLE.replace(b"avc1", b"zzzz"))


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_anywhere_gives_frames_or_a_reason(damage: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for place, value in damage:
        content[place] = value
    try:
        numbers = taken(bytes(content))
    except SampleError as error:
        assert error.kind in ("decode_error", "timeout", "too_large", "too_long", "too_short")  # noqa: PT017
        assert error.message  # noqa: PT017
    else:
        assert len(numbers) == 4


@given(
    st.integers(128, 1024).map(lambda side: side * side),
    st.lists(st.floats(0.4, 2.5), min_size=1, max_size=6),
)
def test_buckets_have_about_the_area_and_the_aspect(area_px: int, ratios: list[float]) -> None:
    for height, width in bucket_sizes(area_px=area_px, aspect_ratios=ratios, multiple_px=16):
        assert height % 16 == width % 16 == 0
        assert 0.7 < height * width / area_px < 1.4


def test_a_picture_goes_to_the_bucket_of_its_aspect() -> None:
    sizes = bucket_sizes(area_px=576 * 1024, aspect_ratios=(16 / 9, 1.0, 9 / 16))
    assert sizes == ((576, 1024), (768, 768), (1024, 576))
    assert nearest_size(sizes, 1080, 1920) == (576, 1024)
    assert nearest_size(sizes, 1920, 1080) == (1024, 576)
    assert nearest_size(sizes, 500, 480) == (768, 768)


def png_of(width: int, height: int) -> bytes:
    """A PNG of so many black pixels, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    idat = pixels + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def picture_of(content: bytes) -> None:
    size_for = partial(nearest_size, ((64, 96),))
    sample_picture(content, size_for=size_for, crop="center", rng=random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(16_000, 16_000), (60_000, 60_000)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(size: tuple[int, int]) -> None:
    content = png_of(*size)
    tracemalloc.start()
    with pytest.raises(SampleError, match="too_large"):
        picture_of(content)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


def test_a_thin_picture_is_not_blown_up() -> None:
    """Its short side is enlarged to 64 pixels, and its long one with it."""
    picture_of(png_of(2000, 10))
    with pytest.raises(SampleError, match="too_large: 3840000 x 64 pixels"):
        picture_of(png_of(60_000, 1))
    thin = video([np.zeros((2, 4096, 3), np.uint8)] * 8)
    with pytest.raises(SampleError, match="too_large"):
        sample_video(
            thin, lengths=(2,), rates=(12.0,), size_for=partial(nearest_size, ((576, 1024),)), crop="center",
            rng=random.Random(0),
        )  # fmt: skip


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_a_clip_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    content = video(16)
    monkeypatch.setattr(frames, "MAX_PIXELS", 64 * 96 - 1)
    with pytest.raises(SampleError, match=r"too_large: 96 x 64 pixels, more than 6,143"):
        taken(content, reader=reader)
    monkeypatch.setattr(frames, "MAX_PIXELS", 64 * 128)  # FFmpeg counts a width that is aligned
    assert taken(content, reader=reader)


def test_packets_streams_frames_and_time_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    content = video(40, options={"g": "250", "crf": "12"})
    for name, enough, message in (
        ("MAX_PACKETS", 40, "too_long: more than 39 frames"),
        ("MAX_STREAMS", 1, "too_large: 1 streams, more than 0"),
        ("MAX_DECODED_FRAMES", 40, "too_long: 40 frames from the keyframe to the last selected one"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(frames, name, enough)
            assert len(taken(content, length=40, rate=24.0)) == 40
            patch.setattr(frames, name, enough - 1)
            with pytest.raises(SampleError, match=message):
                taken(content, length=40, rate=24.0)
            if name == "MAX_DECODED_FRAMES":
                with pytest.raises(SampleError, match=message):
                    taken(content, length=40, rate=24.0, reader="decord")
    monkeypatch.setattr(frames, "MAX_SAMPLE_S", -1.0)
    with pytest.raises(SampleError, match="timeout: reading took more than -1 s of CPU time"):
        taken(content)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:1/x.ts\n"


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(
    "content",
    [
        PLAYLIST,
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=video 1 RTP/AVP 96\r\n",
        b"<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>http://127.0.0.1:1/</BaseURL></MPD>",
    ],
)
def test_playlists_open_nothing(content: bytes, reader: str) -> None:
    with pytest.raises(SampleError, match="decode_error"):
        taken(content, reader=reader)


def test_decord_is_given_nothing_but_mp4(monkeypatch: pytest.MonkeyPatch) -> None:
    """What FFmpeg takes for MP4 without its first box, and what is of another container, do not reach decord."""
    import decord

    reached: list[bytes] = []
    monkeypatch.setattr(decord, "VideoReader", lambda file, **_: reached.append(file.read()) or 1 / 0)
    whole = video(16)
    box_bytes = int.from_bytes(whole[:4], "big")
    for content in (
        whole[box_bytes:],
        b"\0\0\0\x08free" + whole,
        PLAYLIST.ljust(188) + whole,
        b"\0\0\0\x10ftyp\x1b[31" + whole[12:],
    ):
        with pytest.raises(SampleError, match="decode_error"):
            taken(content, reader="decord")
    assert not reached
    frames_bytes = 3 * 64 * 96 * 4
    monkeypatch.setattr(frames, "_MAX_DECORD_BYTES", frames_bytes - 1)
    with pytest.raises(SampleError, match="too_large: the selected frames have 73,728 bytes"):
        taken(whole, reader="decord")
    monkeypatch.setattr(frames, "_MAX_DECORD_BYTES", frames_bytes)
    with pytest.raises(ZeroDivisionError):
        taken(whole, reader="decord")
    assert reached == [whole]
