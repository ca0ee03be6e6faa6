"""Messages between a process and an untrusted child: length-prefixed MessagePack.

The parent sends a pickled call. It never unpickles the response, which is limited in size and time, consists of plain
values, and is converted to the declared return type of the called function.
"""

import dataclasses
import socket
import struct
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_type_hints

import msgpack
import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from clipmill.errors import ERROR_KINDS, RunStopped, SourceError, UserError

_LENGTH = struct.Struct("!Q")
_READ_BYTES = 1 << 20
_SOURCE_ERROR_CODE = 1
"""MessagePack extension type of a SourceError."""
MOST_ITEMS = 1 << 21
"""In one list or mapping: six hours at 60 frames per second are 1.3 million frames."""


class TooLong(Exception):
    """A message larger than the receiver's limit."""


class NotUnderstood(Exception):
    """An invalid response: the sender can no longer be trusted."""


def send(connection: socket.socket, content: bytes) -> None:
    """Send one message. Raises OSError (ConnectionError, TimeoutError) like the socket."""
    connection.sendall(_LENGTH.pack(len(content)))
    connection.sendall(content)


def receive(connection: socket.socket, *, max_bytes: int, timeout_s: float | None = None) -> bytes:
    """Receive one complete message.

    Raises TimeoutError after the deadline, EOFError if the other side closed the connection, TooLong, OSError.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    (length,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size, deadline_s))
    if length > max_bytes:
        raise TooLong(length)
    return bytes(_receive_exactly(connection, length, deadline_s))


def _receive_exactly(connection: socket.socket, length: int, deadline_s: float | None) -> bytearray:
    content = bytearray()
    while len(content) < length:
        remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
        if remaining_s is not None and remaining_s <= 0:
            raise TimeoutError
        connection.settimeout(remaining_s)
        block = connection.recv(min(_READ_BYTES, length - len(content)))
        if not block:
            raise EOFError
        content += block
    return content


def encode_value(value: Any) -> bytes:
    """Encode a return value: plain values, dataclasses, NumPy scalars and SourceErrors. Raises TypeError."""
    return _packed({"value": value})


def encode_error(error: SourceError | UserError) -> bytes:
    """Encode one of our own exceptions with its message."""
    if isinstance(error, SourceError):
        return _packed({"source_error": error})
    kind = "run_stopped" if isinstance(error, RunStopped) else "user_error"
    return _packed({kind: _printable(str(error))})


def decode(content: bytes, function: Callable[..., Any]) -> Any:
    """Decode the value that `function` returned, as its declared type. Raises the error that it raised.

    Raises NotUnderstood for anything else.
    """
    try:
        answer = msgpack.unpackb(
            content,
            ext_hook=_extension,
            max_array_len=MOST_ITEMS,
            max_map_len=MOST_ITEMS,
            strict_map_key=True,
        )
        ((kind, payload),) = answer.items()
    except Exception as error:  # whatever a parser may raise on bytes that were made to break it
        raise NotUnderstood(f"{type(error).__name__}: {error}") from error
    if kind == "source_error" and isinstance(payload, SourceError):
        raise payload
    if kind in ("user_error", "run_stopped") and isinstance(payload, str):
        raise (RunStopped if kind == "run_stopped" else UserError)(payload)
    if kind != "value":
        raise NotUnderstood(f"an answer of kind {str(kind)[:40]!r}")
    try:
        return _returned_by(function).validate_python([payload])[0]
    except ValidationError as error:
        raise NotUnderstood(f"not what {function.__qualname__} returns: {error.errors()[0]['msg']}") from error


@lru_cache(maxsize=64)
def _returned_by(function: Callable[..., Any]) -> TypeAdapter[Any]:
    """For a list of one: pydantic takes no configuration beside a bare dataclass."""
    returned: Any = get_type_hints(function)["return"]
    return TypeAdapter(list[returned], config=ConfigDict(arbitrary_types_allowed=True))


def _packed(value: Any) -> bytes:
    content: bytes = msgpack.packb(value, default=_plain)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, SourceError):
        return msgpack.ExtType(_SOURCE_ERROR_CODE, msgpack.packb([value.kind, _printable(value.message)]))
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} cannot be sent to another process")


def _extension(code: int, content: bytes) -> SourceError:
    kind, message = msgpack.unpackb(content)
    if code != _SOURCE_ERROR_CODE or kind not in ERROR_KINDS or not isinstance(message, str):
        raise ValueError(f"extension {code}")
    return SourceError(kind, message)


def _printable(text: str) -> str:
    """Without halves of characters, which a sentence about a file name may hold."""
    return text.encode("utf-8", "backslashreplace").decode()
