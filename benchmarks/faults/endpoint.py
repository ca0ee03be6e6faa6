"""A captioner's endpoint in a process of its own that is killed, slow, late, cut off and wrong.

    python -m benchmarks.faults.endpoint SHARE SEED   # serves until it is killed; prints its address first

A caption is a digest of the pictures of its request: the same for a clip in every run, and another for every clip.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.proxy import FaultyProxy
from tests.caption_server import CaptionServer, Reply, refuses, says

_ROOT = Path(__file__).parents[2]
TIMEOUT_S = 2.0
"""That of requests."""
_USAGE = {"prompt_tokens": 1000, "completion_tokens": 20}
_FAULTS = ("late", "slow", "cut", "half", "twice", "other", "refusal", "busy", "limit", "broken")
_UP_S, _DOWN_S = (0.5, 3.0), (0.2, 1.5)
"""How long a server lives, and how long none is there after it was killed."""


class FaultyEndpoint:
    """An endpoint at `url`, without faults outside of `faulty`. `kills` counts those of its server."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.kills = 0
        self.proxy = FaultyProxy(("127.0.0.1", 0), seed)
        self.url = f"{self.proxy.endpoint}/v1"
        self._start(0.0)

    def config(self) -> dict[str, Any]:
        """Settings of the captioner `video` that lose little time to faults."""
        return {
            "base_url": self.url, "model": "m", "frames": 4, "long_side_px": 96, "timeout_s": TIMEOUT_S, "retries": 2,
            "max_in_flight": 6, "give_up_after": 4, "pause_s": 1.0,
        }  # fmt: skip

    @contextmanager
    def faulty(self, share: float) -> Iterator[None]:
        """Within the block, `share` of the answers are faulty, as many connections fail, and the server is killed."""
        self._restart(share)
        over = threading.Event()
        killing = threading.Thread(target=self._kill_repeatedly, args=(share, over))
        killing.start()
        try:
            with self.proxy.faulty(share):
                yield
        finally:
            over.set()
            killing.join()
            self._restart(0.0)

    def close(self) -> None:
        """Stop the server and the proxy."""
        self.proxy.close()
        self._kill()

    def _kill_repeatedly(self, share: float, over: threading.Event) -> None:
        while not over.wait(self._rng.uniform(*_UP_S)):
            self._kill()
            self.kills += 1
            over.wait(self._rng.uniform(*_DOWN_S))
            self._start(share)

    def _restart(self, share: float) -> None:
        self._kill()
        self._start(share)

    def _kill(self) -> None:
        self._server.kill()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def _start(self, share: float) -> None:
        command = [sys.executable, "-m", "benchmarks.faults.endpoint", str(share), str(self._rng.randrange(1 << 30))]
        # A local Ray sets PYTHONSAFEPATH: what the working directory is makes no difference then.
        environment = os.environ | {"PYTHONPATH": str(_ROOT)}
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._server.stdout is not None
        host, _, port = self._server.stdout.readline().strip().rpartition("/v1")[0].rpartition("/")[2].partition(":")
        self.proxy.behind = (host, int(port))


class Faulty:
    """Answers of which `share` are faulty."""

    def __init__(self, share: float, seed: int) -> None:
        self._share, self._rng, self._lock = share, random.Random(seed), threading.Lock()
        self._last = "a clip that nobody asked for"

    def __call__(self, request: dict[str, Any]) -> Reply:
        text = caption_of(request)
        with self._lock:
            fault = self._rng.choice(_FAULTS) if self._rng.random() < self._share else ""
            delay_s = self._rng.uniform(0.02, 0.1)
            before, self._last = self._last, text
        return _reply(fault, text, before, delay_s)


def caption_of(request: dict[str, Any]) -> str:
    """The caption of the pictures in a request."""
    parts = request["messages"][0]["content"]
    pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return f"clip {hashlib.sha256(json.dumps(pictures).encode()).hexdigest()[:16]}"


def _reply(fault: str, text: str, before: str, delay_s: float) -> Reply:
    good = says(text, usage=_USAGE, delay_s=delay_s)
    faulty = {
        "late": says(text, usage=_USAGE, delay_s=TIMEOUT_S + delay_s),
        "slow": says(text, usage=_USAGE, delay_s=0.6 * TIMEOUT_S),
        "cut": says(text, usage=_USAGE, sent_share=0.6),
        "half": Reply(body=good.body[: len(good.body) // 2], delay_s=delay_s),
        "twice": says(text, usage=_USAGE, followed_by=good),
        "other": says(text, usage=_USAGE, followed_by=says(before, usage=_USAGE)),
        "refusal": says(None, refusal="not this one", usage=_USAGE),
        "busy": refuses(503, headers={"retry-after": "1"}),
        "limit": refuses(429, headers={"retry-after": "1"}),
        "broken": Reply(body=b"<html>proxy error</html>", status=500),
    }
    return faulty.get(fault, good)


def main() -> None:
    with CaptionServer(Faulty(float(sys.argv[1]), int(sys.argv[2]))) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main()
