"""Rendered footage is what its truth says: counted, measured and compared after decoding."""

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from curation.video.decode import Video
from curation.video.resize import FrameResizer
from footage.corpus import corpus_specs
from footage.render import corpus, main, render
from footage.scenes import BACKGROUND_TONES, BACKGROUNDS, LEAST_CONTRAST, SHAPE_COLORS, SHAPES, contrast
from footage.shots import SHAPE_MOTIONS, Shot, ShotPainter
from footage.timeline import CUTS, Cut, Timeline, VideoSpec, plan, timestamps
from footage.truth import Truth

Frames = list[NDArray[np.uint8]]

FIELD = Shot(background="striped", background_color="green", duration_s=1.0, seed=1)
SEA = Shot(background="wavy", background_color="purple", duration_s=1.0, seed=2)
FLOOR = Shot(background="checked", background_color="yellow", duration_s=1.0, seed=3)
SMALL: dict[str, Any] = {"width": 192, "height": 108, "fps": Fraction(12)}


def decoded(path: Path) -> Frames:
    """Upright pictures of square pixels, each (height, width, 3) uint8 BGR."""
    resizer = FrameResizer()
    with path.open("rb") as file, Video(file) as video:
        return [
            resizer.upright_bgr(frame.av_frame, video.info, long_side_px=4096).astype(np.uint8)
            for frame in video.frames()
        ]


def drawn(spec: VideoSpec) -> Frames:
    """The pictures as they go into the encoder."""
    spans = plan(spec)
    time_base, pts = timestamps(spec, spans[-1].end)
    return [picture.copy() for picture in Timeline(spec, spans, [float(p * time_base) for p in pts]).pictures()]


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other).mean())


STORED: dict[str, dict[str, Any]] = {
    "h264": {},
    "open gop": {"open_gop": True, "keyframe_s": 0.5, "b_frames": 2},
    "h264 10 bit": {"pixel_format": "yuv420p10le"},
    "hevc": {"codec": "hevc"},
    "hevc 10 bit": {"codec": "hevc", "pixel_format": "yuv420p10le", "start_offset_s": 2.0},
    "av1": {"codec": "av1"},
    "vp9": {"codec": "vp9", "start_offset_s": 0.5},
    "mpeg4": {"codec": "mpeg4"},
    "rotated left": {"rotation": 90, "width": 108, "height": 192},
    "rotated right": {"rotation": 270, "container": "mkv", "start_offset_s": 1.25},
    "upside down": {"rotation": 180, "container": "mov"},
    "wide pixels": {"sample_aspect_ratio": Fraction(4, 3)},
    "tall pixels, rotated": {"sample_aspect_ratio": Fraction(3, 4), "rotation": 90},
    "ntsc": {"fps": Fraction(30000, 1001)},
    "60 fps": {"fps": Fraction(60)},
    "variable": {"variable_fps": True, "fps": Fraction(30), "start_offset_s": 1.5},
    "variable vp9": {"variable_fps": True, "fps": Fraction(25), "codec": "vp9"},
    "variable av1": {"variable_fps": True, "fps": Fraction(25), "codec": "av1"},
    "transport stream": {"container": "ts"},
}


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED.keys())
def test_what_is_decoded_is_what_was_drawn(stored: dict[str, Any], tmp_path: Path) -> None:
    cuts = (Cut(), Cut(kind="dissolve", duration_s=0.5))
    spec = VideoSpec(name="v", shots=(FIELD, SEA, FLOOR), cuts=cuts, **{**SMALL, **stored})
    truth = render(spec, tmp_path)
    path = tmp_path / truth.file
    with path.open("rb") as file, Video(file) as video:
        info, frames = video.info, list(video.frames())
    seconds = [float(frame.pts * info.time_base) for frame in frames]

    assert truth.frames == len(frames) == plan(spec)[-1].end
    assert (info.width, info.height) == (truth.width, truth.height) == (spec.width, spec.height)
    assert (info.orientation.rotation, info.pixel_format) == (spec.rotation, spec.pixel_format)
    assert info.sample_aspect_ratio == spec.sample_aspect_ratio
    assert (Fraction(truth.time_base), truth.start_s) == (info.time_base, seconds[0])
    if spec.suffix != "ts":  # a transport stream starts where its muxer likes
        assert truth.start_s == pytest.approx(spec.start_offset_s, abs=0.5 / float(spec.fps))
    ends = [*seconds, truth.start_s + truth.duration_s]
    for change in truth.transitions:
        assert (change.start_s, change.end_s) == (ends[change.start_frame], ends[change.end_frame])
        assert change.start_pts == frames[change.start_frame].pts
        assert change.end_pts == frames[change.end_frame].pts
    for picture, original in zip(decoded(path), drawn(spec), strict=True):
        assert difference(picture, original) < 9
    assert Truth.load(tmp_path / "v.truth.json") == truth


