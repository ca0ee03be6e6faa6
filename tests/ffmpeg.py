"""FFmpeg's own program, from the wheel imageio-ffmpeg: it writes inputs that PyAV cannot, and says how they look."""

import subprocess
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np


def ffmpeg(*arguments: str | Path) -> None:
    """Run it. Raises CalledProcessError, with what it said."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", "-threads", "1"]
    subprocess.run([*command, *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def first_picture(video: Path, *, sideways: bool = False) -> np.ndarray:
    """The first frame as FFmpeg shows it, with square pixels, (height, width, 3) uint8 BGR.

    As in this project, pixels that are not square change the stored width: if it is turned `sideways`, the height.
    """
    png = video.with_name(f"{video.name}.png")
    scale = "iw:trunc(ih/sar+0.5)" if sideways else "trunc(iw*sar+0.5):ih"
    ffmpeg("-i", video, "-frames:v", "1", "-vf", f"scale={scale},setsar=1", png)
    picture = cv2.imread(str(png))
    assert picture is not None
    return picture
