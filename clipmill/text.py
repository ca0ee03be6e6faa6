"""Text from file systems: names that are not UTF-8 hold lone surrogates, as `os.fsdecode` gives them."""


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode a text: not if it holds a surrogate, which is half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def with_bytes_escaped(text: str) -> str:
    """A text with the bytes that are not UTF-8 written as `\\xff`."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
