"""What the tags of a frame say about its colours, in FFmpeg's names."""

from dataclasses import dataclass
from types import MappingProxyType

import av

from clipmill.errors import SourceError
from clipmill.hdr import is_hdr
from clipmill.video import convertible_matrix

_TRANSFERS = MappingProxyType(
    {
        1: "bt709",
        4: "gamma22",
        5: "gamma28",
        6: "smpte170m",
        7: "smpte240m",
        8: "linear",
        9: "log",
        10: "log_sqrt",
        11: "iec61966-2-4",
        12: "bt1361",
        13: "iec61966-2-1",
        14: "bt2020-10",
        15: "bt2020-12",
        16: "smpte2084",
        17: "smpte428",
        18: "arib-std-b67",
    }
)
"""FFmpeg's names by AVColorTransferCharacteristic; where the stream is silent, there is none."""
_PRIMARIES = MappingProxyType(
    {
        1: "bt709",
        4: "bt470m",
        5: "bt470bg",
        6: "smpte170m",
        7: "smpte240m",
        8: "film",
        9: "bt2020",
        10: "smpte428",
        11: "smpte431",
        12: "smpte432",
        22: "jedec-p22",
    }
)
"""By AVColorPrimaries."""
MATRICES = MappingProxyType(
    {
        0: "gbr",
        1: "bt709",
        4: "fcc",
        5: "bt470bg",
        6: "smpte170m",
        7: "smpte240m",
        8: "ycgco",
        9: "bt2020nc",
        10: "bt2020c",
        11: "smpte2085",
        12: "chroma-derived-nc",
        13: "chroma-derived-c",
        14: "ictcp",
        15: "ipt-c2",
        16: "ycgco-re",
        17: "ycgco-ro",
    }
)
"""By AVColorSpace."""
_RANGES = MappingProxyType({1: "tv", 2: "pc"})
"""By AVColorRange."""


@dataclass(frozen=True, kw_only=True)
class ColorTags:
    """Colour of a video as tagged. None where the stream is silent."""

    transfer: str | None = None
    primaries: str | None = None
    matrix: str | None = None
    range: str | None = None
    """tv (limited) or pc (full)."""
    hdr: bool = False
    """Whether the transfer is PQ or HLG."""
    bit_depth: int | None = None
    """Bits per component."""

    @classmethod
    def of(cls, frame: av.VideoFrame, matrix: int) -> "ColorTags":
        """matrix: AVColorSpace of the stream, as `settle_matrix` may have changed that of the frame."""
        full = frame.format.name.startswith("yuvj")
        return cls(
            transfer=_TRANSFERS.get(int(frame.color_trc)),
            primaries=_PRIMARIES.get(int(frame.color_primaries)),
            matrix=MATRICES.get(matrix) or MATRICES.get(int(frame.colorspace)),
            range="pc" if full else _RANGES.get(int(frame.color_range)),
            hdr=is_hdr(frame),
            bit_depth=frame.format.components[0].bits,
        )


def settle_matrix(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame with a matrix that swscale converts. Raises SourceError (decode_error) where there is none."""
    matrix = convertible_matrix(frame)
    if matrix is None:
        name = MATRICES[int(frame.colorspace)]
        raise SourceError("decode_error", f"colours of the matrix {name} cannot be converted: encode it as BT.709")
    if matrix != int(frame.colorspace):
        frame.colorspace = matrix
    return frame
