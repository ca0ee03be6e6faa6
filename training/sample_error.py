"""Why a sample cannot be used."""

from clipmill.video import MAX_PIXELS


class SampleError(Exception):
    """Why a sample is unusable: `kind` from a small set, for counting, and a message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        return type(self), (self.kind, self.message)


def check_pixels(height: int, width: int, most: int = MAX_PIXELS) -> None:
    """Raise SampleError (too_large) for more than `most` pixels."""
    if height * width > most:
        raise SampleError("too_large", f"{width} x {height} pixels, more than {most:,}")
