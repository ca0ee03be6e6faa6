"""CPU time of the parts of a scan."""

import time

from curation.dataset.schemas import SCAN_PARTS


class PartTimes:
    """Divides the CPU time of this process between the parts of a scan: each `lap` ends a stretch of one of them.

    Laps are taken by the clock on the wall, and the CPU time is divided in their proportion. To ask the kernel for CPU
    time several times per frame was 10 % of a scan, measured on a virtual machine.
    """

    def __init__(self) -> None:
        self._clock_s = dict.fromkeys(SCAN_PARTS, 0.0)
        self._last_s = self._started_s = time.perf_counter()
        self._started_cpu_s = time.process_time()

    def lap(self, part: str) -> None:
        """The time since the last lap was for this part."""
        now_s = time.perf_counter()
        self._clock_s[part] += now_s - self._last_s
        self._last_s = now_s

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each part since the start; time without a lap since is of none."""
        cpu_s, clock_s = time.process_time() - self._started_cpu_s, time.perf_counter() - self._started_s
        return {part: cpu_s * self._clock_s[part] / max(clock_s, 1e-9) for part in SCAN_PARTS}