def test_frame_times_follow_the_rate_or_wander_around_it(tmp_path: Path) -> None:
    steps = {}
    for name, variable in (("constant", False), ("variable", True)):
        spec = VideoSpec(name=name, shots=(FIELD, SEA), variable_fps=variable, width=64, height=64)
        path = tmp_path / render(spec, tmp_path).file
        with path.open("rb") as file, Video(file) as video:
            times = [float(frame.pts * video.info.time_base) for frame in video.frames()]
        steps[name] = np.diff(times) * 24
    assert np.allclose(steps["constant"], 1)
    assert steps["variable"].min() < 0.9
    assert steps["variable"].max() > 1.7
    assert np.median(steps["variable"]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9", "mpeg4"])
def test_the_same_spec_gives_the_same_bytes(codec: str, tmp_path: Path) -> None:
    moving = replace(SEA, camera="pan", speed_px=1.5, shape="star", shape_motion="up", text="Hello")
    opening, ending = Cut(kind="black", duration_s=0.5), Cut(kind="white", duration_s=0.5)
    spec = VideoSpec(name="v", shots=(FIELD, moving), opening=opening, ending=ending, codec=codec, **SMALL)
    results = []
    for i in range(3):
        path = tmp_path / str(i) / render(spec, tmp_path / str(i)).file
        results.append((path.read_bytes(), path.with_name("v.truth.json").read_bytes()))
    assert results[0] == results[1] == results[2]
    other = replace(spec, shots=(replace(FIELD, seed=9), moving))
    assert difference(drawn(spec)[8], drawn(other)[8]) > 3


@pytest.mark.parametrize("kind", CUTS)
def test_a_transition_covers_exactly_the_frames_it_changes(kind: str, tmp_path: Path) -> None:
    cut = Cut() if kind == "hard" else Cut(kind=kind, duration_s=0.75)
    spec = VideoSpec(name="v", shots=(FIELD, SEA), cuts=(cut,), **SMALL)
    truth = render(spec, tmp_path)
    change, frames = truth.transitions[0], drawn(spec)
    old = [difference(frame, frames[0]) == 0 for frame in frames]
    new = [difference(frame, frames[-1]) == 0 for frame in frames]
    assert old == [i < change.start_frame for i in range(truth.frames)]
    assert new == [i >= change.end_frame for i in range(truth.frames)]
    assert change.end_frame - change.start_frame == round(cut.duration_s * 12)
    assert change.kind == ("dissolve" if kind == "wipe" else kind)
    assert [(shot.start_frame, shot.end_frame) for shot in truth.shots] == [
        (0, change.start_frame),
        (change.end_frame, truth.frames),
    ]


@pytest.mark.parametrize("codec", ["h264", "vp9", "mpeg4"])
def test_a_hard_cut_is_at_its_frame(codec: str, tmp_path: Path) -> None:
    shots = tuple(replace(shot, camera="pan", speed_px=2.0) for shot in (FIELD, SEA, FLOOR))
    truth = render(VideoSpec(name="v", shots=shots, codec=codec, **SMALL), tmp_path)
    frames = decoded(tmp_path / truth.file)
    steps = [difference(one, other) for one, other in pairwise(frames)]
    largest = sorted(int(i) + 1 for i in np.argsort(steps)[-2:])
    assert largest == [change.start_frame for change in truth.transitions] == [12, 24]


@pytest.mark.parametrize(("kind", "level"), [("black", 0), ("white", 255)])
def test_fades_are_plain_in_the_middle(kind: str, level: int, tmp_path: Path) -> None:
    fade = Cut(kind=kind, duration_s=1.0)
    spec = VideoSpec(name="v", shots=(FIELD, SEA), cuts=(fade,), opening=fade, ending=fade, **SMALL)
    truth = render(spec, tmp_path)
    away = [float(np.abs(frame.astype(int) - level).mean()) for frame in decoded(tmp_path / truth.file)]
    opening, middle, ending = truth.transitions
    assert (opening.start_frame, ending.end_frame) == (0, truth.frames)
    assert ending.end_s == pytest.approx(truth.start_s + truth.duration_s)
    assert away[0] < 4
    assert away[-1] < 4
    center = (middle.start_frame + middle.end_frame - 1) / 2
    plain = middle.start_frame + int(np.argmin(away[middle.start_frame : middle.end_frame]))
    assert abs(plain - center) <= 1.5
    assert away[plain] < 4
    assert min(away[opening.end_frame : middle.start_frame]) > 40


def test_a_flash_is_bright_and_no_transition(tmp_path: Path) -> None:
    shot = replace(FIELD, flash_at_s=0.5, flash_frames=2)
    truth = render(VideoSpec(name="v", shots=(shot,), **SMALL), tmp_path)
    light = [float(frame.mean()) for frame in decoded(tmp_path / truth.file)]
    bright = [i for i, level in enumerate(light) if level > np.median(light) + 40]
    assert [(flash.frame, flash.frames) for flash in truth.flashes] == [(6, 2)]
    assert bright == [6, 7]
    assert truth.transitions == ()
    assert not truth.shots[0].still


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_pan_moves_every_place_by_its_speed(background: str) -> None:
    shot = Shot(background=background, camera="pan", speed_px=3.0, heading_deg=0.0, duration_s=1.0)
    painter = ShotPainter(shot, width=192, height=108, fps=24, seconds=1.0)
    first, later = painter.frame(0.0), painter.frame(5 / 24)
    assert difference(first[:, 15:], later[:, :-15]) <= 1
    assert difference(first, later) > 5
    texture = np.abs(cv2.Laplacian(first[:, :, 1], cv2.CV_32F))
    means = [texture[y : y + 18, x : x + 32].mean() for y in range(0, 90, 18) for x in range(0, 160, 32)]
    assert min(means) > 1.5, "somewhere there is nothing to follow"


@pytest.mark.parametrize(("speed_px", "heading_deg"), [(0.4, 0.0), (1.3, 90.0), (2.2, 225.0)])
def test_pan_speed_in_decoded_frames(speed_px: float, heading_deg: float, tmp_path: Path) -> None:
    shot = replace(FIELD, background="stony", camera="pan", speed_px=speed_px, heading_deg=heading_deg)
    truth = render(VideoSpec(name="v", shots=(shot,), width=256, height=256, crf=12), tmp_path)
    first, later = (decoded(tmp_path / truth.file)[i][:, :, 1].astype(np.float32) for i in (4, 14))
    window = cv2.createHanningWindow((256, 256), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(first, later, window)
    moved = -10 * speed_px * np.array([np.cos(np.deg2rad(heading_deg)), np.sin(np.deg2rad(heading_deg))])
    assert np.allclose((x, y), moved, atol=0.25)
    assert truth.shots[0].speed_px_per_frame == speed_px
    assert truth.shots[0].speed_percent_per_s == pytest.approx(speed_px * 24 / 256 * 100)


@pytest.mark.parametrize("speed_px", [0.8, -0.8])
def test_zoom_speed_is_the_mean_over_the_frame(speed_px: float) -> None:
    shot = Shot(background="stony", camera="zoom", speed_px=speed_px)
    painter = ShotPainter(shot, width=256, height=144, fps=24, seconds=2.0)
    one, other = (cv2.cvtColor(painter.frame(time_s), cv2.COLOR_BGR2GRAY) for time_s in (1.0, 1.0 + 2 / 24))
    flow = cv2.calcOpticalFlowFarneback(one, other, np.zeros((144, 256, 2), np.float32), 0.5, 3, 21, 3, 5, 1.1, 0)
    x = np.arange(256) - 127.5
    outward = float((flow[:, :, 0] * x).mean())
    assert float(np.linalg.norm(flow, axis=2).mean()) / 2 == pytest.approx(0.8, rel=0.08)
    assert np.sign(outward) == np.sign(speed_px)


def test_a_still_shot_does_not_change() -> None:
    frames = drawn(VideoSpec(name="v", shots=(replace(SEA, shape="heart", text="Hello"),), **SMALL))
    assert all(difference(frame, frames[0]) == 0 for frame in frames)


@pytest.mark.parametrize("motion", SHAPE_MOTIONS)
@pytest.mark.parametrize("text_place", ["top", "bottom", None])
def test_shapes_are_whole_and_move_as_the_caption_says(motion: str, text_place: str | None, tmp_path: Path) -> None:
    plain = replace(SEA, camera="pan", speed_px=1.0, text="Hello" if text_place else None, seed=5)
    plain = replace(plain, text_place=text_place or "bottom")
    shot = replace(plain, shape="circle", shape_color="yellow", shape_motion=motion)
    spec = VideoSpec(name="v", shots=(shot,), **SMALL)
    truth = render(spec, tmp_path).shots[0]
    centers = []
    for frame, without in zip(drawn(spec), drawn(replace(spec, shots=(plain,))), strict=True):
        yellow = np.abs(frame.astype(int) - SHAPE_COLORS["yellow"][::-1]).sum(axis=2) < 170
        shape = yellow & (np.abs(frame.astype(int) - without).sum(axis=2) > 60)
        left, top, width, height = cv2.boundingRect(shape.astype(np.uint8))
        assert min(left, top, 192 - left - width, 108 - top - height) >= 1
        assert width == pytest.approx(0.36 * 108, abs=4)
        assert height == pytest.approx(0.36 * 108, abs=4)
        for box in truth.text_boxes:
            assert top >= box[3] - 1 or top + height <= box[1] + 1
        centers.append((left + width / 2, top + height / 2))
    moved = (np.array(centers[-1]) - centers[0]) / (len(centers) - 1)
    direction = np.array(SHAPE_MOTIONS[motion][1])
    assert np.allclose(moved, direction * truth.shape_speed_px_per_frame, atol=0.2)
    assert (truth.shape_speed_px_per_frame > 2) == (motion != "still")
    assert truth.speed_percent_per_s is None
    assert truth.speed_px_per_frame == 1.0


def test_shapes_are_told_from_their_background_by_colour() -> None:
    allowed = {
        tone: [name for name in SHAPE_COLORS if contrast(name, tone) >= LEAST_CONTRAST] for tone in BACKGROUND_TONES
    }
    assert all(tone not in names for tone, names in allowed.items())
    assert all(len(names) >= 4 for names in allowed.values())
    assert set().union(*allowed.values()) == set(SHAPE_COLORS)


@pytest.mark.parametrize(("place", "text"), [("top", "Chapter two"), ("middle", "NEWS"), ("bottom", "Two\nlines")])
def test_text_boxes_are_tight_around_the_text(place: str, text: str, tmp_path: Path) -> None:
    shot = replace(FLOOR, text=text, text_place=place, text_size=0.15)
    spec = VideoSpec(name="v", shots=(shot, FLOOR), **SMALL)
    truth = render(spec, tmp_path)
    frames = decoded(tmp_path / truth.file)
    written, without_text = truth.shots
    white = (frames[3].min(axis=2) > 215) & (frames[-1].min(axis=2) < 200)
    assert len(written.text_boxes) == len(text.split("\n"))
    inside = np.zeros_like(white)
    for left, top, right, bottom in written.text_boxes:
        assert 0 <= left < right <= 192
        assert 0 <= top < bottom <= 108
        inside[top:bottom, left:right] = True
        ink = cv2.boundingRect(white[top:bottom, left:right].astype(np.uint8))
        assert ink[2] == pytest.approx(right - left, abs=3)
        assert ink[3] == pytest.approx(bottom - top, abs=3)
    assert white[inside].mean() > 0.1
    assert not white[~inside].any()
    assert written.text_area == pytest.approx(inside.mean())
    assert (without_text.text_area, without_text.text_boxes, without_text.text) == (0.0, (), "")


def one_of(words: Any) -> str:
    return f"({'|'.join(words)})"


def test_captions_keep_to_a_small_vocabulary() -> None:
    place = f"an? {one_of(BACKGROUND_TONES)} ({'|'.join(f'{k} {noun}' for k, (noun, _) in BACKGROUNDS.items())})"
    shape = f"an? {one_of(SHAPE_COLORS)} {one_of(SHAPES)} {one_of(w for w, _ in SHAPE_MOTIONS.values())} over {place}"
    view = f"(a still view of|the camera pans over|the camera zooms into|the camera zooms out of) {place}"
    captions = {
        (shot.shape is not None, shot.caption) for spec in corpus_specs(seed=4, videos=40) for shot in spec.shots
    }
    assert len(captions) > 80
    for has_shape, caption in captions:
        assert re.fullmatch(shape if has_shape else view, caption), caption
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
    red = Shot(shape="circle", shape_color="red", shape_motion="right", background="striped")
    assert red.caption == "a red circle moves to the right over a green striped field"


def test_keyframes_come_as_asked(tmp_path: Path) -> None:
    shots = (FIELD, SEA, FLOOR, replace(FIELD, background_color="red"))

    def keyframes(**settings: Any) -> list[int]:
        truth = render(VideoSpec(name="v", shots=shots, **SMALL, **settings), tmp_path)
        with av.open(str(tmp_path / truth.file)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
        assert [p.pts for p in packets] != sorted(p.pts for p in packets), "no B-frames"
        order = sorted(packet.pts for packet in packets)
        return [order.index(packet.pts) for packet in packets if packet.is_keyframe]

    assert keyframes(keyframe_s=10.0) == [0, 12, 24, 36]
    assert keyframes(keyframe_s=10.0, keyframes_at_cuts=False) == [0]
    assert keyframes(keyframe_s=1.5, keyframes_at_cuts=False) == [0, 18, 36]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Shot(background="plaid"), "unknown background 'plaid'"),
        (lambda: Shot(shape="circle", shape_color="green"), "hard to see on green"),
        (lambda: Shot(camera="pan"), "does not go with speed_px 0"),
        (lambda: Shot(flash_at_s=1.0, flash_frames=9), "flash_frames 1 or 2"),
        (lambda: Cut(kind="iris"), "unknown cut 'iris'"),
        (lambda: Cut(kind="dissolve"), "cannot last 0.0 s"),
        (lambda: VideoSpec(name="v", shots=()), "at least one shot"),
        (lambda: VideoSpec(name="v", shots=(SEA,), cuts=(Cut(),)), "one cut fewer than shots"),
        (lambda: VideoSpec(name="v", shots=(SEA,), ending=Cut()), "cannot open or end"),
        (lambda: VideoSpec(name="v", shots=(SEA,), width=321), "must be even"),
        (lambda: VideoSpec(name="v", shots=(SEA,), sample_aspect_ratio=Fraction(7, 5)), "whole, even pixels"),
        (lambda: VideoSpec(name="v", shots=(SEA,), codec="h263"), "unknown codec 'h263'"),
        (
            lambda: VideoSpec(name="v", shots=(SEA,), codec="mpeg4", pixel_format="yuv420p10le"),
            "does not support pixel format",
        ),
        (lambda: VideoSpec(name="v", shots=(SEA,), codec="vp9", rotation=90), "cannot store a rotation"),
        (lambda: drawn(VideoSpec(name="v", shots=(replace(SEA, flash_at_s=5.0),))), "not well within"),
        (lambda: drawn(VideoSpec(name="v", shots=(replace(SEA, camera="zoom", speed_px=9.0),))), "at most 4"),
    ],
)
def test_what_cannot_be_rendered_says_why(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong()


def test_a_corpus_has_everything_in_it() -> None:
    specs = corpus_specs(seed=0, videos=24)
    cuts = [cut for spec in specs for cut in spec.cuts]
    shots = [shot for spec in specs for shot in spec.shots]
    assert {cut.kind for cut in cuts} == set(CUTS)
    assert all(0.4 <= cut.duration_s <= 1.5 for cut in cuts if cut.kind != "hard")
    assert {spec.codec for spec in specs} == {"h264", "hevc", "av1", "vp9", "mpeg4"}
    assert {float(spec.fps) for spec in specs} >= {12, 24, 25, 30, 60, 30000 / 1001}
    assert any(spec.variable_fps for spec in specs)
    assert any(shot.duration_s > 20 for shot in shots)
    assert any(shot.duration_s < 2 for shot in shots)
    for quality in ("text", "flash_at_s", "shape"):
        has = sum(getattr(shot, quality) is not None for shot in shots)
        assert 0 < has < len(shots), quality
    for spec in specs:
        for one, other in pairwise(spec.shots):
            assert one.background_color != other.background_color
    assert corpus_specs(seed=0, videos=5) == specs[:5]
    for short_side_px in (72, 90, 120, 240, 360, 480):
        sizes = {(s.width, s.height) for s in corpus_specs(seed=0, videos=24, short_side_px=short_side_px)}
        assert {min(size) for size in sizes} == {short_side_px}
        assert len(sizes) == 3
    assert corpus_specs(seed=1, videos=5) != specs[:5]
    assert len({spec.name for spec in specs}) == 24


@pytest.mark.slow
def test_a_corpus_is_written_with_its_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truths = corpus(tmp_path / "a", videos=2, seed=7, short_side_px=90)
    assert [truth.height for truth in truths] == [90, 90]
    main([str(tmp_path / "b"), "--videos", "2", "--seed", "7", "--short-side-px", "90"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {name for t in truths for name in (t.file, f"{Path(t.file).stem}.truth.json")}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
