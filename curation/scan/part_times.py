"""CPU time of the parts of a scan."""

import time

from curation.dataset.schemas import SCAN_PARTS


class PartTimes:
    """Divides the CPU time of this process between the parts of a scan: each `lap` ends a stretch of one of them."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(SCAN_PARTS, 0.0)
        self._last_s = time.process_time()

    def lap(self, part: str) -> None:
        """The time since the last lap was for this part."""
        now_s = time.process_time()
        self.seconds[part] += now_s - self._last_s
        self._last_s = now_s
