"""Rendered footage: videos with known shots, transitions, motion, text and captions.

`render` writes a video and its NAME.truth.json; `corpus` renders several varied ones. As a module:

    python -m footage.render OUT [--videos N] [--seed S]
"""

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from clipmill.video_writer import write_video
from footage.corpus import corpus_specs
from footage.shots import Shot
from footage.timeline import Cut, Span, Timeline, VideoSpec, flashes, plan, timestamps
from footage.truth import FlashTruth, ShotTruth, TransitionTruth, Truth

__all__ = [
    "Cut",
    "FlashTruth",
    "Shot",
    "ShotTruth",
    "TransitionTruth",
    "Truth",
    "VideoSpec",
    "corpus",
    "corpus_specs",
    "render",
]


def render(spec: VideoSpec, folder: Path) -> Truth:
    """Write `folder`/NAME.mp4 (or .webm, ...) and NAME.truth.json. The same spec gives the same bytes.

    Raises ValueError for a spec that cannot be drawn (see `Shot` and `ShotPainter`).
    """
    spans = plan(spec)
    time_base, pts = timestamps(spec, spans[-1].end)
    times_s = [float((stamp - pts[0]) * time_base) for stamp in pts]
    timeline = Timeline(spec, spans, times_s)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{spec.name}.{spec.suffix}"
    write_video(
        path,
        timeline.pictures(),
        pts,
        time_base=time_base,
        fps=spec.fps,
        width=spec.width,
        height=spec.height,
        encoding=spec,
    )
    truth = _truth(spec, path, spans, timeline, times_s)
    truth.save(path.with_name(f"{spec.name}.truth.json"))
    return truth


def corpus(folder: Path, *, seed: int = 0, videos: int = 12, short_side_px: int = 180) -> list[Truth]:
    """Render a varied corpus into `folder`: the same files for the same arguments."""
    specs = corpus_specs(seed=seed, videos=videos, short_side_px=short_side_px)
    return [render(spec, folder) for spec in specs]


def _truth(spec: VideoSpec, path: Path, spans: list[Span], timeline: Timeline, times_s: list[float]) -> Truth:
    time_base, pts = _stored_pts(path, times_s)
    last_step = int(np.median(np.diff(pts))) if len(pts) > 1 else round(1 / (spec.fps * time_base))
    pts.append(pts[-1] + last_step)
    seconds = [float(stamp * time_base) for stamp in pts]
    transitions = tuple(
        TransitionTruth(
            kind="dissolve" if span.cut.kind == "wipe" else span.cut.kind,
            effect=span.cut.kind,
            start_frame=span.start,
            end_frame=span.end,
            start_pts=pts[span.start],
            end_pts=pts[span.end],
            start_s=seconds[span.start],
            end_s=seconds[span.end],
        )
        for span in spans
        if span.cut is not None
    )
    return Truth(
        file=path.name,
        frames=len(pts) - 1,
        fps=float(spec.fps),
        variable_fps=spec.variable_fps,
        width=spec.width,
        height=spec.height,
        codec=spec.codec,
        pixel_format=spec.pixel_format,
        rotation=spec.rotation,
        sample_aspect_ratio=str(spec.sample_aspect_ratio),
        time_base=str(time_base),
        start_s=seconds[0],
        duration_s=float((pts[-1] - pts[0]) * time_base),
        transitions=transitions,
        shots=tuple(_shot_truth(spec, span, timeline, seconds) for span in spans if span.cut is None),
        flashes=tuple(flashes(spec, spans)),
    )


def _stored_pts(path: Path, times_s: list[float]) -> tuple[Fraction, list[int]]:
    """Time base and pts as stored by the container (Matroska rounds to milliseconds)."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        time_base = stream.time_base
        pts = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    assert time_base is not None
    assert len(pts) == len(times_s), (path, len(pts), len(times_s))
    worst_s = max(abs(float((p - pts[0]) * time_base) - t) for p, t in zip(pts, times_s, strict=True))
    assert worst_s <= 0.0011, (path, worst_s)
    return time_base, pts


def _shot_truth(spec: VideoSpec, span: Span, timeline: Timeline, seconds: list[float]) -> ShotTruth:
    assert span.before is not None
    shot, painter = spec.shots[span.before], timeline.painters[span.before]
    percent_per_s = abs(shot.speed_px) * float(spec.fps) / min(spec.width, spec.height) * 100
    return ShotTruth(
        start_frame=span.start,
        end_frame=span.end,
        start_s=seconds[span.start],
        end_s=seconds[span.end],
        caption=shot.caption,
        camera=shot.camera,
        speed_px_per_frame=abs(shot.speed_px),
        shape_speed_px_per_frame=painter.shape_speed_px_per_frame,
        speed_percent_per_s=percent_per_s if shot.shape is None or shot.still else None,
        still=shot.still,
        text=shot.text or "",
        text_area=painter.text_area,
        text_boxes=painter.lettering.boxes if painter.lettering else (),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Render a corpus into a folder and print its contents."""
    parser = argparse.ArgumentParser(description="Render a corpus of videos with known truth.")
    parser.add_argument("out", type=Path, help="output folder")
    parser.add_argument("--videos", type=int, default=12, help="number of videos (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: 0)")
    parser.add_argument(
        "--short-side-px", type=int, default=180, help="shorter side of the videos in pixels (default: 180)"
    )
    arguments = parser.parse_args(argv)
    for spec in corpus_specs(seed=arguments.seed, videos=arguments.videos, short_side_px=arguments.short_side_px):
        truth = render(spec, arguments.out)
        print(
            f"{truth.file:28} {truth.width}x{truth.height} {truth.duration_s:5.1f} s  {len(truth.shots)} shots: "
            + "; ".join(shot.caption for shot in truth.shots)
        )


if __name__ == "__main__":
    main()
