"""Every pixel format comes out as FFmpeg shows it, and what training could not read is not remuxed."""

from pathlib import Path

import pytest

from tests.ffmpeg import first_picture
from tests.pipelines.test_displayed import check_everywhere, extracted, scanned, still_video

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "12", "-pix_fmt")
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-crf", "12", "-x265-params", "log-level=none", "-pix_fmt")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-crf", "8", "-b:v", "0", "-pix_fmt")
AV1 = ("-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-crf", "12", "-pix_fmt")
PALETTE = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=dither=none:new=1"
REMUXED = {
    "8-bit gray": ("a.mp4", (*X264, "gray")),
    "10-bit gray": ("a.mp4", (*X264, "gray10le")),
    "4:4:4": ("a.mp4", (*X264, "yuv444p")),
    "4:2:2, 10 bits": ("a.mp4", (*X264, "yuv422p10le")),
    "RGB in H.264": ("a.mp4", ("-c:v", "libx264rgb", "-crf", "12", "-pix_fmt", "rgb24")),
    "4:4:4, 12 bits": ("a.mp4", (*X265, "yuv444p12le")),
    "4:2:0, 12 bits": ("a.mp4", (*X265, "yuv420p12le")),
    "12-bit gray": ("a.mkv", (*X265, "gray12le")),
    "4:2:2 in VP9, 12 bits": ("a.webm", (*VP9, "yuv422p12le")),
    "RGB in VP9": ("a.webm", (*VP9, "gbrp")),
    "4:4:4 in AV1": ("a.mp4", (*AV1, "yuv444p")),
    "gray in AV1": ("a.mkv", (*AV1, "gray")),
}
TRANSCODED = {
    "4:4:0": ("a.webm", (*VP9, "yuv440p")),
    "VVC": ("a.mp4", ("-c:v", "libvvenc", "-preset", "faster", "-qp", "20", "-pix_fmt", "yuv420p10le")),
    "ProRes 4444": ("a.mov", ("-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le")),
    "palette": ("a.avi", ("-vf", PALETTE, "-c:v", "rawvideo", "-pix_fmt", "pal8")),
    "packed 4:2:2": ("a.mov", ("-c:v", "rawvideo", "-pix_fmt", "uyvy422")),
    "16-bit gray": ("a.mkv", ("-c:v", "ffv1", "-pix_fmt", "gray16le")),
    "RGB in FFV1": ("a.mkv", ("-c:v", "ffv1", "-pix_fmt", "bgr0")),
    "JPEG": ("a.avi", ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj422p")),
}


@pytest.mark.parametrize("name", [*REMUXED, *TRANSCODED])
def test_every_pixel_format_is_shown_as_ffmpeg_does(tmp_path: Path, name: str) -> None:
    file, encoder = (REMUXED | TRANSCODED)[name]
    path = still_video(tmp_path / file, 192, 128, *encoder)
    check_everywhere(path, first_picture(path), remux=name in REMUXED)
    assert {clip["extraction"] for clip in scanned(path).clips} == {"remux" if name in REMUXED else "transcode"}
    assert bool(scanned(path, "remux").clips) == (name in REMUXED)


@pytest.mark.parametrize("size", [(96, 1), (1, 64), (3, 3), (97, 65)])
def test_the_smallest_and_odd_sizes_become_clips(tmp_path: Path, size: tuple[int, int]) -> None:
    """What 4:2:0 has no size for is doubled, or loses its last row or column."""
    path = still_video(tmp_path / "a.mov", *size, "-c:v", "png", "-pix_fmt", "rgb24")
    found = scanned(path)
    assert (found.source["width"], found.source["height"]) == size
    (clip,) = found.clips
    assert (clip["width"], clip["height"]) == size
    shape = extracted(path, "transcode").shape
    assert (shape["width"], shape["height"]) == (max(2, size[0] // 2 * 2), max(2, size[1] // 2 * 2))
