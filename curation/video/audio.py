"""Which of a container's audio streams goes with the footage, and what it is."""

from dataclasses import dataclass
from typing import Any

from av.stream import Disposition

_BESIDE_THE_SOUND = (
    Disposition.comment
    | Disposition.descriptions
    | Disposition.visual_impaired
    | Disposition.hearing_impaired
    | Disposition.dependent
    | Disposition.karaoke
)


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """An audio stream. Values that the header does not state are None."""

    codec: str | None
    channels: int | None
    rate_hz: int | None


def audio_stream(container: Any) -> Any | None:
    """The audio stream to use; None if there is none. One that can be decoded rather than others, then no commentary
    or description, then the container's default, then the first."""

    def preference(stream: Any) -> tuple[bool, bool, bool]:
        return (
            stream.codec_context is not None,
            not stream.disposition & _BESIDE_THE_SOUND,
            bool(stream.disposition & Disposition.default),
        )

    return max(container.streams.audio, key=preference, default=None)


def describe_audio(container: Any) -> AudioInfo | None:
    """What the audio stream to use is; None if there is none."""
    stream = audio_stream(container)
    if stream is None:
        return None
    context = stream.codec_context
    if context is None:
        return AudioInfo(codec=None, channels=None, rate_hz=None)
    return AudioInfo(
        codec=context.codec.canonical_name, channels=context.channels or None, rate_hz=context.sample_rate or None
    )
