"""Identify files by their first bytes: video containers, raw streams, still images."""

import re
from typing import Literal

HEAD_BYTES = 4096
"""How much of a file to inspect."""
Content = Literal["video", "raw", "still", "animated_webp"]

_STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")
_SEQUENCE_BRANDS = re.compile(rb"(avis|msf1|hevc|hevx|isom|mp4[12])")
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp", b"moof")
_CONTAINERS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x06\x0e\x2b\x34\x02\x05\x01",  # MXF
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"DKIF",  # IVF
    b"YUV4MPEG2 ",
    b"GIF87a",
    b"GIF89a",
    b"\x1f\x07\x00",  # DV
    b".RMF",
    b"nut/multimedia container",
)
_SEGMENT_BOXES = (b"styp", b"sidx", b"moof", b"emsg", b"prft")
_SYNC = 0x47
"""First byte of every packet of an MPEG transport stream."""
_STILLS = (b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*", b"\x00\x00\x00\x0cJXL ", b"\xff\x0a", b"8BPS", b"qoif")
_RAW = re.compile(
    rb"\x00{1,3}\x01(?:"
    rb"(?P<h264>[\x67\x27\x47\x09]|\x06[\x00\x01\x05\x06])|"  # sequence parameters, delimiter, x264's note on itself
    rb"(?P<hevc>[\x40\x42\x44\x46]\x01)|"  # parameters, delimiter
    rb"(?P<vvc>\x00[\x71\x79\xa1])|"  # parameters, delimiter
    rb"(?P<mpegvideo>\xb3)|"  # MPEG-1 and -2: sequence header
    rb"(?P<m4v>\xb0.\x00\x00\x01\xb5|\x00\x00\x00\x01\x20)"  # MPEG-4: visual object
    rb")|(?P<obu>\x12\x00\x0a)",  # AV1: temporal delimiter, sequence header
    re.DOTALL,
)
RAW_FORMATS = ("h264", "hevc", "vvc", "mpegvideo", "m4v", "obu")
"""FFmpeg's demuxers of raw streams. They accept other files, too: use them only for files that begin like a stream."""

_NOT_VIDEOS = (
    ((b"<!doctype html", b"<html"), "a web page: expected the address of a video file, not of a page that shows it"),
    ((b"version https://git-lfs", b"version https://hawser"), "a pointer of Git LFS: run `git lfs pull`"),
    (b"/annex/objects/", "a pointer of git-annex: run `git annex get`"),
    ((b'<?xml version="1.0" encoding="utf-8"?><error', b'<?xml version="1.0" encoding="utf-8"?>\n<error', b"<error>"),
     "an error message of a store, saved as a file: download it again"),
    ((b'{"error', b'{"message', b'{"detail'), "an error message of a server, saved as a file: download it again"),
    ((b"pk\3\4", b"pk\5\6"), "a zip archive: name it .zip, or unpack it"),
    ((b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!"), "a compressed file: decompress it"),
    (b"%pdf", "a PDF"),
)  # fmt: skip


def content_of(head: bytes) -> Content | None:
    """The kind of content of a file that begins with `head`; None if unknown, such as audio."""
    if head.startswith(_STILLS) or head.startswith(b"\x89PNG") or head[8:12] in (b"WEBP", *_STILL_BRANDS):
        return _picture(head)
    if head.startswith(_CONTAINERS) or head[4:8] in _BOXES or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "video"
    if any(len(head) > at and head[first] == head[at] == _SYNC for first, at in ((0, 188), (4, 196))):
        return "video"
    return "raw" if _RAW.match(head) else None


def raw_format(head: bytes) -> str | None:
    """FFmpeg's name for the raw stream that begins with `head`; None if it is not a raw stream."""
    match = _RAW.match(head)
    return match.lastgroup if match else None


def described(head: bytes) -> str | None:
    """What a file is that was mistaken for a video, and what to do about it; None if unknown."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((description for magic, description in _NOT_VIDEOS if text.startswith(magic)), None)


def is_segment(head: bytes) -> bool:
    """Whether this begins like a media segment of a stream (DASH, HLS) without the header it needs."""
    return head[4:8] in _SEGMENT_BOXES and b"moov" not in head


def _picture(head: bytes) -> Content:
    """Whether an image is still or animated."""
    moving = False
    if head.startswith(b"\x89PNG"):
        moving = b"acTL" in head.partition(b"IDAT")[0]  # the animation control chunk precedes the image data
    elif head[4:8] == b"ftyp":
        moving = bool(_SEQUENCE_BRANDS.search(head[8 : int.from_bytes(head[:4])]))
    elif head[8:16] == b"WEBPVP8X" and len(head) > 20 and head[20] & 2:
        return "animated_webp"
    return "video" if moving else "still"
