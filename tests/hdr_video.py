"""HDR videos whose every pixel's light is known: the standards' encoding side, written down independently of ours."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

TRANSFERS = {"smpte2084": 16, "arib-std-b67": 18}
MATRICES = {"bt2020nc": 9, "bt2020c": 10, "chroma-derived-nc": 12, "chroma-derived-c": 13, "ictcp": 14}
BT709_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""ITU-R BT.2087, equation 2."""


def signal_of(nits: NDArray[Any], transfer: str) -> NDArray[Any]:
    """The nonlinear signal that a reference display shows with this light: ST 2084's inverse EOTF, or HLG for 1000 nits
    with the OOTF's gamma on each channel."""
    if transfer == "smpte2084":
        root = (np.asarray(nits) / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375
    scene = (np.asarray(nits) / 1000) ** (1 / 1.2)
    with np.errstate(invalid="ignore", divide="ignore"):
        bright = 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def graphics_signal(bgr: NDArray[np.uint8], transfer: str, white_nits: float = 100.0) -> NDArray[Any]:
    """RGB signal (H, W, 3) of an SDR picture on a BT.1886 display with this white, in BT.2020."""
    nits = white_nits * (bgr[..., ::-1] / 255.0) ** 2.4 @ BT709_TO_BT2020.T
    return signal_of(nits, transfer)


def hdr_frame(signal_HWC: NDArray[Any], transfer: str) -> av.VideoFrame:
    """A yuv420p10le frame of nonlinear RGB from 0 to 1, BT.2020, limited range, tagged."""
    codes = np.round(np.clip(signal_HWC, 0, 1) * 65535).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(codes), "gbrp16le")
    frame = frame.reformat(format="yuv420p10le", src_color_range=2, dst_color_range=1, dst_colorspace=9, threads=1)
    frame.colorspace, frame.color_range, frame.color_primaries = 9, 1, 9
    frame.color_trc = TRANSFERS[transfer]
    return frame


def write_hdr(
    path: Path, signals: Iterable[NDArray[Any]], transfer: str, *, fps: int = 24, matrix: str = "bt2020nc"
) -> Path:
    """HEVC Main 10 with a keyframe each second."""
    params = f"log-level=none:pools=none:frame-threads=1:keyint={fps}:scenecut=0:colorprim=bt2020:colormatrix={matrix}"
    options = {"preset": "ultrafast", "crf": "8", "x265-params": f"{params}:transfer={transfer}:range=limited"}
    with av.open(str(path), "w") as container:
        stream = None
        for i, signal in enumerate(signals):
            frame = hdr_frame(signal, transfer)
            if stream is None:
                stream = container.add_stream("libx265", rate=fps, options=options)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p10le"
                context = stream.codec_context
                context.thread_count, context.codec_tag = 1, "hvc1"
                context.colorspace, context.color_primaries, context.color_range = MATRICES[matrix], 9, 1
                context.color_trc = TRANSFERS[transfer]
            frame.pts = i
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode(None))
    return path
