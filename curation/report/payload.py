"""Payload of the page: a JSON header and typed arrays, gzipped together and encoded as base64.

Layout: length of the header (4 bytes, little-endian), header, arrays, each aligned to 8 bytes.
"""

import base64
import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class Report:
    """Embedded data of a page, and how much of the dataset it covers."""

    data: str
    pictures: str
    title: str
    clips: int
    shown: int
    with_pictures: int


class Payload:
    """Collects arrays; `encoded` returns the text to embed."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._length = 0

    def numbers(self, values_N: NDArray[Any]) -> dict[str, Any]:
        """Add an array and return its reference for the header. NaN stands for a missing value."""
        kind = {"f4": "f32", "f8": "f64", "i4": "i32", "i2": "i16"}[values_N.dtype.str[1:]]
        content = np.ascontiguousarray(values_N).astype(values_N.dtype.newbyteorder("<")).tobytes()
        described = {"type": kind, "offset": self._length, "length": len(values_N)}
        padding = -len(content) % _ALIGNMENT
        self._chunks.append(content + b"\0" * padding)
        self._length += len(content) + padding
        return described

    def texts(self, values: Sequence[str | None]) -> dict[str, Any]:
        """Add texts, each distinct text once; code -1 stands for a missing text."""
        codes: dict[str, int] = {}
        coded = [-1 if value is None else codes.setdefault(value, len(codes)) for value in values]
        return {"texts": list(codes), "codes": self.numbers(np.array(coded, np.int32))}

    def values(self, values: Sequence[Any]) -> dict[str, Any]:
        """Add JSON values, each distinct value once."""
        codes: dict[str, int] = {}
        distinct: list[Any] = []
        coded = np.empty(len(values), np.int32)
        for i, value in enumerate(values):
            key = json.dumps(value)
            if key not in codes:
                codes[key] = len(distinct)
                distinct.append(value)
            coded[i] = codes[key]
        return {"values": distinct, "codes": self.numbers(coded)}

    def encoded(self, header: Mapping[str, Any]) -> str:
        """The payload as base64, whose characters have no meaning in HTML."""
        text = json.dumps(header, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-(len(text) + 4) % _ALIGNMENT)
        content = struct.pack("<I", len(text)) + text + b"".join(self._chunks)
        return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
