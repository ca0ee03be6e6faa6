"""What fault injection stands on: a store that misbehaves when told to, a disk that fills, and an honest comparison."""

import errno
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import proxy
from benchmarks.faults.compare import Differences, differences
from benchmarks.faults.disk import SmallDisk
from benchmarks.faults.endpoint import FaultyEndpoint
from benchmarks.faults.network import FaultyStore
from benchmarks.faults.processes import MARK, clear_up, victims
from curation.captioners.endpoint import VideoCaptioner, VideoConfig
from curation.scores.base import ClipView


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyStore]:
    started = FaultyStore(seed=1)
    yield started
    started.close()


def ask(store: FaultyStore) -> bytes:
    """The bytes of an answer. Raises OSError or HTTPException where there is none, or not all of it."""
    with urllib.request.urlopen(f"{store.endpoint}/moto-api/", timeout=10) as answer:
        content: bytes = answer.read()
        return content


def test_a_store_without_faults_answers(store: FaultyStore):
    assert len(ask(store)) > 8_000
    assert store.faults == 0


@pytest.mark.parametrize("fault", ["refused", "unavailable", "broken", "slow"])
def test_a_fault_is_seen_by_the_client_and_ends_with_the_block(
    store: FaultyStore, fault: str, monkeypatch: pytest.MonkeyPatch
):
    whole = ask(store)
    monkeypatch.setattr(proxy, "_FAULTS", (fault,))
    with store.faulty(1.0):
        if fault == "slow":
            assert ask(store) == whole
        else:
            with pytest.raises((OSError, HTTPException)):
                ask(store)
    assert ask(store) == whole


def test_a_full_disk_has_the_room_that_was_asked_for_and_then_no_more(tmp_path: Path):
    disk = SmallDisk(tmp_path / "out")
    if not disk.can_fill:
        pytest.skip("only root can mount a tmpfs")
    try:
        with disk.nearly_full(1 << 14):
            (disk.folder / "fits").write_bytes(b"x" * (1 << 14))
            with pytest.raises(OSError, match="No space left") as full:
                (disk.folder / "does-not").write_bytes(b"x" * (1 << 14))
            assert full.value.errno == errno.ENOSPC
        (disk.folder / "fits-later").write_bytes(b"x" * (1 << 14))
    finally:
        disk.close()
    assert not list(disk.folder.iterdir())


def test_what_is_lost_doubled_or_different_is_named():
    calm = {"clips": [("a", "1"), ("b", "2"), ("c", "3")], "latents": [("x", "9")]}
    disturbed = {"clips": [("b", "2"), ("b", "2"), ("c", "4"), ("d", "5")], "latents": [("x", "9")]}
    assert differences(calm, calm) == Differences(lost=(), doubled=(), different=())
    assert differences(calm, disturbed) == Differences(
        lost=("clips: a",), doubled=("clips: b",), different=("clips: c", "clips: d")
    )


def test_processes_of_a_run_are_cleared_up_by_their_mark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.faults.processes._LEFTOVERS_S", 0.0)
    script = "import time; print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {MARK: "a run"}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert victims(process.pid) == []
    clear_up("another run")
    assert process.poll() is None
    clear_up("a run")
    assert process.wait(10) == -9


def test_an_endpoint_is_killed_and_wrong_until_the_end_of_the_block():
    """And what a captioner makes of it is the caption of the clip, or an error."""
    pictures = [np.full((32, 32, 3), 12 * i, np.uint8) for i in range(20)]
    clips = [ClipView(thumbnails=(picture,)) for picture in pictures]
    endpoint = FaultyEndpoint(seed=2)
    try:
        settings = endpoint.config() | {"frames": None, "pause_s": 0.2}

        def captions() -> list[str | None]:
            captioner = VideoCaptioner(VideoConfig.from_values(settings, origin="test"))
            captioner.load()
            return [caption.text for caption in captioner.caption(clips)]

        calm = captions()
        assert len({text for text in calm if text}) == len(clips)
        with endpoint.faulty(0.5):
            disturbed = [captions() for _ in range(4)]
        assert {text for run in disturbed for text in run} - {*calm, None} == set()
        assert all(text in (None, calm[i]) for run in disturbed for i, text in enumerate(run))
        assert sum(text is None for run in disturbed for text in run) > 0
        assert endpoint.kills > 0
        assert captions() == calm
    finally:
        endpoint.close()
