"""The hostile corpus: its cases can be repeated, its verdicts are right, and a small run of it is clean."""

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hostile import runner
from benchmarks.hostile.containers import _boxes, _elements
from benchmarks.hostile.kinds import KINDS, kind_of
from benchmarks.hostile.mutate import mutated
from tests.media import panning, write_video

LIMITS = runner.Limits(cpu_s=1, wall_s=5, memory_bytes=100 << 20)
CONTENTS = {
    "a.json": b'{"captions": [{"text": "a", "start_s": 1.0}, "b"]}',
    "a.yaml": b"rules: {motion: {drop_lowest: 25%}}\nname: a\n",
    "a.txt": b"/a/b.mp4\n/c/d.mp4\n",
    "a.csv": b"uri,caption\n/a/b.mp4,a cat\n",
    "a.bin": bytes(range(256)),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_the_same_seed_gives_the_same_damage(name: str):
    def damage(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [mutated(rng, name, CONTENTS[name]) for _ in range(50)]

    assert damage(1) == damage(1)
    assert damage(1) != damage(2)
    assert sum(content != CONTENTS[name] for content in damage(1)) > 40


def test_boxes_and_elements_are_found_down_to_the_leaves(tmp_path: Path):
    frames = panning(height=48, pixels_per_frame=1, frames=10)
    mp4 = write_video(tmp_path / "a.mp4", frames).read_bytes()
    kinds = [mp4[box.start + 4 : box.start + 8] for box in _boxes(mp4)]
    assert {b"ftyp", b"moov", b"trak", b"mdhd", b"stsd", b"avc1", b"stsz", b"mdat"} <= set(kinds)
    assert max(box.end for box in _boxes(mp4)) == len(mp4)
    mkv = write_video(tmp_path / "a.mkv", frames).read_bytes()
    ids = {mkv[element.start : element.size_at].hex() for element in _elements(mkv)}
    assert {"1a45dfa3", "18538067", "1654ae6b", "ae", "86", "1f43b675", "a3"} <= ids


def test_every_hundred_cases_hold_every_kind_by_its_share():
    kinds = [kind_of(case) for case in range(100, 200)]
    assert {name: kinds.count(name) for name in KINDS} == {name: kind.share for name, kind in KINDS.items()}


def spin() -> int:
    while True:
        pass


def allocate() -> int:
    held = bytearray(300 << 20)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(0.2)
    return 0


@pytest.mark.slow
def test_memory_counts_from_what_the_child_starts_with(tmp_path: Path):
    """A parent full of libraries, whose pages no fork starts with, hides nothing that the child takes."""
    library = tmp_path / "library"
    library.write_bytes(b"x" * (400 << 20))
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert sum(pages[::4096]) > 0
        assert runner._forked(allocate, tmp_path, LIMITS, grouped=False)[0] == "over"


def die() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def fail() -> int:
    raise KeyError("name")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda: 0, "ok"),
        (lambda: 2, "rejected"),
        (fail, "traceback"),
        (die, "traceback"),
        (lambda: print("crashed: unexpected KeyError in a.py:3") or 0, "traceback"),
        (spin, "hang"),
        (allocate, "over"),
    ],
)
def test_the_verdict_on_a_case(read: Callable[[], Any], outcome: str, tmp_path: Path):
    assert runner._forked(read, tmp_path, LIMITS, grouped=False)[0] == outcome


@pytest.mark.slow
def test_a_small_run_is_clean(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.hostile", "--kind", "list", "--count", "12", "--work", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}  # a local Ray sets PYTHONSAFEPATH
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.pop("ok") + figures.pop("rejected") == 12
    assert figures == {"count": 12, "tracebacks": 0, "hangs": 0, "over": 0}, done.stdout
