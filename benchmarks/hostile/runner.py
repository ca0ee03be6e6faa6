"""Run one case at a time in a forked process with limits, and classify the outcome.

Outcomes: ok; rejected (an exit code or an error message); traceback (any other exception, or a fatal signal); hang (too
much time); over (too much memory).
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import memory_bytes
from benchmarks.hostile.kinds import KINDS, Command, command_of, kind_of, make_case
from benchmarks.hostile.originals import clipmill
from benchmarks.hostile.readers import UNEXPECTED

OUTCOMES = ("ok", "rejected", "traceback", "hang", "over")
_TRACEBACK_EXIT, _POLL_S = 70, 0.02
_FACTOR_OVER = 4
"""Multiple of the memory limit at which the kernel stops a case that allocates faster than it is polled."""
_GROUP_FACTOR = 4
"""A group of cases may take this many times as long as one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for one case."""

    cpu_s: float = 60.0
    wall_s: float = 180.0
    memory_bytes: int = 1 << 30
    """In addition to what the process had when it was forked; library pages it touches first count."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Outcome of a case."""

    case: int
    kind: str
    damaged: str
    outcome: str
    detail: str = ""


def run_cases(cases: Sequence[int], seed: int, originals: Path, work: Path, limits: Limits) -> Iterator[Verdict]:
    """Run cases in order; those of one kind that are read together are grouped. Failures keep their folder."""
    waiting: dict[str, list[int]] = {}
    for case in cases:
        group = waiting.setdefault(kind_of(case), [])
        group.append(case)
        if len(group) == KINDS[kind_of(case)].group:
            yield from _run(waiting.pop(kind_of(case)), seed, originals, work, limits)
    for group in waiting.values():
        yield from _run(group, seed, originals, work, limits)


def _run(group: list[int], seed: int, originals: Path, work: Path, limits: Limits) -> Iterator[Verdict]:
    """Verdicts on cases that are read together; a failing group is bisected to find the case."""
    kind, folder = kind_of(group[0]), work / "cases" / f"{group[0]:06d}"
    logs, grouped = folder.with_name(f"{folder.name}-logs"), KINDS[kind].group > 1
    folders = (folder, logs, folder.with_name(f"{folder.name}-dataset"))
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    logs.mkdir(parents=True)
    damaged = [make_case(case, seed, originals, folder) for case in group]
    command = command_of(group[0], seed)
    outcome, detail = _forked(lambda: _read(command, folder, originals), logs, limits, grouped=grouped)
    failed = outcome in OUTCOMES[2:]
    if failed and len(group) > 1:
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            yield from _run(half, seed, originals, work, limits)
        return
    if grouped and not failed:
        reasons = _reasons(logs / "stdout")
        verdicts = [_of_row(case, kind, name, reasons) for case, name in zip(group, damaged, strict=True)]
    else:
        verdicts = [Verdict(case=group[0], kind=kind, damaged=damaged[0], outcome=outcome, detail=detail)]
    yield from verdicts
    _put_away(folders, work / "failures", keep=any(verdict.outcome in OUTCOMES[2:] for verdict in verdicts))


def _put_away(folders: Sequence[Path], failures: Path, *, keep: bool) -> None:
    failures.mkdir(exist_ok=True)
    for path in folders:
        shutil.rmtree(failures / path.name, ignore_errors=True)
        if keep and path.exists():
            shutil.move(path, failures)
        shutil.rmtree(path, ignore_errors=True)


def _read(command: Command, case: Path, originals: Path) -> int:
    """Run the command; returns its exit code, as a shell would report it."""
    if callable(command):
        from clipmill.errors import SourceError, UserError

        try:
            return command(case, originals)
        except (UserError, SourceError) as error:  # what the command line prints
            print(error, file=sys.stderr)
            return 2
    return clipmill(*(word.format(case=case, originals=originals) if word[:1] == "{" else word for word in command))


def _forked(read: Callable[[], int], logs: Path, limits: Limits, *, grouped: bool) -> tuple[str, str]:
    """Run `read` in a child process; returns (outcome, detail)."""
    sys.stdout.flush()
    factor = _GROUP_FACTOR if grouped else 1
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        # Measured here: a fork starts without the pages of libraries that its parent has.
        os.write(sender, b"%d" % memory_bytes("VmRSS"))
        os.close(sender)
        os._exit(_child(read, logs, limits, factor))
    os.close(sender)
    with open(receiver, "rb") as from_child:
        before_bytes = int(from_child.read(32) or 0)
    deadline, cpu_end_s = time.monotonic() + factor * limits.wall_s, factor * limits.cpu_s
    outcome = ""
    while not outcome:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        peak_bytes = usage.ru_maxrss * 1024 if pid else memory_bytes(pid=child)
        if peak_bytes - before_bytes > limits.memory_bytes:
            outcome = "over"
        elif pid:
            break
        elif time.monotonic() > deadline or _cpu_s(child) > cpu_end_s:
            outcome = "hang"
        else:
            time.sleep(_POLL_S)
    if not pid:
        _kill_group(child)
        os.waitpid(child, 0)
    stderr = (logs / "stderr").read_text(errors="replace")
    last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")[:300]
    if outcome:
        return outcome, f"{(peak_bytes - before_bytes) / 2**20:.0f} MiB; {last}"
    if os.WIFSIGNALED(status):
        return "traceback", f"killed by {signal.Signals(os.WTERMSIG(status)).name}; {last}"
    code = os.waitstatus_to_exitcode(status)
    printed = (
        stderr if grouped else stderr + (logs / "stdout").read_text(errors="replace")
    )  # rows are judged one by one
    if code == _TRACEBACK_EXIT or UNEXPECTED.search(printed):
        return "traceback", last
    return ("rejected" if code else "ok"), f"exit {code}: {last}" if code else ""


def _child(read: Callable[[], int], logs: Path, limits: Limits, factor: int) -> int:
    os.setpgid(0, 0)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        opened = os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        setattr(sys, name, open(descriptor, "w", errors="backslashreplace", closefd=False))  # noqa: SIM115
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    used_s = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used_s + int(factor * limits.cpu_s) + 60,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most_bytes = memory_bytes("VmData") + _FACTOR_OVER * limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    try:
        return read()
    except BaseException:
        traceback.print_exc()
        return _TRACEBACK_EXIT
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _kill_group(child: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _reasons(printed: Path) -> dict[str, str]:
    """Case -> reason for its rejection, from the JSON lines that a group prints."""
    rows = (json.loads(line) for line in printed.read_text().splitlines() if line.startswith('{"case"'))
    return {row["case"]: row["reason"] for row in rows}


def _of_row(case: int, kind: str, damaged: str, reasons: Mapping[str, str]) -> Verdict:
    reason = reasons.get(f"{case:06d}", "it has no row")
    outcome = "traceback" if UNEXPECTED.search(reason) else "rejected" if reason else "ok"
    return Verdict(case=case, kind=kind, damaged=damaged, outcome=outcome, detail=reason[:300])
