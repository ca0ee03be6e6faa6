"""Escape text before printing: names, captions and messages come from files and may contain any character.

Raw control characters could move the cursor, rename the window or forge log lines. Addresses may contain credentials,
which must not reach a log.
"""

import logging

from clipmill.addresses import redacted


def printable(text: str) -> str:
    """`text` with control characters and invalid encodings escaped, and without credentials in its addresses."""
    text = redacted(text) if "://" in text else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text).encode(
        "utf-8", "backslashreplace"
    ).decode()  # fmt: skip


class PrintableFormatter(logging.Formatter):
    """One escaped line per record; tracebacks keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{record.levelname}: {printable(record.getMessage())}"]
        if record.exc_info:
            lines += map(printable, self.formatException(record.exc_info).splitlines())
        return "\n".join(lines)


def log_to_stderr() -> None:
    """Log warnings of all loggers and of Python to stderr. Does nothing if logging is already configured."""
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter())
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.captureWarnings(True)
