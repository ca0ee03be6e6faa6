"""Stand-ins for kill -9: a process that dies at its n-th write."""

from collections.abc import Callable

import pytest

from clipmill import storage

_WRITES = {
    storage: ("atomic_write", "create_bytes", "remove"),
}


class Killed(BaseException):
    """The process is gone: nothing after this runs in it."""


def kill_at_write(patch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Let `number` writes of files and removals pass, and raise `Killed` at every later one.

    Returns a function that says how many were tried.
    """
    tried = 0

    def allow() -> None:
        nonlocal tried
        tried += 1
        if tried > number:
            raise Killed

    for module, names in _WRITES.items():
        for name in names:
            real = getattr(module, name)

            def counted(*arguments: object, real: Callable[..., object] = real, **options: object) -> object:
                allow()
                return real(*arguments, **options)

            patch.setattr(module, name, counted)
    return lambda: tried
