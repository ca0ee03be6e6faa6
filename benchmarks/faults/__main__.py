"""Curate, score, caption, select, shard and cache under faults, resumed until done, compared with an undisturbed run.

    python -m benchmarks.faults --seconds N [--kills K] [--seed S]

Nothing may be missing, duplicated or different. Faults: kill -9 of the driver, of a Ray worker, of a scanning child, of
the captioner's endpoint; refused, broken or slow connections to store and endpoint and HTTP 503; answers of the
endpoint that are late, cut off, sent twice, followed by another clip's, or errors; a full disk (root only). Times
between kills are random, around a fraction of the phase's undisturbed duration. Rounds repeat until N seconds have
passed and K kills are done; the last one is completed.
"""

import argparse
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.common import report
from benchmarks.faults.compare import Contents, contents, differences
from benchmarks.faults.disk import SmallDisk
from benchmarks.faults.endpoint import FaultyEndpoint
from benchmarks.faults.network import FaultyStore
from benchmarks.faults.pipeline import SOURCES, Phase, Pipeline
from benchmarks.faults.processes import clear_up, kill, victims

_MOST_ATTEMPTS, _ATTEMPT_S = 25, 600.0
_VICTIM_S, _POLL_S = 5.0, 0.05
_CALM_FROM = 12
"""From this attempt at a phase on nothing is disturbed, so that it completes."""
_KILLS_PER_RUN = {"curate": 8.0, "score": 4.0, "caption": 4.0, "select": 0.5, "shard": 5.0, "cache": 5.0}
"""Mean number of kills in the time that the phase takes undisturbed."""
_VICTIMS = ("driver", "worker", "worker", "worker", "child", "child")


