"""A caption of a clip, and the part of a video that it describes."""

import unicodedata
from dataclasses import dataclass
from typing import Literal

CaptionError = Literal["failed", "nothing_to_merge"]
"""`nothing_to_merge`: there were no two captions to merge; retrying does not help."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption of a clip. A failed caption has no text but an error."""

    source: str
    """Origin: list, sidecar, title, metadata, or the captioner's name (coca, video, merged)."""
    text: str | None = None
    error_kind: CaptionError | None = None
    error: str | None = None

    @classmethod
    def failed(cls, source: str, error: str, kind: CaptionError = "failed") -> "Caption":
        """A failed caption with its reason."""
        return cls(source=source, error_kind=kind, error=error)


@dataclass(frozen=True, kw_only=True)
class TimedCaption:
    """A caption and the part of the video that it describes; the whole video if both bounds are None.

    Times are seconds from the first frame of the video, as in a player. A missing start means the beginning, a missing
    end the end.
    """

    caption: Caption
    start_s: float | None = None
    end_s: float | None = None


def clean(text: str) -> str | None:
    """`text` on one line, without control characters and lone surrogates; None if nothing visible is left.

    Characters that join emoji or set the text direction are preserved.
    """
    characters = (c for c in text.removeprefix("\ufeff") if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
    line = " ".join("".join(characters).split())
    return line if any(unicodedata.category(c) not in ("Cf", "Zs") for c in line) else None
