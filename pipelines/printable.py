"""Whatever is printed passes through here: names, captions and messages come from files, and may hold any character.

Control characters could move the cursor, rename the window or forge lines of a log.
"""

import logging


def printable(text: str) -> str:
    """Text from a file name or a file, with control characters and broken encodings made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text).encode(
        "utf-8", "backslashreplace"
    ).decode()  # fmt: skip


class PrintableFormatter(logging.Formatter):
    """One line per record, of libraries too; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{record.levelname}: {printable(record.getMessage())}"]
        if record.exc_info:
            lines += map(printable, self.formatException(record.exc_info).splitlines())
        return "\n".join(lines)


def log_to_stderr() -> None:
    """Print warnings of any logger, and Python's own, on stderr. Does nothing where logging is set up already."""
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter())
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.captureWarnings(True)
