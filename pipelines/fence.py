"""Ownership of a folder: one run at a time writes into it.

`run.json` names the owner: host, process, start. Every task reads it before it commits, so only the run that wrote it
last can commit. `heartbeat.json`, rewritten every few seconds, shows runs on other hosts that the owner is alive. They
are separate files so that a heartbeat never overwrites a change of owner.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clipmill import storage
from clipmill.errors import RunStopped, Superseded, UserError

RUN_FILE, HEARTBEAT_FILE = "run.json", "heartbeat.json"
_BEAT_EVERY_S = 15.0
_POLL_S = 1.0
_DEAD_AFTER_S = 120.0
"""Age in seconds after which the heartbeat of an owner on another host has expired: eight missed beats. Tolerates clock
skew below that.
"""


@dataclass(frozen=True, kw_only=True)
class Fence:
    """The right of one run to commit into a folder. Sent to tasks on any node."""

    url: str
    """Independent of the working directory: local paths are absolute."""
    run: str

    def check(self) -> None:
        """Raise Superseded if another run owns the folder."""
        owner = _read(self.url, RUN_FILE)
        if owner.get("run") != self.run:
            raise Superseded(f"another run now owns {self.url} ({_named(owner)}); stopping. Committed work is kept.")


@contextmanager
def owned(url: str, *, take_over: bool = False) -> Iterator[Fence]:
    """Own the folder `url` for the duration of the block, with a heartbeat.

    A dead owner is replaced silently. Raises UserError for a live one, unless `take_over`, which stops that run at its
    next commit.
    """
    if not take_over:
        refuse_if_running(url)
    url = storage.address(*storage.filesystem(url))  # tasks have another working directory
    fence = Fence(url=url, run=uuid.uuid4().hex)
    owner = {"run": fence.run, "host": socket.gethostname(), "pid": os.getpid(), "process": _process(os.getpid())}
    _write(url, RUN_FILE, owner | {"since": _now().isoformat()})
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(fence, over), daemon=True, name="clipmill-heartbeat")
    beats.start()
    try:
        yield fence
    finally:
        over.set()
        beats.join()
        with suppress(Exception):  # the error that ended the block takes precedence
            fence.check()
            _write(url, HEARTBEAT_FILE, {"run": fence.run, "beat": _now().isoformat(), "ended": True})


def refuse_if_running(url: str) -> None:
    """Raise UserError if a live run owns the folder."""
    live = _live_owner(url)
    if live is not None:
        raise live.in_use(url)


def refuse_unless_silent(url: str, waiting: Callable[[str], None]) -> None:
    """As `refuse_if_running`, but wait until the heartbeat of a run on another machine expires, unless it beats again.

    For runs that a scheduler restarts on another node within seconds of the death of the first. `waiting` is told why.
    """
    first = _live_owner(url)
    if first is not None and not first.here:
        waiting(f"waiting for signs of life of the run that owns {url} ({_named(first.owner)})")
    while (live := _live_owner(url)) is not None:
        if live.here or first is None or live.beat != first.beat:
            raise live.in_use(url)
        time.sleep(_POLL_S)


@dataclass(frozen=True, kw_only=True)
class _LiveOwner:
    """A run that owns a folder and may be alive."""

    owner: dict[str, Any]
    beat: dict[str, Any]
    """Its last heartbeat."""
    here: bool
    """Whether it runs on this machine; then it is alive."""
    silent_s: float

    def in_use(self, url: str) -> UserError:
        seen = "" if self.here else f", last heartbeat {max(0.0, self.silent_s):.0f} s ago"
        return UserError(
            f"{url} is in use by another run ({_named(self.owner)}{seen}). Wait for it to finish, or pass --take-over "
            "to stop it at its next commit and continue here."
        )


def _live_owner(url: str) -> _LiveOwner | None:
    owner = _read(url, RUN_FILE)
    if not owner:
        return None
    beat = _read(url, HEARTBEAT_FILE)
    beat = beat if beat.get("run") == owner.get("run") else {}
    if beat.get("ended"):
        return None
    silent_s = min(_age_s(owner.get("since")), _age_s(beat.get("beat")))
    here = _same_machine(owner)
    lives = _process_lives(owner) if here else silent_s < _DEAD_AFTER_S
    return _LiveOwner(owner=owner, beat=beat, here=here, silent_s=silent_s) if lives else None


def _beat(fence: Fence, over: threading.Event) -> None:
    while True:
        try:
            fence.check()
            _write(fence.url, HEARTBEAT_FILE, {"run": fence.run, "beat": _now().isoformat()})
        except RunStopped:
            return
        except UserError:
            pass  # a transient store error; if it persists, the run's own writes will report it
        if over.wait(_BEAT_EVERY_S):
            return


def _read(url: str, name: str) -> dict[str, Any]:
    """The content of the file; {} if it is missing or not one of ours."""
    fs, folder = storage.filesystem(url)
    try:
        written = storage.read_bytes(fs, f"{folder}/{name}")
    except FileNotFoundError:
        return {}
    try:
        content = json.loads(written)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(url: str, name: str, content: dict[str, Any]) -> None:
    fs, folder = storage.filesystem(url)
    storage.write_json(fs, f"{folder}/{name}", content)


def _now() -> datetime:
    return datetime.now(UTC)


def _age_s(moment: Any) -> float:
    try:
        return (_now() - datetime.fromisoformat(moment)).total_seconds()
    except (TypeError, ValueError):
        return float("inf")


def _named(owner: dict[str, Any]) -> str:
    """Host, process and start, for messages."""
    since = str(owner.get("since", "an unknown time"))[:19].replace("T", " ")
    return f"on {owner.get('host', 'an unknown host')}, pid {owner.get('pid', 'unknown')}, since {since} UTC"


def _process(pid: int) -> dict[str, str] | None:
    """Identifies a process across reboots: boot id, process namespace, start in clock ticks; None if it has exited."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    return None if state in "ZX" else {"machine": f"{boot} {namespace}", "started": fields[18]}


def _same_machine(owner: dict[str, Any]) -> bool:
    process, this_process = owner.get("process"), _process(os.getpid())
    return isinstance(process, dict) and this_process is not None and process.get("machine") == this_process["machine"]


def _process_lives(owner: dict[str, Any]) -> bool:
    pid = owner.get("pid")
    return isinstance(pid, int) and _process(pid) == owner["process"]