class Session:
    """Counts the injected faults and their outcome."""

    def __init__(
        self, pipeline: Pipeline, store: FaultyStore, endpoint: FaultyEndpoint, disk: SmallDisk, seed: int
    ) -> None:
        self.pipeline, self.store, self.endpoint, self.disk = pipeline, store, endpoint, disk
        self.rng, self.done, self.found = random.Random(seed), Counter[str](), Counter[str]()
        self.length_s: dict[str, float] = {}

    def calm(self) -> Contents:
        """Run the pipeline once without faults, and measure its phases."""
        out = self._empty()
        for phase in self.pipeline.phases(out):
            started_s = time.monotonic()
            code = self._attempt(phase, "calm")
            if code or not phase.done():
                raise SystemExit(f"{phase.name} failed without any fault (exit code {code}): see {self._log(phase)}")
            self.length_s[phase.name] = time.monotonic() - started_s
            print(f"without faults: {phase.name} takes {self.length_s[phase.name]:.1f} s", flush=True)
        return contents(out / "dataset", out / "latents")

    def round(self, number: int, calm: Contents) -> None:
        """Run the pipeline with faults until it is done, and compare."""
        out = self._empty()
        for phase in self.pipeline.phases(out):
            for attempt in range(_MOST_ATTEMPTS):
                code = self._disturbed(phase, f"{number}-{phase.name}-{attempt}", calm=attempt >= _CALM_FROM)
                if code == 0 and phase.done():
                    break
            else:
                failed_copy = shutil.copytree(out, self.pipeline.work / "failed", dirs_exist_ok=True)
                raise SystemExit(
                    f"{phase.name} does not finish (exit code {code}): see {self._log(phase)} and {failed_copy}"
                )
        self._compare(number, calm, contents(out / "dataset", out / "latents"))

    def _disturbed(self, phase: Phase, run: str, *, calm: bool) -> int:
        kills_per_s = 0.0 if calm or self.rng.random() < 0.2 else _KILLS_PER_RUN[phase.name] / self.length_s[phase.name]
        with ExitStack() as faults:
            if not calm and self.rng.random() < 0.3 and phase.name in ("curate", "shard"):
                faults.enter_context(self.store.faulty(self.rng.choice((0.05, 0.3))))
                self.done["network"] += 1
            if not calm and phase.name == "caption" and self.rng.random() < 0.7:
                faults.enter_context(self.endpoint.faulty(self.rng.choice((0.1, 0.4))))
                self.done["endpoint"] += 1
            if not calm and self.disk.can_fill and self.rng.random() < 0.2:
                faults.enter_context(self.disk.nearly_full(self.rng.choice((0, 1 << 14, 1 << 17))))
                self.done["disk"] += 1
            return self._attempt(phase, run, kills_per_s)

    def _attempt(self, phase: Phase, run: str, kills_per_s: float = 0.0) -> int:
        """Run the command once, with kills at random times; returns its exit code, negative for a killed driver."""
        log, deadline = self._log(phase), time.monotonic() + _ATTEMPT_S
        before_bytes = log.stat().st_size if log.exists() else 0
        process = self.pipeline.start(phase, run, log)
        while kills_per_s and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.rng.expovariate(kills_per_s))
                break
            self._kill_one(process)
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.found["hangs"] += 1
            kill(process.pid)
            code = process.wait()
        clear_up(run)
        with log.open("rb") as output:
            output.seek(before_bytes)
            if b"Traceback (most recent call last)" in output.read():
                self.found["tracebacks"] += 1
                print(f"traceback: {run}, see {log} from byte {before_bytes:,} on", flush=True)
        return code

    def _kill_one(self, driver: subprocess.Popen[bytes]) -> None:
        """Kill the driver, a worker or a child; waits briefly for one to exist."""
        wanted = self.rng.choice(_VICTIMS)
        deadline = time.monotonic() + _VICTIM_S
        pids = [driver.pid] if wanted == "driver" else []
        while not pids and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            pids = [pid for pid, what in victims(driver.pid) if what == wanted]
        if pids and kill(self.rng.choice(pids)):
            self.done[wanted] += 1

    def _compare(self, number: int, calm: Contents, disturbed: Contents) -> None:
        differing = differences(calm, disturbed)
        for what in ("lost", "doubled", "different"):
            keys = getattr(differing, what)
            self.found[what] += len(keys)
            for key in keys[:10]:
                print(f"{what}: {key}", flush=True)
        kills = ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))
        connections = self.store.faults + self.endpoint.proxy.faults
        print(
            f"round {number} done; total: {kills}, {connections} faulty connections, {self.endpoint.kills} kills of "
            "the endpoint",
            flush=True,
        )

    def _empty(self) -> Path:
        for path in self.disk.folder.iterdir():
            shutil.rmtree(path)
        return self.disk.folder

    def _log(self, phase: Phase) -> Path:
        return self.pipeline.work / f"{phase.name}.log"

    @property
    def kills(self) -> int:
        return sum(self.done[what] for what in ("driver", "worker", "child"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="minimum duration")
    parser.add_argument("--kills", type=int, default=0, help="minimum number of kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sources", type=int, default=SOURCES)
    parser.add_argument("--work", type=Path, help="folder for inputs, logs and output (default: a temporary folder)")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="clipmill-faults-"))
    work.mkdir(parents=True, exist_ok=True)
    store, endpoint, disk = FaultyStore(arguments.seed), FaultyEndpoint(arguments.seed), SmallDisk(work / "out")
    try:
        pipeline = Pipeline(work, store, endpoint, sources=arguments.sources)
        session = Session(pipeline, store, endpoint, disk, arguments.seed)
        calm, started_s, number = session.calm(), time.monotonic(), 0
        while time.monotonic() - started_s < arguments.seconds or session.kills < arguments.kills:
            session.round(number, calm)
            number += 1
    finally:
        disk.close()
        endpoint.close()
        store.close()
    done, found = session.done, session.found
    figures = {"kills": session.kills, **{what: found[what] for what in ("lost", "doubled", "different")}}
    figures |= {"tracebacks": found["tracebacks"], "hangs": found["hangs"], "rounds": number}
    figures |= {"endpoint_kills": endpoint.kills, "faulty_connections": store.faults + endpoint.proxy.faults}
    rows = [(what, done[what]) for what in ("driver", "worker", "child", "network", "endpoint", "disk")]
    rows.append(("kills of the endpoint", endpoint.kills))
    title = f"faults over {arguments.sources} sources, seed {arguments.seed}, full disk: "
    report(title + ("tmpfs" if disk.can_fill else "none, only root can mount one"), ("fault", "times"), rows, figures)


if __name__ == "__main__":
    main()
