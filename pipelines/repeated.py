"""Work that is repeated in a thread beside a run."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(work: Callable[[], object], *, every_s: float, name: str, once_more: bool = False) -> Iterator[None]:
    """Call `work` in a daemon thread every `every_s` seconds until the block ends; with `once_more` also then. It must
    not raise.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            work()
        if once_more:
            work()

    thread = threading.Thread(target=repeat, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
