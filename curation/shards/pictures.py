"""Pictures of a clip for image models: its middle frame, or several frames, upright and in full size, as JPEG."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Literal

import cv2

from clipmill.cropping import Cropper
from clipmill.errors import SourceError
from curation.shards.clip_row import ClipRow, ExtractedClip, clip_bars, clip_frames
from curation.video.resize import FrameResizer

if TYPE_CHECKING:
    from curation.video.decode import Video
    from curation.video.timed import Frame

_SHARPNESS_SIDE_PX = 320
"""Longer side of the images whose sharpness is compared: that of noise and of compression is not counted."""


FrameChoice = Literal["even", "sharpest"]


@dataclass(frozen=True, kw_only=True)
class PictureChoice:
    """Which pictures of a clip, and how they are compressed: see `ExtractionConfig`."""

    per_clip: int
    choice: FrameChoice
    jpeg_quality: int


def clip_pictures(video: "Video", clip: ClipRow, wanted: PictureChoice) -> ExtractedClip:
    """The pictures of a clip. A single one without a choice is the middle frame that the scorers saw.

    Raises SourceError if a frame cannot be decoded, or if the file differs from the scan.
    """
    try:
        return _pictures(video, clip, wanted)
    except SourceError:
        if clip["resume"] is None:
            raise
        return _pictures(video, {**clip, "resume": None}, wanted)


def _pictures(video: "Video", clip: ClipRow, wanted: PictureChoice) -> ExtractedClip:
    if wanted.choice == "sharpest":
        chosen = _sharpest(video, clip, wanted.per_clip)
    elif wanted.per_clip == 1:
        chosen = _middle(video, clip)
    else:
        chosen = _shown_at(video, clip, wanted.per_clip)
    contents, shapes = [], []
    for frame in chosen:
        content, shape = _jpeg(frame, clip, wanted)
        contents.append(content)
        shapes.append(shape)
    assert shapes, "a clip has frames, or its failure was raised"
    shapes = [{**shape, "picture": i, "pictures": len(shapes)} for i, shape in enumerate(shapes)]
    return ExtractedClip(
        content=b"".join(contents), suffix="jpg", shape=shapes[0], pictures=shapes if wanted.per_clip > 1 else []
    )


def _jpeg(frame: "Frame", clip: ClipRow, wanted: PictureChoice) -> tuple[bytes, dict[str, Any]]:
    shown = Cropper(clip_bars(clip, frame.info))(frame.av_frame)
    long_side_px = max(clip["width"], clip["height"])
    bgr = FrameResizer(frame.info.bright_nits).upright_bgr(shown, frame.info, long_side_px=long_side_px)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, wanted.jpeg_quality])
    content = jpeg.tobytes()
    shape = {"codec": "jpeg", "width": bgr.shape[1], "height": bgr.shape[0], "pts": frame.pts}
    return content, shape | ({"bytes": len(content)} if wanted.per_clip > 1 else {})


def _middle(video: "Video", clip: ClipRow) -> "Iterator[Frame]":
    if not clip["thumbnail_pts"]:
        raise SourceError("decode_error", "the scan kept no thumbnail for this clip")
    pts = clip["thumbnail_pts"][1]
    frame = next((frame for frame in clip_frames(video, clip, pts, pts + 1) if frame.pts >= pts), None)
    if frame is None or frame.pts != pts:
        raise SourceError(
            "decode_error", f"no frame with timestamp {pts} could be decoded: the file differs from the scan"
        )
    yield frame


def _frames(video: "Video", clip: ClipRow) -> "Iterator[Frame]":
    """All frames of the clip."""
    frames, count = clip_frames(video, clip, clip["start_pts"], clip["end_pts"]), 0
    for frame in frames:
        if frame.pts < clip["start_pts"]:
            continue
        if frame.pts >= clip["end_pts"]:
            break
        if count == 0 and frame.pts != clip["start_pts"]:
            raise SourceError(
                "decode_error", f"no frame with timestamp {clip['start_pts']}: the file differs from the scan"
            )
        count += 1
        yield frame
    if count != clip["frames"]:
        raise SourceError(
            "decode_error", f"{count} frames decoded, expected {clip['frames']}: the file differs from the scan"
        )


def _shown_at(video: "Video", clip: ClipRow, count: int) -> "Iterator[Frame]":
    """The frames shown in the middle of `count` equal parts; a frame that is shown in several of them once."""
    length = clip["end_pts"] - clip["start_pts"]
    moments = [clip["start_pts"] + Fraction((2 * i + 1) * length, 2 * count) for i in range(count)]
    for frame, following in pairwise(chain(_frames(video, clip), [None])):
        assert frame is not None
        until_pts = following.pts if following is not None else clip["end_pts"]
        if any(frame.pts <= moment < until_pts for moment in moments):
            yield frame


def _sharpest(video: "Video", clip: ClipRow, count: int) -> "Iterator[Frame]":
    """The sharpest frame of each of `count` equal parts that has frames, by the variance of the Laplacian."""
    length, part = clip["end_pts"] - clip["start_pts"], 0
    best: tuple[float, Frame] | None = None
    resizer: FrameResizer | None = None
    for frame in _frames(video, clip):
        resizer = resizer or FrameResizer(frame.info.bright_nits)
        frame_part = (frame.pts - clip["start_pts"]) * count // length
        if frame_part != part and best is not None:
            yield best[1]
            best = None
        part = frame_part
        shown = Cropper(clip_bars(clip, frame.info))(frame.av_frame)
        small = resizer.upright_bgr(shown, frame.info, long_side_px=_SHARPNESS_SIDE_PX)
        gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        sharpness = float(cv2.Laplacian(gray, cv2.CV_32F).var())
        if best is None or sharpness > best[0]:
            best = sharpness, frame
    if best is not None:
        yield best[1]
